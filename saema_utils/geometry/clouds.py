"""A cloud of points: its labels, its unit of length, its tree. Distances are computed once and handed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.distances import check_points
from saema_utils.errors import GeometryError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saema_utils.distances import Distances, Points

    Labels = Int[Tensor, " N"] | Int[np.ndarray, " N"]


def check_labels(labels: Labels, n: int) -> Int[np.ndarray, " N"]:
    """Labels as a NumPy array of ``n`` whole numbers."""
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise GeometryError(f"labels have shape {array.shape} and type {array.dtype}; allowed: {n} whole numbers.")
    return array


@any_numbers
def rms_radius(points: Points) -> float:
    """Root mean squared distance of points to their mean: the cloud's own unit of length."""
    x = check_points(points)
    return float(((x - x.mean(dim=0)) ** 2).sum(dim=1).mean().sqrt())


@any_numbers
def rms_radius_of(distances: Distances) -> float:
    r"""The same from distances alone: half the mean squared distance over all pairs is its square."""
    return float(np.sqrt(np.mean(distances**2) / 2))


@any_numbers
def spanning_tree(distances: Distances) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """Edges (i, j, length) of the minimum spanning tree of a full distance matrix."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    # SciPy reads a zero, and in a dense matrix anything below 1e-8, as "no edge": list all edges, and
    # give two equal points the smallest length that is one.
    n = len(distances)
    floor = max(float(distances.max(initial=0.0)), 1e-300) * 1e-15
    rows, columns = np.triu_indices(n, 1)
    starts = np.concatenate([[0], np.cumsum(np.arange(n - 1, -1, -1))])
    lengths = np.maximum(distances[rows, columns], floor)
    tree = minimum_spanning_tree(csr_array((lengths, columns, starts), shape=(n, n))).tocoo()
    return tree.row, tree.col, np.where(tree.data <= floor, 0.0, tree.data)
