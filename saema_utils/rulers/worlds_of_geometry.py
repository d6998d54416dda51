"""Words, heaps and balls of tokens whose geometry is changed by a known effect."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saema_utils.evidence.claims import Claim
from saema_utils.geometry.choices import neighbours_of_own_word, spread_and_scatter
from saema_utils.geometry.circles import cyclic_score, distance_score, plane_of
from saema_utils.geometry.clouds import spanning_tree
from saema_utils.geometry.clusters import find_local_representations
from saema_utils.geometry.concept import weighted_mean
from saema_utils.geometry.dimension import local_dimensions, mean_dimension, mle_dimension
from saema_utils.geometry.matching import procrustes_test
from saema_utils.geometry.pole_measures import cluster_medoids, mean_distance, pole_distances, poles
from saema_utils.rulers.worlds import BASE, CODE, Asked, World, read_backwards, stream

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

    from saema_utils.distances import Distances
    from saema_utils.rulers.worlds import Curve

    Cloud = Float[np.ndarray, "N D"]

N_WORDS, N_SENTENCES, D = 12, 6, 12  # as many words as the months
WORDS = np.repeat(np.arange(N_WORDS), N_SENTENCES)
SENTENCES = np.tile(np.arange(N_SENTENCES), N_WORDS)
APART = np.nonzero(np.triu(SENTENCES[:, None] != SENTENCES))  # pairs of different sentences
DIFFERENT = WORDS[APART[0]] != WORDS[APART[1]]
KEPT = 0.8  # share of the scatter that a code takes over from what it encodes; the rest is its own
CALIBRATED_ON = 100  # units


@dataclass(frozen=True, eq=False, kw_only=True)
class Shapes(World):
    """Raw data of a unit, what a representation makes of them at some parameter, and what is measured on that.

    Attributes
    ----------
    draw
        Raw data of one unit.
    made
        A representation, from the raw data, a parameter and which of the three it is.
    measured
        From the raw data and a representation the value of each analysis, in turn.
    base
        The parameter of what is encoded.
    parameter
        From raw data and an effect, where there is a formula.
    grid
        Parameters to calibrate on, where there is none.
    """

    draw: Callable[[np.random.Generator], Any]
    made: Callable[[Any, float, int], Cloud]
    measured: Callable[[Any, Cloud], Iterable[float]]
    base: float = 1.0
    parameter: Callable[[Any, float], float] | None = None
    grid: tuple[float, ...] = ()

    def values(self, claim: Claim, asked: Sequence[Asked], seed: int) -> pd.DataFrame:
        n, rng = len(asked[0].effects), stream(claim, seed)
        names = [claim.baseline] * bool(claim.baseline) + [one.name for one in asked]
        numbers = {name: np.empty((len(self.analyses), n)) for name in names}
        parameters = self._parameters(claim, asked)
        for unit in range(n):
            raw = self.draw(rng)
            if claim.baseline:
                numbers[claim.baseline][:, unit] = list(self.measured(raw, self.made(raw, self.base, BASE)))
            for name, side, effects in asked:
                own = parameters[name][unit] if self.parameter is None else self.parameter(raw, effects[unit])
                numbers[name][:, unit] = list(self.measured(raw, self.made(raw, own, side)))
        return self.table(claim, numbers)

    def _parameters(self, claim: Claim, asked: Sequence[Asked]) -> dict[str, Float[np.ndarray, " U"]]:
        if self.parameter is not None:
            return {}
        curve = calibrated(self)
        start = np.interp(self.base, *curve) if claim.baseline else 0.0
        return {one.name: read_backwards(curve, start + one.effects) for one in asked}


@functools.cache
def calibrated(world: Shapes) -> Curve:
    """Parameters of a world, and the mean value of its named analysis over many units at each of them."""
    rng = np.random.default_rng(0)
    raws = [world.draw(rng) for _ in range(CALIBRATED_ON)]
    means = [np.mean([next(iter(world.measured(raw, world.made(raw, p, CODE)))) for raw in raws]) for p in world.grid]
    return np.array(world.grid), np.array(means)


def _distances(x: Cloud) -> Distances:
    """Without :func:`~saema_utils.distances.pairwise_distances`'s care for copies, in a tenth of its time."""
    from scipy.spatial.distance import cdist

    return cdist(x, x)


