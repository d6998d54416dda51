"""What a thousand analyses of one concept cost: all from shared distances, clusters and poles, or each from nothing.

    python -m benchmarks.bench_choices [--rounds N] [--sample N] [--output FILE]

The package's side is every measure of geometry under every choice, family after family as it makes them. The plain side
takes a sample of these analyses, one measure of each family, and does each by itself with the same public measures; the
two must find the same value. What a whole family would take is reckoned from its sample. Writes a table of the book's
page on speed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.measure import QUICK, K
from saema_utils.geometry.choices import (
    FAMILIES,
    NEIGHBOURS,
    SHUFFLES,
    Concept,
    geometry_under_choices,
    neighbours_of_own_word,
    spread_and_scatter,
)
from saema_utils.geometry.circles import cycle_of, cyclic_score, plane_of
from saema_utils.geometry.clouds import spanning_tree
from saema_utils.geometry.concept import ConceptClouds
from saema_utils.geometry.dimension import local_dimensions, mean_dimension
from saema_utils.geometry.matching import procrustes_test
from saema_utils.geometry.pole_measures import mean_distance, pole_distances, poles
from saema_utils.runtime import generator
from saema_utils.saes.coders import RandomDictionary
from saema_utils.text.concepts import WORDS

TABLE = Path(__file__).resolve().parents[1] / "book" / "static" / "choices.csv"
TEMPLATES, POSITIONS = (4, 4) if QUICK else (8, 5)
WIDTH, LATENTS = (64, 512) if QUICK else (576, 4608)


def concept_clouds() -> ConceptClouds:
    """Twelve words in templates, made up: tokens at one place of a template are alike, and so are those of one word."""
    draw, words = generator(0, "bench-choices"), len(WORDS["months"])
    prompts, n = words * TEMPLATES, words * TEMPLATES * POSITIONS
    prompt, position = np.repeat(np.arange(prompts), POSITIONS), np.tile(np.arange(POSITIONS), prompts)
    word, template = np.divmod(np.arange(prompts), TEMPLATES)
    of_word = torch.randn(words, 1, WIDTH, generator=draw)
    of_place = torch.randn(TEMPLATES * POSITIONS, WIDTH, generator=draw).view(TEMPLATES, POSITIONS, WIDTH)
    chance = torch.randn(n, WIDTH, generator=draw)
    x = of_word[word[prompt], 0] / 2 + of_place[template[prompt], position] + chance / 4
    points = {"residual": x}
    for seed, (code, back) in enumerate(
        {"sae": "reconstruction", "random_dictionary": "random_reconstruction"}.items()
    ):
        coder = RandomDictionary(WIDTH, LATENTS, K, seed=seed)
        latents = coder.encode(x)
        points |= {code: latents[:, (latents != 0).any(0)], back: coder.decode(latents)}
    is_word = position == POSITIONS // 2
    return ConceptClouds(
        concept="months",
        words=tuple(WORDS["months"]),
        points=points,
        word_vectors={name: z[is_word] for name, z in points.items()},
        tokens=[""] * n,
        prompt_of=prompt,
        template_of=template[prompt],
        word_of=word[prompt],
        is_word=is_word,
        prompt_words=word,
        templates=template,
        n_copies=0,
        contexts=[""] * n,
    )


# ---- one analysis by itself ------------------------------------------------------------------------


def distances_and_labels(concept: Concept, row: Any) -> tuple[np.ndarray, np.ndarray]:
    d = concept.distances(row.representation, row.items, row.centring, row.space)
    if row.labels == "whole cloud":
        return d, np.zeros(len(d), dtype=int)
    clusters = row.labels.startswith("clusters of ")
    return d, concept.clusters(row.labels.removeprefix("clusters of "), row.smallest) if clusters else concept.words


def purity(concept: Concept, row: Any) -> float:
    d = concept.distances(row.representation, "words", row.centring, row.space)
    return neighbours_of_own_word(d, concept.words, concept.sentences, NEIGHBOURS[row.detail])


def eta2(concept: Concept, row: Any) -> float:
    d, labels = distances_and_labels(concept, row)
    spread, scatter, _ = spread_and_scatter(labels, d)
    return spread**2 / (spread**2 + scatter**2)


def twonn(concept: Concept, row: Any) -> float:
    d, labels = distances_and_labels(concept, row)
    return float(np.log(mean_dimension(local_dimensions(labels, d)).estimate))


def aedp_beside_scatter(concept: Concept, row: Any) -> float:
    d, labels = distances_and_labels(concept, row)
    return float(np.log(mean_distance(pole_distances(labels, d)) / spread_and_scatter(labels, d)[1]))


def aedp(concept: Concept, row: Any) -> float:
    d, labels = distances_and_labels(concept, row)
    return float(np.log(mean_distance(pole_distances(labels, d))))


def pieces(concept: Concept, row: Any) -> float:
    d = concept.distances(row.representation, row.items, row.centring, row.space)
    typical = np.median((d + np.diag(np.full(len(d), np.inf))).min(axis=1))
    return float(np.log(1 + (spanning_tree(d)[2] > float(row.detail) * typical * (1 + 1e-12)).sum()))


def disparity(concept: Concept, row: Any) -> float:
    _, labels = distances_and_labels(concept, row)
    names = ("residual", row.representation)
    own = [poles(concept.vectors(name, row.items, row.centring, row.space), labels).cpu().numpy() for name in names]
    test = procrustes_test(*own, n_resamples=SHUFFLES)
    return test.disparity - test.chance


def score(concept: Concept, row: Any) -> float:
    _, places, period = cycle_of(concept.clouds.words)
    x = concept.vectors(row.representation, "words", row.centring, row.space).cpu().numpy()
    return cyclic_score(plane_of(poles(x, concept.words))[0], places[np.unique(concept.words)], period)


# Of each family a measure, the choice of its own that the plain side takes (none: any), and how it is made by itself.
ALONE: dict[str, tuple[str, str, Callable[[Concept, Any], float]]] = {
    "merging": ("purity", "", purity),
    "distinctions": ("eta2", "all words", eta2),
    "dimension": ("twonn", "", twonn),
    "compression": ("aedp", "", aedp_beside_scatter),
    "reconstruction": ("aedp", "means", aedp),
    "pieces": ("pieces", "", pieces),
    "shape": ("disparity", "all dimensions", disparity),
    "circle": ("score", "means", score),
}


def alone(clouds: ConceptClouds, row: Any) -> float:
    """One value from a concept's clouds, nothing of which is known yet."""
    return ALONE[row.family][2](Concept(clouds, 0), row)


