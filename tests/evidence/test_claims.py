"""The rule that judges claims, every analysis of one at once, and the file that says what is claimed."""

from __future__ import annotations

import itertools
import json
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from saema_utils.errors import ClaimError
from saema_utils.evidence.claims import (
    ADDED_FILE,
    ADDED_VERSION,
    CLAIMS_FILE,
    RULES_VERSION,
    Claim,
    load_claims,
    rules_digest,
    rules_text,
    with_added,
)
from saema_utils.evidence.multiverse import (
    DRAWS,
    EXACT_UNITS,
    ITSELF,
    LEAD,
    contrasts_of,
    effects_of,
    evidence_of,
    in_short,
    interval_of,
    joint_test,
    margins_of,
    power,
    primary_effects,
    shares_of_choices,
    specifications,
    verdict_of,
    why_missing,
)
from saema_utils.evidence.replay import NOT_REPLAYED, reproduces
from saema_utils.evidence.searches import search_values
from saema_utils.evidence.verdicts import (
    CONTRADICTED,
    DEPENDS,
    NO_EFFECT,
    NOT_LEARNED,
    SUPPORTED,
    TOO_FEW,
    VERDICTS,
    Evidence,
    judge,
    judge_alone,
    lies,
)

ROOT = Path(__file__).parents[2]
CLAIMS = {claim.id: claim for claim in load_claims()}
MINIMUM = 6
CONCEPTS = [f"concept{i}" for i in range(9)]

# ---- the rule -----------------------------------------------------------------------------------


def evidence(low, high, median=None, joint_p=0.004, n=9) -> Evidence:
    return Evidence(low, high, n, (low + high) / 2 if median is None else median, joint_p)


LARGE, NONE, OPPOSITE, OPEN = evidence(1.5, 2.5), evidence(-0.5, 0.5), evidence(-2.5, -1.5), evidence(-0.5, 1.5)
DECIDED_BY_ALL = evidence(-0.5, 1.5, median=3.0)


@pytest.mark.parametrize(
    ("own", "lead", "verdict"),
    [
        (LARGE, None, SUPPORTED),
        (LARGE, LARGE, SUPPORTED),
        (LARGE, NONE, NOT_LEARNED),
        (LARGE, OPPOSITE, NOT_LEARNED),
        (LARGE, evidence(-3, 0.9), NOT_LEARNED),  # across the opposite margin, and surely short of its own
        (LARGE, OPEN, TOO_FEW),
        (LARGE, DECIDED_BY_ALL, DEPENDS),
        (LARGE, evidence(1.5, 2.5, median=0.2), DEPENDS),
        (LARGE, evidence(1.5, 2.5, n=3), TOO_FEW),
        (NONE, LARGE, NO_EFFECT),
        (OPPOSITE, LARGE, CONTRADICTED),
        (OPEN, LARGE, TOO_FEW),
        (DECIDED_BY_ALL, LARGE, DEPENDS),
        (evidence(-0.5, 1.5, median=-3.0), None, DEPENDS),
        (evidence(1.5, 2.5, median=0.9), LARGE, DEPENDS),
        (evidence(1.5, 2.5, median=-2.0), LARGE, DEPENDS),
        (evidence(1.5, 2.5, joint_p=0.06), LARGE, DEPENDS),
        (evidence(-0.5, 0.5, median=1.2), None, DEPENDS),
        (evidence(-0.5, 0.5, median=0.4, joint_p=0.9), None, NO_EFFECT),  # no effect needs no test
        (evidence(-2.5, -1.5, joint_p=0.06), None, DEPENDS),
        (evidence(1.5, 2.5, n=5), LARGE, TOO_FEW),
        (evidence(float("nan"), float("nan"), median=float("nan"), n=9), None, TOO_FEW),
    ],
)
def test_the_rule(own, lead, verdict):
    assert judge(own, lead, MINIMUM) == verdict


ends = st.floats(-4, 4) | st.sampled_from([-1.0, 0.0, 1.0])  # ends that fall on a margin are the hard ones


@st.composite
def anything(draw) -> Evidence:
    low, high = sorted((draw(ends), draw(ends)))
    return Evidence(low, high, draw(st.integers(0, 12)), draw(ends), draw(st.sampled_from([0.004, 0.05, 0.5])))


def turned(found: Evidence) -> Evidence:
    return replace(found, low=-found.high, high=-found.low, median=-found.median)


