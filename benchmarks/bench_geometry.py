"""All geometry of one concept from distances made once, beside the same measures called one by one.

UMAP runs on both sides and is left out: it is handed a distance matrix on one side and the points on the
other.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.measure import QUICK, compare, sides, turns
from saema_utils.distances import pairwise_distances
from saema_utils.geometry.clouds import rms_radius, rms_radius_of
from saema_utils.geometry.clusters import find_local_representations
from saema_utils.geometry.concept import geometry_row, local_spectra, random_members
from saema_utils.geometry.dimension import intrinsic_dimension, local_dimensions, mean_dimension
from saema_utils.geometry.pole_measures import aedp, average_geodesic_distance, mst_weight, poles
from saema_utils.geometry.topology import betti_numbers

SIZES = [(150, 1024)] if QUICK else [(420, 4608), (420, 16_384), (900, 4608)]
COMPARED = (
    "aedp",
    "mst_weight",
    "radius",
    "average_geodesic_distance",
    "dimension",
    "cloud",
    "betti1",
    "rank",
    "resampled",
)
SMALLEST, NEIGHBOURS, RESAMPLES = 10, 10, 4


def sparse_codes(n: int, width: int, k: int = 32, seed: int = 0) -> np.ndarray:
    """Clusters of tokens that share most of their k active latents."""
    rng = np.random.default_rng(seed)
    z = np.zeros((n, width), dtype=np.float32)
    for cluster in range(n // 15):
        shared = rng.choice(width, k, replace=False)
        for row in range(15 * cluster, 15 * cluster + 15):
            own = rng.choice(width, k // 4, replace=False)
            z[row, shared] = rng.uniform(1, 2, k)
            z[row, own] = rng.uniform(0, 1, k // 4)
    z[15 * (n // 15) :, rng.choice(width, k, replace=False)] = 1.5
    return z + 1e-3 * (z > 0) * rng.normal(size=z.shape).astype(np.float32)


def measure_once(z: np.ndarray) -> dict[str, float]:
    """The package's way: silent latents dropped, one distance matrix, everything from it."""
    d = pairwise_distances(z[:, (z != 0).any(axis=0)])
    local = find_local_representations(None, method="direct", min_cluster_size=SMALLEST, distances=d)
    row = geometry_row(local.labels, d, NEIGHBOURS)
    row["dimension"] = mean_dimension(local_dimensions(local.labels, d)).estimate
    row["cloud"] = intrinsic_dimension(None, distances=d).estimate
    row["betti1"] = float(betti_numbers(None, 1, distances=d)[1])
    row["rank"] = float(np.mean([s["effective_rank"] for s in local_spectra(local.labels, d)]))
    rng = np.random.default_rng(0)
    part = [np.sort(rng.choice(len(z), int(0.8 * len(z)), replace=False)) for _ in range(RESAMPLES)]
    row["resampled"] = float(np.mean([intrinsic_dimension(None, distances=d[np.ix_(i, i)]).estimate for i in part]))
    return row | {"radius": rms_radius_of(d)}


def measure_naively(z: np.ndarray) -> dict[str, float]:
    """The plain way: each measure is given the points and finds its own distances."""
    labels = find_local_representations(z, method="direct", min_cluster_size=SMALLEST).labels
    centres = poles(z, labels)
    members = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    row = {"aedp": aedp(centres), "mst_weight": mst_weight(centres), "radius": rms_radius(z)}
    row["average_geodesic_distance"] = average_geodesic_distance(z, labels, NEIGHBOURS)
    row["dimension"] = mean_dimension([intrinsic_dimension(z[m]) for m in members]).estimate
    row["cloud"] = intrinsic_dimension(z).estimate
    row["betti1"] = float(betti_numbers(z, 1)[1])
    rng = np.random.default_rng(0)
    row["rank"] = float(np.mean([drawn_rank(z, random_members(m, SMALLEST, 20, rng)) for m in members]))
    rng = np.random.default_rng(0)
    part = [np.sort(rng.choice(len(z), int(0.8 * len(z)), replace=False)) for _ in range(RESAMPLES)]
    row["resampled"] = float(np.mean([intrinsic_dimension(z[i]).estimate for i in part]))
    return row


def drawn_rank(z: np.ndarray, draws: np.ndarray) -> float:
    """Mean effective rank over draws from one cluster, each from a covariance of its own."""
    from saema_utils.stratification.spectra import covariance_spectrum, effective_rank

    clouds = [torch.as_tensor(z[draw]).double() for draw in draws]
    return float(np.mean([effective_rank(covariance_spectrum(cloud.T, 0)) for cloud in clouds]))


@sides
@turns
@pytest.mark.parametrize(("tokens", "width"), SIZES)
def test_geometry(benchmark, tokens, width, side, turn):
    z = sparse_codes(tokens, width)
    way = {"ours": measure_once, "plain": measure_naively}[side]
    compare(
        benchmark,
        f"geometry of one concept, {tokens} tokens, {width:,} latents",
        side,
        lambda: way(z),
        turn=turn,
        numbers=lambda row: [row[name] for name in COMPARED],
    )
