"""Figures of chapter 9: families of autoencoders, layers, and other starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saema_utils.chapters.families.measures import MEASURES, RESIDUAL, STREAM_MEASURES
from saema_utils.chapters.families.tables import FAMILY_NAMES, VARIANCE_PARTS
from saema_utils.chapters.scorecard.figures import REACH, draw_intervals, in_margins
from saema_utils.evidence.multiverse import ITSELF
from saema_utils.figures import COLORS, NAMES, SMALL, direct_label, note, note_missing, panels, says_if_empty, span

AXIS = {
    "excursion": "rank excursion |log ratio|",
    "merging": "AMI of clusters with words",
    "intrinsic_dimension": "TwoNN dimension",
    "circularity": "cyclic order (1 = perfect)",
    "alpha_star": "alpha*; ring: beyond scaling",
}
PART_COLORS = {"concept": "#4477AA", "layer": "#CCBB44", "sae": "#EE6677", "rest": "#BBBBBB"}


def _dots(axes: Axes, table: pd.DataFrame, x: str, ring: str = "", **look: Any) -> None:
    """One dot a row of the table, families from top to bottom; hollow in the colour of ``ring``."""
    hollow = {"facecolor": "none", "edgecolor": ring, "linewidth": 1.3} if ring else {"color": COLORS["sae"]}
    family = table["architecture"].map(FAMILY_NAMES)
    sns.stripplot(x=table[x], y=family, order=FAMILY_NAMES.values(), jitter=False, size=6, ax=axes, **hollow, **look)
    axes.set_ylabel("")
    axes.grid(visible=True)


NO_FAMILY = "No family was trained."


@says_if_empty(NO_FAMILY)
def sparsity_dots(training: pd.DataFrame) -> Figure:
    """How close each family came to the same L0, and what it explains there; one dot per seed."""
    k = float(training["k"].iloc[0])
    figure, (left, right) = panels(2, width=7.6, height=3.2, sharey=True)
    _dots(left, training, "l0_trained", ring=COLORS["muted"])
    _dots(left, training, "l0")
    _dots(right, training, "explained_variance")
    left.axvline(k, color="#444444", linewidth=1)
    left.axvspan(0.9 * k, 1.1 * k, color=COLORS["sae"], alpha=0.1, linewidth=0)
    left.set_xlim(0, max(1.15 * k, 1.08 * span(training[["l0", "l0_trained"]])[1]))
    left.set_ylim(len(FAMILY_NAMES) - 0.4, -0.9)
    place = {"xytext": (-3, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    left.annotate(f"asked for: {k:g}", (k, -0.65), fontsize=SMALL, **place)
    left.set(xlabel="active latents per token (L0)", title="equally sparse?")
    right.set(xlabel="explained variance, held-out tokens", title="how much is kept")
    return figure


@says_if_empty(NO_FAMILY)
def family_strips(families: pd.DataFrame) -> Figure:
    """Every measure: one row a family, one dot a seed, the residual stream as a line.

    Rings beside the best doses: those once all latents may be scaled as well.
    """
    figure, grid = panels(3, 2, width=9.2, height=2.7, sharey=True)
    axes = grid.ravel()[: len(MEASURES)]
    grid[-1, -1].set_axis_off()
    residual = families[families["architecture"] == RESIDUAL]
    alone = families[families["architecture"] != RESIDUAL]
    for ax, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        if measure == "alpha_star":
            _dots(ax, alone, "alpha_beyond", ring=COLORS["accent"])
        _dots(ax, alone, measure)
        _reference_line(ax, residual[measure], named=ax is axes[0])
        ax.set_title(title, fontsize=SMALL)
        ax.set_xlabel(AXIS[measure], fontsize=SMALL)
        ax.margins(x=0.15)
        if alone[measure].isna().all():
            note(ax, "no concept has it")
    return figure


def _reference_line(ax: Axes, values: pd.Series, named: bool) -> None:
    """The residual stream's value; zero for a measure that it does not have."""
    known = values.notna().any()
    x = float(values.mean()) if known else 0.0
    ax.axvline(x, color=COLORS["residual"] if known else "#444444", linewidth=1.4 if known else 0.8)
    if known and named:
        place = {"xytext": (-2, 0), "textcoords": "offset points", "rotation": 90, "ha": "right", "va": "bottom"}
        where = {"xycoords": ("data", "axes fraction"), "color": COLORS["residual"], "fontsize": SMALL}
        ax.annotate(NAMES[RESIDUAL], (x, 0.02), **where, **place)


def _two_lines(text: str) -> str:
    words = text.split()
    half = (len(words) + 1) // 2
    return "\n".join((" ".join(words[:half]), " ".join(words[half:])))