@given(anything())
def test_the_rule_has_no_side(own):
    """With everything turned round, what was supported is contradicted, and every other word stays."""
    mirror = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}
    verdict = judge(own, None, MINIMUM)
    assert judge(turned(own), None, MINIMUM) == mirror.get(verdict, verdict)


@given(anything(), anything())
def test_support_takes_both_intervals_both_medians_and_both_tests(own, lead):
    assume(lead.high != 1)
    expected = all(x.low > 1 and x.median >= 1 and x.joint_p < 0.05 and x.n >= MINIMUM for x in (own, lead))
    assert (judge(own, lead, MINIMUM) == SUPPORTED) == expected


@given(anything(), anything())
def test_a_lead_is_asked_for_only_where_the_effect_is_there(own, lead):
    alone = judge(own, None, MINIMUM)
    assert judge(own, lead, MINIMUM) == alone or alone == SUPPORTED


@given(anything(), st.none() | anything())
def test_too_few_units_are_never_judged(own, lead):
    verdict = judge(replace(own, n=MINIMUM - 1), lead, MINIMUM)
    assert verdict == TOO_FEW
    assert judge(own, lead, MINIMUM) in VERDICTS


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


@pytest.mark.parametrize(("low", "high"), [(1.5, 2), (-0.5, 0.5), (-2, -1.5), (0.5, 1.5), (-3, 3), (np.nan, np.nan)])
def test_one_interval_alone_is_judged_as_with_all_analyses_that_agree(low, high):
    agreed = judge(evidence(low, high), None, MINIMUM)
    assert judge_alone(low, high, 1.0) == agreed
    assert judge_alone(2 * low, 2 * high, 2.0, p_value=0.04) == agreed, "margins are a unit"
    unsure = TOO_FEW if agreed in (SUPPORTED, CONTRADICTED) else agreed
    assert judge_alone(low, high, 1.0, p_value=0.06) == unsure, "an effect needs its p as well"


def test_without_a_margin_nothing_can_be_no_effect():
    assert [judge_alone(*ends) for ends in ((0.1, 1), (-1, -0.1), (-1, 1))] == [SUPPORTED, CONTRADICTED, TOO_FEW]


# ---- every analysis -----------------------------------------------------------------------------

CLAIM = replace(
    CLAIMS["compression"],
    measures={"pole_rms": 0.1, "aedp": 0.2},
    where={},
    choices={"space": ("euclidean", "cosine"), "detail": ("plain", "")},
    primary={"measure": "pole_rms", "space": "euclidean", "detail": "plain"},
)
KEYS = ("measure", "space", "detail")
WAYS = list(itertools.product(CLAIM.measures, *CLAIM.choices.values()))


def values(effect, lead=None, concepts=CONCEPTS, seeds=(0,), claim=CLAIM) -> pd.DataFrame:
    """A table in which the code differs from its baseline by ``effect(way, concept)``, from the control by ``lead``."""
    rows = []
    for way, (number, concept), seed in itertools.product(WAYS, enumerate(concepts), seeds):
        own = effect(way, number)
        sides = {claim.code: 7.0 + own, claim.baseline: 7.0, claim.nothing: 7.0 + own - (lead or effect)(way, number)}
        wobble = seed - np.mean(seeds)  # seeds differ, and their mean does not
        rows += [
            {**dict(zip(KEYS, way, strict=True)), "concept": concept, "seed": seed, "representation": name}
            | {"value": value + wobble}
            for name, value in sides.items()
        ]
    return pd.DataFrame(rows)


def scattered(way, number):
    """Additive over the ways, different for every concept, and reproducible."""
    measure, space, detail = way
    own = 0.3 * (measure == "aedp") - 0.4 * (space == "cosine") + 0.05 * (detail == "plain")
    return own + 0.01 * number


def test_a_specification_is_one_way_for_each_choice():
    specs = specifications(values(scattered), CLAIM)
    assert len(specs) == len(WAYS) * len(contrasts_of(CLAIM))
    assert not specs.duplicated(["contrast", *KEYS]).any()
    named = specs[specs["primary"]]
    assert named["contrast"].tolist() == [ITSELF, LEAD]
    assert named[list(KEYS)].drop_duplicates().to_dict("records") == [CLAIM.primary]
    assert named["against"].tolist() == ["residual", "random_dictionary"]


