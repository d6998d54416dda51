"""Holes and circles: persistent homology with a stated rule, and a score for cyclic order.

A hole of a sample is a matter of scale. Persistent homology gives each hole the scales between which
it exists; Betti numbers then need a rule for which holes to count, and the rule is written here.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.arrays import any_numbers
from saema_utils.distances import first_copies, known_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.clouds import spanning_tree

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from saema_utils.distances import Distances, Points

COMPONENT_GAP = 2.5  # a gap between components is this many times the longest link inside one


# Least death over birth, by degree and by how many holes compete to be the largest by chance.
HOLE_RATIO = {1: ((5, 1.4), (20, 1.65), (math.inf, 1.9)), 2: ((math.inf, 1.2),)}
HOLE_GAP = {1: 1.2, 2: 1.12}  # and this much above the next hole
LANDMARKS = {0: 1000, 1: 300, 2: 150}


@any_numbers
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


@any_numbers
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


@any_numbers
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