class Words(NamedTuple):
    """Poles of words, what sentences add to all words, scatter about both, and the scatter that codes have instead."""

    poles: Float[np.ndarray, "K D"]
    sentences: Float[np.ndarray, "S D"]
    scatter: Cloud
    own: Float[np.ndarray, "2 P D"]

    def about(self, poles: Float[np.ndarray, "K D"], side: int) -> Cloud:
        """Vectors of words, one a word and sentence, about some poles."""
        return poles[WORDS] + self.sentences[SENTENCES] + _mixed(self.scatter, self.own, side)

    @property
    def square(self) -> float:
        """Mean squared distance of the poles from their centre."""
        return float(((self.poles - self.poles.mean(axis=0)) ** 2).sum(axis=1).mean())


def _mixed(kept: np.ndarray, own: np.ndarray, side: int) -> np.ndarray:
    """Scatter of what is encoded, or of a code that has some of its own."""
    return kept if side == BASE else np.sqrt(KEPT) * kept + np.sqrt(1 - KEPT) * own[side]


def draw_words(rng: np.random.Generator) -> Words:
    n = len(WORDS)
    sizes = ((N_WORDS, D), (N_SENTENCES, D), (n, D), (2, n, D))
    return Words(*(rng.normal(size=size) for size in sizes))


def _contracted(words: Words, scale: float, side: int) -> Cloud:
    return words.about(scale * words.poles, side)


# What the scatter, of variance 1 in each dimension, adds to poles and leaves within words once each sentence's mean
# over words is taken off.
BETWEEN = D * (1 - 1 / N_WORDS) / N_SENTENCES
WITHIN = D * (1 - 1 / N_WORDS) * (1 - 1 / N_SENTENCES)


def _scale_of_compression(words: Words, effect: float) -> float:
    return float(np.exp(effect))


def _scale_in_place(words: Words, effect: float) -> float:
    """Poles so far together that with what the scatter adds their squared spread has changed by exp(2 effect)."""
    square = np.exp(2 * effect) * (words.square + BETWEEN) - BETWEEN
    return float(np.sqrt(max(square, 0.0) / words.square))


def _scale_of_distinctions(words: Words, effect: float) -> float:
    """Poles so far apart that their share of the scatter has changed by ``effect``."""
    share = (words.square + BETWEEN) / (words.square + BETWEEN + WITHIN) + effect
    return float(np.sqrt(max(share / (1 - share) * WITHIN - BETWEEN, 0.0) / words.square))


def _centred(x: Cloud) -> Cloud:
    """Without the mean of each sentence: every word stands in every one."""
    return x - x.reshape(N_WORDS, N_SENTENCES, -1).mean(axis=0)[SENTENCES]


def _compression(words: Words, x: Cloud) -> Iterator[float]:
    d = _distances(_centred(x))
    spread, scatter, chance = spread_and_scatter(WORDS, d, d)
    for length in (max(spread**2 - chance, 0.0) ** 0.5, spread, mean_distance(pole_distances(WORDS, d))):
        yield np.log(length / scatter)


def _in_place(words: Words, x: Cloud) -> Iterator[float]:
    d = _distances(_centred(x))
    medoids, between = cluster_medoids(WORDS, d), pole_distances(WORDS, d)
    for distances in (between, d[np.ix_(medoids, medoids)]):
        yield np.log((distances**2).mean() / 2) / 2
    yield np.log(mean_distance(between))


def _distinctions(words: Words, x: Cloud) -> Iterator[float]:
    d, half = _distances(_centred(x)), WORDS % 2 == 0
    yield _share_between(WORDS, d)
    yield _order_of_distances(d)
    yield _share_between(WORDS[half], d[np.ix_(half, half)])


def _share_between(labels: Int[np.ndarray, " P"], d: Distances) -> float:
    spread, scatter, _ = spread_and_scatter(labels, d)
    return spread**2 / (spread**2 + scatter**2)


def _order_of_distances(d: Distances) -> float:
    """Probability that two vectors of different words and sentences lie farther apart than two of one word."""
    from scipy.stats import rankdata

    ranks, n = rankdata(d[APART]), DIFFERENT.sum()
    return (ranks[DIFFERENT].sum() - n * (n + 1) / 2) / (n * (~DIFFERENT).sum())


def _merging(words: Words, x: Cloud) -> Iterator[float]:
    d = _distances(_centred(x))
    for k in (1, 3):
        yield neighbours_of_own_word(d, WORDS, SENTENCES, k)
    yield neighbours_of_own_word(_distances(x), WORDS, SENTENCES, 1)


# ---- shapes of poles