def test_an_estimate_is_the_mean_difference_of_its_units():
    specs = specifications(values(scattered, seeds=(0, 1, 2)), CLAIM).set_index(["contrast", *KEYS])
    for way in WAYS:
        units = [scattered(way, number) for number in range(9)]
        row = specs.loc[(ITSELF, *way)]
        assert row["estimate"] == pytest.approx(np.mean(units))
        half = 2.306004 * np.std(units, ddof=1) / 3  # Student's, eight degrees of freedom
        assert (row["low"], row["high"]) == (pytest.approx(np.mean(units) - half), pytest.approx(np.mean(units) + half))
        assert row["n"] == 9
        assert row["margin"] == -CLAIM.measures[way[0]]  # the paper expects less


def test_a_claim_may_have_neither_baseline_nor_control():
    bare = replace(CLAIM, baseline="", nothing="")
    assert list(contrasts_of(bare)) == [ITSELF]
    specs = specifications(values(scattered), bare)
    assert specs["against"].unique().tolist() == ["zero"]
    assert specs["estimate"].min() > 6


def test_a_unit_without_a_value_is_left_out_of_n():
    table = values(scattered)
    gone = (table["concept"] == CONCEPTS[0]) & (table["representation"] == "sae") & (table["space"] == "cosine")
    table.loc[gone, "value"] = np.nan
    specs = specifications(table, CLAIM)
    assert specs.groupby("space")["n"].unique().to_dict() == {"cosine": [8], "euclidean": [9]}
    effects = effects_of(table, CLAIM, ITSELF).to_numpy()
    assert joint_test(effects) == pytest.approx(flipped_medians(effects))


def test_a_unit_that_could_not_be_measured_at_all_is_counted_out_and_says_why():
    table, whole = values(scattered), specifications(values(scattered, concepts=CONCEPTS[1:]), CLAIM)
    gone = table[table["concept"] != CONCEPTS[0]]
    nothing = {"concept": CONCEPTS[0], "representation": "residual", "measure": "", "reason": "3 distinct tokens"}
    found = pd.concat([gone, pd.DataFrame([nothing])], ignore_index=True)
    effects = effects_of(found, CLAIM, ITSELF)
    assert effects[CONCEPTS[0]].isna().all()
    assert specifications(found, CLAIM)["n"].unique().tolist() == whole["n"].unique().tolist() == [8]
    assert why_missing(found, CLAIM) == "3 distinct tokens"
    assert why_missing(values(scattered).assign(reason=""), CLAIM) == ""


def test_a_unit_that_has_other_analyses_but_not_the_named_one_is_counted_and_said():
    table = values(scattered).assign(reason="")
    (space,) = {CLAIM.primary["space"]}
    found = table[~table["concept"].isin(CONCEPTS[:2]) | (table["space"] != space)]
    assert interval_of(found, CLAIM).n == len(CONCEPTS) - 2
    assert why_missing(found, CLAIM).endswith("not others: 2")


def test_an_empty_choice_comes_back_from_a_file(tmp_path):
    values(scattered).to_csv(tmp_path / "values.csv", index=False)
    again = specifications(pd.read_csv(tmp_path / "values.csv"), CLAIM)
    pd.testing.assert_frame_equal(again, specifications(values(scattered), CLAIM))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table.drop(columns="space"), "no column 'space'"),
        (lambda table: table.assign(measure="another"), "none of its specifications"),
        (lambda table: table[table["representation"] != "residual"], "no representation 'residual'"),
        (lambda table: table[table["representation"] != "sae"], "no representation 'sae'"),
    ],
)
def test_what_cannot_be_compared_is_named(change, match):
    with pytest.raises(ClaimError, match=match):
        effects_of(change(values(scattered)), CLAIM, ITSELF)


def test_the_named_analysis_is_one_row_of_all():
    table = values(scattered)
    named = primary_effects(table, CLAIM)
    assert named.to_numpy() == pytest.approx([0.05 + 0.01 * number for number in range(9)])
    assert interval_of(table, CLAIM).estimate == pytest.approx(named.mean())
    absent = primary_effects(table[table["detail"] != "plain"], CLAIM)
    assert absent.index.tolist() == CONCEPTS
    assert absent.isna().all()


