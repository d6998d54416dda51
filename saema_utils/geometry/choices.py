"""Every measure of a concept's local and global geometry, under every defensible choice.

A table of plain values: contrasts of representations are made elsewhere. Lengths, counts and dimensions are given as
logarithms, so that a ratio of two representations is a difference of two values. Distances of a cloud are computed
once for each space and handed to all measures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.distances import check_points, first_copies, pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.circles import MIN_MEMBERS, cycle_of, cyclic_score, distance_score, plane_of
from saema_utils.geometry.clouds import spanning_tree
from saema_utils.geometry.clusters import find_local_representations, standardise_to_sphere
from saema_utils.geometry.concept import (
    RANK_DRAWS,
    ConceptClouds,
    centred_by_template,
    cut_into,
    effective_ranks,
    random_members,
    shares_of_components,
    weighted_mean,
)
from saema_utils.geometry.dimension import local_dimensions, mean_dimension, mle_dimension
from saema_utils.geometry.matching import procrustes_test
from saema_utils.geometry.pole_measures import (
    average_geodesic_distance,
    cluster_medoids,
    mean_distance,
    pole_distances,
    poles,
)

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

    from saema_utils.distances import Distances

NAN = float("nan")
COLUMNS = [
    "representation",
    "family",
    "measure",
    "items",
    "labels",
    "smallest",
    "space",
    "centring",
    "detail",
    "value",
    "reason",
]
SPACES = ("euclidean", "cosine", "standardised")
PLAIN_SPACES = SPACES[:2]
CODES = ("residual", "sae", "random_dictionary")
IN_PLACE = ("residual", "reconstruction", "random_reconstruction")
CLUSTERED = ("residual", "sae")
WORD_SIZES, TOKEN_SIZES = (3, 5, 8), (4, 10, 15)  # smallest clusters, below and above the number of sentences a word
NEIGHBOURS = {"1 neighbour": 1, "3 neighbours": 3}
PIECES = ("1.25", "1.5", "1.75", "2", "2.5", "3")  # multiples of the median distance to the nearest neighbour
WHOLE_CLOUD = 50  # members of the whole cloud, for the ranks of equally many
N_NEIGHBORS = 10
SHUFFLES = 99
FEW = "fewer than two poles"
UNCOMPARED = "one word, one sentence a word, or equal vectors: nothing to compare"


class Row(NamedTuple):
    """One value under one choice; what does not apply is empty."""

    representation: str
    measure: str
    value: float
    items: str = "words"
    labels: str = ""
    smallest: int = 0
    space: str = "euclidean"
    centring: str = ""
    detail: str = ""
    reason: str = ""


class Labelled(NamedTuple):
    """What makes a pole: the items that have labels, and these."""

    items: str
    labels: str
    smallest: int
    centring: str
    array: Int[np.ndarray, " N"]


class Concept:
    """A concept's clouds with everything that several measures share, made when it is first asked for.

    Prompts that begin with their word give it one vector in all of them: as among tokens, copies are dropped by the
    residual stream, or a vector's nearest neighbour would be itself, and no sentence left out would be unseen.
    """

    def __init__(self, clouds: ConceptClouds, seed: int):
        self.clouds, self.seed = clouds, seed
        self._kept = first_copies(pairwise_distances(clouds.word_vectors["residual"]))
        self._distances: dict[tuple[str, ...], Distances] = {}
        self._clusters: dict[tuple[str | int, ...], Int[np.ndarray, " N"]] = {}

    @property
    def words(self) -> Int[np.ndarray, " P"]:
        return self.clouds.prompt_words[self._kept]

    @property
    def sentences(self) -> Int[np.ndarray, " P"]:
        return self.clouds.templates[self._kept]

    @functools.cached_property
    def centrings(self) -> tuple[str, ...]:
        """Of word vectors: a sentence's mean can be taken off only where words share sentences."""
        return (
            ("sentence", "none")
            if centred_by_template(self.vectors("residual", "words"), self.sentences)[1]
            else ("none",)
        )

    def known(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.clouds.points]

    def vectors(self, name: str, items: str, centring: str = "", space: str = "euclidean") -> torch.Tensor:
        x = check_points(self.clouds.word_vectors[name][self._kept] if items == "words" else self.clouds.points[name])
        if centring == "sentence":
            x = centred_by_template(x, self.sentences)[0]
        if space == "standardised":
            return standardise_to_sphere(x)
        return x / x.norm(dim=1, keepdim=True).clamp(min=1e-300) if space == "cosine" else x

    def distances(self, name: str, items: str, centring: str = "", space: str = "euclidean") -> Distances:
        key = (name, items, centring, space)
        if key not in self._distances:
            self._distances[key] = pairwise_distances(self.vectors(*key))
        return self._distances[key]

    def clusters(
        self, name: str, smallest: int, items: str = "tokens", centring: str = "", space: str = "euclidean"
    ) -> Int[np.ndarray, " N"]:
        """Clusters of at least ``smallest`` members (-1 is noise).

        Raises
        ------
        GeometryError
            If there are too few points for that.
        """
        key = (name, smallest, items, centring, space)
        if key not in self._clusters:
            d = self.distances(name, items, centring, space)
            found = find_local_representations(None, method="direct", min_cluster_size=smallest, distances=d)
            self._clusters[key] = found.labels
        return self._clusters[key]

    def labelled(self, sizes: Sequence[int], by: Sequence[str] = CLUSTERED, words: bool = True) -> Iterator[Labelled]:
        """Words in each centring, and the clusters of each of some representations, common to all."""
        for centring in self.centrings if words else ():
            yield Labelled("words", "words", 0, centring, self.words)
        for name in self.known(by):
            for size in sizes:
                try:
                    array = self.clusters(name, size)
                except GeometryError:
                    array = np.full(len(self.clouds.tokens), -1)
                yield Labelled("tokens", f"clusters of {name}", size, "", array)


