"""Betti numbers, persistence and circles: shapes whose holes are known, invariances, and the test's level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.errors import GeometryError
from saema_utils.geometry.circles import circularity, cyclic_score, plane_of
from saema_utils.geometry.topology import betti_numbers, components_by_gap, count_holes, farthest_points, persistence
from saema_utils.rulers.shapes import circle, clusters, ordered_circle, random_rotation, sphere, torus

seeds = st.integers(0, 2**31)


def rng_of(seed=0):
    return np.random.default_rng(seed)


# ---- holes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "betti"),
    [
        (circle(rng_of(), 60, 0.05), (1, 1)),
        (ordered_circle(rng_of(1), 12, 0.0), (1, 1)),
        (np.vstack([circle(rng_of(2), 60, 0.03), circle(rng_of(3), 60, 0.03) + np.array([5, 0])]), (2, 2)),
        (np.vstack([circle(rng_of(4), 90, 0.02), circle(rng_of(5), 90, 0.02) + np.array([2, 0])]), (1, 2)),
        (clusters(rng_of(6), 20 * rng_of(7).normal(size=(5, 20)))[0], (5, 0)),
        (rng_of(8).normal(size=(150, 8)), (1, 0)),
        (np.linspace(0, 1, 30)[:, None], (1, 0)),
    ],
)
def test_components_and_loops_of_known_shapes(points, betti):
    assert tuple(betti_numbers(points)) == betti


def test_sphere_has_a_void_and_no_loop():
    assert tuple(betti_numbers(sphere(rng_of(), 250, 2), 2)) == (1, 0, 1)


def test_torus_has_two_loops_and_a_void():
    assert tuple(betti_numbers(torus(rng_of(1), 800), 2)) == (1, 2, 1)


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.ones((6, 2))])
def test_one_point_however_often_is_one_component(points):
    assert tuple(betti_numbers(points, 2)) == (1, 0, 0)


def test_copies_that_differ_by_rounding_are_one_point():
    x = rng_of(2).normal(size=(60, 8)).astype(np.float32)
    moved = (x + np.float32(100.0)) - np.float32(100.0)  # the same points but for the last bits
    assert 0 < np.abs(moved - x).max() < 1e-4
    assert betti_numbers(np.concatenate([x, moved]), 0).tolist() == betti_numbers(x, 0).tolist() == [1]


@settings(deadline=None, max_examples=25)
@given(seeds, st.floats(1e-3, 1e3))
def test_betti_numbers_ignore_rotation_order_scale_and_copies(seed, scale):
    rng = rng_of(seed)
    x = np.vstack([circle(rng, 40, 0.05, 4), circle(rng, 40, 0.05, 4) + 6])
    moved = scale * rng.permutation(np.vstack([x, x[:5]])) @ random_rotation(rng, 4) + 1
    assert tuple(betti_numbers(moved)) == tuple(betti_numbers(x))


def test_equal_angles_die_at_the_inscribed_triangle():
    x = ordered_circle(rng_of(), 12, 0.0, ambient=2)
    (birth, death), *others = persistence(x, 1)[1]
    assert birth == pytest.approx(2 * np.sin(np.pi / 12), rel=1e-5)
    assert death == pytest.approx(np.sqrt(3), rel=1e-5)
    assert not others


def test_component_deaths_are_the_links_of_the_tree():
    x = np.array([[0.0], [1], [4], [9]])
    deaths = persistence(x, 0)[0][:, 1]
    assert sorted(deaths[np.isfinite(deaths)]) == pytest.approx([1, 3, 5])


def test_gap_rule_needs_a_gap():
    assert components_by_gap(np.array([10.0, 2, 1.9, 1.8])) == (2, 2.0)
    assert components_by_gap(np.array([2.4, 2.0, 1.9, 1.8])) == (1, 2.4)
    assert components_by_gap(np.zeros(0)) == (1, 0.0)


def test_holes_within_the_graininess_do_not_count():
    lasting, brief = [1.0, 3.0], [1.0, 1.2]
    assert count_holes(np.array([lasting, brief]), 1.0, 1) == 1
    assert count_holes(np.array([lasting, brief]), 2.9, 1) == 0
    assert count_holes(np.zeros((0, 2)), 1.0, 1) == 0


def test_landmarks_spread_out():
    x = np.concatenate([np.linspace(0, 1, 50), [100.0]])[:, None]
    d = np.abs(x - x.T)
    assert 50 in farthest_points(d, 2)
    assert farthest_points(d, 60).tolist() == list(range(51))


def test_unknown_degree_and_nan_are_refused():
    with pytest.raises(GeometryError, match="max_dim is 3"):
        betti_numbers(np.eye(4), 3)
    with pytest.raises(GeometryError, match="NaN"):
        betti_numbers(np.full((4, 2), np.nan))


# ---- circles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [7, 12])
def test_an_exact_circle_scores_one_with_the_smallest_p(k):
    found = circularity(ordered_circle(rng_of(), k, 0.0), np.arange(k))
    assert found.score == pytest.approx(1)
    assert found.distance_score == pytest.approx(1)
    assert found.variance_share == pytest.approx(1)
    # Of the k! orders of 7 items exactly 14 (turns and mirrors) are as good.
    assert found.p_value == pytest.approx(1 / 360 if k == 7 else 1 / 5000)


def test_a_shuffled_circle_does_not_score():
    x = ordered_circle(rng_of(), 12, 0.0)
    assert circularity(x, rng_of(3).permutation(12)).p_value > 0.05


@pytest.mark.parametrize("k", [6, 12])
def test_noise_gives_p_values_that_are_uniform(k):
    from scipy.stats import kstest

    p = [circularity(rng_of(s).normal(size=(k, 10)), np.arange(k), n_resamples=199, seed=s).p_value for s in range(200)]
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    assert kstest(p, "uniform").pvalue > 0.001


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(0, 11), st.booleans(), st.floats(0.01, 100))
def test_score_ignores_rotation_reflection_scale_and_where_the_cycle_starts(seed, shift, mirrored, scale):
    rng = rng_of(seed)
    x = ordered_circle(rng, 12, 0.3, 6)
    order = np.arange(12)
    moved = (order + shift) % 12
    moved = 11 - moved if mirrored else moved
    plane = scale * plane_of(x)[0] @ random_rotation(rng, 2)
    assert cyclic_score(plane, moved, 12) == pytest.approx(cyclic_score(plane_of(x)[0], order, 12), abs=1e-9)


def test_plane_comes_out_upright():
    x = ordered_circle(rng_of(5), 12, 0.0)
    plane = circularity(x, np.arange(12), n_resamples=19).plane
    assert plane[0] == pytest.approx([1, 0], abs=1e-6)
    assert plane[3] == pytest.approx([0, 1], abs=1e-6)


def test_part_of_a_cycle_is_placed_by_its_period():
    x = ordered_circle(rng_of(), 12, 0.0)[:8]
    away = x - x.mean(axis=0)
    assert (
        circularity(away, np.arange(8), period=12).score
        < circularity(ordered_circle(rng_of(), 8, 0.0), np.arange(8)).score
    )


@pytest.mark.parametrize(("points", "reason"), [(np.eye(3), "at least 4"), (np.ones((6, 4)), "same vector")])
def test_no_circle_can_be_judged_says_why(points, reason):
    found = circularity(points, np.arange(len(points)))
    assert np.isnan(found.score)
    assert np.isnan(found.p_value)
    assert reason in found.reason


def test_a_place_taken_twice_is_refused():
    with pytest.raises(GeometryError, match="place twice"):
        circularity(np.eye(5), np.array([0, 1, 2, 3, 3]))