POLE_DIMENSIONS = 2  # in many, poles paired at random are nearly as alike, and little is left to be kept
SMALL = 0.5  # scatter, so that what is kept can be seen
SHUFFLES = 4  # the measure's own 99 would cost more than all other worlds


class Poles(NamedTuple):
    """Words, the places of their poles in a code that keeps nothing, and what is encoded as the analyses see it."""

    words: Words
    other: Float[np.ndarray, "2 K D"]
    seen: tuple[Float[np.ndarray, "K D"], ...]


def _draw_shape(rng: np.random.Generator) -> Poles:
    """Places of a code's own are as large as those encoded and at right angles to them (columns over words), so that no
    turn brings them nearer: the disparity is what a code does not share, the same in every unit."""
    places = rng.normal(size=(3, N_WORDS, POLE_DIMENSIONS))
    places -= places.mean(axis=1, keepdims=True)
    encoded = np.linalg.qr(places[0])[0]
    for other in places[1:]:
        other -= encoded @ (encoded.T @ other)
    places *= np.sqrt(D * N_WORDS) / np.linalg.norm(places, axis=(1, 2), keepdims=True)
    places = np.pad(places, ((0, 0), (0, 0), (0, D - POLE_DIMENSIONS)))
    drawn = draw_words(rng)
    words = drawn._replace(poles=places[0], scatter=SMALL * drawn.scatter, own=SMALL * drawn.own)
    return Poles(words, places[1:], tuple(_seen(words.about(places[0], BASE))))


def _partly_other(raw: Poles, share: float, side: int) -> Cloud:
    """Poles that share some of their places with those that are encoded: with none of it they are paired at random.

    All scatter is the code's own, for what is left of it in the poles would be shared as well.
    """
    if side == BASE:
        return raw.words.about(raw.words.poles, BASE)
    places = np.sqrt(share) * raw.words.poles + np.sqrt(1 - share) * raw.other[side]
    return raw.words._replace(scatter=raw.words.own[side]).about(places, BASE)


def _shape(raw: Poles, x: Cloud) -> Iterator[float]:
    for base, own in zip(raw.seen, _seen(x), strict=True):
        test = procrustes_test(base, own, n_resamples=SHUFFLES)
        yield test.disparity - test.chance


def _seen(x: Cloud) -> Iterator[Float[np.ndarray, "K n"]]:
    """Poles in all dimensions, and in their first two components."""
    centres = poles(_centred(x), WORDS)
    yield centres
    yield plane_of(centres)[0]


# ---- circles


class Circle(NamedTuple):
    """Words in a cycle, and which way each is moved along it."""

    words: Words
    bends: Float[np.ndarray, " K"]


def _draw_circle(rng: np.random.Generator) -> Circle:
    return Circle(draw_words(rng), rng.permutation(_normal(N_WORDS)))


@functools.cache
def _normal(n: int) -> Float[np.ndarray, " n"]:
    """As normal as n numbers can be."""
    from scipy.stats import norm

    return norm.ppf((np.arange(n) + 0.5) / n)


