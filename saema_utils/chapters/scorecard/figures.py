"""Plots of chapter 6."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saema_utils.figures import COLORS, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

VERDICT_COLORS = {"supported": COLORS["sae"], "not supported": COLORS["accent"], "inconclusive": COLORS["muted"]}
_REACH = 6.0


def claims_forest(card: pd.DataFrame) -> Figure:
    """Each claim's interval in units of its margin, turned so that the paper expects the right side.

    One unit is the smallest effect worth the name; intervals that leave the panel end in an arrow.
    """
    figure, axes = panels(width=8.2, height=0.42 * len(card) + 1.1)
    axes.axvspan(1, _REACH * 1.02, color=VERDICT_COLORS["supported"], alpha=0.07, linewidth=0)
    axes.axvline(0, color="#444444", linewidth=1)
    axes.axvline(1, color=VERDICT_COLORS["supported"], linewidth=1, linestyle=":")
    for y, row in enumerate(card.iloc[::-1].itertuples()):
        low, middle, high = sorted(value / row.margin for value in (row.low, row.estimate, row.high))
        color = VERDICT_COLORS[row.verdict]
        axes.plot([max(low, -_REACH), min(high, _REACH)], [y, y], color=color, linewidth=2.4, solid_capstyle="round")
        axes.plot(min(max(middle, -_REACH), _REACH), y, _marker(middle), color=color, markersize=6)
    axes.set_yticks(range(len(card)), card["claim"].iloc[::-1])
    axes.set_xlim(-_REACH * 1.02, _REACH * 1.02)
    axes.set_xlabel("effect in units of its smallest interesting size (95 % interval)")
    axes.grid(axis="y", visible=False)
    for verdict, color in VERDICT_COLORS.items():
        axes.plot([], [], color=color, linewidth=2.4, marker="o", label=verdict)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.14), ncols=3)
    return figure


def _marker(value: float) -> str:
    return ">" if value > _REACH else "<" if value < -_REACH else "o"


def verdict_grid(verdicts: pd.DataFrame) -> Figure:
    """Verdicts of every finished study: one row a claim, one column a study."""
    studies = [column for column in verdicts if column != "claim"]
    figure, axes = panels(width=3.4 + 1.5 * len(studies), height=0.36 * len(verdicts) + 0.9)
    symbols = {"supported": "✓", "not supported": "✗", "inconclusive": "?"}
    for x, study in enumerate(studies):
        for y, verdict in enumerate(verdicts[study].iloc[::-1]):
            if verdict in symbols:
                axes.scatter(x, y, s=210, color=VERDICT_COLORS[verdict], linewidth=0)
                axes.text(x, y, symbols[verdict], color="white", ha="center", va="center", fontweight="bold")
    axes.set_yticks(range(len(verdicts)), verdicts["claim"].iloc[::-1])
    axes.set_xticks(range(len(studies)), studies)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.6, len(studies) - 0.4)
    axes.set_ylim(-0.6, len(verdicts) - 0.4)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def interval_widths(card: pd.DataFrame) -> Figure:
    """How sure each verdict is: :func:`distance_from_margin` as bars; at the lines an interval ends at its margin."""
    rows = card.assign(distance=distance_from_margin(card).clip(-8, 8)).sort_values("distance")
    figure, axes = panels(width=8.2, height=0.38 * len(card) + 0.9)
    axes.barh(rows["claim"], rows["distance"], color=[VERDICT_COLORS[v] for v in rows["verdict"]], height=0.62)
    axes.axvline(0, color="#444444", linewidth=1)
    for edge in (-1, 1):
        axes.axvline(edge, color="#444444", linewidth=1, linestyle=":")
    axes.set_xlabel("distance of the estimate from its margin / reach of its interval on that side")
    axes.grid(axis="y", visible=False)
    return figure


def distance_from_margin(card: pd.DataFrame) -> pd.Series:
    """Estimate minus margin, over the reach of its interval on the margin's side; turned as the paper expects.

    Above 1 the interval lies beyond the margin, below -1 short of it, and between them it holds it.
    """
    above = card["estimate"] >= card["margin"]
    reach = (card["estimate"] - card["low"]).where(above, card["high"] - card["estimate"])
    turn = card["direction"].map({"greater": 1, "less": -1})
    return turn * (card["estimate"] - card["margin"]) / reach.where(reach > 0)


def certainty_sentence(card: pd.DataFrame) -> str:
    """Which verdict little would change, and which much: the nearest to an end of its interval, and the farthest."""
    distance = distance_from_margin(card).abs()
    for_want_of_units = (card["scale"] != "full") | ((card["verdict"] == "inconclusive") & (distance > 1))
    distance = distance[~for_want_of_units].dropna()
    if distance.empty:
        return "No claim has units enough to be judged, so every verdict is inconclusive wherever its interval lies."
    fragile, firm = (distance - 1).abs().idxmin(), distance.idxmax()
    text = (
        f"The verdict that hangs by the thinnest thread is *{card.loc[fragile, 'claim']}*: its margin lies at "
        f"{distance[fragile]:.1f} times what its interval reaches on that side, and at 1 the verdict turns."
    )
    if firm == fragile:
        return text
    return f"{text} The firmest is *{card.loc[firm, 'claim']}*, at {distance[firm]:.1f} times."
