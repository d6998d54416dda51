"""Words of any script on figures: in a font that has their letters, or as codes."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text

from saema_utils.figures import panels
from saema_utils.lettering import USUAL, fonts_for, letter, spelled
from saema_utils.runs.files import write_figure

NOWHERE = "\U00013080"  # a hieroglyph, which hardly any font of a machine that computes has


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("word", ["星期一", "จันทร์", NOWHERE, "Январь ★", "Straße"])
def test_figures_with_any_script_are_written_without_a_warning(tmp_path, word):
    import seaborn

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure, (left, middle, right) = panels(3)
        left.set_title(word)
        left.plot([1, 2], label=word)
        left.legend()
        left.set_xticks([0, 1], labels=[word, "b"])
        seaborn.heatmap(pd.DataFrame([[1, 2]], ["a"], [word, "b"]), ax=middle)
        seaborn.barplot(pd.DataFrame({"x": [word, "b"], "y": [1, 2]}), x="x", y="y", ax=right)
        for suffix in ("png", "svg"):
            write_figure(tmp_path / f"figure.{suffix}", figure, "figure")
    assert [str(warning.message) for warning in said if "Glyph" in str(warning.message)] == []


def test_letters_that_no_font_has_become_codes_everywhere():
    families, lacking = fonts_for({ord(NOWHERE)})
    if not lacking:
        pytest.skip(f"NOT TESTED: {families[0]} has the hieroglyph")
    figure, axes = panels()
    axes.set_title(f"x {NOWHERE}")
    axes.set_xticks([0, 1], labels=[NOWHERE, "b"])
    letter(figure)
    assert {"x U+13080", "U+13080", "b"} <= set(texts(figure))


def test_letters_are_drawn_where_a_font_has_them():
    """Matplotlib itself comes with fonts that have letters which the usual one lacks."""
    usual = set(get_font(findfont(USUAL)).get_charmap())
    others = set(get_font(findfont("STIXGeneral")).get_charmap())
    sign = max(others - usual)
    families, lacking = fonts_for({sign})
    assert families
    assert not lacking
    figure, axes = panels()
    axes.set_title(chr(sign))
    letter(figure)
    assert chr(sign) in texts(figure)
    drawn = next(text for text in figure.findobj(Text) if text.get_text() == chr(sign))
    assert drawn.get_fontfamily() == [USUAL, *families]


def test_plain_figures_are_left_alone():
    figure, axes = panels()
    axes.plot([0, 1, 2])
    axes.set_title("déjà vu: μ ± σ → ∞")
    before = axes.title.get_text(), axes.title.get_fontfamily()
    letter(figure)
    assert (axes.title.get_text(), axes.title.get_fontfamily()) == before


def test_codes_stand_apart_from_letters():
    assert spelled("3月", {ord("月")}) == "3 U+6708"
    assert spelled("no  change", {ord("月")}) == "no  change"
