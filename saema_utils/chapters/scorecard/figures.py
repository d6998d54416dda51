"""Plots of chapter 7. Effects are in units of their margin, turned so that the paper expects the positive side."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from saema_utils.chapters.scorecard.findings import MOSTLY, SELDOM, agreement, said_alone
from saema_utils.evidence.claims import Claim
from saema_utils.evidence.multiverse import ITSELF, LEAD
from saema_utils.evidence.verdicts import (
    CONTRADICTED,
    DEPENDS,
    NO_EFFECT,
    NOT_LEARNED,
    SUPPORTED,
    TOO_FEW,
    VERDICTS,
    Evidence,
    judge,
)
from saema_utils.figures import COLORS, GREY, SMALL, despined_grid, note_missing, nothing_to_draw, panels, says_if_empty
from saema_utils.rulers.rules import AS_LARGE
from saema_utils.wording import SIGNS

VERDICT_COLORS = {
    SUPPORTED: COLORS["sae"],
    NOT_LEARNED: COLORS["reconstruction"],
    NO_EFFECT: "#444444",
    CONTRADICTED: COLORS["accent"],
    DEPENDS: COLORS["pca"],
    TOO_FEW: "#b5b5b5",
}
DARK = (SUPPORTED, NO_EFFECT)  # what stands on these colours is white, on the others black
SIDES = {
    "above": (VERDICT_COLORS[SUPPORTED], "beyond the margin"),
    "across": (VERDICT_COLORS[TOO_FEW], "across a margin"),
    "within": (VERDICT_COLORS[NO_EFFECT], "within the margins"),
    "below": (VERDICT_COLORS[CONTRADICTED], "beyond it on the other side"),
}
CONTROL_COLOR = COLORS["random_dictionary"]
REACH = 6.0
MOST, FEW = 300, 100  # analyses that a figure shows, and a small panel
EXAMPLES = (
    (Evidence(1.5, 2.7, 9, 1.9, 0.004), Evidence(1.2, 2.2, 9, 1.6, 0.01)),
    (Evidence(1.5, 2.7, 9, 1.9, 0.004), Evidence(-0.5, 0.6, 9, 0.1, 0.8)),
    (Evidence(-0.7, 0.6, 9, 0.2, 0.5), None),
    (Evidence(-2.6, -1.4, 9, -1.8, 0.004), None),
    (Evidence(1.5, 2.7, 9, 0.2, 0.6), None),
    (Evidence(-0.4, 2.1, 9, 0.6, 0.2), None),
)
"""What the rule is shown on: one case a verdict."""


def in_margins(claims: pd.DataFrame) -> pd.DataFrame:
    """Effects in units of their margin: 1 is the smallest effect worth the name, on the side the paper expects."""
    return claims.assign(**{name: claims[name] / claims["margin"] for name in ("estimate", "low", "high")})


def _margins(axes: Axes, upright: bool = True) -> None:
    """Zero, and the margins on both sides of it."""
    line = axes.axvline if upright else axes.axhline
    line(0, color="#444444", linewidth=1, zorder=1)
    for edge in (-1, 1):
        line(edge, color="#444444", linewidth=1, linestyle=":", zorder=1)


def draw_intervals(axes: Axes, claims: pd.DataFrame, y: list[int], reach: float = np.inf) -> None:
    """One interval a row of :func:`in_margins`, in the colour of its verdict; what lies farther out is an arrow."""
    _margins(axes)
    for at, row in zip(y, claims.itertuples(), strict=True):
        low, middle, high = np.clip([row.low, row.estimate, row.high], -reach, reach)
        marker = ">" if row.estimate > reach else "<" if row.estimate < -reach else "o"
        color = VERDICT_COLORS[row.verdict]
        axes.plot([low, high], [at, at], color=color, linewidth=2.4, solid_capstyle="round")
        axes.plot(middle, at, marker, color=color, markersize=6)
    axes.grid(axis="y", visible=False)


# ---- the rule -----------------------------------------------------------------------------------


def rule_by_example() -> Figure:
    """One case a verdict: the named analysis' interval, the median of all of them, and the lead where it decides."""
    figure, axes = panels(width=8.2, height=2.9)
    for at, (own, lead) in enumerate(EXAMPLES):
        verdict = judge(own, lead, 6)
        for found, shift, color in ((own, 0, VERDICT_COLORS[verdict]), (lead, 0.26, CONTROL_COLOR)):
            if found is not None:
                look = {"color": color, "linewidth": 3.2 if found is own else 1.6, "solid_capstyle": "round"}
                axes.plot([found.low, found.high], [at + shift] * 2, **look)
                axes.plot(found.median, at + shift, "D", color="white", markeredgecolor=color, markersize=5)
        axes.text(3.15, at, f"{SIGNS[verdict]}  {verdict}", va="center", fontsize=10)
    _margins(axes)
    axes.plot([], [], color=GREY, linewidth=3.2, label="the analysis named beforehand, 95 %")
    axes.plot([], [], "D", color="white", markeredgecolor=GREY, markersize=5, label="median of all analyses")
    axes.plot([], [], color=CONTROL_COLOR, linewidth=1.6, label="lead over a code that learned nothing")
    figure.legend(loc="outside upper center", ncols=3, fontsize=SMALL)
    axes.set(xlim=(-3, 3), ylim=(len(EXAMPLES) - 0.4, -0.6), yticks=[])
    axes.set_xlabel("effect in margins, towards what the paper says")
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    return figure