def flipped_medians(effects: np.ndarray) -> tuple[float, float]:
    """The joint test by writing out every pattern of signs."""
    medians = []
    for signs in itertools.product((1, -1), repeat=effects.shape[1]):
        means = [np.nanmean(row * np.array(signs)) for row in effects if np.isfinite(row).any()]
        medians.append(np.median(means))
    return medians[0], float(np.mean(np.abs(medians) >= abs(medians[0]) - 1e-12))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (4, 6), (7, 3)])
def test_the_joint_test_is_that_of_every_pattern_of_signs(shape, gaps):
    draws = np.random.default_rng(sum(shape))
    for _ in range(5):
        effects = draws.normal(0.3, 1, shape) + draws.normal(0, 1, shape[1])
        if gaps:
            effects[draws.random(shape) < 0.2] = np.nan
            effects[0, 0] = 1.0
            effects[:, -1] = draws.normal(size=shape[0])  # every specification keeps a unit
        assert joint_test(effects) == pytest.approx(flipped_medians(effects))


def test_the_joint_test_ignores_order_scale_and_side():
    effects = np.random.default_rng(1).normal(0.5, 1, (9, 8))
    median, p = joint_test(effects)
    for other in (effects[::-1], effects[:, ::-1], np.vstack([effects, np.full(8, np.nan)])):
        assert joint_test(other) == pytest.approx((median, p))
    assert joint_test(-3 * effects) == pytest.approx((-3 * median, p))


def test_many_copies_of_one_analysis_are_no_more_than_one():
    once = np.random.default_rng(2).normal(0.5, 1, (1, 9))
    assert joint_test(np.repeat(once, 50, axis=0)) == pytest.approx(joint_test(once))


def test_the_joint_test_holds_its_level_however_alike_analyses_are():
    draws = np.random.default_rng(3)
    worlds = draws.normal(size=(400, 1, 9)) + 0.3 * draws.normal(size=(400, 20, 9))
    hits = sum(joint_test(world)[1] < 0.05 for world in worlds)
    assert binomtest(hits, 400, 0.05).pvalue > 0.001


def test_beyond_thirteen_units_signs_are_drawn():
    effects = np.full((3, EXACT_UNITS + 1), 1.0)
    assert joint_test(effects) == (1.0, pytest.approx(1 / (DRAWS + 1), rel=2))  # never zero
    assert np.isnan(joint_test(np.full((3, 4), np.nan))).all()


def test_shares_of_an_additive_table_are_shares_of_its_variance():
    effects = effects_of(values(scattered), replace(CLAIM, measures={"pole_rms": 0.1, "aedp": 0.1}), ITSELF)
    shares = shares_of_choices(effects, np.full(len(effects), 0.1))
    parts = {"measure": 0.3**2, "space": 0.4**2, "detail": 0.05**2}  # two ways each: the variance goes as their squares
    assert shares.sum() == pytest.approx(1)
    assert shares.to_dict() == pytest.approx({name: part / sum(parts.values()) for name, part in parts.items()})
    assert shares.index.tolist() == ["space", "measure", "detail"]


def test_what_two_choices_do_together_is_no_share_of_either():
    effects = effects_of(values(lambda way, _: float((way[0] == "aedp") == (way[1] == "cosine"))), CLAIM, ITSELF)
    shares = shares_of_choices(effects, np.ones(len(effects)))
    assert shares.to_numpy() == pytest.approx(0)


def test_a_choice_with_one_way_explains_nothing_and_neither_do_equal_estimates():
    effects = effects_of(values(lambda way, _: 1.0), CLAIM, ITSELF)
    assert (shares_of_choices(effects, np.ones(len(effects))) == 0).all()
    alone = effects[effects.index.get_level_values("space") == "cosine"]
    assert "space" not in shares_of_choices(alone, np.ones(len(alone)))


def test_all_analyses_in_short():
    short = in_short(values(scattered), CLAIM).set_index("contrast").loc[ITSELF]
    sized = [scattered(way, 4) / -CLAIM.measures[way[0]] for way in WAYS]  # the fifth concept is the mean one
    assert short["specifications"] == len(WAYS)
    assert short["median"] == pytest.approx(np.median(sized))
    assert short["share_paper_sign"] == np.mean(np.array(sized) > 0)
    assert short["share_beyond_margin"] == np.mean(np.array(sized) > 1)
    assert short["joint_p"] >= 2 / 2**9
    assert short["matters_most"] in KEYS


