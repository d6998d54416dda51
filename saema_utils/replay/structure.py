"""The authors' measurement of structure: all tokens, z-scored, embedded, clustered, and measured in the embedding.

What is faithful is the protocol, faults included, for that is what a replay asks about. Each of its choices can be
switched off alone, which tells what that choice does to the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.distances import first_copies, pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.clouds import rms_radius_of, spanning_tree
from saema_utils.geometry.clusters import standardise_to_sphere, umap_embedding
from saema_utils.geometry.dimension import two_nn_fit
from saema_utils.geometry.pole_measures import pole_distances, scale_free_tree
from saema_utils.runtime import float64

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

MIN_CLUSTER_SIZE = 10
STEPS: Mapping[str, str] = {
    "mask": "special tokens, padding and sinks are left out",
    "copies": "of tokens with equal vectors only the first stays",
    "z-scores": "features keep their own scale",
    "embedding": "clusters, dimension and tree are found in the data's own space",
    "scale": "the tree is its mean edge in units of the cloud's radius",
}
"""The steps of the protocol, by what happens when one is switched off."""
RECIPES = ("as published", *(step for step in STEPS if step != "scale"))
"""What a cloud is measured by: the protocol, or it without one step. The scale needs no second measurement."""


@dataclass(frozen=True)
class TokenKinds:
    """[N] each: whether a token is ordinary (no special token, padding or sink), and the first of its copies."""

    ordinary: Bool[np.ndarray, " N"]
    first: Bool[np.ndarray, " N"]

    def kept(self, recipe: str) -> Bool[np.ndarray, " N"]:
        """The tokens that a recipe measures."""
        if recipe == "mask":
            return self.ordinary
        return self.first if recipe == "copies" else np.ones_like(self.first)


@dataclass(frozen=True)
class Structure:
    """What the protocol finds in one cloud.

    Attributes
    ----------
    labels
        [N] cluster of each token, -1 for noise.
    n_local
        How many clusters, the local representations.
    intrinsic_dimension
        Mean TwoNN dimension of the clusters, in the space where they were found; NaN where none has one.
    mst_weight
        Total length of the tree that joins the poles there; NaN below two clusters.
    mst_weight_scale_free
        Its mean edge in units of the cloud's radius.
    """

    labels: Int[np.ndarray, " N"]
    n_local: int
    intrinsic_dimension: float
    mst_weight: float
    mst_weight_scale_free: float


def measure_structure(points: Float[Tensor, "N F"], recipe: str = "as published", *, seed: int = 0) -> Structure:
    """Measure one cloud by the protocol, or without one of its steps (one of :data:`RECIPES`).

    Z-scores over features, unit norm, UMAP to 50 dimensions, HDBSCAN with clusters of at least ten; TwoNN by a
    straight line through the origin, cluster by cluster, and the tree of the clusters' means, both in the embedding.
    Which tokens are measured is the caller's business (:class:`TokenKinds`).

    Raises
    ------
    GeometryError
        For an unknown recipe, or fewer points than a cluster needs.
    """
    from sklearn.cluster import HDBSCAN

    if recipe not in RECIPES:
        raise GeometryError(f"recipe is {recipe!r}; allowed: {', '.join(RECIPES)}.")
    if len(points) <= MIN_CLUSTER_SIZE:
        raise GeometryError(f"{len(points)} tokens for clusters of {MIN_CLUSTER_SIZE}; allowed: more. Add prompts.")
    sphere = on_unit_sphere(points) if recipe == "z-scores" else standardise_to_sphere(points)
    distances = pairwise_distances(sphere)
    if recipe != "embedding":
        distances = pairwise_distances(umap_embedding(distances, n_components=50, seed=seed))
    found = HDBSCAN(min_cluster_size=MIN_CLUSTER_SIZE, metric="precomputed", copy=True).fit_predict(distances)
    labels = found.astype(np.int64)
    members = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    dimensions = [two_nn_fit(distances[np.ix_(m, m)]) for m in members]
    between = pole_distances(labels, distances)
    return Structure(
        labels,
        len(members),
        float(np.nanmean(dimensions)) if np.isfinite(dimensions).any() else float("nan"),
        float(spanning_tree(between)[2].sum()) if len(between) > 1 else float("nan"),
        scale_free_tree(between, rms_radius_of(distances)),
    )


def on_unit_sphere(points: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Every vector scaled to length one, its features as they are; a vector of zeros stays where it is."""
    x = float64(points)
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)


def kinds_of_tokens(residual: Float[Tensor, "N D"], ordinary: Bool[np.ndarray, " N"]) -> TokenKinds:
    """Which tokens are ordinary, and which the first of those with one residual vector."""
    return TokenKinds(ordinary, first_copies(pairwise_distances(residual)))