@says_if_empty("No rule was tried on worlds whose answer is known.")
def laboratory_curves(laboratory: pd.DataFrame) -> Figure:
    """How often each rule supports an effect, and finds none, by its true size; crosses where a control is as large."""
    rules = list(dict.fromkeys(laboratory["rule"]))
    columns = 5
    figure, axes = panels(columns, -(-len(rules) // columns), width=9, height=1.45, sharex=True, sharey=True)
    for axis, rule in zip(np.ravel(axes), rules, strict=False):
        rows = laboratory[laboratory["rule"] == rule].sort_values("truth")
        fair, same = rows[rows["control"] != AS_LARGE], rows[rows["control"] == AS_LARGE]
        for height in (SELDOM, MOSTLY):
            axis.axhline(height, color="#444444", linewidth=1, linestyle=":")
        lines = axis.plot(fair["truth"], fair[SUPPORTED], "o-", color=VERDICT_COLORS[SUPPORTED], markersize=4)
        lines += axis.plot(fair["truth"], fair[NO_EFFECT], "s--", color=VERDICT_COLORS[NO_EFFECT], markersize=3)
        lines += axis.plot(same["truth"], same[SUPPORTED], "X", color=CONTROL_COLOR, markersize=7)
        axis.set_title(rule, fontsize=SMALL, fontweight="normal")
        axis.tick_params(labelsize=SMALL)
        axis.set(ylim=(-0.05, 1.05), xticks=range(4), yticks=(0, 0.5, 1))
    despined_grid(figure, axes, len(rules))
    names = (SUPPORTED, NO_EFFECT, f"{SUPPORTED}, though a code that learned nothing shows as much")
    figure.legend(lines, names, loc="outside upper center", ncols=3, fontsize=SMALL)
    figure.supxlabel("true effect, in margins", fontsize=10)
    figure.supylabel("share of verdicts", fontsize=10)
    return figure


# ---- every analysis -----------------------------------------------------------------------------


def _in_order(specs: pd.DataFrame, claim: str, contrast: str = ITSELF) -> pd.DataFrame:
    alone = said_alone(specs, contrast)
    return alone[alone["claim"] == claim].sort_values("estimate", kind="stable").reset_index(drop=True)


def _thinned(rows: pd.DataFrame, most: int = MOST) -> pd.DataFrame:
    """At most so many analyses, evenly along their order, the one named beforehand among them."""
    if len(rows) <= most:
        return rows
    kept = np.linspace(0, len(rows) - 1, most).round().astype(int)
    return rows.iloc[np.union1d(kept, _named(rows))].reset_index(drop=True)


def _named(rows: pd.DataFrame) -> np.ndarray:
    return np.flatnonzero(rows["primary"].to_numpy(dtype=bool))


def _strokes(axes: Axes, x: np.ndarray, low: Any, high: Any, **look: Any) -> None:
    """Upright strokes as one line with gaps: hundreds of paths of their own would make a page heavy."""
    gaps = np.full(len(x), np.nan)
    ends = (np.broadcast_to(end, len(x)) for end in (low, high))
    axes.plot(np.repeat(x, 3).astype(float), np.stack([*ends, gaps], axis=1).ravel(), **look)


def _way(way: Any) -> str:
    return f"{way:g}" if isinstance(way, int | float) else str(way)


def _ways(rows: pd.DataFrame, claim: Claim) -> list[tuple[str, str, np.ndarray]]:
    """Each way of each choice that was made in more than one, with the analyses that took it."""
    found = []
    for choice, ways in {"measure": tuple(claim.measures), **claim.choices}.items():
        taken = rows[choice].map(_way)
        made = [way for way in map(_way, ways) if way and (taken == way).any()]
        if len(made) > 1:
            found += [(choice, way, np.flatnonzero(taken == way)) for way in made]
    return found


def specification_curve(specs: pd.DataFrame, claim: Claim) -> Figure:
    """Every analysis of a claim in the order of its estimate, and below it the way of each choice that it took."""
    whole = _in_order(specs, claim.id)
    if whole.empty:
        return nothing_to_draw(f"No analysis of {claim.id} has an interval.")
    rows = _thinned(whole)
    ways = _ways(rows, claim)
    below = max(0.165 * len(ways), 0.2)
    figure, (curve, panel) = panels(
        1, 2, width=9, height=(2.7 + below) / 2 + 0.3, sharex=True, height_ratios=(2.7, below)
    )
    x = np.arange(len(rows))
    for side, (color, label) in SIDES.items():
        mine = (rows["alone"] == side).to_numpy()
        _strokes(curve, x[mine], rows["low"][mine], rows["high"][mine], color=color, linewidth=0.9, alpha=0.45)
        curve.plot(x[mine], rows["estimate"][mine], ".", color=color, markersize=4, label=label if mine.any() else None)
    _margins(curve, upright=False)
    named = _named(rows)
    curve.plot(named, rows["estimate"].iloc[named], "D", color="white", markeredgecolor="black", markersize=7, zorder=5)
    for at in named:
        for axis in (curve, panel):
            axis.axvline(at, color="black", linewidth=0.7, zorder=1)
    _hold(curve, rows)
    curve.set_ylabel("effect in margins")
    figure.legend(*curve.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=SMALL)
    for at, (_, _, taken) in enumerate(ways):
        _strokes(panel, taken, at - 0.28, at + 0.28, color="#222222", linewidth=0.8)
    labels, last = [], ""
    for choice, way, _ in ways:
        labels.append(f"{choice}:  {way}" if choice != last else way)
        last = choice
    panel.set_yticks(range(len(ways)), labels, fontsize=SMALL)
    panel.set(ylim=(len(ways) - 0.4, -0.6), xlim=(-0.01 * len(rows) - 0.5, 1.01 * len(rows) - 0.5), xticks=[])
    panel.grid(visible=False)
    for at, (before, after) in enumerate(pairwise(ways)):
        if before[0] != after[0]:
            panel.axhline(at + 0.5, color="#cccccc", linewidth=0.8)
    shown = f"{len(rows)} of {len(whole)} analyses" if len(rows) < len(whole) else f"{len(whole)} analyses"
    panel.set_xlabel(f"{shown} in the order of their effect; diamond and line: named beforehand")
    return figure


def _hold(axis: Axes, rows: pd.DataFrame) -> None:
    """The estimates and the margins within sight; of the longest intervals the ends may leave it."""
    least, most = min(rows["estimate"].min(), -1), max(rows["estimate"].max(), 1)
    low, high = rows["low"].quantile(0.05), rows["high"].quantile(0.95)
    room = 0.08 * (max(most, high) - min(least, low))
    axis.set_ylim(min(least, low) - room, max(most, high) + room)


def multiverse_curves(specs: pd.DataFrame) -> Figure:
    """Every claim's analyses, each in the order of its estimate: the effect, and its lead over the control."""
    names = list(dict.fromkeys(agreement(specs).index))
    if not names:
        return nothing_to_draw("No analysis of any claim has an interval.")
    names = [name for name in dict.fromkeys(specs["claim"]) if name in names]
    columns = 5
    figure, axes = panels(columns, -(-len(names) // columns), width=9, height=1.55, sharex=True, sharey=True)
    for axis, name in zip(np.ravel(axes), names, strict=False):
        lead, rows = (_thinned(_in_order(specs, name, contrast), FEW) for contrast in (LEAD, ITSELF))
        _margins(axis, upright=False)
        axis.plot(np.linspace(0, 1, len(lead)), lead["estimate"], color=CONTROL_COLOR, linewidth=1.3, zorder=2)
        x = np.linspace(0, 1, len(rows))
        for side, (color, _) in SIDES.items():
            mine = (rows["alone"] == side).to_numpy()
            axis.plot(x[mine], rows["estimate"][mine], ".", color=color, markersize=3.5, zorder=3)
        named = _named(rows)
        look = {"color": "white", "markeredgecolor": "black", "markersize": 5.5, "zorder": 5}
        axis.plot(x[named], rows["estimate"].iloc[named], "D", **look)
        axis.set_title(name, fontsize=SMALL, fontweight="normal")
        axis.set_yscale("symlog", linthresh=1, linscale=0.6)
        axis.grid(visible=False)
        axis.tick_params(labelsize=SMALL)
        axis.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    first = np.ravel(axes)[0]
    first.set_yticks([-10, -1, 0, 1, 10])
    first.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    first.minorticks_off()
    for color, label in SIDES.values():
        first.plot([], [], ".", color=color, markersize=8, label=label)
    first.plot([], [], color=CONTROL_COLOR, linewidth=1.3, label="lead over the control")
    first.plot([], [], "D", color="white", markeredgecolor="black", markersize=5.5, label="named beforehand")
    figure.legend(loc="outside upper center", ncols=3, fontsize=SMALL, handletextpad=0.3)
    despined_grid(figure, axes, len(names))
    figure.supxlabel("share of the analyses, in the order of their effect", fontsize=10)
    figure.supylabel("effect in margins", fontsize=10)
    return figure


def choices_map(choices: pd.DataFrame) -> Figure:
    """How much of the spread of a claim's estimates each choice explains, in per cent."""
    shares = choices[choices["contrast"] == ITSELF]
    if shares.empty:
        return nothing_to_draw("No claim has two analyses to compare.")
    wide = shares.pivot(index="claim", columns="choice", values="share").reindex(shares["claim"].unique())
    order = wide.notna().sum().mul(10).add(wide.mean()).sort_values(ascending=False, kind="stable").index
    wide = 100 * wide[order]
    figure, axes = panels(width=9, height=0.27 * len(wide) + 1.5)
    look = {"cmap": "Blues", "vmin": 0, "vmax": 100, "cbar": False, "linewidths": 1.5, "fmt": ""}
    text = wide.map(lambda share: "" if np.isnan(share) else f"{share:.0f}")
    sns.heatmap(wide, annot=text, annot_kws={"fontsize": SMALL}, ax=axes, **look)
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(order)) + 0.5, order, rotation=50, ha="left", rotation_mode="anchor", fontsize=SMALL)
    axes.set_yticks(np.arange(len(wide)) + 0.5, wide.index, rotation=0, fontsize=SMALL)
    axes.tick_params(length=0)
    axes.set(xlabel="", ylabel="")
    axes.grid(visible=False)
    return figure


# ---- the card -----------------------------------------------------------------------------------


@says_if_empty("No claim was judged.")
def claims_forest(card: pd.DataFrame) -> Figure:
    """Each claim's interval in margins with the median of all its analyses, and how often two margins would be seen."""
    figure, (axes, seen) = panels(2, width=9, height=0.34 * len(card) + 1.3, sharey=True, width_ratios=(4, 1))
    axes.axvspan(1, 1.02 * REACH, color=VERDICT_COLORS[SUPPORTED], alpha=0.07, linewidth=0)
    y = list(range(len(card)))
    draw_intervals(axes, in_margins(card).assign(verdict=card["holds_up"]), y, REACH)
    axes.plot(
        card["median"].clip(-REACH, REACH), y, "D", color="white", markeredgecolor="black", markersize=5, zorder=5
    )
    axes.set_yticks(y, card["claim"], fontsize=SMALL)
    axes.set(xlim=(-1.02 * REACH, 1.02 * REACH), ylim=(len(card) - 0.4, -0.6))
    axes.set_xlabel("effect in margins (95 % interval)")
    note_missing(axes, card, why="one unit")
    for verdict, color in VERDICT_COLORS.items():
        axes.plot(
            [], [], color=color, linewidth=2.4, marker="o", label=f"{verdict} ({(card['holds_up'] == verdict).sum()})"
        )
    axes.plot([], [], "D", color="white", markeredgecolor="black", markersize=5, label="median of all analyses")
    figure.legend(loc="outside upper center", ncols=3, fontsize=SMALL)
    seen.barh(y, card["power"], color=[VERDICT_COLORS[verdict] for verdict in card["holds_up"]], height=0.6)
    seen.axvline(MOSTLY, color="#444444", linewidth=1, linestyle=":")
    seen.set(xlim=(0, 1), xticks=(0, 0.5, 1))
    seen.set_xlabel("would see\ntwo margins", fontsize=10)
    seen.grid(axis="y", visible=False)
    return figure


@says_if_empty("No claim was judged.")
def verdict_grid(verdicts: pd.DataFrame) -> Figure:
    """Verdicts of every finished study: one row a claim, one column a study."""
    wide = verdicts.set_index("claim")
    figure, axes = panels(width=3.4 + 1.3 * wide.shape[1], height=0.34 * len(wide) + 1.3)
    codes = wide.apply(lambda column: column.map(list(VERDICTS).index, na_action="ignore").astype(float))
    look = {"cmap": list(VERDICT_COLORS.values()), "vmin": 0, "vmax": len(VERDICTS) - 1, "cbar": False, "linewidths": 3}
    sns.heatmap(codes, ax=axes, **look)
    for (row, column), verdict in np.ndenumerate(wide.to_numpy(dtype=object)):
        if verdict in SIGNS:
            ink = "white" if verdict in DARK else "black"
            where = {"ha": "center", "va": "center", "fontsize": 11, "fontweight": "bold"}
            axes.text(column + 0.5, row + 0.5, SIGNS[verdict], color=ink, **where)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_ylabel("")
    for verdict, color in VERDICT_COLORS.items():
        axes.plot([], [], "s", color=color, markersize=9, label=f"{SIGNS[verdict]}  {verdict}")
    figure.legend(loc="outside lower center", ncols=2 if wide.shape[1] < 3 else 3, fontsize=SMALL)
    return figure