def _bent(raw: Circle, size: float, side: int) -> Cloud:
    angles = 2 * np.pi * np.arange(N_WORDS) / N_WORDS + size * raw.bends
    places = np.zeros((N_WORDS, D))
    places[:, :2] = np.sqrt(D / 2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return raw.words.about(places, side)


def _circle(raw: Circle, x: Cloud) -> Iterator[float]:
    means, order = poles(_centred(x), WORDS), np.arange(N_WORDS)
    yield cyclic_score(plane_of(means)[0], order, N_WORDS)
    yield distance_score(means, order, N_WORDS)


# ---- tokens

N_HEAPS, IN_HEAP = 30, 3
FAR, NEAR = 6.0, 0.3  # scale of the centres of heaps that are pieces of their own, and of those that lie in one crowd
CROWDED = 0.2  # share of the latter in what is encoded


class Heaps(NamedTuple):
    """Where heaps of tokens lie, in which order they join a crowd, the tokens in them, and what codes have instead."""

    centres: Float[np.ndarray, "H D"]
    order: Float[np.ndarray, " H"]
    inside: Cloud
    own: Float[np.ndarray, "2 N D"]


def _draw_heaps(rng: np.random.Generator) -> Heaps:
    n = N_HEAPS * IN_HEAP
    order = (rng.permutation(N_HEAPS) + rng.uniform()) / N_HEAPS  # any share is met on average
    return Heaps(rng.normal(size=(N_HEAPS, D)), order, rng.normal(size=(n, D)), rng.normal(size=(2, n, D)))


def _crowded(raw: Heaps, share: float, side: int) -> Cloud:
    scales = np.where(raw.order < share, NEAR, FAR)[:, None]
    return np.repeat(scales * raw.centres, IN_HEAP, axis=0) + _mixed(raw.inside, raw.own, side)


def _pieces(raw: Heaps, x: Cloud) -> Iterator[float]:
    d = _distances(x)
    edges, typical = spanning_tree(d)[2], np.median(np.sort(d, axis=1)[:, 1])
    for times in (2.0, 1.5, 3.0):
        yield np.log1p((edges > times * typical).sum())


N_BALLS, IN_BALL, SMALLEST = 5, 40, 10  # 200 tokens, as many as the smallest concept has
CORE, FLAT = 2, 0.035  # dimensions in which a ball is always full, and how high what is encoded is in the others


class Balls(NamedTuple):
    """Where balls of tokens lie, the tokens in them, what codes have instead, and the clusters of what is encoded."""

    centres: Float[np.ndarray, "B D"]
    inside: Cloud
    own: Float[np.ndarray, "2 N D"]
    labels: Int[np.ndarray, " N"]


def _draw_balls(rng: np.random.Generator) -> Balls:
    n = N_BALLS * IN_BALL
    raw = Balls(20 * rng.normal(size=(N_BALLS, D)), rng.normal(size=(n, D)), rng.normal(size=(2, n, D)), np.zeros(0))
    d = _distances(_flattened(raw, FLAT, BASE))
    found = find_local_representations(None, method="direct", min_cluster_size=SMALLEST, distances=d)
    return raw._replace(labels=found.labels)


def _flattened(raw: Balls, height: float, side: int) -> Cloud:
    """Gaussian balls, full in some dimensions and of some height in the others."""
    heights = np.where(np.arange(D) < CORE, 1.0, height)
    return np.repeat(raw.centres, IN_BALL, axis=0) + heights * _mixed(raw.inside, raw.own, side)


def _dimension(raw: Balls, x: Cloud) -> Iterator[float]:
    d = _distances(x)
    yield np.log(mean_dimension(local_dimensions(raw.labels, d)).estimate)
    members = [np.flatnonzero(raw.labels == k) for k in np.unique(raw.labels[raw.labels >= 0])]
    yield np.log(weighted_mean([mle_dimension(d[np.ix_(m, m)]) for m in members], [len(m) for m in members]))


# ---- all of them ------------------------------------------------------------------------------------------------

_ON_WORDS = {"draw": draw_words, "made": _contracted}
_PLAIN = {"detail": "plain"}

GEOMETRY: dict[str, Shapes] = {
    "distinctions": Shapes(
        analyses=({}, {"measure": "auc"}, {"detail": "half of the words"}),
        measured=_distinctions,
        parameter=_scale_of_distinctions,
        **_ON_WORDS,
    ),
    "merging": Shapes(
        analyses=({}, {"detail": "3 neighbours"}, {"centring": "none"}),
        measured=_merging,
        base=1.1,
        grid=(0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.5, 2),
        **_ON_WORDS,
    ),
    "pieces": Shapes(
        analyses=({}, {"detail": "1.5"}, {"detail": "3"}),
        draw=_draw_heaps,
        made=_crowded,
        measured=_pieces,
        base=CROWDED,
        grid=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    ),
    "more-dimensions": Shapes(
        analyses=({}, {"measure": "mle5"}),
        draw=_draw_balls,
        made=_flattened,
        measured=_dimension,
        base=FLAT,
        grid=(0, 0.02, 0.035, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1),
    ),
    "compression": Shapes(
        analyses=({}, _PLAIN, {"measure": "aedp", **_PLAIN}),
        measured=_compression,
        parameter=_scale_of_compression,
        **_ON_WORDS,
    ),
    "compression-in-place": Shapes(
        analyses=({}, {"detail": "medoids"}, {"measure": "aedp"}),
        measured=_in_place,
        parameter=_scale_in_place,
        **_ON_WORDS,
    ),
    "shape-kept": Shapes(
        analyses=({}, {"detail": "first 2 components"}),
        one_sided=True,
        draw=_draw_shape,
        made=_partly_other,
        measured=_shape,
        grid=(0, 0.2, 0.4, 0.6, 0.8, 1),
    ),
    "circle-lost": Shapes(
        analyses=({}, {"measure": "distance_score"}),
        draw=_draw_circle,
        made=_bent,
        measured=_circle,
        base=0.6,
        grid=(0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4),
    ),
}
