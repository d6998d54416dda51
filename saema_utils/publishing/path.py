"""The way through the book in one picture, drawn for its first page: no run is read."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from saema_utils.figures import COLORS, GREY, panels

SIZE = 10.5  # points on 7.4 inches: the smallest that a phone still shows
WIDE, HIGH = 2.1, 0.95
# What a box is called, the chapter that has it, where it stands, and its colour.
MATERIAL = (("text", 1, 0, GREY), ("model", 1, 1, GREY), ("stream", 1, 2, COLORS["residual"]))
LATENTS = ("latents", 2, 3, COLORS["sae"])
ASKED = (
    ("rank", 3, 0, COLORS["accent"]),
    ("shape", 4, 1, COLORS["accent"]),
    ("poles", 5, 2, COLORS["accent"]),
    ("replay", 6, 3, COLORS["accent"]),
)
NEEDS = {2: {1}, 3: {1, 2}, 4: {1, 2}, 5: {2, 4}, 6: {4}, 7: {3, 4, 5, 6}}
"""What must be read before each chapter, as the chapters say themselves."""
SKIPS = (("the ranks", 3), ("the circle", 4), ("the intervention", 5), ("the paper's protocol", 6))


def way_to(chapter: int) -> list[int]:
    """The chapters that one reads to follow a chapter, itself the last: what it needs, and what that needs."""
    needed = {chapter}
    while more := set().union(*(NEEDS.get(each, set()) for each in needed)) - needed:
        needed |= more
    return sorted(needed)


def path_of_the_book() -> Figure:
    """From text to latents, what is asked of both, the verdicts; below it who may skip what."""
    figure, axes = panels(width=7.4, height=5.0)
    axes.set_axis_off()
    top, middle, bottom = 5.6, 3.5, 1.95
    for name, chapter, column, color in (*MATERIAL, LATENTS):
        _box(axes, column, top, name, chapter, color)
        if column:
            _arrow(axes, (2.5 * column - 0.4, top + HIGH / 2), (2.5 * column, top + HIGH / 2))
    bar, ends = (top + middle + HIGH) / 2, [2.5 * column + WIDE / 2 for column in range(4)]
    axes.plot([ends[0], ends[-1]], [bar, bar], color=GREY, linewidth=1.4)
    for x in ends[2:]:
        axes.plot([x, x], [top, bar], color=GREY, linewidth=1.4)
    axes.text(ends[0] - WIDE / 2, bar + 0.3, "what is asked of both", fontsize=SIZE, va="center", color=GREY)
    for x in ends:
        _arrow(axes, (x, bar), (x, middle + HIGH))
        _arrow(axes, (x, middle), (x, bottom + HIGH))
    for name, chapter, column, color in ASKED:
        _box(axes, column, middle, name, chapter, color)
    axes.add_patch(FancyBboxPatch((0, bottom), 3 * 2.5 + WIDE, HIGH, **_look(COLORS["random_dictionary"])))
    axes.text((3 * 2.5 + WIDE) / 2, bottom + HIGH / 2, "verdicts: chapter 7", **_centred(weight="bold"))
    title = "Who may skip what: what you come for, and the chapters to read"
    axes.text(0, 1.35, title, fontsize=SIZE, weight="bold", va="center")
    for row, (why, chapter) in enumerate(SKIPS):
        column, line = divmod(row, 2)
        read = ", ".join(map(str, way_to(chapter)))
        axes.text(5.05 * column, 0.9 - 0.45 * line, f"{why}: {read}", fontsize=SIZE, va="center")
    axes.text(0, 0.0, "the answer: 7, and back to what you doubt", fontsize=SIZE, va="center")
    axes.set(xlim=(-0.1, 9.7), ylim=(-0.25, 6.7))
    return figure


def said_of_the_path() -> str:
    """The picture in words, for one who cannot see it."""
    boxes = "; ".join(f"{name}, chapter {chapter}" for name, chapter, *_ in (*MATERIAL, LATENTS, *ASKED))
    ways = "; ".join(f"{why} {', '.join(map(str, way_to(chapter)))}" for why, chapter in SKIPS)
    return (
        f"Boxes from above to below: {boxes}; and under all of them the verdicts, chapter 7. Text, model, stream and "
        f"latents follow each other; the other four ask something of stream and latents. Chapters to read for {ways}."
    )


def _look(color: str) -> dict[str, object]:
    return {"boxstyle": "round,pad=0,rounding_size=0.15", "facecolor": "#f6f6f6", "edgecolor": color, "linewidth": 1.8}


def _centred(**more: object) -> dict[str, object]:
    return {"ha": "center", "va": "center", "fontsize": SIZE + 1} | more


def _box(axes: Axes, column: int, bottom: float, name: str, chapter: int, color: str) -> None:
    left = 2.5 * column
    axes.add_patch(FancyBboxPatch((left, bottom), WIDE, HIGH, **_look(color)))
    axes.text(left + WIDE / 2, bottom + 0.65, name, **_centred(weight="bold", color=color))
    axes.text(left + WIDE / 2, bottom + 0.27, f"chapter {chapter}", **_centred(fontsize=SIZE))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    look = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.4, "shrinkA": 2, "shrinkB": 2}
    axes.annotate("", end, xytext=start, arrowprops=look)
