"""Local and global geometry of a cloud of token vectors: clusters, their poles, and what joins them.

A *local representation* is a cluster of a concept's token vectors; its centre is a *pole*; the
*global representation* is the configuration of the poles. Each measure is a pure function of points
(and labels). Distances are computed once: every function takes ``distances=`` to reuse them.

Label -1 means noise everywhere and belongs to no local representation. Where a measure has no value
(one cluster, too few points) it is NaN, and the reason is given beside it; input that cannot mean
anything (NaN, wrong shape) raises GeometryError.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .clouds import (
    check_labels,
    check_points,
    first_copies,
    known_distances,
    pairwise_distances,
    rms_radius,
    spanning_tree,
)  # fmt: skip
from .dimension import IntrinsicDimension, intrinsic_dimension, local_dimensions, mean_dimension
from .errors import GeometryError, unknown_name
from .matching import match_by_assignment, match_by_word, procrustes_disparity
from .topology import betti_numbers

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from .clouds import Distances, Labels, Points

METHODS = ("paper", "direct")
UMAP_COMPONENTS = 50
UMAP_NEIGHBORS = 15


# ---- local representations ---------------------------------------------------------------------


@dataclass(frozen=True)
class LocalRepresentations:
    """Clusters of a cloud: ``labels`` (-1 is noise) and the space in which they were found.

    ``embedding`` is None for the direct method, which has no space but the data's own. ``reason``
    says why there is no cluster, and is empty when there are some.
    """

    labels: Int[np.ndarray, " N"]
    embedding: Float[np.ndarray, "N E"] | None
    n_local: int
    noise_fraction: float
    reason: str = ""


def standardise_to_sphere(points: Points) -> Float[Tensor, "N D"]:
    """Z-score every dimension, then scale every point to unit length: the paper's preparation.

    Dimensions that never change are left at zero (a latent that fires for no token says nothing).
    """
    x = check_points(points)
    deviation = x.std(dim=0, correction=0)
    varies = deviation > 1e-12 * x.abs().amax(dim=0).clamp(min=1e-300)
    z = (x - x.mean(dim=0)) / torch.where(varies, deviation, 1.0) * varies
    return z / z.norm(dim=1, keepdim=True).clamp(min=1e-300)


def umap_embedding(
    distances: Distances, *, n_components: int, seed: int, n_neighbors: int = UMAP_NEIGHBORS, n_epochs: int | None = 200
) -> Float[np.ndarray, "N E"]:
    """UMAP of a distance matrix [1]_, seeded; at most N - 2 dimensions and N - 1 neighbours.

    200 epochs instead of the library's 500 for small data: a third of the time, and fewer
    differences in the clusters than between two seeds.

    References
    ----------
    .. [1] McInnes, Healy and Melville, arXiv 1802.03426, 2018.
    """
    n = len(distances)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of tensorflow, which the parametric kind wants
        import numba
        import umap

        # Numba's OpenMP layer would change torch's number of threads for the rest of the process: small
        # matrix products then take a hundred times as long. Its own work queue does not.
        numba.config.THREADING_LAYER = "workqueue"
        # Announcements of what UMAP does anyway here, not faults: no inverse map, one worker for a seeded
        # run, a spectral start that falls back to a random one on disconnected clouds.
        warnings.filterwarnings("ignore", category=UserWarning, module="umap")
        warnings.filterwarnings("ignore", category=UserWarning, module="sklearn.manifold")
        warnings.filterwarnings("ignore", message="using precomputed metric")
        return umap.UMAP(
            n_components=max(1, min(n_components, n - 2)), n_neighbors=min(n_neighbors, n - 1), n_epochs=n_epochs,
            metric="precomputed", random_state=seed, n_jobs=1,
        ).fit_transform(distances)  # fmt: skip


def find_local_representations(
    points: Points | None,
    *,
    method: str = "paper",
    min_cluster_size: int = 10,
    seed: int = 0,
    distances: Distances | None = None,
    n_components: int = UMAP_COMPONENTS,
) -> LocalRepresentations:
    """Cluster a concept's token vectors into local representations.

    Parameters
    ----------
    points
        Shape [N, D]. Drop copies first (:func:`first_copies`), or they become clusters. None where
        ``distances`` are given.
    method
        ``paper``: standardise, unit norm, UMAP to 50 dimensions (N - 2 when there are fewer points),
        HDBSCAN there. ``direct``: HDBSCAN on the points' own Euclidean distances, no embedding and
        nothing random.
    min_cluster_size
        Smallest number of points that counts as a cluster.
    distances
        Those of ``points`` for ``direct``; those of :func:`standardise_to_sphere` for ``paper``.

    Returns
    -------
    :class:`LocalRepresentations`. No cluster at all is an answer (``n_local`` 0 with a reason), not
    an error; HDBSCAN [1]_ never returns exactly one, since it calls a single lump noise.

    Raises
    ------
    GeometryError
        For an unknown method, NaN, or fewer points than two clusters need.

    References
    ----------
    .. [1] Campello, Moulavi and Sander, PAKDD 2013; scikit-learn's HDBSCAN.
    """
    from sklearn.cluster import HDBSCAN

    if method not in METHODS:
        raise GeometryError(unknown_name("clustering method", method, METHODS))
    if min_cluster_size < 2:
        raise GeometryError(f"min_cluster_size is {min_cluster_size}; allowed: at least 2.")
    if distances is None:
        x = check_points(points)
        distances = pairwise_distances(standardise_to_sphere(x) if method == "paper" else x)
    n, needed = len(distances), max(4, min_cluster_size + 1)
    if n < needed:
        raise GeometryError(f"{n} points for clusters of {min_cluster_size}; allowed: at least {needed} points.")
    if not np.any(distances > 0):
        labels = np.full(n, -1)
        return LocalRepresentations(labels, None, 0, 1.0, "all points are equal: nothing to cluster")
    if method == "paper":
        embedding = umap_embedding(distances, n_components=n_components, seed=seed)
        labels = HDBSCAN(min_cluster_size=min_cluster_size, copy=True).fit_predict(embedding)
    else:
        embedding = None
        labels = HDBSCAN(min_cluster_size=min_cluster_size, metric="precomputed", copy=True).fit_predict(distances)
    labels = labels.astype(np.int64)
    n_local = int(labels.max()) + 1
    reason = "" if n_local else f"no cluster of {min_cluster_size} points stands out: all points are noise"
    return LocalRepresentations(labels, embedding, n_local, float(np.mean(labels < 0)), reason)


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


def aedp(poles: Points) -> float:
    """Average Euclidean distance over all pairs of poles; NaN for fewer than two."""
    return mean_distance(pairwise_distances(poles)) if len(poles) >= 2 else float("nan")


def mean_distance(distances: Distances) -> float:
    """Average over all pairs of a distance matrix."""
    return float(distances[np.triu_indices(len(distances), 1)].mean())


def mst_weight(poles: Points) -> float:
    """Total length of the minimum spanning tree that joins the poles; NaN for fewer than two."""
    if len(poles) < 2:
        return float("nan")
    return float(spanning_tree(pairwise_distances(poles))[2].sum())


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


def cluster_medoids(labels: Int[np.ndarray, " N"], distances: Distances) -> Int[np.ndarray, " K"]:
    """Index of each cluster's medoid: the member nearest to all others of its cluster."""
    members = [np.flatnonzero(labels == k) for k in np.unique(labels[labels >= 0])]
    return np.array([m[distances[np.ix_(m, m)].sum(axis=1).argmin()] for m in members], dtype=np.int64)


__all__ = [
    "METHODS", "IntrinsicDimension", "LocalRepresentations", "aedp", "average_geodesic_distance", "betti_numbers",
    "check_points", "cluster_medoids", "find_local_representations", "first_copies", "intrinsic_dimension",
    "local_dimensions", "match_by_assignment", "match_by_word", "mean_dimension", "mean_distance", "mst_weight",
    "mst_weight_scale_free", "pairwise_distances", "pole_distances", "poles", "procrustes_disparity", "rms_radius",
    "scale_free_tree", "standardise_to_sphere", "umap_embedding",
]  # fmt: skip