def families_or_seeds(spread: pd.DataFrame) -> Figure:
    """Spread between families over spread between two seeds of one family, for each measure."""
    known = spread[np.isfinite(spread["ratio"])].sort_values("ratio")
    figure, ax = panels(width=6.6, height=2.8)
    ax.set_xscale("log", subs=(2, 5))
    ax.hlines(range(len(known)), 1, known["ratio"], color=COLORS["sae"], linewidth=2)
    ax.plot(known["ratio"], range(len(known)), "o", color=COLORS["sae"])
    ax.axvline(1, color="#444444", linestyle=":", linewidth=1.2)
    ax.xaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    ax.margins(y=0.15)
    ax.set_yticks(range(len(known)), [MEASURES.get(name, name.replace("_", " ")) for name in known["measure"]])
    ax.set_xlabel("spread between families / spread between seeds")
    if known.empty:
        text = "one seed only: no spread between seeds to compare with"
        ax.annotate(text, (0.5, 0.5), ha="center", xycoords="axes fraction", color=COLORS["muted"])
    return figure


@says_if_empty("No layer was measured.")
def over_depth(layers: pd.DataFrame, studied: int) -> Figure:
    """Measures of chapters 3 and 4 by layer: mean over concepts, and the middle half of concepts as a band."""
    figure, axes = panels(len(STREAM_MEASURES), width=9.6, height=3.1)
    look = {"palette": COLORS, "estimator": "mean", "errorbar": ("pi", 50), "marker": "o", "legend": False}
    for ax, measure in zip(axes, STREAM_MEASURES, strict=True):
        sns.lineplot(layers, x="layer", y=measure, hue="representation", ax=ax, **look)
        ax.axvline(studied, color="#444444", linestyle=":", linewidth=1)
        ax.set_title(_two_lines(MEASURES[measure]), fontsize=SMALL)
        ax.set_ylabel(AXIS[measure], fontsize=SMALL)
        ax.set_xticks(sorted(layers["layer"].unique()))
    last = layers[layers["layer"] == layers["layer"].max()]
    for name, value in last.groupby("representation")[STREAM_MEASURES[0]].mean().dropna().items():
        direct_label(axes[0], last["layer"].max(), value, NAMES[name].split()[0], COLORS[name])
    return figure


@says_if_empty("No claim was measured with more than one autoencoder.")
def replication_forest(replication: pd.DataFrame, effects: pd.DataFrame) -> Figure:
    """Each claim over all autoencoders, in margins: their means as dots, the mean effect's interval (thick), that of a
    new concept in a new autoencoder (thin), what lies farther out as arrows; what the variance is divided among."""
    own = in_margins(replication[replication["contrast"] == ITSELF].reset_index(drop=True))
    figure, (axes, parts) = panels(2, width=9.6, height=0.36 * len(own) + 1.5, sharey=True, width_ratios=(3, 1))
    y = own.index.to_list()
    ahead = own.assign(low=own["new_low"] / own["margin"], high=own["new_high"] / own["margin"])
    draw_intervals(axes, ahead.assign(verdict=own["holds_up"]), y, REACH)
    axes.hlines(y, own["low"].clip(-REACH, REACH), own["high"].clip(-REACH, REACH), color="black", lw=5, alpha=0.45)
    means = effects[effects["contrast"] == ITSELF].groupby(["claim", "layer", "seed"])["effect"].mean().reset_index()
    means = means.merge(own.reset_index()[["claim", "index", "margin"]], on="claim")
    depth = means["layer"].rank(method="dense") / means["layer"].nunique()
    sizes = means["effect"] / means["margin"]
    means = means.assign(size=sizes.clip(-REACH, REACH), at=means["index"] + 0.6 * depth - 0.4)
    for marker, part in means.groupby(np.where(sizes > REACH, ">", np.where(sizes < -REACH, "<", "o"))):
        axes.scatter(part["size"], part["at"], s=9 if marker == "o" else 20, marker=marker, c="black", zorder=4)
    axes.set_yticks(y, own["claim"], fontsize=SMALL)
    axes.set(xlim=(-1.02 * REACH, 1.02 * REACH), ylim=(len(own) - 0.4, -0.6), xlabel="effect in margins")
    note_missing(axes, own, why="one unit")
    left = np.zeros(len(own))
    for part, color in PART_COLORS.items():
        width = own[f"share_{part}"].fillna(0).to_numpy()
        parts.barh(y, width, left=left, color=color, height=0.6, label=VARIANCE_PARTS[part])
        left += width
    parts.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="share of variance")
    parts.grid(axis="y", visible=False)
    figure.legend(
        *parts.get_legend_handles_labels(), loc="outside upper center", ncols=len(PART_COLORS), fontsize=SMALL
    )
    return figure
