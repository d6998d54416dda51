"""Intrinsic dimension of a cloud and of its clusters, by the two nearest neighbours, with its error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.arrays import any_numbers
from saema_utils.distances import first_copies, known_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.clouds import check_labels

if TYPE_CHECKING:
    from jaxtyping import Float

    from saema_utils.distances import Distances, Points
    from saema_utils.geometry.clouds import Labels

DISCARD_FRACTION = 0.1


@dataclass(frozen=True)
class IntrinsicDimension:
    """An estimate with its standard error; unpacks as ``value, error = intrinsic_dimension(x)``.

    ``n`` points were used, ``n_duplicates`` copies were dropped; ``reason`` explains a NaN.
    """

    estimate: float
    error: float
    n: int
    n_duplicates: int = 0
    reason: str = ""

    def __iter__(self) -> Iterator[float]:
        return iter((self.estimate, self.error))

    def __float__(self) -> float:
        return self.estimate


@any_numbers
def intrinsic_dimension(
    points: Points, *, distances: Distances | None = None, discard_fraction: float = DISCARD_FRACTION
) -> IntrinsicDimension:
    r"""TwoNN intrinsic dimension: the exponent at which neighbourhoods grow.

    With :math:`\mu_i = r_{i2} / r_{i1}` the ratio of the distances to the second and the first
    neighbour, :math:`\log\mu` is exponential with rate d [1]_. The largest ``discard_fraction`` of
    the ratios, where the density is not constant, is treated as censored, which leaves the estimate
    unbiased under the model:

    .. math:: \hat d = \frac{m - 1}{\sum_{i \le m} \log\mu_{(i)} + (N - m) \log\mu_{(m)}},
              \qquad \mathrm{se} = \hat d / \sqrt{m - 2}

    Returns
    -------
    Estimate (no unit) and standard error. The error holds for independent ratios; neighbours share
    points, so that it is somewhat too small (the book's ruler table says by how much), and the
    estimate is biased low above about ten dimensions for a few hundred points.

    References
    ----------
    .. [1] Facco, d'Errico, Rodriguez and Laio, Scientific Reports 7, 2017; the censored form follows
       Denti, Doimo, Laio and Mira, Scientific Reports 12, 2022.
    """
    if not 0 <= discard_fraction < 1:
        raise GeometryError(f"discard_fraction is {discard_fraction!r}; allowed: 0 up to, not including, 1.")
    d = known_distances(points, distances)
    first = first_copies(d)
    n, copies = int(first.sum()), int((~first).sum())
    m = int(np.ceil((1 - discard_fraction) * n))
    if n < 5 or m < 4:
        return IntrinsicDimension(np.nan, np.nan, n, copies, f"only {n} distinct points: at least 5 are needed")
    logs = _log_ratios(d[np.ix_(first, first)])
    total = logs[:m].sum() + (n - m) * logs[m - 1]
    if total <= 1e-9 * n:
        reason = "first and second neighbours are equally far (a lattice): no ratio to fit"
        return IntrinsicDimension(np.nan, np.nan, n, copies, reason)
    estimate = (m - 1) / total
    return IntrinsicDimension(float(estimate), float(estimate / np.sqrt(m - 2)), n, copies)


def _log_ratios(distances: Distances) -> Float[np.ndarray, " N"]:
    """Logarithms of the ratios of the distances to the second and the first neighbour, ascending."""
    # NumPy orders only the places it is asked for: with 2 alone, some processors leave a point itself in place 1.
    nearest = np.partition(distances, (1, 2), axis=1)[:, 1:3]
    return np.sort(np.log(nearest[:, 1] / nearest[:, 0]))


@any_numbers
def two_nn_fit(distances: Distances, *, discard_fraction: float = DISCARD_FRACTION) -> float:
    r"""TwoNN dimension as it was first published: the slope of a straight line through the origin.

    With the ratios :math:`\mu` of :func:`intrinsic_dimension` in ascending order, the line is fitted to
    :math:`-\log(1 - i / N)` against :math:`\log\mu_{(i)}` over :math:`i = 0, \dots, N - 1`, without the largest tenth.
    For comparison with others' numbers: it states no error, and :func:`intrinsic_dimension` has less bias.

    Returns
    -------
    The slope; NaN below five distinct points or where all ratios are 1. Copies of a point are dropped.
    """
    first = first_copies(distances)
    n = int(first.sum())
    if n < 5:
        return float("nan")
    logs = _log_ratios(distances[np.ix_(first, first)])
    kept = int((1 - discard_fraction) * n)
    x, y = logs[:kept], -np.log1p(-np.arange(kept) / n)
    square = float(x @ x)
    return float(x @ y) / square if square > 0 else float("nan")


@any_numbers
def mle_dimension(distances: Distances, n_neighbors: int = 5) -> float:
    r"""Maximum-likelihood intrinsic dimension [1]_ from the ``n_neighbors`` nearest neighbours of each point.

    .. math:: \hat d^{-1} = \frac{1}{N (k - 1)} \sum_i \sum_{j < k} \log\frac{r_{ik}}{r_{ij}}

    Not the points' dimensions but their inverses are averaged, which is the maximum of the joint likelihood [2]_.

    Returns
    -------
    No unit; NaN below k + 1 distinct points, or where all neighbours are equally far. Copies of a point are dropped.

    References
    ----------
    .. [1] Levina and Bickel, NIPS 2004.
    .. [2] MacKay and Ghahramani, comment on it, 2005.
    """
    first = first_copies(distances)
    d = distances[np.ix_(first, first)]
    if len(d) <= n_neighbors:
        return float("nan")
    nearest = np.sort(np.partition(d, n_neighbors, axis=1)[:, : n_neighbors + 1], axis=1)[:, 1:]
    inverse = np.log(nearest[:, -1:] / nearest[:, :-1]).sum(axis=1).mean() / (n_neighbors - 1)
    return float(1 / inverse) if inverse > 1e-12 else float("nan")


def local_dimensions(labels: Labels, distances: Distances) -> list[IntrinsicDimension]:
    """Intrinsic dimension of every cluster, in ascending order of label, neighbours within the cluster."""
    array = check_labels(labels, len(distances))
    members = (np.flatnonzero(array == k) for k in np.unique(array[array >= 0]))
    return [intrinsic_dimension(None, distances=distances[np.ix_(m, m)]) for m in members]


def mean_dimension(dimensions: Sequence[IntrinsicDimension]) -> IntrinsicDimension:
    """Average of estimates weighted by n - 2, the inverse of their relative variance, with its error."""
    known = [d for d in dimensions if np.isfinite(d.estimate)]
    copies = sum(d.n_duplicates for d in dimensions)
    if not known:
        reason = dimensions[0].reason if dimensions else "no local representation"
        return IntrinsicDimension(np.nan, np.nan, 0, copies, reason)
    weights = np.array([d.n - 2 for d in known], dtype=float)
    weights /= weights.sum()
    estimate = float(weights @ [d.estimate for d in known])
    error = float(np.sqrt(weights**2 @ np.array([d.error for d in known]) ** 2))
    return IntrinsicDimension(estimate, error, sum(d.n for d in known), copies)


@any_numbers
def spectrum_from_distances(distances: Distances) -> Float[np.ndarray, " N"]:
    r"""Eigenvalues of the covariance of points, descending, from their distances alone.

    Those of :math:`-\tfrac12 J D^{(2)} J / (N - 1)`, with J the centring matrix: the Gram matrix has
    the covariance's eigenvalues, and N of a cluster is smaller than the number of latents.
    """
    squares = distances**2
    gram = -(squares - squares.mean(axis=0) - squares.mean(axis=1, keepdims=True) + squares.mean()) / 2
    return np.linalg.eigvalsh(gram)[::-1].clip(min=0) / max(1, len(distances) - 1)
