"""The README quotes the committed scorecard and nothing else, and answers only what a run bears out."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saema_utils.errors import BookError
from saema_utils.evidence.claims import load_claims
from saema_utils.evidence.verdicts import DEPENDS, NO_EFFECT, NOT_LEARNED, SUPPORTED, TOO_FEW, VERDICTS
from saema_utils.publishing import fragments, readme
from saema_utils.publishing.readme import ANSWER, CAUSAL, answer, between_markers, generated, refresh, scorecard_lines
from saema_utils.study import DEFAULT_STUDY, STUDIES

ROOT = Path(__file__).parents[2]
PARTS = ("answer", "generated")


def card(**verdicts):
    """A scorecard on which nothing holds up and every measure of the paper comes back, but for some verdicts."""
    rows = [
        {
            "claim": claim.id,
            "statement": claim.statement,
            "reproduces": "yes" if claim.paper else "not replayed",
            "holds_up": verdicts.get(claim.id.replace("-", "_"), NO_EFFECT),
            "estimate": 0.0123,
            "low": -0.045,
            "high": 0.067,
            "n": 9,
            "unit": claim.unit,
            "minimum_n": claim.minimum_n,
            "margin": claim.margin,
            "figure": claim.figure,
        }
        for claim in load_claims()
    ]
    return pd.DataFrame(rows)


def signs(random="as in the paper"):
    """The signs of the replay: those of the SAE are the paper's; without z-scores, or on other prompts, none is."""
    rows = [
        {"prompts": prompts, "coder": coder, "recipe": recipe, "measure": measure, "sign": "neither"}
        for prompts in ("authors", "ours")
        for coder in ("sae", "random_dictionary")
        for recipe in ("as published", "z-scores")
        for measure in ("n_local", "mst_weight")
    ]
    found = pd.DataFrame(rows)
    published = (found["prompts"] == "authors") & (found["recipe"] == "as published")
    found.loc[published & (found["coder"] == "sae"), "sign"] = "as in the paper"
    found.loc[published & (found["coder"] == "random_dictionary"), "sign"] = random
    return found


def refused(*arguments):
    """Which sentence of the answer is named by the refusal."""
    with pytest.raises(BookError) as error:
        answer(*arguments)
    assert "\n" not in str(error.value)
    (number,) = [number for number, (sentence, _) in enumerate(ANSWER) if sentence in str(error.value)]
    return number


# ---- the answer ------------------------------------------------------------------------------------


def test_an_answer_that_the_run_bears_out_is_given_a_sentence_a_line():
    for given in ((card(),), (card(), signs())):
        lines = answer(*given).splitlines()
        assert len(lines) == len(ANSWER)
        assert all(f"**{sentence}**" in line for line, (sentence, _) in zip(lines, ANSWER, strict=True))


def test_the_protocol_must_come_back_for_the_sae_and_for_a_random_dictionary():
    lost = card().assign(reproduces=lambda made: made["reproduces"].replace("yes", "no"))
    assert refused(lost, signs()) == refused(card(), signs(random="neither")) == 0
    one = card().assign(reproduces=lambda made: made["reproduces"].where(made["claim"] != "merging", "no"))
    assert answer(one, signs()), "what UMAP does on one machine may cost a sign"
    assert refused(card().assign(reproduces="not replayed")) == 0


@pytest.mark.parametrize("claim", [claim.id for claim in load_claims()])
def test_one_supported_claim_refutes_one_sentence(claim):
    assert refused(card(**{claim.replace("-", "_"): SUPPORTED}), signs()) == (2 if claim in CAUSAL else 1)


@pytest.mark.parametrize("verdict", [verdict for verdict in VERDICTS if verdict != SUPPORTED])
def test_every_other_verdict_leaves_the_answer_as_it_is_where_the_best_dose_is_worth_nothing(verdict):
    found = card().assign(holds_up=verdict)
    if verdict != NO_EFFECT:
        assert refused(found, signs()) == 2
    found.loc[found["claim"] == "worth-after-training", "holds_up"] = NO_EFFECT
    assert answer(found, signs())


def test_too_few_units_are_no_answer():
    few = card().assign(holds_up=TOO_FEW, n=3, minimum_n=6)
    assert refused(few, signs()) == 1
    assert answer(few, signs(), strict=False).count("cannot tell") == 2


def test_another_study_may_differ_and_says_so():
    made = answer(card(pieces=SUPPORTED), signs(), strict=False).splitlines()
    assert ["differs" in line for line in made] == [False, True, False]


def laboratory(folder, **supported):
    """Every rule supports nothing that is not there, and what is; but for the shares of some, at 0 and at 2 margins."""
    shares = {claim.id: supported.get(claim.id.replace("-", "_"), (0.0, 0.9)) for claim in load_claims()}
    rows = [
        {"rule": rule, "truth": truth, "control": "nothing there", SUPPORTED: share}
        for rule, pair in shares.items()
        for truth, share in zip((0, 2), pair, strict=True)
    ]
    pd.DataFrame(rows).to_csv(folder / "07_laboratory.csv", index=False)


@pytest.mark.parametrize("broken", [{"merging": (0.06, 0.9)}, {"merging": (0, 0.7)}, {"shape_kept": (0, 0.7)}], ids=str)
def test_no_book_of_the_default_study_is_built_on_rules_that_do_not_measure(tmp_path, broken):
    card().to_csv(tmp_path / "07_claims.csv", index=False)
    laboratory(tmp_path, **broken)
    with pytest.raises(BookError, match=next(iter(broken)).replace("_", "-")):
        fragments.opening_answer(tmp_path, STUDIES[DEFAULT_STUDY])
    assert fragments.opening_answer(tmp_path, STUDIES["smoke"])


