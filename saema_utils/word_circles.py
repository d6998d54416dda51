"""Words that form a cycle, and whether a representation keeps them in a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .clouds import check_points, pairwise_distances
from .concept_geometry import ConceptClouds, centred_by_template
from .concepts import WORDS
from .geometry import poles
from .prompt_resamples import dropped_prompts
from .topology import betti_numbers, circularity, cyclic_score, hole_ratios, persistence, plane_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

NAN = float("nan")
CYCLES: dict[str, tuple[str, ...]] = {
    "year": WORDS["months"],
    "week": WORDS["days"],
    "zodiac": WORDS["constellations"],
    "hue": ("red", "orange", "yellow", "green", "cyan", "blue", "indigo", "violet", "purple", "magenta"),
}
OPEN_CYCLES = ("hue",)  # no fixed number of members: the places are those of the words present
MIN_MEMBERS = 5


def cycle_of(words: Sequence[str]) -> tuple[str, Int[np.ndarray, " W"], int] | None:
    """The cycle that words belong to: its name, each word's place (-1 for a word outside), its length.

    None unless at least five words belong to one cycle. Which cycle is decided by the words, so that a
    reader's own prompts are recognised too.
    """
    best: tuple[str, np.ndarray, int] | None = None
    for name, members in CYCLES.items():
        place_of = {member.lower(): place for place, member in enumerate(members)}
        places = np.array([place_of.get(word.lower(), -1) for word in words])
        found = places >= 0
        if found.sum() < MIN_MEMBERS or len(set(places[found])) < found.sum():
            continue
        period = len(members)
        if name in OPEN_CYCLES:
            places[found] = np.argsort(np.argsort(places[found]))
            period = int(found.sum())
        if best is None or found.sum() > (best[1] >= 0).sum():
            best = name, places, period
    return best


def circle_rows(
    clouds: ConceptClouds, representation: str, *, n_resamples: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ``04_circles`` (one) and ``04_circle_points`` (one a word); none if the words form no cycle.

    ``low`` and ``high`` span the middle 95 % of scores that each left a fifth of the prompts out: a
    range for how much the picture hangs on single sentences, not a confidence interval.
    """
    cycle = cycle_of(clouds.words)
    if cycle is None:
        return [], []
    name, places, period = cycle
    member = places[clouds.prompt_words] >= 0
    # What the sentences share is taken off first, or leaving one out would move its words only.
    x = _compact(centred_by_template(clouds.word_vectors[representation], clouds.templates)[0])[member]
    labels = clouds.prompt_words[member]
    order = places[np.unique(labels)]
    centres = poles(x, labels)
    found = circularity(centres, order, period=period, seed=seed)
    scores = []
    for keep in dropped_prompts(len(labels), n_resamples, seed):
        part = poles(x[keep], labels[keep])
        if len(part) >= 4:
            scores.append(cyclic_score(plane_of(part)[0], places[np.unique(labels[keep])], period))
    low, high = np.quantile(scores, [0.025, 0.975]) if scores else (NAN, NAN)
    distances = pairwise_distances(centres)
    diagrams = persistence(None, 1, distances=distances)
    scale = diagrams[0][:, 1][np.isfinite(diagrams[0][:, 1])].max(initial=0.0)
    head = {"concept": clouds.concept, "cycle": name, "representation": representation}
    row = head | {
        "n_words": found.n, "period": period, "score": found.score, "low": low, "high": high, "p_value": found.p_value,
        "distance_score": found.distance_score, "distance_p_value": found.distance_p_value,
        "variance_share": found.variance_share, "betti1": int(betti_numbers(None, 1, distances=distances)[1]),
        "betti1_plane": int(betti_numbers(found.plane, 1)[1]),
        "loop_ratio": float(hole_ratios(diagrams[1], scale).max(initial=0.0)), "reason": found.reason,
    }  # fmt: skip
    members = [clouds.words[w] for w in np.unique(labels)]
    points = [
        head | {"word": word, "place": int(place), "x": float(xy[0]), "y": float(xy[1])}
        for word, place, xy in zip(members, order, found.plane, strict=True)
    ]
    return [row], points


def _compact(vectors: Float[Tensor, "P F"]) -> Float[np.ndarray, "P P"]:
    """The same configuration in as few coordinates as there are vectors: an exact rotation."""
    x = check_points(vectors)
    u, s, _ = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    return (u * s).cpu().numpy()
