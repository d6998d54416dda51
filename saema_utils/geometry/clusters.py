"""Local and global geometry of a cloud of token vectors: clusters, their poles, and what joins them.

A *local representation* is a cluster of a concept's token vectors; its centre is a *pole*; the
*global representation* is the configuration of the poles. Each measure is a pure function of points
(and labels). Distances are computed once: every function takes ``distances=`` to reuse them.

Label -1 means noise everywhere and belongs to no local representation. Where a measure has no value
(one cluster, too few points) it is NaN, and the reason is given beside it; input that cannot mean
anything (NaN, wrong shape) raises GeometryError.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.distances import check_points, pairwise_distances
from saema_utils.errors import GeometryError, unknown_name
from saema_utils.runs.files import cache_dir, can_write

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saema_utils.distances import Distances, Points

METHODS = ("paper", "direct")
UMAP_COMPONENTS = 50
UMAP_NEIGHBORS = 15
UMAP_EPOCHS = 200


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


def umap_embedding(distances: Distances, *, n_components: int, seed: int) -> Float[np.ndarray, "N E"]:
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

        # What is compiled is kept beside the code, and where that cannot be written nothing would be compiled at all.
        if not can_write(Path(find_spec("umap").origin).parent):
            numba.config.CACHE_DIR = str(cache_dir() / "numba")
        import umap

        _keep_what_is_compiled()
        # Numba's OpenMP layer would change torch's number of threads for the rest of the process: small
        # matrix products then take a hundred times as long. Its own work queue does not.
        numba.config.THREADING_LAYER = "workqueue"
        # Announcements of what UMAP does anyway here, not faults: no inverse map, one worker for a seeded
        # run, a spectral start that falls back to a random one on disconnected clouds.
        warnings.filterwarnings("ignore", category=UserWarning, module="umap")
        warnings.filterwarnings("ignore", category=UserWarning, module="sklearn.manifold")
        warnings.filterwarnings("ignore", message="using precomputed metric")
        with _seeded_restarts(seed):
            return umap.UMAP(
                n_components=max(1, min(n_components, n - 2)),
                n_neighbors=min(UMAP_NEIGHBORS, n - 1),
                n_epochs=UMAP_EPOCHS,
                metric="precomputed",
                random_state=seed,
                n_jobs=1,
            ).fit_transform(distances)


@functools.cache
def _keep_what_is_compiled() -> None:
    """Ask numba to keep UMAP's machine code for the next process, as the library does for some: ten seconds each."""
    from numba.core.dispatcher import Dispatcher
    from umap import layouts, umap_, utils

    for module in (layouts, umap_, utils):
        for found in vars(module).values():
            if isinstance(found, Dispatcher):
                found.enable_caching()


@contextlib.contextmanager
def _seeded_restarts(seed: int) -> Iterator[None]:
    """Let the spectral start of UMAP be the same each time: where eigenvalues coincide, as copies make them, SciPy
    begins anew at random since 1.17, and UMAP hands it no seed."""
    from scipy.sparse import linalg

    seeded = {"rng": seed} if "rng" in inspect.signature(linalg.eigsh).parameters else {}
    with mock.patch.object(linalg, "eigsh", functools.partial(linalg.eigsh, **seeded)):
        yield


@any_numbers
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
