"""Words of any script in a figure: drawn in a font that has their letters, or spelled as codes where none has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USUAL = "DejaVu Sans"  # comes with matplotlib; the style of the book names it


def letter(figure: Figure) -> None:
    """Give every text of a figure fonts that have its letters.

    Letters that no font of this machine has become their codes, such as ``U+6708``: a page with boxes tells nobody
    anything. A figure whose letters the usual font has is left untouched.
    """
    from matplotlib.font_manager import findfont
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if text.get_text()]
    labelled = [axis for axes in figure.axes for axis in _axes_of(axes) if axis.get_visible()]
    texts += [text for axis in labelled for text in axis.get_ticklabels()]
    usual = _letters_of(findfont(USUAL))
    unusual = {ord(sign) for text in texts for sign in text.get_text()} - usual - {ord("\n")}
    if not unusual:
        return
    families, lacking = fonts_for(unusual)
    for axis in labelled:
        names = [text.get_text() for text in axis.get_ticklabels()]
        if any(set(map(ord, name)) & unusual for name in names):
            axis.set_ticks(axis.get_ticklocs(), labels=[spelled(name, lacking) for name in names])
            if lacking:  # codes are longer than the words that they stand for
                axis.set_tick_params(rotation=0 if axis.axis_name == "y" else 90)
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    for text in texts:
        if set(map(ord, text.get_text())) & unusual:
            text.set_text(spelled(text.get_text(), lacking))
        text.set_fontfamily([USUAL, *families])


def spelled(text: str, lacking: Iterable[int]) -> str:
    """A text in which letters that are lacking stand as their codes.

    >>> spelled("3 月 二月", set(map(ord, "二月")))
    '3 U+6708 U+4E8C-6708'
    """
    lacking = set(lacking)
    missing = "".join(f"\\U{letter:08x}" for letter in lacking & set(map(ord, text)))
    if not missing:
        return text
    coded = re.sub(f"[{missing}]+", lambda run: f" U+{'-'.join(f'{ord(sign):04X}' for sign in run[0])} ", text)
    return " ".join(coded.split())


def fonts_for(letters: set[int]) -> tuple[list[str], set[int]]:
    """Families of this machine that have these letters, as few as will do, and the letters that none has."""
    from matplotlib.font_manager import fontManager

    left, families = set(letters), []
    plain = [font for font in fontManager.ttflist if font.style == "normal" and "Last Resort" not in font.name]
    while left:
        has = {font.name: left & _letters_of(font.fname) for font in plain}
        best = max(has, key=lambda name: len(has[name]), default="")
        if not best or not has[best]:
            break
        families.append(best)
        left -= has[best]
    return families, left


@lru_cache(maxsize=1024)
def _letters_of(path: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a font that went away, or that is none
        return frozenset()


def _axes_of(axes: Axes) -> list:
    return [axis for axis in (axes.xaxis, axes.yaxis, getattr(axes, "zaxis", None)) if axis is not None]
