"""One look for every figure: same colour, same thing, across the whole book.

Colours are Okabe and Ito's, distinguishable under the common colour-vision deficiencies (a test
simulates them). Figures of one chapter live in its folder and are built from these parts.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "residual": "#595959",
    "sae": "#0072B2",
    "reconstruction": "#56B4E9",
    "pca": "#E69F00",
    "random_dictionary": "#009E73",
    "untrained_sae": "#CC79A7",
    "shuffled": "#CC79A7",
    "poles": "#0072B2",
    "random_direction": "#009E73",
    "permuted_labels": "#CC79A7",
    "global_scaling": "#E69F00",
    "accent": "#D55E00",
    "muted": "#9a9a9a",
}
NAMES = {
    "residual": "residual stream",
    "sae": "SAE latents",
    "reconstruction": "SAE reconstruction",
    "pca": "PCA",
    "random_dictionary": "random dictionary",
    "untrained_sae": "untrained SAE",
    "shuffled": "shuffled latents",
    "poles": "poles",
    "random_direction": "random direction",
    "permuted_labels": "permuted labels",
    "global_scaling": "global scaling",
}
SMALL = 9.5  # points of the smallest letters: on figures of less than ten inches they can be read on any page
NEAR = 9  # points from a dot to the middle of the word beside it
BESIDE = "beside"
GREY = "#555555"  # what is written beside lines that have no colour of their own
MAIN = ("residual", "sae", "poles")
SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"
TOWARDS_CLAIM = "RdBu"  # blue where the paper expects the effect, as in the verdicts
CYCLIC = "twilight_shifted"
# Clusters and words are more than the colours that everybody can tell apart: the marker changes when these are used up.
CLASS_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#A05195")
CLASS_MARKERS = ("o", "s", "^", "D", "v", "P")
PLOTLY_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
NOISE_MARKER = "x"
STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.bbox": "tight",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",
}


def panels(n_columns: int = 1, n_rows: int = 1, *, width: float = 7.2, height: float = 3.2, **options):
    """A figure and its axes in the book's style; ``height`` is per row, both in inches.

    The first call sets the style for the session (importing the package changes nobody's plots). The
    figure is kept out of pyplot's registry, so that a notebook never shows it twice and a long run
    never accumulates figures.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    # Seaborn lays out labels while it draws; letters that the font lacks are seen to when a figure is written.
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")
    figure = Figure(figsize=(width, height * n_rows))
    return figure, figure.subplots(n_rows, n_columns, **options)


def nothing_to_draw(why: str) -> Figure:
    """A figure that says why it is empty, for a study without what is drawn."""
    figure, axes = panels(height=0.8)
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY)
    return figure