def test_no_analysis_with_a_value_is_no_evidence():
    table = values(scattered).assign(value=np.nan)
    specs, short = specifications(table, CLAIM), in_short(table, CLAIM)
    assert (short["specifications"] == 0).all()
    assert verdict_of(specs, short, CLAIM) == TOO_FEW


def in_margins(own, lead):
    """Values whose effect and lead have a given size in margins in every analysis, with a little spread."""
    wobble = [0.1 * (number - 4) for number in range(9)]
    scale = {name: -margin for name, margin in CLAIM.measures.items()}
    return values(
        lambda way, number: scale[way[0]] * (own(way) + wobble[number]),
        lambda way, number: scale[way[0]] * (lead(way) + wobble[number]),
    )


@pytest.mark.parametrize(
    ("own", "lead", "verdict"),
    [
        (lambda _: 2.0, lambda _: 2.0, SUPPORTED),
        (lambda _: 2.0, lambda _: 0.0, NOT_LEARNED),
        (lambda _: 0.0, lambda _: 2.0, NO_EFFECT),
        (lambda _: -2.0, lambda _: 2.0, CONTRADICTED),
        (lambda way: 2.0 if way == WAYS[0] else 0.0, lambda _: 2.0, DEPENDS),
        (lambda _: 1.0, lambda _: 2.0, TOO_FEW),
    ],
)
def test_values_become_each_word(own, lead, verdict):
    table = in_margins(own, lead)
    specs, short = specifications(table, CLAIM), in_short(table, CLAIM)
    assert verdict_of(specs, short, CLAIM) == verdict
    found = evidence_of(specs, short, CLAIM, ITSELF)
    assert (found.low + found.high) / 2 == pytest.approx(own(WAYS[0]))
    assert evidence_of(specs, short, replace(CLAIM, nothing=""), LEAD) is None


def test_margins_follow_measures_and_the_papers_side():
    effects = effects_of(values(scattered), CLAIM, ITSELF)
    assert dict(zip(effects.index.get_level_values("measure"), margins_of(effects, CLAIM), strict=True)) == {
        "pole_rms": -0.1,
        "aedp": -0.2,
    }
    assert (margins_of(effects, replace(CLAIM, direction="greater")) > 0).all()


@pytest.mark.parametrize(("n", "spread"), [(6, 0.6), (9, 1.0), (9, 2.0)])
def test_power_is_how_often_such_a_study_would_support_two_margins(n, spread):
    draws = np.random.default_rng(n)
    worlds = 2 + spread * draws.normal(size=(4000, n))
    error = worlds.std(axis=1, ddof=1) / np.sqrt(n)
    bound = {6: 2.570582, 9: 2.306004}[n]
    often = np.mean(worlds.mean(axis=1) - bound * error > 1)
    exact = np.linspace(-1, 1, n)
    exact *= spread / exact.std(ddof=1)
    assert power(exact, 1.0) == pytest.approx(often, abs=0.03)
    assert power(-0.1 * exact, -0.1) == pytest.approx(power(exact, 1.0))  # margins and sides do not matter


def test_power_at_the_edges():
    assert power(np.array([1.0]), 1.0) != power(np.array([1.0]), 1.0)  # one unit has no spread: NaN
    assert power(np.array([1.0, 1.0, np.nan]), 1.0) == 1.0
    rising = [power(np.array([0.0, 1.0, 2.0, 3.0]), 1.0, truth) for truth in (1.0, 2.0, 4.0)]
    assert rising[0] == pytest.approx(0.025)  # at the margin itself the interval errs on one side
    assert rising == sorted(rising)


# ---- gradient searches --------------------------------------------------------------------------


def course(search, direction, restart, errors, sizes=(0.0, 1.0, 2.0, 4.0)):
    head = {"concept": "months", "search": search, "direction": direction, "restart": restart}
    return [
        head | {"step": 10 * i, "mse": mse, "edit_norm": size}
        for i, (mse, size) in enumerate(zip(errors, sizes, strict=True))
    ]


