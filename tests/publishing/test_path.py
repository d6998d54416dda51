"""The picture of the way through the book says what the chapters say of themselves, and is large enough to read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.text import Text

from saema_utils.publishing import fragments
from saema_utils.publishing.execution import chapter_notebooks, read_notebook
from saema_utils.publishing.path import ASKED, LATENTS, MATERIAL, NEEDS, path_of_the_book, way_to

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("chapter", NEEDS)
def test_a_chapter_needs_what_its_opening_names(chapter):
    opening = read_notebook(chapter_notebooks(ROOT)[chapter]).cells[0].source
    before = re.search(r"\*\*Before:\*\*(.*?)\*\*Time:\*\*", opening, re.DOTALL)[1].split(";")[0]
    named = [int(number) for number in re.findall(r"(?<![\w/(])\d\b", before)]
    assert set(range(named[0], named[-1] + 1) if " to " in before else named) == NEEDS[chapter]


def test_every_way_begins_where_nothing_is_needed_and_skips_something():
    for _, chapter, *_ in ASKED:
        way = way_to(chapter)
        assert way[-1] == chapter
        assert way == sorted(way)
        assert all(NEEDS.get(each, set()) <= set(way) for each in way)
        assert set(way) < set(range(1, 8))


def test_each_box_names_its_chapter_and_every_word_reads_on_a_phone():
    figure = path_of_the_book()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    shown = [text.get_text() for text in texts if text.axes is not None and text.get_text()]
    for name, chapter, *_ in (*MATERIAL, LATENTS, *ASKED):
        assert name in shown
        assert f"chapter {chapter}" in shown
    assert figure.get_size_inches()[0] <= 7.4
    own = [text for text in figure.axes[0].texts if text.get_text()]
    assert min(text.get_fontsize() for text in own) >= 10.5


def test_the_page_has_it_with_words_for_one_who_cannot_see_it(tmp_path):
    (tmp_path / "figures").mkdir()
    text = fragments.path_figure(tmp_path / "figures")
    assert (tmp_path / "figures" / "path.svg").stat().st_size > 1000
    alt = re.search(r"^:alt: (.+)$", text, re.MULTILINE)[1]
    for name, *_ in (*MATERIAL, LATENTS, *ASKED):
        assert name in alt
