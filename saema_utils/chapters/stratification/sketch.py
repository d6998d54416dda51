"""What chapter 3 asks, drawn before it is measured: no run is read."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from saema_utils.figures import COLORS, GREY, panels

PAPER = {"facecolor": "#f2f2f2", "edgecolor": GREY, "linewidth": 1}
AXES = (("prompts", COLORS["accent"]), ("positions", COLORS["random_dictionary"]), ("latents", COLORS["sae"]))


def strata_and_unfolding() -> Figure:
    """A smooth and a stratified set of points, and a tensor laid flat in its three ways."""
    figure, axes = panels(3, 1, width=7.4, height=2.7, width_ratios=(1, 1, 2))
    for axis in axes:
        axis.set_axis_off()
    _smooth(axes[0])
    _strata(axes[1])
    _unfoldings(axes[2])
    return figure


def _smooth(axis: Axes) -> None:
    x = np.linspace(0, 1, 60)
    top, bottom = 0.75 + 0.16 * np.sin(5 * x), 0.2 + 0.16 * np.sin(5 * x + 0.5)
    axis.fill_between(x, bottom, top, color=COLORS["sae"], alpha=0.18, linewidth=0)
    for share in np.linspace(0, 1, 5):
        axis.plot(x, bottom + share * (top - bottom), color=COLORS["sae"], linewidth=0.8)
    for at in range(0, 60, 10):
        axis.plot([x[at], x[at]], [bottom[at], top[at]], color=COLORS["sae"], linewidth=0.8)
    axis.set(xlim=(-0.05, 1.05), ylim=(-0.22, 1.05), title="smooth")
    axis.text(0.5, -0.2, "two directions\neverywhere", ha="center", color=GREY, fontsize=10)


def _strata(axis: Axes) -> None:
    sheet = [(0, 0.25), (0.62, 0.1), (1, 0.42), (0.38, 0.57)]
    axis.add_patch(Polygon(sheet, color=COLORS["sae"], alpha=0.3, linewidth=0))
    axis.plot([0.5, 0.5], [0.34, 0.95], color=COLORS["sae"], linewidth=2.5)
    axis.plot([0.5, 0.5], [0.02, 0.15], color=COLORS["sae"], linewidth=2.5)
    axis.scatter([0.5], [0.34], s=36, color=COLORS["accent"], zorder=3)
    axis.annotate("they meet", (0.5, 0.34), xytext=(0.55, 0.28), fontsize=10, color=COLORS["accent"])
    axis.set(xlim=(-0.05, 1.05), ylim=(-0.22, 1.05), title="stratified")
    axis.text(0.5, -0.2, "two directions,\nor one, or none", ha="center", color=GREY, fontsize=10)


def _unfoldings(axis: Axes) -> None:
    """A box of prompts by positions by latents, and beside it what is rows and what is columns in each unfolding."""
    colors = dict(AXES)
    left, right, low, high = 0.0, 0.85, 0.3, 0.72
    slant = np.array([0.2, 0.16])
    front = np.array([(left, low), (right, low), (right, high), (left, high)])
    top = [front[3], front[2], front[2] + slant, front[3] + slant]
    side = [front[1], front[1] + slant, front[2] + slant, front[2]]
    for face in (front, top, side):
        axis.add_patch(Polygon(face, **PAPER))
    axis.text(-0.05, 0.51, "prompts", rotation=90, ha="right", va="center", color=colors["prompts"], fontsize=10)
    axis.text(0.42, 0.27, "latents", ha="center", va="top", color=colors["latents"], fontsize=10)
    axis.text(0.99, 0.35, "positions", ha="left", va="center", color=colors["positions"], fontsize=10)
    for number, (name, color) in enumerate(AXES):
        bottom = 0.8 - 0.36 * number
        axis.add_patch(Rectangle((2.0, bottom), 1.15, 0.15, **PAPER))
        axis.text(1.96, bottom + 0.075, name, ha="right", va="center", color=color, fontsize=10)
        one, other = (each for each, _ in AXES if each != name)
        under = {"y": bottom - 0.03, "va": "top", "fontsize": 10}
        axis.text(2.52, s=one, ha="right", color=colors[one], **under)
        axis.text(2.575, s="×", ha="center", color=GREY, **under)
        axis.text(2.63, s=other, ha="left", color=colors[other], **under)
    axis.set(xlim=(-0.15, 3.2), ylim=(-0.12, 1.05), title="one tensor, three unfoldings")
