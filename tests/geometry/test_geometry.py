"""Local representations, poles, trees, geodesics, dimension, matching and merging: facts and refusals."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from saema_utils import geometry
from saema_utils.distances import first_copies, pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.clouds import rms_radius, rms_radius_of
from saema_utils.geometry.clusters import find_local_representations, standardise_to_sphere, umap_embedding
from saema_utils.geometry.dimension import (
    IntrinsicDimension,
    intrinsic_dimension,
    local_dimensions,
    mean_dimension,
    two_nn_fit,
)
from saema_utils.geometry.matching import (
    match_by_assignment,
    merged_words,
    merging_scores,
    neighbour_purity,
    procrustes_disparity,
    procrustes_test,
)
from saema_utils.geometry.pole_measures import (
    aedp,
    average_geodesic_distance,
    mst_weight,
    mst_weight_scale_free,
    pole_distances,
    poles,
)
from saema_utils.rulers.shapes import clusters, random_rotation, simplex, sphere

CONTRACT = (
    "find_local_representations",
    "poles",
    "aedp",
    "mst_weight",
    "average_geodesic_distance",
    "betti_numbers",
    "intrinsic_dimension",
    "procrustes_disparity",
)
coordinates = st.floats(-100, 100, allow_nan=False, width=32)
clouds = st.integers(3, 12).flatmap(lambda n: arrays(np.float64, (n, 3), elements=coordinates, unique=True))
seeds = st.integers(0, 2**31)


def six_clusters(seed=0, n_each=30, ambient=20):
    rng = np.random.default_rng(seed)
    return clusters(rng, 8 * rng.normal(size=(6, ambient)), n_each)


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_names_are_importable_from_geometry(name):
    assert callable(getattr(geometry, name))


# ---- distances ---------------------------------------------------------------------------------


@given(clouds)
def test_distances_agree_with_subtraction(x):
    naive = np.sqrt(((x[:, None] - x[None, :]) ** 2).sum(-1))
    assert pairwise_distances(x) == pytest.approx(naive, abs=1e-6 * (1 + naive.max()))


def test_copies_are_at_distance_zero_exactly_far_from_the_origin():
    x = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32) + 1e4
    d = pairwise_distances(np.vstack([x, x]))
    assert (np.diag(d[:6, 6:]) == 0).all()
    assert (d[:6, :6][~np.eye(6, dtype=bool)] > 1).all()


def test_first_copies_keeps_one_of_each():
    x = np.array([[0.0, 0], [5, 5], [0, 0], [5, 5], [1, 2]])
    assert first_copies(pairwise_distances(x)).tolist() == [True, True, False, False, True]
    assert first_copies(np.zeros((4, 4))).sum() == 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_copies_are_told_by_a_hundred_thousandth_of_the_rms_distance(scale):
    x = scale * np.random.default_rng(0).normal(size=(30, 8))
    unit = np.sqrt(np.mean(pairwise_distances(x) ** 2))
    for share, is_copy in ((0.5e-5, True), (2e-5, False)):
        moved = np.vstack([x, x[0] + np.eye(8)[0] * share * unit])
        assert first_copies(pairwise_distances(moved)).sum() == (30 if is_copy else 31)


@given(clouds)
def test_radius_from_distances_is_the_radius_from_points(x):
    assert rms_radius_of(pairwise_distances(x)) == pytest.approx(rms_radius(x), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "bad", [np.full((5, 2), np.nan), np.array([[1.0, np.inf], [0, 0]]), np.zeros(5), np.zeros((5, 0))]
)
def test_points_that_mean_nothing_are_refused(bad):
    for measure in (pairwise_distances, aedp, intrinsic_dimension, rms_radius):
        with pytest.raises(GeometryError):
            measure(bad)


# ---- poles and trees ---------------------------------------------------------------------------


def test_poles_are_means_and_noise_has_none():
    x = torch.tensor([[0.0, 0], [2, 2], [10, 0], [99, 99]])
    assert poles(x, torch.tensor([4, 4, 1, -1])).tolist() == [[10, 0], [1, 1]]
    assert poles(x, np.full(4, -1)).shape == (0, 2)
    assert poles(x.to(torch.float16), np.zeros(4, dtype=int)).dtype == torch.float16


@given(seeds)
def test_pole_distances_need_no_points(seed):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(40, 5)), rng.integers(-1, 4, 40)
    expected = pairwise_distances(poles(x, labels))
    assert pole_distances(labels, pairwise_distances(x)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("labels", [np.zeros(3, dtype=int), np.zeros(4), np.zeros((4, 1), dtype=int)])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(GeometryError):
        poles(np.zeros((4, 2)), labels)


@pytest.mark.parametrize(("k", "side"), [(2, 1.0), (5, 3.0), (9, 0.2)])
def test_simplex_has_equal_sides(k, side):
    x = simplex(k, side)
    assert aedp(x) == pytest.approx(side)
    assert mst_weight(x) == pytest.approx((k - 1) * side)


def test_tree_of_points_on_a_line_is_the_line():
    places = np.array([3.0, 0, 10, 4, 1])
    assert mst_weight(places[:, None]) == pytest.approx(10)


def test_tree_bridges_equal_points_without_losing_others():
    assert mst_weight(np.array([[0.0], [0], [3], [3]])) == pytest.approx(3)


def test_one_pole_has_no_distances():
    one = np.ones((1, 3))
    assert np.isnan(aedp(one))
    assert np.isnan(mst_weight(one))
    assert np.isnan(mst_weight_scale_free(one, 1.0))
    assert np.isnan(mst_weight_scale_free(simplex(3), 0.0))


@given(clouds, seeds, st.floats(0.01, 100))
def test_pole_measures_ignore_rotation_and_order_and_follow_scale(x, seed, scale):
    rng = np.random.default_rng(seed)
    moved = scale * rng.permutation(x) @ random_rotation(rng, 3) + rng.normal(size=3)
    for measure in (aedp, mst_weight):
        assert measure(moved) == pytest.approx(scale * measure(x), rel=1e-5, abs=1e-5 * scale)
    unit, moved_unit = rms_radius(x), rms_radius(moved)
    assert mst_weight_scale_free(moved, moved_unit) == pytest.approx(mst_weight_scale_free(x, unit), rel=1e-4)


# ---- geodesics ---------------------------------------------------------------------------------


def test_geodesic_along_a_line_is_the_distance():
    x = np.linspace(0, 9, 10)[:, None]
    labels = np.array([0, *[-1] * 8, 1])
    assert average_geodesic_distance(x, labels, 2) == pytest.approx(9)


def test_geodesic_follows_the_half_circle_where_the_chord_does_not():
    angles = np.linspace(0, np.pi, 300)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.full(300, -1)
    labels[[0, -1]] = 0, 1
    assert average_geodesic_distance(x, labels, 3) == pytest.approx(np.pi, rel=1e-3)


def test_a_graph_in_pieces_is_bridged_by_the_shortest_link():
    x = np.array([[0.0], [1], [2], [10], [11], [12]])
    assert average_geodesic_distance(x, np.array([0, -1, -1, -1, -1, 1]), 1) == pytest.approx(12)


def test_geodesic_refuses_more_neighbours_than_points():
    with pytest.raises(GeometryError, match=r"n_neighbors is 5 for 5 points; allowed: 1 to 4\."):
        average_geodesic_distance(np.zeros((5, 2)), np.array([0, 0, 1, 1, 1]), 5)
    assert np.isnan(average_geodesic_distance(np.eye(5), np.zeros(5, dtype=int), 2))


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_geodesic_ignores_label_numbers_and_is_at_least_the_chord(seed):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(40, 3)), np.full(40, -1)
    labels[:4] = np.arange(4)
    renamed = np.where(labels >= 0, np.array([7, 3, 100, 5])[labels], -1)
    found = average_geodesic_distance(x, labels, 4)
    assert average_geodesic_distance(x, renamed, 4) == pytest.approx(found)
    assert found >= aedp(x[:4]) - 1e-9


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_a_line_through_the_ratios_reads_the_dimension_of_a_sphere(dimension):
    x = [sphere(np.random.default_rng(s), 400, dimension) for s in range(8)]
    read = [two_nn_fit(pairwise_distances(points)) for points in x]
    assert np.mean(read) == pytest.approx(dimension, rel=0.1)


def test_the_line_is_the_least_squares_one_whatever_the_unit_the_order_and_the_copies():
    distances = pairwise_distances(np.random.default_rng(0).normal(size=(50, 3)))
    nearest = np.sort(distances, axis=1)
    logs = np.sort(np.log(nearest[:, 2] / nearest[:, 1]))[:45]
    line = np.linalg.lstsq(logs[:, None], -np.log(1 - np.arange(45) / 50), rcond=None)[0]
    assert two_nn_fit(distances) == pytest.approx(float(line[0]))
    assert np.isnan(two_nn_fit(distances[:4, :4]))
    for changed in (np.random.default_rng(0).permutation(50), np.append(np.arange(50), np.arange(9))):
        assert two_nn_fit(7 * distances[np.ix_(changed, changed)]) == pytest.approx(float(line[0]))


# ---- local representations ---------------------------------------------------------------------


def test_direct_finds_well_separated_clusters():
    x, truth = six_clusters()
    found = find_local_representations(torch.tensor(x), method="direct")
    assert found.n_local == 6
    assert found.embedding is None
    assert merging_scores(found.labels, truth).ami == pytest.approx(1)


def test_a_cloud_of_copies_is_embedded_the_same_way_each_time():
    """Copies make eigenvalues coincide, where the solver of the spectral start begins anew at random."""
    draws = np.random.default_rng(1)
    points = np.concatenate([draws.normal(size=(40, 8)).repeat(10, axis=0), 100 + draws.normal(size=(100, 8))])
    distances = pairwise_distances(points)
    first, second, other = (umap_embedding(distances, n_components=10, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_what_numba_compiles_of_umap_is_kept_for_the_next_process():
    from umap.layouts import _nb_optimize_layout_euclidean_single_epoch as optimise
    from umap.umap_ import compute_membership_strengths, fast_knn_indices, smooth_knn_dist

    umap_embedding(pairwise_distances(np.random.default_rng(0).normal(size=(60, 5))), n_components=3, seed=0)
    for function in (fast_knn_indices, smooth_knn_dist, compute_membership_strengths, optimise):
        assert function.signatures
        assert list(Path(function.stats.cache_path).glob(f"*.{function.py_func.__name__}-*.nbi"))


def test_paper_finds_them_too_in_an_embedding_of_its_dimension():
    x, truth = six_clusters(n_each=15)
    found = find_local_representations(x, method="paper", seed=3)
    assert found.embedding.shape == (90, 50)
    assert merging_scores(found.labels, truth).ami > 0.9
    again = find_local_representations(x, method="paper", seed=3)
    assert (found.labels == again.labels).all()


@pytest.mark.parametrize("n", [11, 14, 30])
def test_paper_shrinks_the_embedding_to_the_points(n):
    found = find_local_representations(np.random.default_rng(n).normal(size=(n, 4)), method="paper")
    assert found.embedding.shape == (n, n - 2)


def test_one_lump_and_equal_points_give_a_reason_not_a_crash():
    lump = find_local_representations(np.random.default_rng(0).normal(size=(100, 8)), method="direct")
    equal = find_local_representations(np.ones((30, 4)), method="paper")
    for found in (lump, equal):
        assert found.n_local == 0
        assert found.noise_fraction == 1
        assert found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [({"method": "papre"}, "paper"), ({"min_cluster_size": 1}, "at least 2"), ({"min_cluster_size": 50}, "30 points")],
)
def test_impossible_clusterings_are_refused(options, message):
    with pytest.raises(GeometryError, match=message):
        find_local_representations(np.random.default_rng(0).normal(size=(30, 3)), **{"method": "direct"} | options)


def test_standardising_leaves_constant_features_out():
    x = np.random.default_rng(0).normal(size=(50, 4))
    x[:, 2] = 1e6
    z = standardise_to_sphere(x)
    assert torch.isfinite(z).all()
    assert (z[:, 2] == 0).all()
    assert z.norm(dim=1).numpy() == pytest.approx(np.ones(50))


def test_features_that_never_change_do_not_change_the_clusters():
    x, _ = six_clusters()
    wide = np.hstack([x, np.zeros((len(x), 100))])
    plain, padded = (find_local_representations(v, method="direct") for v in (x, wide))
    assert (plain.labels == padded.labels).all()


# ---- intrinsic dimension -----------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_dimension_of_a_sphere_is_within_its_error(dimension):
    draws = [intrinsic_dimension(sphere(np.random.default_rng(s), 400, dimension)) for s in range(8)]
    mean = np.mean([float(d) for d in draws])
    assert abs(mean - dimension) < 4 * draws[0].error / np.sqrt(8) + 0.03 * dimension


def test_dimension_does_not_grow_with_the_ambient_space():
    rng = np.random.default_rng(0)
    x = sphere(rng, 300, 2)
    wide = np.hstack([x, np.zeros((300, 60))]) @ random_rotation(rng, 63)
    assert float(intrinsic_dimension(wide)) == pytest.approx(float(intrinsic_dimension(x)), rel=1e-6)


@given(seeds, st.floats(1e-3, 1e3))
def test_dimension_ignores_rotation_order_scale_and_shift(seed, scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 3))
    moved = scale * (rng.permutation(x) @ random_rotation(rng, 3) + 2)
    assert float(intrinsic_dimension(moved)) == pytest.approx(float(intrinsic_dimension(x)), rel=1e-5)


def test_copies_are_counted_and_dropped():
    x = np.random.default_rng(1).normal(size=(100, 4))
    alone, doubled = intrinsic_dimension(x), intrinsic_dimension(np.vstack([x, x, x[:7]]))
    assert (doubled.n, doubled.n_duplicates) == (100, 107)
    assert float(doubled) == pytest.approx(float(alone))


def test_dimension_relies_on_no_order_that_numpy_does_not_promise(monkeypatch):
    """Where AVX2 is the widest unit, about one row in 25,000 came with its first two entries swapped."""

    def as_little_order_as_allowed(array, kth, axis):
        assert axis == 1
        ordered = np.sort(array, axis=1)
        ends = [0, *(end for k in np.atleast_1d(kth) for end in (k, k + 1)), ordered.shape[1]]
        return np.hstack([ordered[:, start:end][:, ::-1] for start, end in itertools.pairwise(ends)])

    x = np.random.default_rng(2).normal(size=(60, 3))
    expected = float(intrinsic_dimension(x))
    monkeypatch.setattr(np, "partition", as_little_order_as_allowed)
    assert float(intrinsic_dimension(x)) == expected


def test_estimate_unpacks_with_its_error():
    value, error = intrinsic_dimension(np.random.default_rng(0).normal(size=(50, 3)))
    assert 0 < error < value


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.random.default_rng(0).normal(size=(3, 2)), "only 3 distinct"),
        (np.zeros((50, 2)), "only 1 distinct"),
        (np.stack(np.meshgrid(range(6), range(6)), -1).reshape(-1, 2).astype(float), "lattice"),
    ],
)
def test_dimension_without_a_value_says_why(points, reason):
    found = intrinsic_dimension(points)
    assert np.isnan(found.estimate)
    assert np.isnan(found.error)
    assert reason in found.reason


def test_mean_dimension_weighs_by_size_and_survives_small_clusters():
    parts = [
        IntrinsicDimension(4.0, 1.0, 12),
        IntrinsicDimension(np.nan, np.nan, 3, 2, "few"),
        IntrinsicDimension(1.0, 1.0, 7),
    ]
    mean = mean_dimension(parts)
    assert mean.estimate == pytest.approx((4 * 10 + 1 * 5) / 15)
    assert mean.n_duplicates == 2
    assert mean_dimension([]).reason == "no local representation"
    assert mean_dimension(parts[1:2]).reason == "few"


def test_local_dimensions_look_inside_clusters_only():
    rng = np.random.default_rng(0)
    x, labels = clusters(rng, 50 * rng.normal(size=(4, 10)), 60, dimension=2)
    found = mean_dimension(local_dimensions(labels, pairwise_distances(x)))
    assert abs(found.estimate - 2) < 4 * found.error


# ---- matching ----------------------------------------------------------------------------------


@given(seeds, st.integers(3, 10), st.integers(1, 12), st.floats(0.01, 100))
def test_procrustes_is_zero_for_rotated_scaled_shifted_copies(seed, k, dimension, scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(k, dimension))
    copy = scale * x @ random_rotation(rng, dimension) + rng.normal(size=dimension)
    wide = np.hstack([copy, np.zeros((k, 30))])
    assert procrustes_disparity(x, copy) == pytest.approx(0, abs=1e-8)
    assert procrustes_disparity(x, wide) == pytest.approx(0, abs=1e-8)


@given(seeds)
def test_procrustes_is_scipys(seed):
    from scipy.spatial import procrustes

    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 7, 3))
    assert procrustes_disparity(a, b) == pytest.approx(procrustes(a, b)[2], abs=1e-9)


def test_procrustes_has_no_value_for_two_rows_or_equal_points():
    assert np.isnan(procrustes_disparity(np.eye(2), np.eye(2)))
    assert np.isnan(procrustes_disparity(np.ones((5, 3)), np.random.default_rng(0).normal(size=(5, 3))))
    with pytest.raises(GeometryError, match="5 and 4 rows"):
        procrustes_disparity(np.eye(5), np.eye(4))


@given(seeds)
def test_matched_disparity_never_depends_on_label_numbers(seed):
    rng = np.random.default_rng(seed)
    x, labels = clusters(rng, 20 * rng.normal(size=(5, 6)), 12)
    y = x @ random_rotation(rng, 6) + 0.1 * rng.normal(size=x.shape)
    values = []
    for renaming in (np.arange(5), rng.permutation(5), 10 * rng.permutation(5) + 3):
        renamed = renaming[labels]
        a, b = match_by_assignment(labels, renamed)
        values.append(procrustes_disparity(poles(x, labels)[a], poles(y, renamed)[b]))
    assert values == pytest.approx([values[0]] * 3, abs=1e-9)
    assert values[0] < 0.05


def test_assignment_shares_the_most_points_and_drops_empty_pairs():
    a = np.array([0, 0, 0, 1, 1, 2, -1])
    b = np.array([5, 5, 8, 8, 8, -1, 5])
    assert [r.tolist() for r in match_by_assignment(a, b)] == [[0, 1], [0, 1]]
    assert match_by_assignment(np.full(3, -1), np.zeros(3, dtype=int))[0].size == 0


def test_procrustes_test_tells_a_copy_from_chance():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(12, 500))
    copy, other = a + 0.1 * rng.normal(size=a.shape), rng.normal(size=(12, 500))
    assert procrustes_test(a, copy, n_resamples=99).p_value <= 0.02
    chance = procrustes_test(a, other, n_resamples=99)
    assert chance.disparity == pytest.approx(chance.chance, rel=0.3)


# ---- merging -----------------------------------------------------------------------------------


@given(seeds)
def test_merging_scores_ignore_names_of_clusters_and_words(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-1, 4, 60), rng.integers(0, 5, 60)
    renamed = np.where(a >= 0, np.array([9, 2, 4, 0])[a], -1)
    assert merging_scores(a, b).ami == pytest.approx(merging_scores(renamed, rng.permutation(5)[b]).ami)


def test_merging_and_splitting_fall_on_the_right_side():
    words = np.repeat(np.arange(6), 10)
    merged, split = merging_scores(words // 2, words), merging_scores(np.arange(60) // 5, words)
    assert merged.completeness == pytest.approx(1)
    assert merged.homogeneity == pytest.approx(np.log(3) / np.log(6))
    assert split.homogeneity == pytest.approx(1)
    assert split.completeness < 1


def test_no_cluster_or_one_word_gives_nan_and_a_reason():
    assert "no token" in merging_scores(np.full(5, -1), np.arange(5)).reason
    assert "one word" in merging_scores(np.arange(5), np.zeros(5, dtype=int)).reason


def test_merged_words_are_named():
    clusters_of = np.array([0, 0, 0, 0, 1, 1, -1, -1, 2])
    words = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3])
    table = merged_words(clusters_of, words, ["June", "July", "May", "April"])
    assert table[["cluster", "words", "n_tokens"]].to_numpy().tolist() == [[0, "June, July", 4]]


def test_purity_is_one_for_words_apart_and_looks_at_other_prompts_only():
    words, prompts = np.array([0, 0, 1, 1]), np.arange(4)
    d = pairwise_distances(np.array([[0.0], [1], [50], [51]]))
    assert neighbour_purity(d, words, prompts) == (1.0, pytest.approx(1 / 3))
    assert neighbour_purity(d, words, np.array([0, 0, 1, 1]))[0] == 0
    assert np.isnan(neighbour_purity(d, words, np.zeros(4, dtype=int))[0])


def test_scale_free_tree_is_the_mean_edge_in_units_of_the_cloud():
    square = np.array([[0.0, 0], [0, 1], [1, 1], [1, 0]])
    assert mst_weight_scale_free(square, 2.0) == pytest.approx(0.5)  # three edges of 1
    assert mst_weight_scale_free(square[:2], 2.0) == pytest.approx(0.5)  # two poles have one edge
    assert np.isnan(mst_weight_scale_free(square[:1], 2.0))
    assert np.isnan(mst_weight_scale_free(square, 0.0))
