"""The authors' measurement of structure, on clouds whose structure is known, with and without each of its steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saema_utils.errors import GeometryError
from saema_utils.replay.structure import RECIPES, STEPS, kinds_of_tokens, measure_structure, on_unit_sphere


@pytest.fixture
def blobs():
    """Ninety points around three corners, in ten dimensions."""
    random = np.random.default_rng(0)
    corners = np.repeat(10 * random.standard_normal((3, 10)), 30, axis=0)
    return torch.as_tensor(corners + 0.05 * random.standard_normal((90, 10)), dtype=torch.float32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_three_clouds_are_three_local_representations(blobs, recipe):
    found = measure_structure(blobs, recipe)
    assert found.n_local == 3
    for corner in range(3):
        assert len(set(found.labels[30 * corner : 30 * (corner + 1)]) - {-1}) == 1
    assert found.mst_weight > 0


def test_a_turned_or_shuffled_cloud_has_as_many_local_representations(blobs):
    turn = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(1))).Q
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    for changed in (3 * blobs @ turn, blobs[order]):
        assert measure_structure(changed, "z-scores").n_local == 3


def test_the_tree_without_scale_is_its_mean_edge_over_the_radius(blobs):
    found = measure_structure(blobs, "embedding")
    radius = found.mst_weight / (found.n_local - 1) / found.mst_weight_scale_free
    sphere = blobs.double()
    sphere = (sphere - sphere.mean(0)) / sphere.std(0, correction=0)
    sphere = sphere / sphere.norm(dim=1, keepdim=True)
    assert radius == pytest.approx(float(((sphere - sphere.mean(0)) ** 2).sum(1).mean().sqrt()))


def test_each_recipe_measures_the_tokens_that_it_says():
    residual = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 4.0], [5.0, 0.0]])
    kinds = kinds_of_tokens(residual, np.array([False, False, True, True]))
    assert kinds.kept("as published").tolist() == [True] * 4
    assert kinds.kept("mask").tolist() == [False, False, True, True]
    assert kinds.kept("copies").tolist() == [True, False, True, True]
    assert set(RECIPES) - {"as published"} < set(STEPS)


def test_unit_norm_leaves_a_vector_of_zeros_alone():
    found = on_unit_sphere(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert torch.equal(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]], dtype=torch.float64))


def test_what_cannot_be_measured_is_said(blobs):
    with pytest.raises(GeometryError, match=r"'padding'.*as published"):
        measure_structure(blobs, "padding")
    with pytest.raises(GeometryError, match="10 tokens"):
        measure_structure(blobs[:10])
