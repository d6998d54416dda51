"""Words that form a cycle, and whether a representation keeps them in a circle."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.distances import check_points, known_distances, pairwise_distances
from saema_utils.errors import ActivationError, GeometryError
from saema_utils.geometry.clouds import check_labels
from saema_utils.geometry.concept import ConceptClouds, centred_by_template
from saema_utils.geometry.pole_measures import poles
from saema_utils.geometry.resamples import dropped_prompts
from saema_utils.geometry.topology import betti_numbers, hole_ratios, persistence
from saema_utils.text.concepts import WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from saema_utils.distances import Points
    from saema_utils.model.residual_stream import ConceptActivations
    from saema_utils.text.concepts import ConceptPrompts

NAN = float("nan")
CYCLES: dict[str, tuple[str, ...]] = {
    "year": WORDS["months"],
    "week": WORDS["days"],
    "zodiac": WORDS["constellations"],
    "hue": ("red", "orange", "yellow", "green", "cyan", "blue", "indigo", "violet", "purple", "magenta"),
}
OPEN_CYCLES = ("hue",)  # no fixed number of members: the places are those of the words present
MIN_MEMBERS = 5
EXACT_WORDS = 8  # up to 8! orders are all tried; more are sampled


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
        "n_words": found.n,
        "period": period,
        "score": found.score,
        "low": low,
        "high": high,
        "p_value": found.p_value,
        "distance_score": found.distance_score,
        "distance_p_value": found.distance_p_value,
        "variance_share": found.variance_share,
        "betti1": int(betti_numbers(None, 1, distances=distances)[1]),
        "betti1_plane": int(betti_numbers(found.plane, 1)[1]),
        "loop_ratio": float(hole_ratios(diagrams[1], scale).max(initial=0.0)),
        "reason": found.reason,
    }
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


def word_means(activations: ConceptActivations) -> Float[Tensor, "W D"]:
    """Mean vector of each word over its prompts, in the order of ``prompts.words``.

    Where :func:`same_sentences` holds, what differs between two means is the word. A prompt whose word
    tokens are all sinks is left out; a word that has no other prompt gets NaN.
    """
    vectors, words = activations.word_vectors(), activations.prompt_words
    return torch.stack([vectors[words == i].nanmean(0) for i in range(len(activations.prompts.words))])


def same_sentences(prompts: ConceptPrompts) -> bool:
    """Whether every word stands in the same sentences, so that they cancel in differences of word means."""
    around: dict[str, list[tuple[str, str]]] = {word: [] for word in prompts.words}
    for prompt in prompts.prompts:
        start, end = prompt.span
        around[prompt.word].append((prompt.text[:start], prompt.text[end:]))
    first, *others = map(sorted, around.values())
    return all(sentences == first for sentences in others)


@any_numbers
def principal_plane(points: Float[Tensor, "W D"], k: int = 2) -> tuple[Float[Tensor, "W k"], float]:
    r"""Coordinates in the first ``k`` principal components, and the share of the variance they hold.

    .. math:: X - \bar X = U \Sigma V^\top, \quad \text{coordinates } U_k \Sigma_k, \quad
              \text{share } \sum_{i \le k} \sigma_i^2 / \sum_i \sigma_i^2

    A component's sign is arbitrary; it is fixed so that its entry of largest size is positive.

    Raises
    ------
    ActivationError
        If there are fewer than ``k + 1`` points, or they all coincide.
    """
    if len(points) <= k:
        raise ActivationError(f"{len(points)} points do not span {k} components; at least {k + 1} are needed.")
    centred = points.double() - points.double().mean(0)
    u, sigma, _ = torch.linalg.svd(centred, full_matrices=False)
    total = float(sigma.square().sum())
    if not total > 0:
        raise ActivationError("all points coincide (or are not finite), so that they have no principal plane.")
    coordinates = (u * sigma)[:, :k]
    largest = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True))
    coordinates = coordinates * torch.where(largest < 0, -1.0, 1.0)
    return coordinates.to(points.dtype), float(sigma[:k].square().sum()) / total


@any_numbers
def variance_shares(points: Float[Tensor, "N D"], k: int) -> Float[Tensor, " k"]:
    """Share of the variance that the first 1, 2, ..., ``k`` principal components hold together."""
    centred = points.double() - points.double().mean(0)
    spectrum = torch.linalg.svdvals(centred).square()
    if not float(spectrum.sum()) > 0:
        raise ActivationError("all points coincide (or are not finite), so that they have no variance to share out.")
    return (spectrum.cumsum(0) / spectrum.sum())[:k]


def places_around(plane: Float[Tensor, "W 2"]) -> np.ndarray:
    """Rank of each word's angle about the centre of the plane: 0 to W - 1, anticlockwise."""
    x, y = (np.asarray(plane, dtype=float) - np.asarray(plane, dtype=float).mean(0)).T
    place = np.empty(len(x), dtype=int)
    place[np.argsort(np.arctan2(y, x), kind="stable")] = np.arange(len(x))
    return place


