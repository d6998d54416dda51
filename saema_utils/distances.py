"""Distances between points, and which points are copies of one another.

What ranks under noise and geometry both start from: a causal language model gives the same vector to a beginning that
several prompts share, and such copies are one point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import GeometryError
from saema_utils.runtime import float64

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    Points = Float[Tensor, "N D"] | Float[np.ndarray, "N D"]
    Distances = Float[np.ndarray, "N N"]

COPY_TOLERANCE = 1e-5
"""Points closer than this share of the RMS distance are copies. At no layer of the embedded model do copies differ by
more than 1.2e-6 of it, however prompts are batched, and nowhere are tokens of different contexts closer than 1.8e-3
(2.4e-2 at the studied layer): any tolerance between finds the same points."""


@any_numbers
def check_points(points: Points) -> Float[Tensor, "N D"]:
    """Points as float64, on their own device (on the CPU where the device has no float64).

    Raises
    ------
    GeometryError
        If they are not two-dimensional, not finite, or there are none.
    """
    tensor = torch.as_tensor(points)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise GeometryError(f"points have shape {tuple(tensor.shape)}; allowed: [N, D] with N and D at least 1.")
    tensor = float64(tensor.detach())
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor).all(dim=1)).sum())
        raise GeometryError(f"{bad} of {len(tensor)} points hold NaN or infinity; mask or drop them and run again.")
    return tensor


@any_numbers
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


@any_numbers
def first_copies(distances: Distances, tolerance: float = COPY_TOLERANCE) -> Bool[np.ndarray, " N"]:
    """True for the first of each set of equal points, False for its copies.

    Copies carry no information, make nearest neighbours meaningless, would be clustered as dense spots, and are
    parted by noise, which then looks like a gain of rank. Two points are equal when they are closer than
    ``tolerance`` times the RMS distance.
    """
    n = len(distances)
    threshold = tolerance * np.sqrt(np.mean(distances**2)) if n else 0.0
    earlier = np.tril(distances <= threshold, k=-1)
    return ~earlier.any(axis=1)