def test_a_search_is_read_at_its_end_on_its_way_and_at_its_best():
    e = np.exp
    rows = course("aedp", "raise", 0, [1, e(-0.1), e(-0.3), e(0.2)]) + course("aedp", "raise", 1, [2, 2, 2, 2 * e(0.4)])
    rows += course("random", "raise", 0, [1, 1, 1, e(0.6)]) + course("aedp", "lower", 0, [1, 1, 1, e(0.5)])
    table = search_values(pd.DataFrame(rows).sample(frac=1, random_state=0))
    at = table.set_index(["representation", "way", "restart", "at"])["value"]
    assert at["search", "raise", "first", "end"] == pytest.approx(0.2)
    assert at["search", "raise", "first", "a quarter of the edit"] == pytest.approx(-0.1)
    assert at["search", "raise", "first", "half of the edit"] == pytest.approx(-0.3)
    assert at["search", "raise", "first", "least error"] == pytest.approx(-0.3)
    assert at["search", "raise", "second", "least error"] == pytest.approx(0)
    assert at["search", "raise", "both", "end"] == pytest.approx(0.3)
    assert at["search", "lower", "first", "end"] == pytest.approx(-0.5)  # it lowered separation, and the error rose
    assert at["random", "raise", "both", "end"] == pytest.approx(0.6)
    assert at["random", "lower", "first", "end"] == pytest.approx(-0.6)
    missing = table[table["value"].isna()]
    assert (missing["reason"] != "").all()
    assert set(missing["restart"]) == {"second"}
    assert set(table["measure"]) == {"error_change"}


def test_the_claim_about_searches_finds_its_ways_among_the_values():
    rows = [
        row | {"concept": concept}
        for concept in CONCEPTS
        for search in ("aedp", "gromov_wasserstein", "random")
        for way in ("raise", "lower")
        for restart in (0, 1)
        for row in course(search, way, restart, [1, 0.99, 0.98, 0.97 if search == "aedp" else 1.0])
    ]
    claim = CLAIMS["gradient"]
    specs = specifications(search_values(pd.DataFrame(rows)), claim)
    assert len(specs) == 2 * np.prod([len(ways) for ways in claim.choices.values()])
    assert specs[specs["primary"]]["estimate"].tolist() == pytest.approx([np.log(0.97)] * 2)


# ---- the replay ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "found"),
    [("as in the paper", "yes"), ("opposite", "no"), ("neither", "no"), ("no interval", NOT_REPLAYED)],
)
def test_a_replayed_sign_is_read_off_its_row(sign, found):
    claim = CLAIMS["merging"]
    head = {name: value for name, value in claim.paper.items() if name != "table"}
    other = head | {"recipe": "embedding", "sign": "as in the paper" if sign != "as in the paper" else "opposite"}
    signs = pd.DataFrame([other, head | {"sign": sign}])
    assert reproduces(claim, {"06_replay_signs": signs}) == found
    assert reproduces(claim, {"06_replay_signs": signs[:1]}) == NOT_REPLAYED


@pytest.mark.parametrize(("r", "found"), [(-0.5, "yes"), (0.5, "no"), (0.0, "no")])
def test_a_replayed_correlation_is_a_mean_over_concepts(r, found):
    claim = CLAIMS["correlation"]
    rows = [
        {"prompts": "authors", "coder": coder, "concept": concept, "seed": seed, "r_kept": value}
        for i, concept in enumerate(CONCEPTS)
        for seed in (0, 1)
        for coder, value in (("sae", r + 0.01 * (i - 4) + (seed - 0.5)), ("random_dictionary", -r))
    ]
    assert reproduces(claim, {"06_replay_correlations": pd.DataFrame(rows)}) == found


def test_what_the_paper_does_not_measure_is_not_replayed():
    assert reproduces(replace(CLAIM, paper={}), {}) == NOT_REPLAYED


