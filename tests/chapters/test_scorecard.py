"""Chapter 7: the rule on its page is the package's, and it finds in hand-made multiverses what was put there."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reading import defined_on, numbers, tagged
from test_figures import DEFICIENCIES, DISTINCT, lab

from saema_utils.chapters.scorecard import figures, findings
from saema_utils.chapters.scorecard.tables import card_in_brief
from saema_utils.evidence.claims import load_claims
from saema_utils.evidence.multiverse import contrasts_of, in_short, specifications
from saema_utils.evidence.verdicts import NO_EFFECT, NOT_LEARNED, SUPPORTED, TOO_FEW, VERDICTS, Evidence, judge
from saema_utils.exercises import EXERCISES, Wrong
from saema_utils.notebook import table
from saema_utils.rulers.rules import AS_LARGE, NOTHING_THERE
from saema_utils.wording import SIGNS

NOTEBOOK = "07_scorecard.ipynb"
CLAIMS = {claim.id: claim for claim in load_claims()}

# ---- the rule on the page -----------------------------------------------------------------------

PAGE = defined_on(NOTEBOOK)
READING, BY_HAND = PAGE["reading"], PAGE["verdict_by_hand"]
ends = st.floats(-4, 4) | st.sampled_from([-1.0, 0.0, 1.0])


@st.composite
def contrast(draw) -> Evidence:
    low, high = sorted((draw(ends), draw(ends)))
    return Evidence(low, high, 9, draw(ends), draw(st.sampled_from([0.004, 0.05, 0.5])))


def parts(found: Evidence) -> tuple[float, ...]:
    return found.low, found.high, found.median, found.joint_p


@given(contrast(), st.none() | contrast())
def test_the_rule_on_the_page_is_the_packages(own, lead):
    assume(lead is None or lead.high != 1)
    assert BY_HAND(parts(own), lead and parts(lead)) == judge(own, lead, 6)


def test_the_rule_on_the_page_gives_every_verdict_and_so_do_its_examples():
    said = [BY_HAND(parts(own), lead and parts(lead)) for own, lead in figures.EXAMPLES]
    assert said == list(VERDICTS)
    nothing = (float("nan"),) * 4
    assert BY_HAND(nothing) == READING(*nothing) == "too few units"


# ---- findings -----------------------------------------------------------------------------------


def laboratory(**rules):
    """Rules by name: share supported at 0 and at 2 margins (what is left finds no effect), and a control as large."""
    rows = []
    for name, (nothing, much, *same) in rules.items():
        for truth, share in ((0, nothing), (2, much)):
            facts = {"rule": name, "truth": truth, "control": NOTHING_THERE}
            rows.append(facts | {SUPPORTED: share, NO_EFFECT: 1 - share, NOT_LEARNED: 0.0})
        rows += [
            {"rule": name, "truth": 2, "control": AS_LARGE, SUPPORTED: share, NO_EFFECT: 0.0, NOT_LEARNED: 1 - share}
            for share in same
        ]
    return pd.DataFrame(rows)


class TestTheRuler:
    good = laboratory(a=(0.0, 0.9, 0.01), b=(0.05, 0.8))

    def test_a_good_rule_stays_below_one_in_twenty_and_reaches_four_in_five(self):
        found = findings.rules_measure(self.good)
        assert found.holds
        assert numbers(found.shows) == [5, 2, 80]

    @pytest.mark.parametrize("bad", [(0.06, 0.9), (0.0, 0.79)])
    def test_one_that_does_not_is_named(self, bad):
        found = findings.rules_measure(pd.concat([self.good, laboratory(lax=bad)]))
        assert found.holds is False
        assert found.shows.endswith("not so: lax")

    def test_a_control_as_large_must_not_be_called_support(self):
        assert findings.rules_ask_what_was_learned(self.good).holds
        assert not findings.rules_ask_what_was_learned(laboratory(a=(0, 1, 0.2))).holds
        assert findings.rules_ask_what_was_learned(laboratory(a=(0, 1))) == (None, "")

    def test_a_rule_must_be_able_to_say_no(self):
        assert findings.rules_say_no(self.good) == (True, "no effect of size m: at least 95%")
        mute = self.good.assign(**{NO_EFFECT: 0.1})
        assert findings.rules_say_no(mute).holds is False
        assert findings.rules_say_no(mute[mute["truth"] > 0]) == (None, "")

    def test_without_both_truths_nothing_is_said(self):
        assert findings.rules_measure(self.good[self.good["truth"] == 2]) == (None, "")


WAYS = ("euclidean", "cosine", "standardised")


def specs(**claims):
    """Claims by name: the intervals, in margins, of as many analyses; the first was named beforehand.

    Analyses differ in their space, three at a time, then also in their measure.
    """
    rows = []
    for name, intervals in claims.items():
        margin = -0.1 if len(rows) % 2 else 0.2  # whichever side the paper expects
        for i, (low, high) in enumerate(intervals):
            row = {
                "claim": name,
                "contrast": "itself",
                "measure": f"m{i // 3}",
                "space": WAYS[i % 3],
                "primary": i == 0,
            }
            sides = sorted((low * margin, high * margin))
            row |= {"estimate": sum(sides) / 2, "low": sides[0], "high": sides[1], "n": 9, "margin": margin}
            rows.append(row)
    rows.append({"claim": "failed", "primary": False, "n": 0, "reason": "no table"})
    return pd.DataFrame(rows)


ABOVE, WITHIN, BELOW, ACROSS = (1.5, 2.5), (-0.5, 0.5), (-2.5, -1.5), (0.0, 2.0)


CHOOSING = replace(
    CLAIMS["compression"],
    measures={"m0": 0.1, "m1": 0.1},
    choices={"space": WAYS},
    primary={"measure": "m0", "space": "euclidean"},
)


class TestTheMultiverse:
    made = specs(
        torn=[ABOVE, WITHIN, BELOW, ACROSS], firm=[WITHIN, WITHIN, WITHIN, WITHIN], mostly=[ABOVE, ABOVE, ABOVE, BELOW]
    )
    claims = dict.fromkeys(("torn", "firm", "mostly"), CHOOSING)

    def test_an_analysis_by_itself_is_read_in_margins_whatever_its_side(self):
        alone = findings.said_alone(self.made).groupby("claim")["alone"].agg(list)
        assert alone["torn"] == ["above", "within", "below", "across"]
        assert alone["mostly"] == ["above", "above", "above", "below"]
        assert "failed" not in alone

    def test_agreement_is_the_share_that_says_what_most_say(self):
        assert findings.agreement(self.made).to_dict() == {"torn": 0.25, "mostly": 0.75, "firm": 1.0}
        assert findings.hang_most_and_least(self.made) == ("torn", "firm")
        found = findings.analyses_agree(self.made)
        assert found.holds
        assert numbers(found.shows) == [25, 100]
        assert findings.analyses_agree(specs(firm=[WITHIN, WITHIN])).holds is False

    def test_one_choice_away_are_those_that_differ_in_one(self):
        """The fourth analysis of each differs in its measure alone; a fifth would differ in two choices."""
        assert findings.one_choice_away(self.made, self.claims) == {
            "torn": {"above", "within", "below", "across"},
            "firm": {"within"},
            "mostly": {"above", "below"},
        }
        farther = specs(firm=[WITHIN] * 4 + [ABOVE])
        assert findings.one_choice_away(farther, {"firm": self.claims["firm"]}) == {"firm": {"within"}}
        blank = farther.assign(space=farther["space"].where(farther["space"] != "euclidean"))  # as a file gives it back
        assert findings.one_choice_away(blank, {"firm": self.claims["firm"]}) == {"firm": {"within"}}
        found = findings.one_choice_turns(self.made, self.claims)
        assert (found.holds, found.shows) == (True, "2 of 3 claims")

    def test_a_claim_without_its_named_analysis_does_not_count(self):
        unnamed = self.made[~((self.made["claim"] == "torn") & (self.made["space"] == "euclidean"))]
        assert set(findings.one_choice_away(unnamed, self.claims)) == {"firm", "mostly"}
        assert findings.one_choice_turns(self.made, {}) == (None, "0 of 0 claims")

    def test_both_ways_are_support_and_contradiction(self):
        assert findings.both_ways(self.made) == (True, "torn, mostly")
        assert findings.both_ways(specs(firm=[WITHIN, ABOVE])) == (False, "none")

    def test_where_nothing_has_an_interval_nothing_is_said(self):
        empty = self.made.assign(low=np.nan)
        assert findings.analyses_agree(empty) == (None, "")
        assert findings.both_ways(empty).holds is None


class TestChoices:
    @staticmethod
    def made(**shares):
        rows = [
            {"claim": f"c{i}", "contrast": which, "choice": choice, "share": share}
            for choice, values in shares.items()
            for which in ("itself", "lead")
            for i, share in enumerate(values)
        ]
        return pd.DataFrame(rows)

    def test_each_is_compared_where_both_can_be_chosen(self):
        made = self.made(space=(0.5, 0.3), measure=(0.4, 0.2), prompts=(0.1, 0.2, 0.9))
        found = findings.moves_more(made, ("measure", "space"), "prompts")
        assert found.holds
        assert numbers(found.shows)[:2] == [30, 40]
        assert findings.moves_more(made, ("prompts",), "space").holds is False

    def test_a_choice_that_no_claim_has_decides_nothing(self):
        assert findings.moves_more(self.made(space=(0.5,)), ("space",), "prompts") == (None, "")


def card(**claims):
    """Claims by name: verdict, whether it reproduces, power, n."""
    return pd.DataFrame(
        [
            {"claim": name, "holds_up": verdict, "reproduces": back, "power": power, "n": n, "minimum_n": 6}
            for name, (verdict, back, power, n) in claims.items()
        ]
    )


class TestTheCard:
    made = card(
        a=(NOT_LEARNED, "yes", 0.9, 9), b=(NO_EFFECT, "not replayed", 0.95, 9), c=(NO_EFFECT, "yes", float("nan"), 3)
    )

    def test_verdicts_are_counted_and_one_support_refutes_that_there_is_none(self):
        found = findings.none_supported(self.made)
        assert found.holds
        assert numbers(found.shows) == [3, 1, 2]
        assert findings.none_supported(pd.concat([self.made, card(d=(SUPPORTED, "no", 1, 9))])).holds is False

    def test_where_most_lack_units_nothing_is_said(self):
        assert findings.none_supported(self.made.assign(n=(3, 3, 9))).holds is None

    def test_only_what_was_replayed_can_come_back(self):
        found = findings.come_back(self.made)
        assert (found.holds, numbers(found.shows)) == (True, [2, 2])
        most = findings.come_back(pd.concat([self.made, card(d=(NO_EFFECT, "no", 1, 9))]))
        assert most.holds is True
        assert most.shows.endswith("not d")
        half = findings.come_back(pd.concat([self.made, card(d=(NO_EFFECT, "no", 1, 9), e=(NO_EFFECT, "no", 1, 9))]))
        assert half.holds is False
        assert findings.come_back(self.made[1:2]).holds is None

    def test_claims_that_could_have_been_supported_are_counted(self):
        assert findings.would_be_seen(self.made) == (True, "2 of 2 claims")
        found = findings.would_be_seen(self.made.assign(power=(0.9, 0.1, 0.2)))
        assert found.holds is False
        assert found.shows.endswith("not b, c")

    def test_words_are_compared_with_running_text(self):
        facts = {f"explained_variance_{name}": ev for name, ev in (("words", 0.6), ("tokens", 0.7), ("text", 0.8))}
        found = findings.words_are_harder(self.made.assign(**facts))
        assert (found.holds, numbers(found.shows)) == (True, [0.6, 0.7, 0.8])
        assert not findings.words_are_harder(self.made.assign(**facts | {"explained_variance_words": 0.9})).holds


# ---- figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    """Every claim, under at most two ways of each choice, on values whose effect is known: nine units each."""
    draws = np.random.default_rng(0)
    found, short, choices, rows = [], [], [], []
    for claim in CLAIMS.values():
        keys = {"measure": tuple(claim.measures), **claim.choices}
        ways = product(
            *((claim.primary[key], *(way for way in keys[key] if way != claim.primary[key]))[:2] for key in keys)
        )
        values = [
            dict(zip(keys, way, strict=True))
            | dict(claim.where)
            | {
                claim.unit: unit,
                "representation": side,
                "value": draws.normal(claim.margin * (side == claim.code), 0.1),
            }
            for way in ways
            for unit in range(9)
            for side in dict.fromkeys(name for name in (claim.code, claim.baseline, claim.nothing) if name)
        ]
        own = specifications(pd.DataFrame(values), claim)
        found.append(own)
        short.append(in_short(pd.DataFrame(values), claim))
        choices += [
            {"claim": claim.id, "contrast": which, "choice": key, "share": draws.random()}
            for which in contrasts_of(claim)
            for key in keys
        ]
        rows.append(
            {"claim": claim.id, "holds_up": VERDICTS[len(rows) % 6], **own.iloc[0][["estimate", "low", "high"]]}
        )
        rows[-1] |= {"margin": claim.margin, "median": draws.normal(0, 4), "power": draws.random()}
    return pd.concat(found, ignore_index=True), pd.concat(short), pd.DataFrame(choices), pd.DataFrame(rows)


def test_figures_are_drawn_for_whatever_was_judged(world):
    every, _, choices, made = world
    elsewhere = made["holds_up"].where(made.index % 2 == 0)  # a run that lacks half of the claims
    grid = made[["claim", "holds_up"]].rename(columns={"holds_up": "here"}).assign(elsewhere=elsewhere)
    empty = every[every["claim"] == "none"]
    drawn = [
        figures.rule_by_example(),
        figures.laboratory_curves(TestTheRuler.good),
        figures.laboratory_curves(TestTheRuler.good[:0]),
        figures.multiverse_curves(every),
        figures.multiverse_curves(empty),
        figures.specification_curve(every, CLAIMS["merging"]),
        figures.specification_curve(empty, CLAIMS["merging"]),
        figures.choices_map(choices),
        figures.choices_map(choices[:0]),
        figures.claims_forest(made),
        figures.verdict_grid(grid),
    ]
    for figure in drawn:
        figure.draw_without_rendering()
        assert figure.axes


def test_a_specification_curve_rises_and_marks_every_way_that_was_taken(world):
    every, _, _, _ = world
    claim = CLAIMS["distinctions"]
    curve, panel = figures.specification_curve(every, claim).axes
    dots = {tuple(map(tuple, line.get_xydata())) for line in curve.lines if line.get_marker() == "."}
    estimates = [y for _, y in sorted(point for points in dots for point in points)]
    mine = every[(every["claim"] == claim.id) & (every["contrast"] == "itself")]
    assert estimates == sorted(mine["estimate"] / mine["margin"])
    ways = [label.get_text().partition(":  ")[2] or label.get_text() for label in panel.get_yticklabels()]
    taken = {str(way) for key in ("measure", *claim.choices) for way in mine[key].unique() if mine[key].nunique() > 1}
    assert set(ways) == taken


def test_many_analyses_are_thinned_evenly_and_the_named_one_stays():
    rows = pd.DataFrame({"estimate": np.arange(5000.0), "primary": np.arange(5000) == 1234})
    kept = figures._thinned(rows)
    assert len(kept) <= figures.MOST + 1
    assert kept["primary"].sum() == 1
    assert kept["estimate"].iloc[[0, -1]].tolist() == [0, 4999]
    assert kept["estimate"].diff().max() < 20


def test_every_verdict_has_a_colour_and_a_sign_of_its_own():
    assert list(figures.VERDICT_COLORS) == list(VERDICTS)
    assert len({SIGNS[verdict] for verdict in VERDICTS}) == len(VERDICTS)
    for deficiency in DEFICIENCIES:
        for a, b in combinations(figures.VERDICT_COLORS.values(), 2):
            assert np.linalg.norm(lab(a, deficiency) - lab(b, deficiency)) > DISTINCT, (a, b, deficiency)


# ---- exercises ----------------------------------------------------------------------------------


def solution(name: str, names: dict) -> list:
    (source,) = (source for source in tagged(NOTEBOOK, "solution") if f'check("{name}"' in source)
    judged = []
    exec(source, names | {"check": lambda name, answer, ours: judged.append(EXERCISES[name].judge(answer))})
    return judged


@pytest.mark.parametrize("name", ["7.1", "7.2", "7.3"])
def test_the_solutions_are_accepted(name, world):
    every, short, _, _ = world
    evidence = findings.evidence_by_claim(every, short, CLAIMS)
    assert solution(name, {"judge": judge, "claims": CLAIMS, "evidence": evidence}) == [None]


def test_the_verdicts_that_hang_on_the_lead_are_asked_for_in_order():
    large, none = Evidence(1.5, 2.5, 9, 2.0, 0.004), Evidence(-0.5, 0.5, 9, 0.0, 0.9)
    evidence = {"merging": (large, none), "pieces": (large, large), "compression": (large, none)}
    assert EXERCISES["7.2"].judge((evidence, ["compression", "merging"])) is None
    with pytest.raises(Wrong, match="not sorted"):
        EXERCISES["7.2"].judge((evidence, ["merging", "compression"]))
    with pytest.raises(Wrong, match="verdicts change"):
        EXERCISES["7.2"].judge((evidence, ["merging"]))


# ---- the card on a page -------------------------------------------------------------------------


@pytest.mark.parametrize("publishing", [True, False])
def test_the_card_in_brief_links_to_figures_where_there_are_pages(monkeypatch, publishing):
    monkeypatch.setenv("SAEMA_PUBLISHING", "1" if publishing else "0")
    row = {
        "claim": "merging",
        "statement": "a < b",
        "reproduces": "yes",
        "holds_up": NOT_LEARNED,
        "estimate": 0.1234,
        "low": -0.5,
        "high": 1.0,
        "n": 9,
        "minimum_n": 6,
        "margin": 0.1,
        "figure": "04_local.ipynb#fig-x",
    }
    (brief,) = card_in_brief(pd.DataFrame([row])).to_dict("records")
    assert brief["effect (95 % interval)"] == "0.12 (-0.5 to 1)"
    assert brief["see"] == ('<a href="04_local.html#fig-x">ch.\xa04</a>' if publishing else "ch.\xa04")
    shown = table(pd.DataFrame([brief]), html_columns=("claim", "see")).data
    assert "a &lt; b" in shown
    assert "0.12 (−0.5 to 1)" in shown
    assert NOT_LEARNED in shown
    assert brief["see"] in shown


def test_tables_escape_what_they_did_not_write():
    shown = table(pd.DataFrame({"<b>": ["<script>", None], "x": [0.12345, 2]}), "caption").data
    assert "<script>" not in shown
    assert "&lt;b&gt;" in shown
    assert "0.123" in shown


def test_long_names_in_tables_may_break():
    shown = table(pd.DataFrame({"p_holm": ["A_Name_of_Somebody"]})).data
    assert "A_<wbr>Name_<wbr>of_<wbr>Somebody" in shown


@pytest.mark.parametrize(
    ("latents", "random", "verdict", "holds"),
    [
        ({"months", "days"}, {"months", "days"}, TOO_FEW, True),
        ({"months", "days"}, {"months", "days"}, SUPPORTED, False),
        ({"months"}, {"months", "days"}, TOO_FEW, False),
        ({"months", "days"}, {"days"}, NO_EFFECT, False),
    ],
)
def test_the_circle_stays_where_every_code_keeps_it_and_no_claim_bends_it(latents, random, verdict, holds):
    row = {"claim": "circle-lost", "holds_up": verdict, "n": 4, "estimate": -0.1, "low": -0.3, "high": 0.1}
    card = pd.DataFrame([row | {"margin": -0.1}])
    there = {"residual": {"months", "days"}, "sae": latents, "random_dictionary": random}
    circles = pd.DataFrame(
        {"concept": name, "representation": code, "p_value": 0.001 if name in names else 0.5}
        for code, names in there.items()
        for name in ("months", "days")
    ).assign(score=0.9, distance_score=0.5)
    found = findings.circle_stays(circles, card)
    assert found.holds is holds
    assert verdict in found.shows
    assert findings.circle_stays(circles[circles["concept"] == "days"], card).holds is None
    assert findings.circle_stays(circles, card[:0]).holds is None