@any_numbers
def cyclic_order(places: np.ndarray) -> float:
    """Share of neighbouring words (the last and first too) that are neighbours around the centre.

    Takes what :func:`places_around` gives. 1 where the words stand around the centre in their order, in
    either direction and from any start; shuffled words reach ``2 / (W - 1)`` on average.

    Raises
    ------
    ActivationError
        If there are fewer than four words: three are always in order.
    """
    n = len(places)
    if n < 4:
        raise ActivationError(f"cyclic order of {n} words means nothing; at least 4 are needed.")
    steps = np.abs(np.diff(places, append=places[:1]))
    return float(np.mean((steps == 1) | (steps == n - 1)))


@any_numbers
def similarity(points: Float[Tensor, "W D"]) -> Float[Tensor, "W W"]:
    """Cosine similarity of the points after their common mean is taken away; NaN for a point that is NaN."""
    centred = torch.nn.functional.normalize(points.double() - points.double().nanmean(0), dim=1)
    return (centred @ centred.T).to(points.dtype)


@dataclass(frozen=True)
class Circularity:
    """Cyclic order in the plane of the first two principal components.

    ``score`` is 1 when the points stand around their centre in cyclic order at equal angles;
    ``p_value`` is the share of orders that score at least as high. ``plane`` holds the coordinates,
    turned so that item 0 lies to the right; ``variance_share`` is how much of the variance they carry.
    ``distance_score`` is the rank correlation of all distances with distances around the cycle, in the
    whole space, with its own p-value.
    """

    score: float
    p_value: float
    distance_score: float
    distance_p_value: float
    variance_share: float
    plane: Float[np.ndarray, "K 2"]
    n: int
    reason: str = ""


@any_numbers
def circularity(
    points: Points, order: Int[np.ndarray, " K"], *, period: int | None = None, n_resamples: int = 4999, seed: int = 0
) -> Circularity:
    r"""Do items of a cycle (months, days) stand in a circle, in their order?

    With :math:`\theta_k` the angle of item k about the centre in the top two principal components and
    :math:`\varphi_k = 2\pi\,\mathrm{order}_k / \mathrm{period}`, the score is the larger of
    :math:`|\operatorname{mean} e^{i(\theta - \varphi)}|` and :math:`|\operatorname{mean} e^{i(\theta + \varphi)}|`,
    so that neither rotation nor reflection matters [1]_. The test shuffles the order: all orders up to
    8 items, otherwise ``n_resamples`` of them with the +1 correction.

    Parameters
    ----------
    points
        Shape [K, D], one vector per item.
    order
        Place of each item in the cycle, distinct whole numbers.
    period
        Length of the cycle, default the largest place + 1.

    Returns
    -------
    :class:`Circularity`; NaN with a reason for fewer than 4 items or equal points.

    References
    ----------
    .. [1] Fisher and Lee, Biometrika 70(2), 1983, for correlation of angles; the circle of months in
       language models: Engels et al., arXiv 2405.14860, 2024.
    """
    x = check_points(points)
    places = check_labels(np.asarray(order), len(x))
    if len(set(places.tolist())) != len(places):
        raise GeometryError("order holds a place twice; allowed: each item its own place. Average its vectors first.")
    period = int(period or places.max(initial=0) + 1)
    k = len(x)
    plane, share = plane_of(x)
    if k < 4 or not share > 0:
        reason = f"{k} items: a cycle needs at least 4" if k < 4 else "all items have the same vector"
        return Circularity(NAN, NAN, NAN, NAN, NAN, plane, k, reason)

    upper, ranks, cyclic = _ranked_distances(x, places, period)
    shuffles = _shuffles(k, n_resamples, seed)
    scores = _alignment(plane, places[shuffles], period)
    correlations = np.array([ranks @ cyclic[np.ix_(o, o)][upper] for o in shuffles]) / len(ranks)
    # The given order is the first of both the complete list and the sample: the +1 correction is built in.
    p_value, distance_p = (float(np.mean(v >= v[0] - 1e-9)) for v in (scores, correlations))
    upright = _upright(plane, places, period)
    return Circularity(float(scores[0]), p_value, float(correlations[0]), distance_p, share, upright, k)