def _log(value: float) -> float:
    return float(np.log(value)) if value > 0 else NAN


# ---- merging, distinctions: words against words ----------------------------------------------------


@any_numbers
def neighbours_of_own_word(
    distances: Distances, words: Int[np.ndarray, " P"], sentences: Int[np.ndarray, " P"], k: int
) -> float:
    """Share of the k nearest vectors from other sentences that have a vector's own word, mean over vectors."""
    other = sentences[:, None] != sentences[None, :]
    usable = other.sum(axis=1) >= k
    if not usable.any():
        return NAN
    nearest = np.argsort(np.where(other, distances, np.inf), axis=1, kind="stable")[:, :k]
    return float((words[nearest] == words[:, None])[usable].mean())


def merging(concept: Concept) -> Iterator[Row]:
    """Whether neighbours share their word, whether clusters hold one word, and how many clusters there are."""
    from sklearn.metrics import homogeneity_score

    words, sentences = concept.words, concept.sentences
    n_words = len(np.unique(words))
    cuts = {"as many clusters as words": n_words, "half as many": max(2, n_words // 2)}
    alone = "" if 1 < n_words < len(words) else UNCOMPARED
    for name in concept.known(CODES):
        for space in SPACES:
            for centring in concept.centrings:
                d = concept.distances(name, "words", centring, space)
                head = {"space": space, "centring": centring}
                for detail, k in NEIGHBOURS.items():
                    value = NAN if alone else neighbours_of_own_word(d, words, sentences, k)
                    reason = "" if np.isfinite(value) else alone or f"no vector with {k} from other sentences"
                    yield Row(name, "purity", value, **head, detail=detail, reason=reason)
                for detail, k in cuts.items():
                    value = NAN if alone else float(homogeneity_score(words, cut_into(d, k)))
                    yield Row(name, "homogeneity", value, **head, detail=detail, reason=alone)
            for items, sizes, centring in (("words", WORD_SIZES, "none"), ("tokens", TOKEN_SIZES, "")):
                for size in sizes:
                    value, reason = NAN, ""
                    try:
                        value = float(np.log1p(concept.clusters(name, size, items, centring, space).max() + 1))
                    except GeometryError as error:
                        reason = str(error)
                    yield Row(name, "log_count", value, items, "", size, space, centring, reason=reason)


def distinctions(concept: Concept) -> Iterator[Row]:
    """How well words are told apart: scatter between them, silhouette, nearest pole, order of distances."""
    half = np.isin(concept.words, np.unique(concept.words)[::2])
    for name in concept.known(CODES):
        for space in SPACES:
            for centring in concept.centrings:
                x = concept.vectors(name, "words", centring, space).cpu().numpy()
                d = concept.distances(name, "words", centring, space)
                for detail, kept in (("all words", np.full(len(d), True)), ("half of the words", half)):
                    part = d[np.ix_(kept, kept)], concept.words[kept], concept.sentences[kept]
                    for measure, value in _told_apart(x[kept], *part).items():
                        reason = "" if np.isfinite(value) else UNCOMPARED
                        yield Row(name, measure, value, "words", "words", 0, space, centring, detail, reason)


def _told_apart(
    x: Float[np.ndarray, "P F"], d: Distances, words: Int[np.ndarray, " P"], sentences: Int[np.ndarray, " P"]
) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score, silhouette_score

    measures = dict.fromkeys(("eta2", "silhouette", "nearest_pole", "auc"), NAN)
    _, words, counts = np.unique(words, return_inverse=True, return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        return measures
    spread, scatter, _ = spread_and_scatter(words, d)
    measures["eta2"] = spread**2 / (spread**2 + scatter**2) if spread + scatter > 0 else NAN
    if len(counts) < len(d):
        measures["silhouette"] = float(silhouette_score(d, words, metric="precomputed"))
    measures["nearest_pole"] = nearest_pole_of_other_sentences(x, words, sentences)
    i, j = np.triu_indices(len(d), 1)
    apart = sentences[i] != sentences[j]
    different = words[i[apart]] != words[j[apart]]
    if 0 < different.sum() < len(different):
        measures["auc"] = float(roc_auc_score(different, d[i[apart], j[apart]]))
    return measures


@any_numbers
def nearest_pole_of_other_sentences(
    x: Float[np.ndarray, "P F"], words: Int[np.ndarray, " P"], sentences: Int[np.ndarray, " P"]
) -> float:
    """Share of vectors that are nearest to their own word's pole, poles being made of the other sentences."""
    right: list[bool] = []
    for sentence in np.unique(sentences):
        here = sentences == sentence
        names = np.unique(words[~here])
        if len(names) < 2:
            continue
        centres = poles(x[~here], words[~here])
        asked = here & np.isin(words, names)
        square = ((x[asked][:, None] - centres[None]) ** 2).sum(axis=2) if asked.any() else np.zeros((0, len(names)))
        right += list(names[square.argmin(axis=1)] == words[asked])
    return float(np.mean(right)) if right else NAN


# ---- dimension -------------------------------------------------------------------------------------


def dimension(concept: Concept) -> Iterator[Row]:
    """Dimension of local representations by four measures, on labels that all representations share."""
    n = len(concept.clouds.tokens)
    whole = Labelled("tokens", "whole cloud", 0, "", np.zeros(n, dtype=int))
    for found in (whole, *concept.labelled((10, 20), words=False)):
        for name in concept.known(CODES):
            for space in PLAIN_SPACES:
                d = concept.distances(name, "tokens", "", space)
                for measure, value in _dimensions(found, d, concept.seed).items():
                    reason = "" if np.isfinite(value) else "no local representation is large enough"
                    head = ("tokens", found.labels, found.smallest, space)
                    yield Row(name, measure, _log(value), *head, reason=reason)


def _dimensions(found: Labelled, d: Distances, seed: int) -> dict[str, float]:
    members = [np.flatnonzero(found.array == k) for k in np.unique(found.array[found.array >= 0])]
    sizes, rng = [len(m) for m in members], np.random.default_rng(seed)
    size = found.smallest or min(WHOLE_CLOUD, len(d))
    drawn = [random_members(m, size, RANK_DRAWS, rng) if len(m) >= size else None for m in members]
    shares = [None if m is None else shares_of_components(d[m[:, :, None], m[:, None, :]]) for m in drawn]
    return {
        "twonn": mean_dimension(local_dimensions(found.array, d)).estimate,
        "mle5": weighted_mean([mle_dimension(d[np.ix_(m, m)]) for m in members], sizes),
        "effective_rank": weighted_mean([NAN if s is None else effective_ranks(s).mean() for s in shares], sizes),
        "components90": weighted_mean([NAN if s is None else _components(s) for s in shares], sizes),
    }


def _components(shares: Float[np.ndarray, "R n"]) -> float:
    return float((shares.cumsum(axis=1) < 0.9 - 1e-12).sum(axis=1).mean() + 1) if np.isfinite(shares).all() else NAN


# ---- poles: how far apart, beside the scatter and in place ------------------------------------------------


@any_numbers
def spread_and_scatter(
    labels: Int[np.ndarray, " N"], distances: Distances, crossed: Distances | None = None
) -> tuple[float, float, float]:
    r"""RMS distance of poles from their centre, RMS distance of members from their pole (each pole counted alike), and
    what of the squared spread the scatter alone would give.

    .. math:: b^2 = \frac1K \sum_k \lVert p_k - \bar p \rVert^2, \quad
              w^2 = \frac1K \sum_k w_k^2, \quad
              \Bigl(1 - \frac1K\Bigr) \frac1K \sum_k \frac{w_k^2}{n_k - 1}

    From distances alone; NaN with fewer than two poles. A pole of one member has no scatter to count.

    Parameters
    ----------
    crossed
        Where all labels stand in the same sentences: distances with each sentence's mean taken off. What a sentence
        adds to its members moves all poles alike, so that only the scatter here gives spread. A share of 1 / K of it
        went with the means, and with it the first factor of the formula.
    """
    names = np.unique(labels[labels >= 0])
    if len(names) < 2:
        return NAN, NAN, NAN
    between = pole_distances(labels, distances)
    members = [np.flatnonzero(labels == k) for k in names]
    others = np.array([max(len(m) - 1, 1) for m in members])
    within = _squared_scatter(distances, members)
    if crossed is None:
        chance = (within / others).mean() * (1 - 1 / len(names))
    else:
        chance = (_squared_scatter(crossed, members) / others).mean()
    return float(np.sqrt((between**2).mean() / 2)), float(np.sqrt(within.mean())), float(chance)


def _squared_scatter(distances: Distances, members: Sequence[Int[np.ndarray, " n"]]) -> Float[np.ndarray, " K"]:
    """Mean squared distance of each pole's members from it."""
    return np.array([(distances[np.ix_(m, m)] ** 2).mean() / 2 for m in members])


def _lengths(labels: Int[np.ndarray, " N"], between: Distances) -> dict[str, float]:
    if len(between) < 2:
        return dict.fromkeys(("pole_rms", "mean_edge", "aedp"), NAN)
    return {
        "pole_rms": float(np.sqrt((between**2).mean() / 2)),
        "mean_edge": float(spanning_tree(between)[2].mean()),
        "aedp": mean_distance(between),
    }


def compression(concept: Concept) -> Iterator[Row]:
    """How far apart poles are beside the scatter within them."""
    for found in concept.labelled((5, 10)):
        for name in concept.known(CODES):
            for space in PLAIN_SPACES:
                d = concept.distances(name, found.items, found.centring, space)
                crossed = None
                if found.items == "words" and "sentence" in concept.centrings:
                    x = concept.vectors(name, found.items, found.centring, space)
                    crossed = pairwise_distances(centred_by_template(x, concept.sentences)[0])
                spread, scatter, chance = spread_and_scatter(found.array, d, crossed)
                lengths = {(m, "plain"): v for m, v in _lengths(found.array, _between(found.array, d)).items()}
                lengths["pole_rms", "unbiased"] = float(np.sqrt(max(spread**2 - chance, 0.0)))
                lengths["geodesic", "plain"] = _geodesic(found.array, d)
                for (measure, detail), length in lengths.items():
                    value = _log(length / scatter) if scatter > 0 else NAN
                    reason = "" if np.isfinite(value) else _why_no_ratio(spread, scatter, detail)
                    yield Row(name, measure, value, *found[:3], space, found.centring, detail, reason)


def _why_no_ratio(spread: float, scatter: float, detail: str) -> str:
    if not np.isfinite(spread):
        return FEW
    if not scatter > 0:
        return "no scatter within poles"
    return "no more spread than scatter gives" if detail == "unbiased" and spread > 0 else "no way between poles"


def _between(labels: Int[np.ndarray, " N"], distances: Distances) -> Distances:
    return pole_distances(labels, distances) if (labels >= 0).any() else np.zeros((0, 0))


def _geodesic(labels: Int[np.ndarray, " N"], distances: Distances) -> float:
    if len(labels) <= N_NEIGHBORS or len(np.unique(labels[labels >= 0])) < 2:
        return NAN
    return average_geodesic_distance(None, labels, N_NEIGHBORS, distances=distances)


def reconstruction(concept: Concept) -> Iterator[Row]:
    """How far apart poles are in the space of the residual stream, in its unit: of what goes in and what comes back."""
    for found in concept.labelled((5, 10)):
        for name in concept.known(IN_PLACE):
            d = concept.distances(name, found.items, found.centring)
            medoids = cluster_medoids(found.array, d)
            for detail, between in (("means", _between(found.array, d)), ("medoids", d[np.ix_(medoids, medoids)])):
                for measure, length in _lengths(found.array, between).items():
                    reason = "" if length > 0 else FEW
                    yield Row(name, measure, _log(length), *found[:3], "euclidean", found.centring, detail, reason)


def pieces(concept: Concept) -> Iterator[Row]:
    """Into how many pieces a cloud falls when points farther apart than some typical distance are not joined."""
    for items, centring in (("words", "none"), ("tokens", "")):
        for name in concept.known(CODES):
            for space in SPACES:
                d = concept.distances(name, items, centring, space)
                edges = spanning_tree(d)[2]
                typical = float(np.median(np.partition(d + np.diag(np.full(len(d), np.inf)), 0, axis=1)[:, 0]))
                for detail in PIECES:
                    count = 1 + int((edges > float(detail) * typical * (1 + 1e-12)).sum())
                    value, reason = (_log(count), "") if typical > 0 else (NAN, "half of the points have a copy")
                    yield Row(name, "pieces", value, items, "", 0, space, centring, detail, reason)


# ---- the shape of the poles ---------------------------------------------------------------------------------

DETAILS = {"all dimensions": None, "first 2 components": 2, "first 5 components": 5}


def shape(concept: Concept) -> Iterator[Row]:
    """How far poles differ in shape from the residual stream's, minus what poles paired at random do."""
    for found in concept.labelled((5, 10), by=("residual",)):
        for space in SPACES:
            base = _centres(concept, "residual", found, space)
            for name in concept.known(CODES[1:]):
                own = _centres(concept, name, found, space)
                for detail, n in DETAILS.items():
                    value, reason = NAN, f"{len(own)} poles: a shape needs three"
                    if len(own) >= 3:
                        test = procrustes_test(_leading(base, n), _leading(own, n), n_resamples=SHUFFLES)
                        value = test.disparity - test.chance
                        reason = "" if np.isfinite(value) else "all poles are equal"
                    yield Row(name, "disparity", value, *found[:3], space, found.centring, detail, reason)


def _centres(concept: Concept, name: str, found: Labelled, space: str) -> Float[np.ndarray, "K F"]:
    return poles(concept.vectors(name, found.items, found.centring, space), found.array).cpu().numpy()


def _leading(points: Float[np.ndarray, "K F"], n: int | None) -> Float[np.ndarray, "K n"]:
    """Coordinates in the first principal components; all of them exactly, in as few columns as there are points."""
    u, s, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    return (u * s)[:, :n]


def circle(concept: Concept) -> Iterator[Row]:
    """Whether the words of a cycle stand in a circle; no rows for words that form none."""
    cycle = cycle_of(concept.clouds.words)
    if cycle is None:
        return
    _, places, period = cycle
    member = places[concept.words] >= 0
    labels = concept.words[member]
    order = places[np.unique(labels)]
    for name in concept.known(CODES):
        for space in SPACES:
            for centring in concept.centrings:
                x = _leading(concept.vectors(name, "words", centring, space).cpu().numpy()[member], None)
                for measure, score in (("score", _plane_score), ("distance_score", distance_score)):
                    few = "" if len(order) >= MIN_MEMBERS else f"{len(order)} words: a circle needs {MIN_MEMBERS}"
                    reason = few or ("" if plane_of(x)[1] > 0 else "all vectors are equal")
                    values = _scores(x, labels, concept.sentences[member], order, period, score) if not reason else {}
                    for detail in CIRCLES:
                        value = values.get(detail, NAN)
                        why = "" if np.isfinite(value) else reason or "no sentence can be left out and leave all words"
                        yield Row(name, measure, value, "words", "words", 0, space, centring, detail, why)


CIRCLES = ("means", "medoids", "without one word", "without one sentence")


def _scores(
    x: Float[np.ndarray, "P F"],
    labels: Int[np.ndarray, " P"],
    sentences: Int[np.ndarray, " P"],
    order: Int[np.ndarray, " K"],
    period: int,
    score: Callable[..., float],
) -> dict[str, float]:
    """Of all poles, as means or as medoids; and the mean of scores that each left one word, or one sentence, out."""
    means, medoids = poles(x, labels), x[cluster_medoids(labels, pairwise_distances(x))]
    words = [np.delete(np.arange(len(order)), k) for k in range(len(order))]
    kept = [sentences != sentence for sentence in np.unique(sentences)]
    kept = [rows for rows in kept if len(np.unique(labels[rows])) == len(order)]
    fewer = [score(poles(x[rows], labels[rows]), order, period) for rows in kept]
    found = (
        score(means, order, period),
        score(medoids, order, period),
        float(np.mean([score(means[k], order[k], period) for k in words])),
        float(np.mean(fewer)) if fewer else NAN,
    )
    return dict(zip(CIRCLES, found, strict=True))


def _plane_score(points: Float[np.ndarray, "K F"], order: Int[np.ndarray, " K"], period: int) -> float:
    return cyclic_score(plane_of(points)[0], order, period)


FAMILIES: dict[str, Callable[[Concept], Iterator[Row]]] = {
    made.__name__: made
    for made in (merging, distinctions, dimension, compression, reconstruction, pieces, shape, circle)
}


def geometry_under_choices(clouds: ConceptClouds, *, seed: int = 0, families: Sequence[str] = ()) -> pd.DataFrame:
    """Every measure of a concept under every defensible choice.

    Parameters
    ----------
    clouds
        With the representations residual, sae, random_dictionary, reconstruction and random_reconstruction; those that
        it lacks have no rows.
    families
        Some of :data:`FAMILIES`; all by default.

    Returns
    -------
    Columns representation, family, measure, items (words: a vector a prompt; tokens), labels (what makes a pole),
    smallest (cluster, or 0), space, centring (whether a sentence's mean was taken off), detail (a choice of the
    family), value, reason (why it is NaN). What does not apply is empty.

    Raises
    ------
    GeometryError
        For a family that there is not.
    """
    import pandas as pd

    unknown = set(families) - set(FAMILIES)
    if unknown:
        raise GeometryError(f"family is {sorted(unknown)[0]!r}; allowed: {', '.join(FAMILIES)}.")
    concept = Concept(clouds, seed)
    rows = [(name, row) for name in families or FAMILIES for row in FAMILIES[name](concept)]
    table = pd.DataFrame([row for _, row in rows], columns=Row._fields)
    return table.assign(family=[name for name, _ in rows])[COLUMNS]