def says_if_empty(why: str, known: str = "") -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Declare that a figure says ``why`` where a table that it is given has no row.

    Rows that have no value in the column ``known`` are left out first.
    """

    def declare(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @functools.wraps(draw)
        def drawn(*given: Any, **options: Any) -> Figure:
            if known:
                given = tuple(t[t[known].notna()] if known in getattr(t, "columns", ()) else t for t in given)
            if any(getattr(value, "empty", False) for value in given):
                return nothing_to_draw(why)
            return draw(*given, **options)

        return drawn

    return declare


def note(axes: Axes, text: str, **place: Any) -> None:
    """Say, small and grey in a corner of a panel, what it lacks. ``place`` are options of ``Axes.text``."""
    corner = {"x": 0.99, "y": 0.02, "ha": "right", "va": "bottom"} | place
    axes.text(s=text, transform=axes.transAxes, fontsize=SMALL, style="italic", color=GREY, **corner)


def note_missing(axes: Axes, rows: pd.DataFrame, value: str = "estimate", why: str = "", **place: Any) -> None:
    """Note in a panel how many of its rows lack a value, or an interval from ``low`` to ``high``; nothing if none does.

    ``why`` follows where none of the values has an interval.
    """
    unknown = ~np.isfinite(rows[value].astype(float))
    unbounded = ~np.isfinite(rows[["low", "high"]].astype(float)).all(axis=1) & ~unknown
    said = []
    for n, of, what in ((unknown.sum(), len(rows), "value"), (unbounded.sum(), (~unknown).sum(), "interval")):
        if n:
            said.append(f"no {what}" if n == of else f"{n} of {of} without {what}")
    if said:
        note(axes, ", ".join(said) + (f": {why}" if why and said[-1] == "no interval" else ""), **place)


def span(*values: Any, around: Sequence[float] = ()) -> tuple[float, float]:
    """The least and the largest of numbers of which some may be missing (NaN), and of those ``around`` them.

    From 0 to 1 where no number is known; a little more than one number, which is no width for an axis.
    """
    known = np.concatenate([np.ravel(np.asarray(part, dtype=float)) for part in (*values, around)])
    known = known[np.isfinite(known)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if low < high else (low - max(0.5, abs(low) / 2), high + max(0.5, abs(high) / 2))


def present(table: pd.DataFrame, order: Sequence[str]) -> list[str]:
    """The representations that a table has, in the order in which a figure shows them."""
    return [name for name in order if name in set(table["representation"])]


def line_style(name: str) -> dict[str, object]:
    """Colour and dash of a representation or an arm: solid for what is studied, dashed for controls."""
    return {"color": COLORS[name], "linestyle": "-" if name in MAIN else "--"}


def class_style(number: int) -> tuple[str, int]:
    """Colour and marker number of a cluster or word: 36 pairs, then they repeat and only labels tell."""
    return CLASS_COLORS[number % len(CLASS_COLORS)], number // len(CLASS_COLORS) % len(CLASS_MARKERS)


def scatter_classes(axes: Axes, x: Sequence[float], y: Sequence[float], classes: Sequence[int], size: float) -> None:
    """Dots of many classes, each in the style of its number."""
    x, y, classes = np.asarray(x), np.asarray(y), np.asarray(classes)
    for number in np.unique(classes):
        color, marker = class_style(int(number))
        mine = classes == number
        axes.scatter(x[mine], y[mine], s=size, color=color, marker=CLASS_MARKERS[marker], linewidth=0, zorder=2)


def direct_label(axes: Axes, x: float, y: float, text: str, color: str, **options: Any) -> None:
    """Write the name of a line beside its end, instead of a legend. ``options`` are those of ``Axes.annotate``."""
    if not all(np.isfinite(place) for place in (x, y) if isinstance(place, float | int | np.number)):
        return  # a line without a value has no end
    beside = {
        "xytext": (5, 0),
        "textcoords": "offset points",
        "va": "center",
        "fontsize": SMALL,
        "annotation_clip": False,
    }
    axes.annotate(text, (x, y), color=color, **(beside | options))


def write_beside(axes: Axes, texts: Sequence[str], points: np.ndarray, ways: np.ndarray, **style: Any) -> None:
    """Write a word beside each point, on the side where its way leads; :func:`keep_apart` then finds them room."""
    style = {"fontsize": SMALL, "ha": "center", "va": "center", "textcoords": "offset points", "gid": BESIDE} | style
    lengths = np.maximum(np.hypot(*np.transpose(ways)), 1e-12)
    for text, point, way in zip(texts, points, NEAR * np.asarray(ways) / lengths[:, None], strict=True):
        axes.annotate(text, point, way, **style)


def keep_apart(figure: Figure) -> None:
    """Move the words of :func:`write_beside` off each other and off dots, each as little as it must. A thin
    line leads back to the point from a word that had to go far.

    Call it last, for what room there is depends on where the panels are. Each word in turn takes the best of the places
    around its point, until none wants to move; nothing is random.
    """
    figure.draw_without_rendering()
    for axes in figure.axes:
        words = [text for text in axes.texts if text.get_gid() == BESIDE]
        for word, place, end in zip(words, *_places(axes, words), strict=True) if words else ():
            word.set_position(place)
            if np.hypot(*end) > NEAR:
                line = {"arrowstyle": "-", "color": COLORS["muted"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
                axes.annotate("", word.xy, end, textcoords="offset points", arrowprops=line, zorder=1)


def _places(axes: Axes, words: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of a panel have room, and where their boxes are nearest to their points; in points from these."""
    from matplotlib.text import Text

    pixels = axes.figure.dpi / 72
    halves = np.array([Text.get_window_extent(word).size for word in words]) / 2 / pixels + 0.5
    starts = axes.transData.transform([word.xy for word in words]) / pixels
    dots = [axes.transData.transform(np.ma.filled(drawn.get_offsets(), np.nan)) / pixels for drawn in axes.collections]
    low, high, dots = axes.bbox.min / pixels, axes.bbox.max / pixels, np.concatenate([*dots, starts])
    wishes = np.array([word.get_position() for word in words])
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    offsets = wishes.copy()
    for _ in range(8):
        before = offsets.copy()
        for i, half in enumerate(halves):
            others, room = np.delete(starts + offsets, i, axis=0), half + np.delete(halves, i, axis=0)
            # Rings that keep the box, not its middle, at one distance: a word is wider than it is high.
            rings = [around * (half + away) for away in (1, 4, 8, 13, 19, 26, 34, 43)]
            tried = np.concatenate([wishes[i : i + 1], *rings])
            centres = starts[i] + tried
            shared = np.clip(room - np.abs(centres[:, None] - others), 0, None).prod(axis=-1).sum(axis=1)
            hidden = (np.abs(centres[:, None] - dots) < half + 2).all(axis=-1).sum(axis=1)
            outside = np.clip([low - centres + half, centres + half - high], 0, None).sum(axis=(0, 2))
            far = np.hypot(*(tried - wishes[i]).T)
            offsets[i] = tried[np.argmin(100 * (shared > 0) + 10 * shared + 15 * hidden + 5 * outside + far)]
        if np.array_equal(before, offsets):
            break
    return offsets, offsets - np.clip(offsets, -halves, halves)


def noise_axis(axes: Axes, levels: Sequence[float], label: str = "noise / RMS of the activations") -> None:
    """A logarithmic noise axis that still shows zero."""
    axes.set_xlabel(label)
    if positive := [level for level in levels if level > 0]:
        axes.set_xscale("symlog", linthresh=min(positive))
        axes.set_xlim(0, max(positive))
        decades = 10.0 ** np.arange(np.ceil(np.log10(min(positive))), np.floor(np.log10(max(positive))) + 1)
        if len(decades) > 1:  # a decade below the smallest level would stand on the zero
            axes.set_xticks([0, *decades])


def despined_grid(figure: Figure, axes: np.ndarray, used: int) -> None:
    """Hide the panels of a grid that no item uses."""
    for extra in np.ravel(axes)[used:]:
        extra.set_visible(False)