# ---- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_every_claim_is_complete(claim):
    assert claim.statement.endswith(".")
    for field in fields(Claim):
        if field.name not in ("where", "paper", "baseline", "nothing"):
            assert getattr(claim, field.name), field.name
    assert claim.minimum_n >= 3
    assert (claim.margin > 0) == (claim.direction == "greater")
    assert all(isinstance(name, str) for name in (*claim.choices, *claim.primary, *claim.where)), (
        "YAML reads on as true"
    )
    assert not set(claim.choices) & {"measure", "representation", "value", *claim.where}
    assert all(len(set(ways)) == len(ways) for ways in claim.choices.values())


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_every_claim_names_a_figure_that_a_chapter_shows(claim):
    notebook, _, anchor = claim.figure.partition("#")
    cells = json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    assert anchor in {cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"primary": {"measure": "pole_rms"}}, "Complete 'primary'"),
        ({"primary": {**CLAIM.primary, "space": "hyperbolic"}}, "none of its ways"),
        ({"choices": {**CLAIM.choices, "space": ()}}, "allows no way"),
        ({"measures": {"pole_rms": 0.1, "aedp": -0.1}}, "not positive"),
        ({"direction": "sideways"}, "direction"),
        ({"minimum_n": "six"}, "minimum_n"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(change, match):
    with pytest.raises(ClaimError, match=match):
        replace(CLAIM, **change)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- {id: x}", "no 'version'"),
        ("version: 1\nclaims: []", "version 1"),
        (f"version: {RULES_VERSION}\nclaims: [{{id: x, bogus: 1}}]", "bogus"),
        (f"version: {RULES_VERSION}\nclaims: [{{id: x, statement: y}}]", "claim 1"),
    ],
)
def test_malformed_files_of_claims_are_refused(tmp_path, text, match):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ClaimError, match=match):
        load_claims(path)


def test_two_claims_with_one_id_are_refused(tmp_path):
    import yaml

    plain = yaml.safe_load((ROOT / "saema_utils/evidence/claims.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(plain | {"claims": plain["claims"][:1] * 2}))
    with pytest.raises(ClaimError, match="one id"):
        load_claims(path)


# ---- what was added after the registration ----

REGISTERED = load_claims(CLAIMS_FILE)
# Of the file as it was when the confirmatory study was run.
CONFIRMED_BY = "43f65f29"


def test_the_registered_file_is_the_one_that_the_confirmatory_study_was_judged_by():
    assert rules_digest().startswith(CONFIRMED_BY)


@pytest.mark.parametrize("claim", REGISTERED, ids=lambda claim: claim.id)
def test_what_was_added_changes_nothing_that_was_registered(claim):
    whole = CLAIMS[claim.id]
    assert {**whole.primary, **claim.primary} == whole.primary
    assert all(set(ways) <= set(whole.choices[name]) for name, ways in claim.choices.items())
    assert replace(whole, choices=claim.choices, primary=claim.primary) == claim


def test_every_claim_allows_sixty_analyses_or_more():
    for claim in CLAIMS.values():
        assert np.prod([len(claim.measures), *map(len, claim.choices.values())]) >= 60, claim.id


@pytest.mark.parametrize(
    ("added", "match"),
    [
        ("- {claim: bogus, choices: {weight: [tokens]}}", "bogus"),
        ("- {claim: gradient}", "choices"),
        ("- {claim: gradient, choices: {weight: [tokens]}}", "Complete 'primary'"),
        ("- {claim: gradient, choices: {at: [start]}, primary: {at: start}}", "'at' anew"),
        ("- {claim: gradient, choices: {at: [start]}, measures: {aedp: 1.0}}", "measures"),
    ],
)
def test_an_addition_that_would_change_a_claim_is_refused(tmp_path, added, match):
    path = tmp_path / "added.yaml"
    path.write_text(f"version: {ADDED_VERSION}\nadded:\n{added}")
    with pytest.raises(ClaimError, match=match):
        with_added(REGISTERED, path)


def test_verdicts_hang_on_both_files():
    for path in (CLAIMS_FILE, ADDED_FILE):
        assert path.read_text(encoding="utf-8") in rules_text()


def test_the_digest_says_by_which_file_was_judged(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("version: 2")
    before = rules_digest(path)
    path.write_text("version: 2 ")
    assert rules_digest(path) != before
    assert len(rules_digest()) == 64


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_the_page_of_claims_says_what_the_file_says(claim):
    (row,) = (
        line
        for line in (ROOT / "book/claims.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| `{claim.id}` | {claim.statement}")
    )
    assert [cell.strip() for cell in row.split("|")[3:5]] == [claim.reads, f"{claim.margin:+g}"]


def test_an_analysis_without_any_value_takes_no_share_and_warns_of_nothing():
    index = pd.MultiIndex.from_product([["a"], ["x", "y", "z"]], names=["measure", "space"])
    effects = pd.DataFrame([[1.0, 3.0], [np.nan, np.nan], [5.0, 7.0]], index=index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shares = shares_of_choices(effects, np.ones(3))
    assert shares.to_dict() == {"space": 1.0}
