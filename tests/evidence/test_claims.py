"""The rule that judges claims, and every statistic on tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saema_utils.errors import ClaimError
from saema_utils.evidence.claims import VERDICTS, decide, judgement, load_claims
from saema_utils.evidence.rank import movement
from saema_utils.evidence.verdicts import lies
from saema_utils.statistics import Interval

CLAIMS = {claim.id: claim for claim in load_claims()}
CONCEPTS = [f"concept{i}" for i in range(9)]


def judge(claim, table):
    found = judgement(claim, table)
    return found.interval, found.verdict


@pytest.mark.parametrize(
    ("low", "high", "n", "direction", "margin", "verdict"),
    [
        (0.2, 0.5, 9, "greater", 0.1, "supported"),
        (-0.2, 0.05, 9, "greater", 0.1, "not supported"),
        (0.0, 0.5, 9, "greater", 0.1, "inconclusive"),
        (-0.5, -0.2, 9, "less", -0.1, "supported"),
        (-0.05, 0.2, 9, "less", -0.1, "not supported"),
        (0.2, 0.5, 3, "greater", 0.1, "inconclusive"),
        (float("nan"), float("nan"), 9, "greater", 0.1, "inconclusive"),
    ],
)
def test_the_rule(low, high, n, direction, margin, verdict):
    assert decide(Interval((low + high) / 2, low, high, n), direction, margin, 6) == verdict


@given(st.floats(-2, 2), st.floats(0, 2), st.floats(-1, 1))
def test_the_rule_is_symmetric_up_to_its_edge(low, width, margin):
    high = low + width
    if margin in (low, high):
        return
    up = decide(Interval(low, low, high, 9), "greater", margin, 6)
    down = decide(Interval(-low, -high, -low, 9), "less", -margin, 6)
    assert up == down


def noise_table(sae=1.0, residual=0.0, random_dictionary=0.0):
    rows = []
    for concept in CONCEPTS:
        for name, slope in (("sae", sae), ("residual", residual), ("random_dictionary", random_dictionary)):
            for seed in (0, 1):
                for noise in (0.0, 0.5, 1.0, 7.0):
                    for mode in (0, 1, 2):
                        rows.append(
                            {
                                "concept": concept,
                                "representation": name,
                                "mode": mode,
                                "noise": 7 * noise,
                                "noise_rms": noise,
                                "seed": seed,
                                "rank": 10 + round(10 * slope * noise),
                                "effective_rank": 5 * np.exp(slope * min(noise, 1.0) * (mode == 2)),
                                "l0": 32,
                                "participation_ratio": 4.0,
                            }
                        )
    return pd.DataFrame(rows)


def test_rank_excursion_is_the_log_change_up_to_one_rms():
    interval, verdict = judge(CLAIMS["rank-moves-more"], noise_table(sae=0.7, residual=0.2))
    assert interval.estimate == pytest.approx(0.5)
    assert verdict == "supported"
    assert judge(CLAIMS["rank-moves-more"], noise_table(0.3, 0.3))[1] == "not supported"


def test_rank_change_share_counts_levels():
    interval, verdict = judge(CLAIMS["rank-moves"], noise_table(1.0, 0.0))
    assert interval.estimate == 1
    assert verdict == "supported"


def test_a_control_at_its_ceiling_decides_nothing():
    found = judgement(CLAIMS["rank-moves"], noise_table(1.0, 1.0))
    assert (found.verdict, found.interval.n, found.dropped) == ("inconclusive", 0, 9)
    assert "9 of 9 concepts" in found.reason
    assert "no room" in found.reason
    assert judge(CLAIMS["rank-moves"], noise_table(0.0, 0.0))[1] == "not supported"  # room, and not used


def test_the_excursion_is_that_of_the_rank_verdicts():
    table = noise_table(sae=0.7, residual=0.2)
    alone = movement(table).groupby("representation")["excursion"].mean()
    found = judge(CLAIMS["rank-moves-more"], table)[0].estimate
    assert found == pytest.approx(alone["sae"] - alone["residual"])


def geometry_table(ratio):
    rows = [
        {
            "concept": c,
            "protocol": p,
            "representation": name,
            "seed": s,
            "n_local": value,
            "intrinsic_dimension": value,
            "mst_weight_scale_free": value,
            "geodesic_scale_free": value,
        }
        for c in CONCEPTS
        for p in ("paper", "direct")
        for s in (0, 1)
        for name, value in (("residual", 8.0), ("sae", 8.0 * ratio), ("random_dictionary", 8.0))
    ]
    return pd.DataFrame(rows)


RATIO_CLAIMS = ["merging", "more-dimensions", "more-dimensions-learned", "compression-tree", "compression-geodesic"]


@pytest.mark.parametrize("claim", RATIO_CLAIMS)
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_log_ratios(claim, ratio):
    interval, verdict = judge(CLAIMS[claim], geometry_table(ratio))
    plus = 1 if claim == "merging" else 0
    assert interval.estimate == pytest.approx(np.log((8 * ratio + plus) / (8 + plus)))
    expected = CLAIMS[claim].direction == ("greater" if ratio > 1 else "less") and ratio != 1
    assert verdict == ("supported" if expected else "not supported")


def test_a_concept_without_a_cluster_is_the_extreme_of_fewer():
    table = geometry_table(1.0)
    table["n_local"] = table["n_local"].where(table["representation"] != "sae", 0.0)
    found = judgement(CLAIMS["merging"], table)
    assert (found.verdict, found.interval.n, found.dropped) == ("supported", 9, 0)
    assert found.interval.estimate == pytest.approx(-np.log(9))


def test_a_measure_that_no_concept_has_leaves_the_claim_open():
    table = geometry_table(2.0)
    table.loc[table["representation"] == "sae", "intrinsic_dimension"] = np.nan
    found = judgement(CLAIMS["more-dimensions"], table)
    assert (found.verdict, found.interval.n, found.dropped) == ("inconclusive", 0, 9)
    table.loc[table["concept"] != "concept0", "intrinsic_dimension"] = 4.0
    found = judgement(CLAIMS["more-dimensions"], table)
    assert (found.interval.n, found.dropped, found.reason) == (8, 1, "1 of 9 concepts left out: no value")


GRID = tuple(np.linspace(-1, 2, 13))


def dose_table(best, curvature=1.0, floor=1.0, permuted_best=0.0, alphas=GRID):
    rows = [
        {
            "concept": c,
            "arm": arm,
            "alpha": a,
            "aedp": 1 + a,
            "mse": floor + curvature * (a - b) ** 2,
            "preserve_sparsity": sparse,
            "seed": 0,
        }
        for c in CONCEPTS
        for sparse in (False, True)
        for a in alphas
        for arm, b in (("poles", best), ("permuted_labels", permuted_best))
    ]
    return pd.DataFrame(rows)


def test_the_best_dose_is_the_vertex():
    interval, verdict = judge(CLAIMS["cause-after-training"], dose_table(0.4))
    assert interval.estimate == pytest.approx(0.4)
    assert verdict == "supported"
    assert judge(CLAIMS["cause-after-training"], dose_table(-0.4))[1] == "not supported"
    assert judge(CLAIMS["cause-after-training"], dose_table(0.4, permuted_best=0.3))[0].estimate == pytest.approx(0.1)


def test_the_gain_is_the_share_of_error_removed():
    interval, _ = judge(CLAIMS["worth-after-training"], dose_table(0.5, curvature=4.0, floor=1.0))
    assert interval.estimate == pytest.approx(0.5)
    assert judge(CLAIMS["worth-after-training"], dose_table(-0.5))[0].estimate == 0


def test_the_correlation_is_taken_over_the_whole_grid():
    table = dose_table(best=2.0, permuted_best=-1.0)
    own = table[table["arm"] == "poles"]
    falling, verdict = judge(CLAIMS["correlation"], table)
    assert falling.estimate == pytest.approx(own["aedp"].corr(own["mse"]))
    assert verdict == "supported"
    assert judge(CLAIMS["correlation"], dose_table(0.5, permuted_best=0.5))[0].estimate == pytest.approx(0, abs=1e-9)


def test_a_control_of_the_wrong_sign_cannot_carry_a_claim():
    """Poles at r = +0.12 beside permuted labels at +0.93 are no negative correlation, and a best dose of -0.2
    beside -0.6 moves poles together."""
    table = dose_table(best=0.45, permuted_best=-1.0)
    r = {arm: rows["aedp"].corr(rows["mse"]) for arm, rows in table.groupby("arm")}
    assert 0 < r["poles"] < 0.2
    assert r["permuted_labels"] > 0.9
    interval, verdict = judge(CLAIMS["correlation"], table)
    assert (interval.estimate, verdict) == (pytest.approx(r["poles"]), "not supported")
    interval, verdict = judge(CLAIMS["cause-after-training"], dose_table(-0.2, permuted_best=-0.6))
    assert (interval.estimate, verdict) == (pytest.approx(-0.2), "not supported")


def test_a_control_is_measured_draw_by_draw_as_its_effect_is():
    """Two draws with best doses +-0.5 gain something each; their mean curve gains nothing."""
    parts = [dose_table(0.0, permuted_best=b).assign(seed=s) for s, b in ((0, 0.5), (1, -0.5))]
    found = judge(CLAIMS["worth-after-training"], pd.concat(parts))[0].estimate
    assert found == pytest.approx(-(0.25 / 1.25) / 2)


@pytest.mark.parametrize("claim", ["correlation", "cause-after-training", "worth-after-training"])
def test_two_doses_make_no_curve(claim):
    with pytest.raises(ClaimError, match="at least 3 different alphas"):
        judge(CLAIMS[claim], dose_table(0.5, alphas=(0.0, 1.0)))


def test_training_is_paired_by_seed():
    table = pd.DataFrame(
        [
            {"seed": s, "coefficient": c, "explained_variance": 0.7 + 0.01 * s + 0.1 * c}
            for s in range(5)
            for c in (-0.1, 0.0, 0.1)
        ]
    )
    interval, verdict = judge(CLAIMS["cause-during-training"], table)
    assert interval.estimate == pytest.approx(0.01)
    assert interval.high - interval.low < 1e-9
    assert verdict == "supported"


@pytest.mark.parametrize("coefficients", [(0.0,), (-0.1, 0.0), (0.1,)])
def test_training_needs_a_coefficient_above_zero_and_zero(coefficients):
    table = pd.DataFrame(
        [{"seed": s, "coefficient": c, "explained_variance": 0.7} for s in range(5) for c in coefficients]
    )
    with pytest.raises(ClaimError, match="compares 0 with one above it"):
        judge(CLAIMS["cause-during-training"], table)


@pytest.mark.parametrize("n", [3, 5, 9])
def test_few_units_are_judged_as_often_right_as_the_interval_says(n):
    rng = np.random.default_rng(n)
    hits = 0
    for effect in rng.normal(0.002, 0.01, (400, n)):
        table = pd.DataFrame(
            {
                "seed": np.repeat(np.arange(n), 2),
                "coefficient": np.tile([0.0, 0.1], n),
                "explained_variance": np.stack([np.zeros(n), effect], axis=1).ravel(),
            }
        )
        interval, _ = judge(CLAIMS["cause-during-training"], table)
        hits += interval.low <= 0.002 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98  # percentile bootstrap: 0.76, 0.84, 0.90


def test_a_missing_control_is_named():
    table = geometry_table(2.0)
    with pytest.raises(ClaimError, match="random_dictionary"):
        judge(CLAIMS["more-dimensions-learned"], table[table["representation"] != "random_dictionary"])


def test_every_claim_is_complete():
    assert len(CLAIMS) >= 10
    for claim in CLAIMS.values():
        assert claim.claim.endswith(".")
        assert claim.minimum_units >= 3
        assert (claim.margin > 0) == (claim.direction == "greater")


@pytest.mark.parametrize(("text", "match"), [("- {id: x, bogus: 1}", "bogus"), ("- {id: x, claim: y}", "incomplete")])
def test_malformed_claims_are_refused(tmp_path, text, match):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ClaimError, match=match):
        load_claims(path)


def test_verdicts_are_the_three_of_the_contract():
    assert set(VERDICTS) == {"supported", "not supported", "inconclusive"}


@pytest.mark.parametrize(
    ("low", "high", "where"),
    [
        (2, 3, "above"),
        (-3, -2, "below"),
        (-1, 1, "within"),
        (0, 2, "across"),
        (-2, 0.5, "across"),
        (-2, 2, "across"),
        (1, 1, "within"),
        (np.nan, np.nan, "across"),
    ],
)
def test_an_interval_lies_above_below_within_or_across(low, high, where):
    assert lies(low, high, -1, 1) == where
    mirror = {"above": "below", "below": "above"}
    assert lies(-high, -low, -1, 1) == mirror.get(where, where)


def test_one_bound_leaves_one_side_open():
    assert (lies(-9, 1, most=1), lies(1.5, 9, most=1)) == ("within", "above")
    assert (lies(1, 9, least=1), lies(-9, 0.5, least=1)) == ("within", "below")
