"""A cloud of points: checked at the door, its distances, its copies, its unit of length, its tree.

What every geometric measure of the package starts from. Distances are computed once, here, and
handed on through ``distances=``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.errors import GeometryError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    Points = Float[Tensor, "N D"] | Float[np.ndarray, "N D"]
    Labels = Int[Tensor, " N"] | Int[np.ndarray, " N"]
    Distances = Float[np.ndarray, "N N"]

DUPLICATE_TOLERANCE = 1e-5  # of the RMS distance: copies of one vector differ by float32 rounding only


def check_points(points: Points, at_least: int = 1, what: str = "points") -> Float[Tensor, "N D"]:
    """Points as float64, on their own device (on the CPU where the device has no float64).

    Raises
    ------
    GeometryError
        If they are not two-dimensional, not finite, or fewer than ``at_least``.
    """
    tensor = torch.as_tensor(points)
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise GeometryError(f"{what} have shape {tuple(tensor.shape)}; allowed: [N, D] with D at least 1.")
    if tensor.shape[0] < at_least:
        raise GeometryError(f"{tensor.shape[0]} {what}; allowed: at least {at_least}. Pass more, or a smaller setting.")
    tensor = tensor.detach()
    tensor = (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor).all(dim=1)).sum())
        raise GeometryError(f"{bad} of {len(tensor)} {what} hold NaN or infinity; mask or drop them and run again.")
    return tensor


def check_labels(labels: Labels, n: int) -> Int[np.ndarray, " N"]:
    """Labels as a NumPy array of ``n`` whole numbers."""
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise GeometryError(f"labels have shape {array.shape} and type {array.dtype}; allowed: {n} whole numbers.")
    return array


def pairwise_distances(points: Points) -> Distances:
    r"""Euclidean distances between all points, exact for copies of one point.

    From the Gram matrix of the centred points in float64, whose rounding would leave about
    :math:`10^{-8}` of the spread between two equal points: the few closest pairs are therefore
    subtracted one by one. Costs O(N\ :sup:`2` D) time, N\ :sup:`2` numbers of memory.
    """
    x = check_points(points)
    x = x - x.mean(dim=0)
    squares = (x * x).sum(dim=1)
    d2 = (squares[:, None] + squares[None, :] - 2 * (x @ x.T)).clamp_(min=0)
    close = torch.nonzero(torch.triu(d2 <= 1e-8 * squares.mean(), diagonal=1))
    for i, j in (pairs.unbind(1) for pairs in close.split(8192)):
        d2[i, j] = d2[j, i] = ((x[i] - x[j]) ** 2).sum(dim=1)
    d2.fill_diagonal_(0)
    return d2.sqrt_().cpu().numpy()


def known_distances(points: Points | None, distances: Distances | None) -> Distances:
    return pairwise_distances(points) if distances is None else distances


def first_copies(distances: Distances, tolerance: float = DUPLICATE_TOLERANCE) -> Bool[np.ndarray, " N"]:
    """True for the first of each set of equal points, False for its copies.

    A causal language model gives equal vectors to a prefix that several prompts share: such copies
    carry no information, make nearest neighbours meaningless, and would be clustered as dense spots.
    Two points are equal when they are closer than ``tolerance`` times the RMS distance.
    """
    n = len(distances)
    threshold = tolerance * np.sqrt(np.mean(distances**2)) if n else 0.0
    earlier = np.tril(distances <= threshold, k=-1)
    return ~earlier.any(axis=1)


def rms_radius(points: Points) -> float:
    """Root mean squared distance of points to their mean: the cloud's own unit of length."""
    x = check_points(points)
    return float(((x - x.mean(dim=0)) ** 2).sum(dim=1).mean().sqrt())


def rms_radius_of(distances: Distances) -> float:
    r"""The same from distances alone: half the mean squared distance over all pairs is its square."""
    return float(np.sqrt(np.mean(distances**2) / 2))


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
