"""Holes and circles: persistent homology with a stated rule, and a score for cyclic order.

A hole of a sample is a matter of scale. Persistent homology gives each hole the scales between which
it exists; Betti numbers then need a rule for which holes to count, and the rule is written here.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .clouds import check_labels, check_points, first_copies, known_distances, spanning_tree
from .errors import GeometryError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from .clouds import Distances, Points

COMPONENT_GAP = 2.5  # a gap between components is this many times the longest link inside one
# Least death over birth, by degree and by how many holes compete to be the largest by chance.
HOLE_RATIO = {1: ((5, 1.4), (20, 1.65), (math.inf, 1.9)), 2: ((math.inf, 1.2),)}
HOLE_GAP = {1: 1.2, 2: 1.12}  # and this much above the next hole
LANDMARKS = {0: 1000, 1: 300, 2: 150}
EXACT_WORDS = 8  # up to 8! orders are all tried; more are sampled


def persistence(
    points: Points | None, max_dim: int = 1, *, distances: Distances | None = None, max_points: int | None = None
) -> list[Float[np.ndarray, "H 2"]]:
    """Persistence diagrams of the Vietoris-Rips complex [1]_: per degree, births and deaths.

    Scales are distances, in the units of the points. Degree 0 holds one infinite death. More than
    ``max_points`` points (300 for loops, 150 for voids) are thinned to landmarks, each the farthest
    from those before it; copies are dropped.

    References
    ----------
    .. [1] Tralie, Saul and Bar-On, JOSS 3(29), 2018 (ripser.py); Bauer, J. Appl. Comput. Topol. 5, 2021.
    """
    from ripser import ripser

    if max_dim not in (0, 1, 2):
        raise GeometryError(f"max_dim is {max_dim!r}; allowed: 0 (components), 1 (loops), 2 (voids).")
    d = known_distances(points, distances)
    first = first_copies(d)
    d = d[np.ix_(first, first)]
    landmarks = farthest_points(d, max_points or LANDMARKS[max_dim])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="ripser")
        diagrams = ripser(d[np.ix_(landmarks, landmarks)], maxdim=max_dim, distance_matrix=True)["dgms"]
    return [np.asarray(diagram, dtype=float).reshape(-1, 2) for diagram in diagrams]


def farthest_points(distances: Distances, n: int) -> Int[np.ndarray, " M"]:
    """Indices of up to ``n`` points, each the farthest from those chosen before; starts at the centre."""
    if len(distances) <= n:
        return np.arange(len(distances))
    chosen = [int(distances.sum(axis=1).argmin())]
    nearest = distances[chosen[0]].copy()
    while len(chosen) < n:
        chosen.append(int(nearest.argmax()))
        np.minimum(nearest, distances[chosen[-1]], out=nearest)
    return np.array(chosen)


def betti_numbers(
    points: Points | None, max_dim: int = 1, *, distances: Distances | None = None, max_points: int | None = None
) -> Int[np.ndarray, " max_dim+1"]:
    """Numbers of components, loops and voids that stand out from the sample's own graininess.

    Components: the links of the minimum spanning tree are sorted; at the largest ratio between one
    and the next (among the longer half) the tree is cut, if that ratio is at least 2.5. Loops and
    voids: each lives from ``max(birth, s)`` to ``death``, s the longest link within a component; sorted
    by death over that, those before the largest drop count, if they reach 1.4 (loops; 1.65 among
    more than 5, 1.9 among more than 20) or 1.2 (voids) and the drop is at least 1.2 (1.12). The book's
    ruler table gives the rule's error rates.

    Parameters
    ----------
    points
        Shape [N, D], at least one distinct point.
    max_dim
        0, 1 or 2: highest degree.

    Returns
    -------
    Shape [max_dim + 1], whole numbers. One point, or equal points: (1, 0, 0).
    """
    d = known_distances(points, distances)
    first = first_copies(d)  # links between copies that differ by rounding would make the gap rule cut at them
    d = d[np.ix_(first, first)]
    components, _ = components_by_gap(np.sort(spanning_tree(d)[2])[::-1])
    numbers = [components]
    if max_dim >= 1:
        diagrams = persistence(None, max_dim, distances=d, max_points=max_points)
        own_links = np.sort(diagrams[0][:, 1][np.isfinite(diagrams[0][:, 1])])[::-1]
        scale = components_by_gap(own_links)[1]
        numbers += [count_holes(diagrams[k], scale, k) for k in range(1, max_dim + 1)]
    return np.array(numbers, dtype=np.int64)


def components_by_gap(links: Float[np.ndarray, " L"]) -> tuple[int, float]:
    """Number of components by the gap rule, and the longest link inside one; ``links`` descending."""
    if len(links) < 2:
        return 1, float(links[0]) if len(links) else 0.0
    half = max(1, len(links) // 2)
    ratios = links[:half] / links[1 : half + 1]
    cut = int(ratios.argmax()) + 1 if ratios.max() >= COMPONENT_GAP else 0
    return cut + 1, float(links[cut])


def hole_ratios(diagram: Float[np.ndarray, "H 2"], scale: float) -> Float[np.ndarray, " H"]:
    """Death over ``max(birth, scale)`` of every hole, largest first."""
    if not len(diagram):
        return np.zeros(0)
    return np.sort(diagram[:, 1] / np.maximum(diagram[:, 0], max(scale, 1e-300)))[::-1]


def count_holes(diagram: Float[np.ndarray, "H 2"], scale: float, degree: int) -> int:
    """Holes of one degree that stand out by the rule of :func:`betti_numbers`."""
    ratios = hole_ratios(diagram, scale)
    ratios = ratios[ratios > 1]
    if not len(ratios):
        return 0
    drops = ratios / np.append(ratios[1:], 1.0)
    drops[ratios < next(least for most, least in HOLE_RATIO[degree] if len(diagram) <= most)] = 0
    last = int(drops.argmax())
    return last + 1 if drops[last] >= HOLE_GAP[degree] else 0


# ---- circles -----------------------------------------------------------------------------------


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
    nan = float("nan")
    if k < 4 or not share > 0:
        reason = f"{k} items: a cycle needs at least 4" if k < 4 else "all items have the same vector"
        return Circularity(nan, nan, nan, nan, nan, plane, k, reason)

    gaps = np.abs(places[:, None] - places[None, :])
    around = np.minimum(gaps, period - gaps)
    upper = np.triu_indices(k, 1)
    ranks = _ranks(known_distances(x, None)[upper])
    cyclic = np.zeros((k, k))
    cyclic[upper] = _ranks(around[upper].astype(float))
    cyclic += cyclic.T

    shuffles = _shuffles(k, n_resamples, seed)
    scores = _alignment(plane, places[shuffles], period)
    correlations = np.array([ranks @ cyclic[np.ix_(o, o)][upper] for o in shuffles]) / len(ranks)
    # The given order is the first of both the complete list and the sample: the +1 correction is built in.
    p_value, distance_p = (float(np.mean(v >= v[0] - 1e-9)) for v in (scores, correlations))
    upright = _upright(plane, places, period)
    return Circularity(float(scores[0]), p_value, float(correlations[0]), distance_p, share, upright, k)


def plane_of(points: Points) -> tuple[Float[np.ndarray, "K 2"], float]:
    """Coordinates in the top two principal components, and the share of the variance that they carry.

    The share is 0 when all points are equal.
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
    """The score of :func:`circularity` for coordinates in a plane, without its test."""
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
        count = math.factorial(k)
        return np.fromiter(itertools.chain.from_iterable(itertools.permutations(range(k))), int, count * k).reshape(
            -1, k
        )
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
