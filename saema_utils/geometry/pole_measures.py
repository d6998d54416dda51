"""Measures of the global representation: the poles, how far apart they stand, the tree and the ways between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.distances import check_points, known_distances, pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.clouds import check_labels, spanning_tree

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from saema_utils.distances import Distances, Points
    from saema_utils.geometry.clouds import Labels

# ---- poles and the global representation -------------------------------------------------------


def poles(points: Points, labels: Labels) -> Points:
    """Means of the labelled points, one row per label in ascending order; noise (-1) has none.

    Returns
    -------
    Shape [K, D], in the type, dtype and device of ``points``; K is 0 when every point is noise.
    """
    x = check_points(points)
    array = check_labels(labels, len(x))
    names, inverse = np.unique(array[array >= 0], return_inverse=True)
    shares = torch.zeros(len(names), len(x), dtype=x.dtype, device=x.device)
    shares[torch.as_tensor(inverse, device=x.device), torch.as_tensor(np.flatnonzero(array >= 0), device=x.device)] = 1
    means = (shares / shares.sum(dim=1, keepdim=True)) @ x
    if isinstance(points, torch.Tensor):
        return means.to(points.device, points.dtype if points.is_floating_point() else torch.float32)
    return means.cpu().numpy()


@any_numbers
def pole_distances(labels: Labels, distances: Distances) -> Float[np.ndarray, "K K"]:
    r"""Distances between poles from the distances between points alone, without the points.

    .. math:: \lVert c_a - c_b \rVert^2 =
              \overline{d^2_{ab}} - \tfrac12 \overline{d^2_{aa}} - \tfrac12 \overline{d^2_{bb}}

    with means over all pairs of members, a point with itself included.
    """
    array = check_labels(labels, len(distances))
    names, inverse = np.unique(array[array >= 0], return_inverse=True)
    shares = np.zeros((len(names), len(array)))
    shares[inverse, np.flatnonzero(array >= 0)] = 1
    shares /= shares.sum(axis=1, keepdims=True)
    between = shares @ distances**2 @ shares.T
    within = np.diag(between)
    squares = between - (within[:, None] + within[None, :]) / 2
    np.fill_diagonal(squares, 0)
    return np.sqrt(squares.clip(min=0))


@any_numbers
def aedp(poles: Points) -> float:
    """Average Euclidean distance over all pairs of poles; NaN for fewer than two."""
    return mean_distance(pairwise_distances(poles)) if len(poles) >= 2 else float("nan")


@any_numbers
def mean_distance(distances: Distances) -> float:
    """Average over all pairs of a distance matrix."""
    return float(distances[np.triu_indices(len(distances), 1)].mean())


@any_numbers
def mst_weight(poles: Points) -> float:
    """Total length of the minimum spanning tree that joins the poles; NaN for fewer than two."""
    if len(poles) < 2:
        return float("nan")
    return float(spanning_tree(pairwise_distances(poles))[2].sum())


@any_numbers
def mst_weight_scale_free(poles: Points, unit: float) -> float:
    """Mean edge of the spanning tree in units of ``unit`` (:func:`rms_radius` of the cloud).

    Neither a larger norm nor more poles alone make it larger, so that clouds of different spaces
    can be compared.
    """
    return scale_free_tree(pairwise_distances(poles), unit) if len(poles) >= 2 else float("nan")


def scale_free_tree(between: Distances, unit: float) -> float:
    """:func:`mst_weight_scale_free` from the distances between poles."""
    if len(between) < 2 or not unit > 0:
        return float("nan")
    return float(spanning_tree(between)[2].sum()) / (len(between) - 1) / unit


@any_numbers
def average_geodesic_distance(
    points: Points | None, labels: Labels, n_neighbors: int = 10, *, distances: Distances | None = None
) -> float:
    """Average over pairs of clusters of the shortest path between their medoids along the cloud.

    Paths run over the symmetric graph of ``n_neighbors`` nearest neighbours [1]_ joined with the
    minimum spanning tree, so that a graph in pieces is bridged by the shortest possible links
    instead of giving infinity. NaN for fewer than two clusters.

    Raises
    ------
    GeometryError
        If there are not more points than neighbours.

    References
    ----------
    .. [1] Tenenbaum, de Silva and Langford, Science 290, 2000.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    d = known_distances(points, distances)
    array = check_labels(labels, len(d))
    n = len(d)
    if n_neighbors < 1 or n <= n_neighbors:
        raise GeometryError(f"n_neighbors is {n_neighbors} for {n} points; allowed: 1 to {n - 1}.")
    medoids = cluster_medoids(array, d)
    if len(medoids) < 2:
        return float("nan")
    near = np.argpartition(d + np.diag(np.full(n, -1.0)), n_neighbors, axis=1)[:, : n_neighbors + 1].ravel()
    i, j, _ = spanning_tree(d)
    rows, columns = np.concatenate([np.repeat(np.arange(n), n_neighbors + 1), i]), np.concatenate([near, j])
    keep = rows != columns
    edges = np.unique(np.sort(np.stack([rows[keep], columns[keep]]), axis=0), axis=1)
    lengths = np.maximum(d[edges[0], edges[1]], 1e-15 * d.max())  # an edge between equal points stays an edge
    graph = coo_array((lengths, (edges[0], edges[1])), shape=(n, n)).tocsr()
    paths = dijkstra(graph, directed=False, indices=medoids)[:, medoids]
    return float(paths[np.triu_indices(len(medoids), 1)].mean())


@any_numbers
def cluster_medoids(labels: Int[np.ndarray, " N"], distances: Distances) -> Int[np.ndarray, " K"]:
    """Index of each cluster's medoid: the member nearest to all others of its cluster."""
    members = [np.flatnonzero(labels == k) for k in np.unique(labels[labels >= 0])]
    return np.array([m[distances[np.ix_(m, m)].sum(axis=1).argmin()] for m in members], dtype=np.int64)
