"""The confirmatory card beside the exploratory one: what is committed, and what the sentences about both hang on."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from saema_utils.evidence.claims import load_claims
from saema_utils.evidence.verdicts import DEPENDS, SUPPORTED, VERDICTS
from saema_utils.publishing.confirmation import (
    CLAIMS,
    CONFIRMATORY,
    NOT_YET,
    SENTENCES,
    both_cards,
    on_a_second_model,
    read_card,
)
from saema_utils.publishing.readme import refresh
from saema_utils.study import CONFIRMATORY_STUDY, DEFAULT_STUDY
from saema_utils.wording import in_prose, signed, told

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cards():
    return [read_card(ROOT / path).set_index("claim") for path in (CLAIMS, CONFIRMATORY)]


def test_both_cards_judge_every_claim_of_the_rules(cards):
    claims = [claim.id for claim in load_claims()]
    for card, study in zip(cards, (DEFAULT_STUDY, CONFIRMATORY_STUDY), strict=True):
        assert list(card.index) == claims
        assert set(card["study"]) == {study}
        assert set(card["holds_up"]) <= set(VERDICTS)


@pytest.mark.parametrize(("sentence", "check"), SENTENCES)
def test_the_committed_cards_bear_every_sentence_out(cards, sentence, check):
    found = check(*cards)
    assert found.holds, f"{sentence} {found.shows}"
    assert f"**{sentence}** *{told(found.shows)}*" in both_cards(ROOT)


@pytest.mark.parametrize(
    ("number", "claim", "column", "value"),
    [
        (0, "pieces", "holds_up", SUPPORTED),
        (1, "compression-in-place", "holds_up", DEPENDS),
        (2, "distinctions", "holds_up", DEPENDS),
        (3, "rank-moves", "explained_variance_words", 0.99),
    ],
)
def test_every_sentence_can_fail(cards, number, claim, column, value):
    explored, confirmed = cards
    confirmed.loc[claim, column] = value
    assert SENTENCES[number][1](explored, confirmed).holds is False


def test_no_verdict_crosses_from_one_side_to_the_other(cards):
    """What the page says where the two disagree."""
    explored, confirmed = (card["holds_up"] for card in cards)
    assert not {("supported", "contradicted"), ("contradicted", "supported")} & set(
        zip(explored, confirmed, strict=True)
    )


def test_the_table_has_a_row_a_claim(cards):
    rows = re.findall("<tr><td.*?</tr>", both_cards(ROOT))
    assert len(rows) == len(cards[0])
    for row, (claim, other) in zip(rows, cards[1].iterrows(), strict=True):
        assert cards[0].loc[claim, "statement"] in unescape(row)
        estimate = in_prose(f"{other['estimate']:.2g}")
        assert f"{signed(other['holds_up'])}</strong><br>{estimate} (" in row


def test_a_confirmatory_run_changes_its_own_card_and_the_readme_alone(tmp_path, cards):
    for name in ("README.md", CLAIMS, "book/default_times.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    assert both_cards(tmp_path) == NOT_YET
    assert on_a_second_model(tmp_path) == ""
    tables = tmp_path / "run" / "tables"
    tables.mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"study": {"name": CONFIRMATORY_STUDY}}))
    cards[1].assign(holds_up=SUPPORTED).to_csv(tables / "07_claims.csv")
    before = (tmp_path / CLAIMS).read_bytes()
    refresh(tmp_path, tmp_path / "run")
    assert (tmp_path / CLAIMS).read_bytes() == before
    assert f"{len(cards[1])} supported" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_no_page_links_to_a_chapter_that_the_default_book_lacks():
    lacking = [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))[7:]]  # it has chapters 1 to 7
    assert [name[:2] for name in lacking] == ["08", "09"]
    for page in (ROOT / "book").glob("*.md"):
        assert not [name for name in lacking if name in page.read_text(encoding="utf-8")], page.name