def _ranked_distances(points: Points, places: Int[np.ndarray, " K"], period: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Pairs of items, the ranks of their distances, and (as a matrix) those of their steps around the cycle."""
    k = len(places)
    gaps = np.abs(places[:, None] - places[None, :])
    around = np.minimum(gaps, period - gaps)
    upper = np.triu_indices(k, 1)
    ranks = _ranks(known_distances(points, None)[upper])
    cyclic = np.zeros((k, k))
    cyclic[upper] = _ranks(around[upper].astype(float))
    return upper, ranks, cyclic + cyclic.T


def distance_score(points: Points, order: Int[np.ndarray, " K"], period: int) -> float:
    """The distance score of :func:`circularity`, without its test: rank correlation of distances with steps around."""
    upper, ranks, cyclic = _ranked_distances(points, np.asarray(order), period)
    return float(ranks @ cyclic[upper] / len(ranks))


def plane_of(points: Points) -> tuple[Float[np.ndarray, "K 2"], float]:
    """Coordinates in the top two principal components, and the share of the variance that they carry.

    The share is 0 when all points are equal. :func:`principal_plane` is the same in torch, with signs fixed and
    refusals, for the maps of chapter 1; either would round the other's table anew.
    """
    x = check_points(points)
    centred = (x - x.mean(dim=0)).cpu().numpy()
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(centred), 2))
    plane[:, : len(s)] = (u * s)[:, :2]
    if s.max(initial=0.0) <= 1e-12 * max(1.0, float(x.abs().max())):
        return np.zeros_like(plane), 0.0
    return plane, float((s[:2] ** 2).sum() / (s**2).sum())


def cyclic_score(plane: Float[np.ndarray, "K 2"], order: Int[np.ndarray, " K"], period: int) -> float:
    """The score of :func:`circularity` for coordinates in a plane, without its test.

    It counts angles; :func:`cyclic_order`, for words in a picture, counts who stands beside whom.
    """
    return float(_alignment(plane, np.asarray(order)[None], period)[0])


def _alignment(plane: np.ndarray, orders: Int[np.ndarray, "R K"], period: int) -> Float[np.ndarray, " R"]:
    """Resultant length of angle minus phase, the better of the two directions, per order."""
    field = np.exp(1j * np.arctan2(plane[:, 1], plane[:, 0]))
    turns = np.exp(2j * np.pi * orders / period)
    return np.maximum(np.abs(turns.conj() @ field), np.abs(turns @ field)) / len(plane)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged (equal up to rounding is equal), to mean zero and variance one."""
    from scipy.stats import rankdata

    ranks = rankdata(np.round(values / max(values.max(initial=0.0), 1e-300), 9))
    spread = ranks.std()
    return (ranks - ranks.mean()) / spread if spread > 0 else np.zeros_like(ranks)


def _shuffles(k: int, n_resamples: int, seed: int) -> Int[np.ndarray, "R K"]:
    """Orders of k items, the given one first: all of them for few items, otherwise a sample."""
    if k <= EXACT_WORDS:
        return np.array(list(itertools.permutations(range(k))), dtype=int).reshape(-1, k)
    rng = np.random.default_rng(seed)
    return np.vstack([np.arange(k), *(rng.permutation(k) for _ in range(n_resamples))])


def _upright(plane: np.ndarray, places: np.ndarray, period: int) -> np.ndarray:
    """Turn and mirror the plane so that the cycle runs counter-clockwise from the right."""
    angles, phases = np.arctan2(plane[:, 1], plane[:, 0]), 2 * np.pi * places / period
    forward, backward = (np.mean(np.exp(1j * (sign * angles - phases))) for sign in (1, -1))
    z = plane[:, 0] + 1j * plane[:, 1]
    if abs(backward) > abs(forward):
        z, forward = z.conj(), backward
    z = z * np.exp(-1j * np.angle(forward))
    return np.stack([z.real, z.imag], axis=1)
