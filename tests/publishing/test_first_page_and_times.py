"""The way through the book, as its first page draws it, and the times that chapters state: both as chapters are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.text import Text
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

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


def test_reading_counts_words_wherever_they_stand_and_figures_and_exercises_apart():
    prose = new_markdown_cell("word " * fragments.WORDS_PER_MINUTE * 3)
    assert fragments.reading_time(new_notebook(cells=[prose])) == (3, 0)
    said = new_output("execute_result", {"text/markdown": prose.source})
    tables = [new_output("display_data", {"text/html": "<table></table>", "text/plain": "many words"})] * 4
    cells = [prose, new_code_cell("uncounted " * 900, outputs=[said, *tables])]
    assert fragments.reading_time(new_notebook(cells=cells)) == (8, 0)
    tasks = [new_markdown_cell("### Exercise 7.1 (easy, 5 min)"), new_markdown_cell("### Exercise 7.2 (hard, 15 min)")]
    minutes, doing = fragments.reading_time(new_notebook(cells=[prose, *tasks]))
    assert (minutes, doing) == (3, 20)


@pytest.mark.parametrize("number", sorted(chapter_notebooks(ROOT)))
def test_every_exercise_says_how_long_it_takes(number):
    notebook = read_notebook(chapter_notebooks(ROOT)[number])
    headings = re.findall(
        r"^### Exercise", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M
    )
    minutes = [m for c in notebook.cells if c.cell_type == "markdown" for m in fragments.EXERCISE.findall(c.source)]
    assert len(minutes) == len(headings) > 0
