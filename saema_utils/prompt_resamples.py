"""How sure is a measure of one concept? Its prompts drawn again, in two ways.

With replacement (bootstrap) where a measure is made of means, as the poles of words are. Without
replacement where it is made of nearest neighbours: a prompt drawn twice would put copies at distance
zero, where clusters, intrinsic dimension and geodesics have no value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .clouds import pairwise_distances, rms_radius_of, spanning_tree
from .concept_geometry import ConceptClouds, geometry_row
from .dimension import local_dimensions, mean_dimension
from .errors import GeometryError
from .geometry import find_local_representations, mean_distance, pole_distances

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

NAN = float("nan")
DROPPED_SHARE = 0.2  # of the prompts, in each resample without replacement


def drawn_prompts(words: Int[np.ndarray, " P"], n_resamples: int, seed: int) -> Iterator[Int[np.ndarray, " P"]]:
    """Indices of prompts drawn with replacement among the prompts of each word, so that no word is lost."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(words == word) for word in np.unique(words)]
    for _ in range(n_resamples):
        yield np.concatenate([rng.choice(own, len(own)) for own in members])


def bootstrap_rows(
    clouds: ConceptClouds, representations: Sequence[str], n_resamples: int, seed: int
) -> dict[str, list[dict[str, float]]]:
    """Scale-free tree and mean distance of the words' poles, by representation, one row a bootstrap sample.

    Every representation meets the same draws, so that differences between them are paired. The first
    row of each is the measure on the prompts as they are.
    """
    distances = {name: pairwise_distances(clouds.word_vectors[name]) for name in representations}
    draws = [np.arange(clouds.n_prompts), *drawn_prompts(clouds.prompt_words, n_resamples, seed)]
    return {
        name: [_pole_measures(clouds.prompt_words[draw], d[np.ix_(draw, draw)]) for draw in draws]
        for name, d in distances.items()
    }


def _pole_measures(words: Int[np.ndarray, " P"], distances: np.ndarray) -> dict[str, float]:
    between, unit = pole_distances(words, distances), rms_radius_of(distances)
    if len(between) < 2 or not unit > 0:
        return {"mst_weight_scale_free": NAN, "aedp_scale_free": NAN}
    tree = float(spanning_tree(between)[2].sum())
    return {"mst_weight_scale_free": tree / (len(between) - 1) / unit, "aedp_scale_free": mean_distance(between) / unit}


def dropped_prompts(
    n_prompts: int, n_resamples: int, seed: int, share: float = DROPPED_SHARE
) -> Iterator[Bool[np.ndarray, " P"]]:
    """Boolean rows of prompts to keep, each without a random ``share`` of them."""
    rng = np.random.default_rng(seed)
    n_dropped = max(1, round(share * n_prompts))
    for _ in range(n_resamples):
        keep = np.ones(n_prompts, dtype=bool)
        keep[rng.choice(n_prompts, n_dropped, replace=False)] = False
        yield keep


def delete_error(values: Sequence[float], n_prompts: int, share: float = DROPPED_SHARE) -> float:
    r"""Standard error from estimates that each left out a share of the prompts (delete-d jackknife [1]_).

    .. math:: \mathrm{se}^2 = \frac{n - d}{d}\, \operatorname{var}(\text{estimates})

    References
    ----------
    .. [1] Shao and Wu, Annals of Statistics 17, 1989.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 3:
        return NAN
    d = max(1, round(share * n_prompts))
    return float(np.sqrt((n_prompts - d) / d * known.var()))


def resampled_rows(
    clouds: ConceptClouds, representation: str, *, min_cluster_size: int, n_neighbors: int, n_resamples: int, seed: int
) -> list[dict[str, float]]:
    """Direct-protocol measures, each without a fifth of the prompts, clusters found anew each time.

    The smallest cluster shrinks with the sample, or clusters of about that size would all vanish.
    """
    d = clouds.distances(representation)
    smallest = max(2, round((1 - DROPPED_SHARE) * min_cluster_size))
    rows = []
    n_prompts = int(clouds.prompt_of.max()) + 1
    for keep in dropped_prompts(n_prompts, n_resamples, seed):
        index = np.flatnonzero(keep[clouds.prompt_of])
        sub = d[np.ix_(index, index)]
        try:
            local = find_local_representations(None, method="direct", min_cluster_size=smallest, distances=sub)
        except GeometryError:
            continue
        row = geometry_row(local.labels, sub, n_neighbors)
        row |= {
            "n_local": local.n_local,
            "intrinsic_dimension": mean_dimension(local_dimensions(local.labels, sub)).estimate,
        }
        rows.append(row)
    return rows