# ---- both sides --------------------------------------------------------------------------------------


def together(clouds: ConceptClouds) -> dict[str, float]:
    """Seconds after which each family is done, in one pass over all of them."""
    concept, started, done = Concept(clouds, 0), time.perf_counter(), {}
    for name, made in FAMILIES.items():
        for _ in made(concept):
            pass
        done[name] = time.perf_counter() - started
    return done


def sampled(values: pd.DataFrame, family: str, count: int) -> pd.DataFrame:
    measure, detail, _ = ALONE[family]
    fits = values[(values["family"] == family) & (values["measure"] == measure) & values["value"].notna()]
    fits = fits[fits["detail"] == detail] if detail else fits
    return fits.sample(min(count, len(fits)), random_state=0)


def by_themselves(clouds: ConceptClouds, chosen: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Mean seconds of an analysis of each family; fails where one finds another value than the shared pass."""
    means = {}
    for family, rows in chosen.items():
        started = time.perf_counter()
        found = [alone(clouds, row) for row in rows.itertuples()]
        means[family] = (time.perf_counter() - started) / len(rows)
        np.testing.assert_allclose(found, rows["value"], rtol=1e-6, err_msg=family)
    return means


def measured(clouds: ConceptClouds, rounds: int, count: int) -> pd.DataFrame:
    """Values so far after each family, and what they took either way: medians over rounds, the sides in turns."""
    values = geometry_under_choices(clouds)
    chosen = {family: sampled(values, family, count) for family in FAMILIES}
    turns = [(together(clouds), by_themselves(clouds, chosen)) for _ in range(rounds)]
    seconds, alone_each = (pd.DataFrame(side).median()[list(FAMILIES)] for side in zip(*turns, strict=True))
    analyses = values["family"].value_counts()[list(FAMILIES)]
    scratch = (alone_each * analyses).cumsum()
    found = pd.DataFrame(
        {
            "Analyses so far": analyses.cumsum(),
            "Together (s)": seconds,
            "Each from nothing (s)": scratch,
            "Times": scratch / seconds,
        }
    )
    found = found.astype(object).map(lambda value: value if isinstance(value, int) else float(f"{value:.3g}"))
    return found.assign(Sampled=[len(rows) for rows in chosen.values()]).rename_axis("Up to").reset_index()


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=8, help="analyses of each family that are made by themselves")
    parser.add_argument("--output", type=Path, default=TABLE)
    given = parser.parse_args()
    found = measured(concept_clouds(), given.rounds, given.sample)
    print(found.to_string(index=False))
    found.to_csv(given.output, index=False)


if __name__ == "__main__":
    main()
