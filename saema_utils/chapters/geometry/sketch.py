"""What chapter 4 asks, drawn before it is measured: no run is read."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saema_utils.figures import CLASS_COLORS, COLORS, GREY, panels

PLACES = np.array([(0.2, 0.72), (0.48, 0.86), (0.82, 0.62), (0.55, 0.2)])
SAID = np.array([(0.34, 0.68), (0.34, 0.68), (0.68, 0.6), (0.5, 0.34)])
TREE = ((0, 1), (1, 2), (2, 3))


def local_and_global() -> Figure:
    """Clusters and their poles; the poles alone; and what sparse coding is said to make of both."""
    figure, axes = panels(3, 1, width=7.4, height=2.7)
    for axis in axes:
        axis.set_axis_off()
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.2, 1.05))
    spread = np.random.default_rng(0).normal(size=(len(PLACES), 14, 2)) * 0.045
    _clusters(axes[0], PLACES, spread)
    _poles(axes[0], PLACES)
    _say(axes[0], "local: clusters", "of each its pole,\nthe centre")
    _tree(axes[1], PLACES)
    _poles(axes[1], PLACES)
    _say(axes[1], "global: poles", "how far apart,\nin what shape")
    _clusters(axes[2], SAID, spread * 1.5)
    _tree(axes[2], SAID)
    _poles(axes[2], SAID)
    _say(axes[2], "sparse, it is said", "fewer, closer,\nof more dimensions")
    return figure


def _clusters(axis: Axes, places: np.ndarray, spread: np.ndarray) -> None:
    for place, offsets, color in zip(places, spread, CLASS_COLORS, strict=False):
        axis.scatter(*(place + offsets).T, s=16, color=color, alpha=0.6, linewidth=0)


def _poles(axis: Axes, places: np.ndarray) -> None:
    axis.scatter(*places.T, s=80, marker="P", color="#222222", edgecolor="white", linewidth=1, zorder=3)


def _tree(axis: Axes, places: np.ndarray) -> None:
    for one, other in TREE:
        axis.plot(*places[[one, other]].T, color=COLORS["accent"], linewidth=1.6, zorder=2)


def _say(axis: Axes, title: str, below: str) -> None:
    axis.set_title(title)
    axis.text(0.5, -0.2, below, ha="center", color=GREY, fontsize=10)
