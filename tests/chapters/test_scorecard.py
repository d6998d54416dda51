"""Chapter 7: the rule on its page is the package's, and what it says of certainty follows from the intervals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import numbers

from saema_utils.chapters.scorecard.figures import certainty_bars, claims_forest, verdict_grid
from saema_utils.chapters.scorecard.findings import certainty, count_verdicts, distance_from_margin, simulated_verdicts
from saema_utils.chapters.scorecard.tables import card_in_brief
from saema_utils.evidence.claims import VERDICTS, decide, load_claims
from saema_utils.exercises import EXERCISES, Wrong
from saema_utils.notebook import table
from saema_utils.statistics import Interval

ROOT = Path(__file__).parents[2]
CELLS = json.loads((ROOT / "notebooks" / "07_scorecard.ipynb").read_text(encoding="utf-8"))["cells"]
CARD = ROOT / "book" / "default_claims.csv"


def run_tagged(tag: str, containing: str, names: dict) -> dict:
    (source,) = [
        source
        for cell in CELLS
        if tag in cell["metadata"].get("tags", []) and containing in (source := "".join(cell["source"]))
    ]
    exec(source, names)
    return names


BY_HAND = run_tagged("definition", "verdict_by_hand", {})["verdict_by_hand"]
edges = st.floats(-2, 2) | st.sampled_from([-0.1, 0.0, 0.1])  # ends that fall on the margin are the hard ones


@given(low=edges, high=edges, n=st.integers(0, 12), margin=edges, minimum=st.integers(1, 8))
def test_the_rule_on_the_page_is_the_packages(low, high, n, margin, minimum):
    low, high = sorted((low, high))
    expected = decide(Interval((low + high) / 2, low, high, n), "greater", margin, minimum)
    assert BY_HAND(low, high, n, margin, minimum) == expected


def test_the_rule_on_the_page_gives_every_verdict():
    ends = ((0.2, 0.5), (-0.3, 0.05), (-0.1, 0.4), (0.1, 0.4), (-0.4, 0.1))
    assert {BY_HAND(low, high, 9, 0.1, 6) for low, high in ends} == set(VERDICTS)


def card(**claims):
    """Claims by name: estimate, low, high, margin, direction; units enough."""
    rows = [
        {
            "claim": name,
            "estimate": e,
            "low": low,
            "high": high,
            "margin": m,
            "direction": d,
            "n": 9,
            "scale": "full",
            "verdict": decide(Interval(e, low, high, 9), d, m, 6),
        }
        for name, (e, low, high, m, d) in claims.items()
    ]
    return pd.DataFrame(rows)


@given(
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
    estimate=st.floats(-2, 2),
    margin=st.sampled_from([-0.1, 0, 0.1]),
    direction=st.sampled_from(["greater", "less"]),
)
def test_one_reach_is_where_the_interval_ends_at_the_margin(low, high, estimate, margin, direction):
    """However skewed the interval: beyond 1 supported, beyond -1 not supported, between them inconclusive."""
    made = card(claim=(estimate, estimate - low, estimate + high, margin, direction))
    distance = distance_from_margin(made).iloc[0]
    if abs(abs(distance) - 1) > 1e-9:
        side = "supported" if distance > 1 else "not supported" if distance < -1 else "inconclusive"
        assert made["verdict"].iloc[0] == side


class TestCertainty:
    made = card(
        solid=(0.0, -1.0, 1.0, 0.0, "greater"),  # the margin in the very middle: nothing firmer than this open question
        fragile=(0.32, 0.11, 0.5, 0.1, "greater"),
        firm=(2.0, 1.9, 2.1, 0.1, "greater"),
    )
    minimum = dict.fromkeys(made["claim"], 6)

    def test_the_thinnest_thread_is_the_interval_that_ends_nearest_to_its_margin(self):
        found = certainty(self.made, self.minimum)
        assert re.findall(r"(\w+):", found.shows) == ["fragile", "firm"]
        assert found.holds
        assert certainty(self.made[self.made["claim"] != "fragile"], self.minimum).holds is False

    def test_no_interval_turns_a_verdict_that_lacks_units(self):
        assert "firm" not in certainty(self.made, {**self.minimum, "firm": 10}).shows

    def test_one_verdict_is_not_compared_with_itself(self):
        assert certainty(self.made[:1], self.minimum).shows.count(":") == 1

    def test_without_units_nothing_is_said(self):
        assert certainty(self.made, dict.fromkeys(self.minimum, 10)) == (None, "")

    def test_an_interval_without_width_has_no_distance(self):
        made = card(sharp=(1.0, 1.0, 1.0, 0.5, "greater"))
        assert certainty(made, {"sharp": 6}) == (None, "")


class TestVerdictCounts:
    made = card(
        out=(0.0, -0.1, 0.05, 0.1, "greater"),
        gone=(0.0, -0.1, 0.05, 0.1, "greater"),
        open=(0.1, 0.0, 0.2, 0.1, "greater"),
    )
    minimum = dict.fromkeys(made["claim"], 6)

    def test_most_are_ruled_out_and_none_is_supported(self):
        found = count_verdicts(self.made, self.minimum)
        assert numbers(found.shows) == [3, 0, 2, 1]
        assert found.holds
        assert count_verdicts(self.made.iloc[1:], self.minimum).holds is False

    def test_one_support_is_enough_to_refute_it(self):
        made = pd.concat([self.made, card(yes=(0.5, 0.4, 0.6, 0.1, "greater"))])
        assert count_verdicts(made, {**self.minimum, "yes": 6}).holds is False

    def test_where_most_lack_units_nothing_is_said(self):
        found = count_verdicts(self.made, {**self.minimum, "out": 10, "gone": 10})
        assert numbers(found.shows)[-1] == 2
        assert found.holds is None


def test_the_ruler_knows_nothing_from_much_and_errs_at_the_margin_as_often_as_it_says():
    effects = {"none": 0.0, "margin": 0.3, "large": 10.0}
    shares = simulated_verdicts(effects, units=9, spread=0.1, margin=0.3, minimum_units=6, n=1000, seed=0)
    assert shares.sum().to_numpy() == pytest.approx(1)
    assert shares["none"].to_dict() == {"supported": 0.0, "not supported": 1.0, "inconclusive": 0.0}
    assert shares.loc["supported", "large"] == 1.0
    assert shares.loc["supported", "margin"] == pytest.approx(0.025, abs=0.015)
    few = simulated_verdicts(effects, units=5, spread=0.1, margin=0.3, minimum_units=6, n=9, seed=0)
    assert (few.loc["inconclusive"] == 1).all()


def test_figures_are_drawn_for_whatever_was_judged(tmp_path):
    made = pd.read_csv(CARD)
    elsewhere = made["verdict"].where(made.index % 2 == 0)  # a run that lacks half of the claims
    grid = made[["claim", "verdict"]].rename(columns={"verdict": "here"}).assign(elsewhere=elsewhere)
    for number, figure in enumerate((claims_forest(made), certainty_bars(made), verdict_grid(grid))):
        figure.savefig(tmp_path / f"{number}.svg")
        assert (tmp_path / f"{number}.svg").stat().st_size > 1000


@pytest.mark.parametrize("name", ["7.1", "7.2", "7.3"])
def test_the_solutions_are_accepted(name):
    judged = []
    minimum = {claim.id: claim.minimum_units for claim in load_claims()}
    names = {
        "decide": decide,
        "Interval": Interval,
        "minimum": minimum,
        "card": pd.read_csv(CARD),
        "check": lambda name, answer: judged.append(EXERCISES[name].judge(answer)),
    }
    run_tagged("solution", f'check("{name}"', names)
    assert judged == [None]


def test_the_verdicts_that_hang_on_the_margin_are_asked_for_in_order():
    made = pd.read_csv(CARD)
    least = {claim.id: claim.minimum_units for claim in load_claims()}
    changed = sorted(
        r.claim
        for r in made.itertuples()
        if decide(Interval(r.estimate, r.low, r.high, r.n), r.direction, 0.0, least[r.claim]) != r.verdict
    )
    assert len(changed) > 1
    with pytest.raises(Wrong, match="not sorted"):
        EXERCISES["7.1"].judge((made, changed[::-1]))
    with pytest.raises(Wrong, match="verdicts change"):
        EXERCISES["7.1"].judge((made, [*changed, next(c for c in made["claim"] if c not in changed)]))


def test_every_claim_names_a_figure_that_a_chapter_shows():
    for claim in load_claims():
        notebook, _, anchor = claim.figure.partition("#")
        cells = json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
        shown = {cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells}
        assert anchor in shown, claim.id


@pytest.mark.parametrize("publishing", [True, False])
def test_the_card_in_brief_links_to_figures_where_there_are_pages(monkeypatch, publishing):
    monkeypatch.setenv("SAEMA_PUBLISHING", "1" if publishing else "0")
    row = {
        "statement": "a < b",
        "control": "c",
        "estimate": 0.1234,
        "low": -0.5,
        "high": 1.0,
        "n": 9,
        "verdict": "inconclusive",
        "figure": "04_local.ipynb#fig-x",
    }
    (brief,) = card_in_brief(pd.DataFrame([row])).to_dict("records")
    assert brief["effect (95 % interval)"] == "0.12 (-0.5 to 1)"
    assert brief["see"] == ('<a href="04_local.html#fig-x">ch. 4</a>' if publishing else "ch. 4")
    shown = table(pd.DataFrame([brief]), html_columns=("see",)).data
    assert "a &lt; b" in shown
    assert brief["see"] in shown


def test_tables_escape_what_they_did_not_write():
    shown = table(pd.DataFrame({"<b>": ["<script>", None], "x": [0.12345, 2]}), "caption").data
    assert "<script>" not in shown
    assert "&lt;b&gt;" in shown
    assert "0.123" in shown


def test_long_names_in_tables_may_break():
    shown = table(pd.DataFrame({"p_holm": ["random_dictionary"]})).data
    assert "p_<wbr>holm" in shown
    assert "random_<wbr>dictionary" in shown
