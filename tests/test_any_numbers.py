"""Public measures take what holds the numbers: integers, half precision, lists, arrays that must not be written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import saema_utils
from saema_utils.geometry import choices, circles, clouds, dimension, matching, pole_measures, topology
from saema_utils.intervention import separation
from saema_utils.stratification import anatomy, grams, spectra


def read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.setflags(write=False)
    return values


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "integers": lambda x: x.astype(np.int64),
    "small integers": lambda x: torch.from_numpy(x.astype(np.int8)),
    "half precision": lambda x: torch.from_numpy(x).half(),
    "half precision of numpy": lambda x: x.astype(np.float16),
    "single precision": lambda x: torch.from_numpy(x).float(),
    "a list": lambda x: x.tolist(),
    "not to be written": read_only,
    "of the other byte order": lambda x: x.astype(">f8"),
    "with strides": lambda x: np.repeat(x, 2, axis=0)[::2],
}
LABEL_KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "integers": lambda x: x.astype(np.int32),
    "small integers": KINDS["small integers"],
    "a list": KINDS["a list"],
    "not to be written": read_only,
    "of the other byte order": lambda x: x.astype(">i8"),
}
RANDOM = np.random.default_rng(0)
# Whole numbers, which every kind holds exactly; some distances among them tie, as those of real counts would.
POINTS = RANDOM.integers(-9, 10, (24, 4)).astype(float)
OTHERS = RANDOM.integers(-9, 10, (24, 4)).astype(float)
TENSOR = RANDOM.integers(0, 6, (5, 4, 7)).astype(float)
SPECTRUM = np.array([64.0, 16.0, 4.0, 1.0, 0.0])
BETWEEN = np.abs(POINTS[:, None] - POINTS[None]).sum(-1)
APART = np.abs(OTHERS[:, None] - OTHERS[None]).sum(-1)
LABELS = np.repeat(np.arange(4), 6)
GROUPS = np.tile(np.arange(6), 4)
ORDER = np.arange(24)

# What each measure is given; every argument is turned into every kind.
MEASURES: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "poles": (saema_utils.poles, (POINTS, LABELS)),
    "aedp": (saema_utils.aedp, (POINTS,)),
    "mst_weight": (saema_utils.mst_weight, (POINTS,)),
    "average_geodesic_distance": (saema_utils.average_geodesic_distance, (POINTS, LABELS)),
    "pole_distances": (pole_measures.pole_distances, (LABELS, BETWEEN)),
    "cluster_medoids": (pole_measures.cluster_medoids, (LABELS, BETWEEN)),
    "mean_distance": (pole_measures.mean_distance, (BETWEEN,)),
    "betti_numbers": (saema_utils.betti_numbers, (POINTS,)),
    "betti_numbers of distances": (lambda d: saema_utils.betti_numbers(None, distances=d), (BETWEEN,)),
    "farthest_points": (partial(topology.farthest_points, n=5), (BETWEEN,)),
    "intrinsic_dimension": (lambda x: saema_utils.intrinsic_dimension(x).estimate, (POINTS,)),
    "mle_dimension": (dimension.mle_dimension, (BETWEEN,)),
    "two_nn_fit": (dimension.two_nn_fit, (BETWEEN,)),
    "spectrum_from_distances": (dimension.spectrum_from_distances, (BETWEEN,)),
    "clusters": (lambda x: saema_utils.find_local_representations(x, min_cluster_size=3).labels, (POINTS,)),
    "procrustes_disparity": (saema_utils.procrustes_disparity, (POINTS, OTHERS)),
    "neighbour_purity": (matching.neighbour_purity, (BETWEEN, LABELS, ORDER)),
    "merging_scores": (matching.merging_scores, (LABELS, GROUPS)),
    "match_by_assignment": (matching.match_by_assignment, (LABELS, GROUPS)),
    "neighbours_of_own_word": (partial(choices.neighbours_of_own_word, k=3), (BETWEEN, LABELS, GROUPS)),
    "nearest_pole": (choices.nearest_pole_of_other_sentences, (POINTS, LABELS, GROUPS)),
    "spread_and_scatter": (choices.spread_and_scatter, (LABELS, BETWEEN)),
    "rms_radius": (clouds.rms_radius, (POINTS,)),
    "rms_radius_of": (clouds.rms_radius_of, (BETWEEN,)),
    "spanning_tree": (lambda d: clouds.spanning_tree(d)[2], (BETWEEN,)),
    "circularity": (lambda x, order: circles.circularity(x, order, n_resamples=99).score, (POINTS, ORDER)),
    "principal_plane": (lambda x: circles.principal_plane(x)[1], (POINTS,)),
    "variance_shares": (partial(circles.variance_shares, k=3), (POINTS,)),
    "similarity": (circles.similarity, (POINTS,)),
    "cyclic_order": (circles.cyclic_order, (ORDER,)),
    "unfold": (partial(saema_utils.unfold, mode=1), (TENSOR,)),
    "covariance_spectrum": (partial(saema_utils.covariance_spectrum, mode=2), (TENSOR,)),
    "numerical_rank": (saema_utils.numerical_rank, (SPECTRUM,)),
    "effective_rank": (saema_utils.effective_rank, (SPECTRUM,)),
    "participation_ratio": (saema_utils.participation_ratio, (SPECTRUM,)),
    "measure_spectrum": (lambda s: list(spectra.measure_spectrum(s).values()), (SPECTRUM,)),
    "gram_of_rows": (lambda x: grams.gram_of_rows(x, center_rows=True), (POINTS,)),
    "principal_angles": (anatomy.principal_angles, (np.eye(4)[:, :2], np.eye(4)[:, 1:3])),
    "covariance_root": (anatomy.covariance_root, (POINTS,)),
    "scale_separation": (lambda x, y: saema_utils.scale_separation(x, y, 0.5), (POINTS, LABELS)),
    "mean_pole_distance": (separation.mean_pole_distance, (POINTS,)),
    "separation_scale_free": (separation.separation_scale_free, (POINTS, LABELS)),
    "distance_matrix": (separation.distance_matrix, (POINTS,)),
    "gromov_wasserstein": (separation.gromov_wasserstein, (BETWEEN, APART)),
    "dose_response": (
        lambda x, y, target: saema_utils.dose_response(x, y, lambda z: 2.0 * z, target, alphas=(0.0, 0.5))["mse"],
        (POINTS, LABELS, OTHERS),
    ),
}


def turned(values: np.ndarray, kind: str) -> Any:
    kinds = KINDS if values.dtype.kind == "f" else LABEL_KINDS
    return kinds.get(kind, torch.from_numpy)(values)


def plain(result: Any) -> np.ndarray:
    if isinstance(result, torch.Tensor):
        return result.double().numpy()
    if isinstance(result, tuple):
        return np.concatenate([np.ravel(plain(part)) for part in result])
    if hasattr(result, "__dataclass_fields__"):
        return plain(tuple(part for part in astuple(result) if not isinstance(part, str)))
    return np.asarray(result, dtype=float)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MEASURES)
def test_the_answer_hangs_on_the_numbers_alone(name, kind):
    measure, given = MEASURES[name]
    known = plain(measure(*(torch.from_numpy(values.copy()) for values in given)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = plain(measure(*(turned(values, kind) for values in given)))
    assert np.isfinite(known).all()
    np.testing.assert_allclose(
        found, known, rtol=2e-3 if "half" in kind else 1e-5, atol=1e-4 if "precision" in kind else 1e-6
    )
