"""Plots of chapter 7."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saema_utils.chapters.scorecard.findings import distance_from_margin
from saema_utils.figures import COLORS, panels

VERDICT_COLORS = {"supported": COLORS["sae"], "not supported": COLORS["accent"], "inconclusive": COLORS["muted"]}
SIGNS = {"supported": "✓", "not supported": "✗", "inconclusive": "?"}
REACH = 6.0


def in_margins(claims: pd.DataFrame) -> pd.DataFrame:
    """Effects in units of their margin: 1 is the smallest effect worth the name, on the side the paper expects."""
    return claims.assign(**{name: claims[name] / claims["margin"] for name in ("estimate", "low", "high")})


def draw_intervals(axes: Axes, claims: pd.DataFrame, y: list[int], reach: float = np.inf) -> None:
    """One interval a row of :func:`in_margins`, in the colour of its verdict; what lies farther out is an arrow."""
    axes.axvline(0, color="#444444", linewidth=1)
    axes.axvline(1, color=VERDICT_COLORS["supported"], linewidth=1, linestyle=":")
    for at, row in zip(y, claims.itertuples(), strict=True):
        low, middle, high = np.clip([row.low, row.estimate, row.high], -reach, reach)
        marker = ">" if row.estimate > reach else "<" if row.estimate < -reach else "o"
        color = VERDICT_COLORS[row.verdict]
        axes.plot([low, high], [at, at], color=color, linewidth=2.4, solid_capstyle="round")
        axes.plot(middle, at, marker, color=color, markersize=6)
    axes.grid(axis="y", visible=False)


def claims_forest(card: pd.DataFrame) -> Figure:
    """Each claim's interval in units of its margin, turned so that the paper expects the right side."""
    figure, axes = panels(width=8.2, height=0.42 * len(card) + 1.1)
    axes.axvspan(1, 1.02 * REACH, color=VERDICT_COLORS["supported"], alpha=0.07, linewidth=0)
    draw_intervals(axes, in_margins(card), list(range(len(card))), REACH)
    axes.set_yticks(range(len(card)), card["claim"])
    axes.set(xlim=(-1.02 * REACH, 1.02 * REACH), ylim=(len(card) - 0.4, -0.6))
    axes.set_xlabel("effect in units of its smallest interesting size (95 % interval)")
    for verdict, color in VERDICT_COLORS.items():
        axes.plot([], [], color=color, linewidth=2.4, marker="o", label=verdict)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def verdict_grid(verdicts: pd.DataFrame) -> Figure:
    """Verdicts of every finished study: one row a claim, one column a study."""
    wide = verdicts.set_index("claim")
    figure, axes = panels(width=3.0 + 1.3 * wide.shape[1], height=0.36 * len(wide) + 0.9)
    codes = wide.apply(lambda column: column.map(list(SIGNS).index, na_action="ignore").astype(float))
    signs = wide.apply(lambda column: column.map(SIGNS)).fillna("")
    look = {"cmap": list(VERDICT_COLORS.values()), "vmin": 0, "vmax": 2, "cbar": False, "linewidths": 4}
    sns.heatmap(codes, annot=signs, fmt="", annot_kws={"color": "white", "weight": "bold"}, ax=axes, **look)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_ylabel("")
    return figure


def certainty_bars(card: pd.DataFrame) -> Figure:
    """How sure each verdict is: its distance from the margin as a bar; at the lines an interval ends at its margin."""
    rows = card.assign(distance=distance_from_margin(card).clip(-8, 8)).sort_values("distance", ascending=False)
    figure, axes = panels(width=8.2, height=0.38 * len(card) + 0.9)
    bars = {"width": 0.62, "dodge": False, "saturation": 1, "legend": False}
    sns.barplot(rows, x="distance", y="claim", hue="verdict", palette=VERDICT_COLORS, ax=axes, **bars)
    axes.axvline(0, color="#444444", linewidth=1)
    for edge in (-1, 1):
        axes.axvline(edge, color="#444444", linewidth=1, linestyle=":")
    axes.set_xlabel("distance of the estimate from its margin / reach of its interval on that side")
    axes.set_ylabel("")
    axes.grid(axis="y", visible=False)
    return figure
