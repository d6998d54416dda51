"""Intervals and tests against known answers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from saema_utils.errors import SaemaError
from saema_utils.notebook import as_told
from saema_utils.statistics import (
    bootstrap_interval,
    cohens_d_paired,
    errors_to_bound,
    holm,
    jackknife_error,
    label_permutation_test,
    mean_interval,
    paired_interval,
    paired_permutation_test,
    paired_t_test,
    with_interval,
    written,
)

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(3, 2, (300, 40))
    found = [bootstrap_interval(d, n_resamples=400, seed=i) for i, d in enumerate(draws)]
    assert 0.90 <= np.mean([interval.low <= 3 <= interval.high for interval in found]) <= 0.98


@pytest.mark.parametrize("n", [3, 5, 9, 12, 40])
def test_the_mean_of_few_values_is_covered_as_often_as_of_many(n):
    draws = np.random.default_rng(n).normal(3, 2, (1000, n))
    found = [mean_interval(d, n_resamples=300, seed=i) for i, d in enumerate(draws)]
    assert 0.925 <= np.mean([interval.low <= 3 <= interval.high for interval in found]) <= 0.975


def test_students_interval_is_the_textbook_one_and_has_one_form_for_pairs():
    low, high = 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]).low == pytest.approx(low)
    assert paired_interval(np.array([1.0, math.nan, 2.0, 3.0])) == pytest.approx((2, low, high))
    assert (errors_to_bound(3), errors_to_bound(1000)) == (pytest.approx(4.302653), pytest.approx(1.959964))


@given(numbers, st.floats(-50, 50))
def test_the_interval_moves_with_the_data(values, shift):
    here = bootstrap_interval(values, n_resamples=200)
    there = bootstrap_interval(np.array(values) + shift, n_resamples=200)
    assert there.estimate == pytest.approx(here.estimate + shift, abs=1e-6)
    assert there.low == pytest.approx(here.low + shift, abs=1e-6)
    assert there.high == pytest.approx(here.high + shift, abs=1e-6)


def test_constant_values_have_a_point_interval():
    interval = bootstrap_interval([2.0, 2.0, 2.0])
    assert (interval.low, interval.estimate, interval.high, interval.n) == (2, 2, 2, 3)


def test_one_value_has_no_interval_and_none_has_no_estimate():
    one = bootstrap_interval([1.0, float("nan")])
    assert one.estimate == 1
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(bootstrap_interval([]).estimate)
    assert bootstrap_interval([]).n == 0


def test_a_table_is_refused():
    with pytest.raises(SaemaError, match="one dimension"):
        bootstrap_interval(np.zeros((2, 2)))


@pytest.mark.parametrize("n", [3, 5, 9])
def test_all_signs_alike_gives_the_smallest_exact_p(n):
    assert paired_permutation_test(np.arange(1, n + 1)) == pytest.approx(2.0 ** (1 - n))


@given(numbers)
def test_the_permutation_test_is_symmetric_and_ignores_scale(values):
    array = np.array(values)
    p = paired_permutation_test(array)
    assert p == pytest.approx(paired_permutation_test(-array))
    assert p == pytest.approx(paired_permutation_test(4 * array))
    assert 0 < p <= 1


def test_p_values_under_the_null_are_uniform_enough():
    rng = np.random.default_rng(1)
    p = np.array([paired_permutation_test(rng.normal(size=20), n_resamples=500, seed=i) for i in range(300)])
    assert 0.02 <= (p <= 0.05).mean() <= 0.09
    assert p.mean() == pytest.approx(0.5, abs=0.06)


def test_labels_that_matter_are_found_and_others_are_not():
    values = np.concatenate([np.zeros(10), np.ones(10)])
    truth = np.repeat([0, 1], 10)

    def gap(labels):
        return abs(values[labels == 1].mean() - values[labels == 0].mean())

    assert label_permutation_test(gap, truth, n_resamples=199, seed=1)[1] == pytest.approx(1 / 200)
    assert label_permutation_test(gap, np.tile([0, 1], 10), n_resamples=199)[1] > 0.5


def test_labellings_that_do_as_well_count_and_no_others():
    """A statistic of two values, 11 and 10, one for each half of the labellings: an observed 11 has p = 1/2."""
    observed, p = label_permutation_test(lambda labels: 10.0 + labels[-1], np.array([0, 0, 1, 1]))
    assert observed == 11
    assert p == pytest.approx(0.5, abs=0.05)


def test_effect_size_of_known_differences():
    assert cohens_d_paired([1.0, 3.0]) == pytest.approx(2 / math.sqrt(2))
    assert cohens_d_paired([2.0, 2.0]) == math.inf
    assert cohens_d_paired([0.0, 0.0]) == 0
    assert math.isnan(cohens_d_paired([1.0]))


def test_holm_on_the_textbook_example():
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_only_raises_and_keeps_order(p_values):
    p = np.array(p_values)
    adjusted = holm(p)
    assert (adjusted >= p - 1e-12).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


@pytest.mark.parametrize("n", range(1, 10))
def test_holm_is_that_of_statsmodels(n):
    p = np.round(np.random.default_rng(n).random(n) / 5, 2)  # with ties
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_holm_leaves_unknown_values_out():
    adjusted = holm([0.01, float("nan"), 0.02])
    assert math.isnan(adjusted[1])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.02])


def test_the_paired_t_test_is_the_textbook_one():
    differences = np.array([0.3, 0.1, 0.4, 0.2])  # mean 0.25, standard error 0.06455: t = 3.873 on 3 degrees
    assert paired_t_test(differences) == pytest.approx(2 * 0.01523, abs=2e-4)
    assert paired_t_test(-differences) == pytest.approx(paired_t_test(differences))
    assert math.isnan(paired_t_test(np.ones(1)))


@pytest.mark.parametrize("value", [2.0, 0.0, -2.0])
def test_differences_that_do_not_vary_get_what_their_signs_can_say(value):
    values = np.full(5, value)
    assert paired_t_test(values) == paired_permutation_test(values)


def test_the_jackknife_gives_the_standard_error_of_a_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    each = [np.delete(x, i).mean() for i in range(100)]
    assert jackknife_error(each, 100) == pytest.approx(x.std(ddof=1) / 10)
    fifths = [x[rng.permutation(100)[:80]].mean() for _ in range(400)]
    assert jackknife_error(fifths, 100, 20) == pytest.approx(x.std(ddof=1) / 10, rel=0.15)
    assert math.isnan(jackknife_error([1.0, math.nan], 100))


def test_a_number_and_an_interval_that_are_missing_say_so():
    nan = float("nan")
    assert (written(nan, ".0%"), written(0.5, ".0%"), written("few")) == ("no value", "50%", "few")
    assert with_interval(0.5, 0.25, 0.75) == "0.5 (0.25 to 0.75)"
    assert with_interval(0.5, nan, 0.75, note="one concept") == "0.5 (no interval: one concept)"
    assert with_interval(nan, nan, nan) == "no value"


@pytest.mark.parametrize("text", ["nan", "-nan", "+nan%", "nan °", "NaN"])
def test_a_line_that_lacks_a_number_tells_nothing(text):
    for holds in (True, False, None):
        assert as_told(holds, f"error {text} · rest") == (None, "error no value · rest")
    assert as_told(True, "a banana of Nancy") == (True, "a banana of Nancy")
    assert as_told(False, "error 0.5 (no interval)")[0] is None
    assert as_told(np.bool_(False), "error 0.5") == (False, "error 0.5")
