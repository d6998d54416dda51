"""The rule that judges claims, and every statistic on tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saema_utils.claims import VERDICTS, decide, judge, load_claims
from saema_utils.errors import ClaimError
from saema_utils.statistics import Interval

CLAIMS = {claim.id: claim for claim in load_claims()}
CONCEPTS = [f"concept{i}" for i in range(9)]


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
                        rows.append({
                            "concept": concept, "representation": name, "mode": mode, "noise": 7 * noise,
                            "noise_rms": noise, "seed": seed, "rank": 10 + round(10 * slope * noise),
                            "effective_rank": 5 * np.exp(slope * min(noise, 1.0) * (mode == 2)), "l0": 32,
                            "participation_ratio": 4.0,
                        })  # fmt: skip
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
    assert judge(CLAIMS["rank-moves"], noise_table(1.0, 1.0))[0].estimate == 0


def geometry_table(ratio):
    rows = [
        {"concept": c, "protocol": p, "representation": name, "seed": s, "n_local": value, "intrinsic_dimension": value,
         "mst_weight_scale_free": value}
        for c in CONCEPTS for p in ("paper", "direct") for s in (0, 1)
        for name, value in (("residual", 8.0), ("sae", 8.0 * ratio), ("random_dictionary", 8.0))
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("claim", ["merging", "more-dimensions", "more-dimensions-learned", "compression-tree"])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_log_ratios(claim, ratio):
    interval, verdict = judge(CLAIMS[claim], geometry_table(ratio))
    assert interval.estimate == pytest.approx(np.log(ratio))
    expected = CLAIMS[claim].direction == ("greater" if ratio > 1 else "less") and ratio != 1
    assert verdict == ("supported" if expected else "not supported")


def dose_table(best, curvature=1.0, floor=1.0, permuted_best=0.0):
    alphas = np.linspace(-1, 2, 13)
    rows = [
        {"concept": c, "arm": arm, "alpha": a, "aedp": 1 + a, "mse": floor + curvature * (a - b) ** 2,
         "preserve_sparsity": sparse, "seed": 0}
        for c in CONCEPTS for sparse in (False, True) for a in alphas
        for arm, b in (("poles", best), ("permuted_labels", permuted_best))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_best_dose_is_the_vertex():
    interval, verdict = judge(CLAIMS["cause-after-training"], dose_table(0.4))
    assert interval.estimate == pytest.approx(0.4)
    assert verdict == "supported"
    assert judge(CLAIMS["cause-after-training"], dose_table(-0.4))[1] == "not supported"


def test_the_gain_is_the_share_of_error_removed():
    interval, _ = judge(CLAIMS["worth-after-training"], dose_table(0.5, curvature=4.0, floor=1.0))
    assert interval.estimate == pytest.approx(0.5)
    assert judge(CLAIMS["worth-after-training"], dose_table(-0.5))[0].estimate == 0


def test_the_correlation_is_taken_over_the_whole_grid():
    falling, verdict = judge(CLAIMS["correlation"], dose_table(best=2.0, permuted_best=-1.0))
    assert falling.estimate < -1.5
    assert verdict == "supported"
    assert judge(CLAIMS["correlation"], dose_table(0.5, permuted_best=0.5))[0].estimate == pytest.approx(0, abs=1e-9)


def test_training_is_paired_by_seed():
    table = pd.DataFrame(
        [{"seed": s, "coefficient": c, "explained_variance": 0.7 + 0.01 * s + 0.1 * c}
         for s in range(5) for c in (-0.1, 0.0, 0.1)]
    )  # fmt: skip
    interval, verdict = judge(CLAIMS["cause-during-training"], table)
    assert interval.estimate == pytest.approx(0.01)
    assert interval.high - interval.low < 1e-9
    assert verdict == "supported"


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


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- {id: x, bogus: 1}", "bogus"),
        ("- {id: x, claim: y}", "incomplete"),
    ],
)
def test_malformed_claims_are_refused(tmp_path, text, match):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ClaimError, match=match):
        load_claims(path)


def test_verdicts_are_the_three_of_the_contract():
    assert set(VERDICTS) == {"supported", "not supported", "inconclusive"}