def test_a_book_of_the_default_study_is_held_to_the_answer(tmp_path):
    default = STUDIES[DEFAULT_STUDY]
    assert fragments.opening_answer(tmp_path, default)
    card().to_csv(tmp_path / "07_claims.csv", index=False)
    with pytest.raises(BookError, match="laboratory of chapter 7 is missing"):
        fragments.opening_answer(tmp_path, default)
    laboratory(tmp_path)
    assert ANSWER[0][0] in fragments.opening_answer(tmp_path, default)
    signs(random="opposite").to_csv(tmp_path / "06_replay_signs.csv", index=False)
    with pytest.raises(BookError, match=re.escape(ANSWER[0][0])):
        fragments.opening_answer(tmp_path, default)
    for other in (STUDIES["smoke"], default.changed(seed=1)):
        assert ANSWER[0][0] in fragments.opening_answer(tmp_path, other)


# ---- the scorecard ---------------------------------------------------------------------------------


def test_statements_are_grouped_by_the_verdicts_that_were_given():
    made = card(pieces=NOT_LEARNED, merging=DEPENDS)
    lines = scorecard_lines(made).splitlines()
    headings = [line for line in lines if line.startswith("#")]
    counts = {NOT_LEARNED: 1, NO_EFFECT: len(made) - 2, DEPENDS: 1}
    assert headings == [f"### {verdict.capitalize()} ({n})" for verdict, n in counts.items()]
    listed = [line for line in lines if line.startswith("- ")]
    assert len(listed) == len(made)
    under = lines[lines.index(headings[0]) : lines.index(headings[1])]
    assert any(made.set_index("claim").loc["pieces", "statement"] in line for line in under)


def test_a_statement_comes_with_its_effect_its_margin_and_its_units():
    (line,) = scorecard_lines(card()[lambda made: made["claim"] == "compression"]).splitlines()[-1:]
    for shown in ("0.012 (−0.045 to 0.067)", "−0.1", "9 concepts (at least 6)"):
        assert shown in line
    unmeasured = card().assign(estimate=np.nan, low=np.nan, high=np.nan, n=0)
    assert "nan" not in scorecard_lines(unmeasured)


def test_the_books_scorecard_has_a_row_a_claim(tmp_path):
    assert "chapter 7" in fragments.scorecard(tmp_path)
    made = card(pieces=SUPPORTED)
    made.to_csv(tmp_path / "07_claims.csv", index=False)
    shown = fragments.scorecard(tmp_path)
    rows = re.findall("<tr><td.*?</tr>", shown)
    assert len(rows) == len(made)
    assert sum(f"✓\xa0{SUPPORTED}" in row for row in rows) == 1
    assert "\n\n" not in shown, "a blank line would end the HTML inside a page"


def test_a_card_of_other_rules_is_refused(tmp_path):
    card().rename(columns={"holds_up": "verdict"}).to_csv(tmp_path / "07_claims.csv", index=False)
    for read in (lambda: readme.read_card(tmp_path / "07_claims.csv"), lambda: fragments.scorecard(tmp_path)):
        with pytest.raises(BookError, match="other rules"):
            read()


# ---- the README ------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A folder with README and notebooks, and a run beside it."""
    (tmp_path / "book").mkdir()
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "run/tables").mkdir(parents=True)
    (tmp_path / "run/manifest.json").write_text('{"chapters": {"01_activations": {"work": 12.3}}}')
    card().to_csv(tmp_path / "run/tables/07_claims.csv", index=False)
    signs().to_csv(tmp_path / "run/tables/06_replay_signs.csv", index=False)
    return tmp_path


def test_a_run_fills_the_generated_parts_and_nothing_else(checkout):
    before = (checkout / "README.md").read_text(encoding="utf-8")
    refresh(checkout, checkout / "run")
    after = (checkout / "README.md").read_text(encoding="utf-8")
    made = generated(checkout)
    assert set(made) == set(PARTS)
    for part, text in made.items():
        assert between_markers(after, part)[1] == text
        before, after = (head + tail for head, _, tail in (between_markers(t, part) for t in (before, after)))
    assert before == after
    assert ANSWER[0][0] in made["answer"]
    assert "12 s" in made["generated"]


def test_a_run_that_does_not_bear_out_the_answer_changes_no_file(checkout):
    card(pieces=SUPPORTED).to_csv(checkout / "run/tables/07_claims.csv", index=False)
    files = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    with pytest.raises(BookError, match=re.escape(ANSWER[1][0])):
        refresh(checkout, checkout / "run")
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == files


def test_the_generated_parts_are_what_the_tables_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {part: between_markers(text, part)[1] for part in PARTS} == generated(ROOT)


@pytest.mark.parametrize("part", PARTS)
def test_lost_markers_are_named(part):
    with pytest.raises(BookError, match=part):
        between_markers("# a README without markers", part)


def test_the_hero_is_there():
    assert (ROOT / "book/static/hero.png").stat().st_size > 10_000


@pytest.mark.model
def test_the_ten_lines_of_python_print_ranks(smoke_run, tmp_path, monkeypatch, capsys):
    lines = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/smoke").symlink_to(smoke_run.run.path)
    monkeypatch.chdir(tmp_path)
    exec(compile(lines.replace("smollm2-135m", "smoke"), "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "effective_rank" in shown
    assert len(shown.splitlines()) >= 5
