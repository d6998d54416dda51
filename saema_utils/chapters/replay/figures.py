"""Plots of chapter 6."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saema_utils.chapters.replay.tables import CODERS
from saema_utils.evidence.replay import PAPER_SIGNS
from saema_utils.figures import COLORS, NAMES, SMALL, note_missing, panels, says_if_empty, span
from saema_utils.replay.nudges import kept_records

TITLES = {
    "n_local": "local representations",
    "intrinsic_dimension": "dimension of each",
    "mst_weight": "weight of the tree",
}
CLOSE = {"sae": "o", "random_dictionary": "^"}  # codes that were replayed without each step
MEAN = {"color": "#222222", "markersize": 17, "markeredgewidth": 2}
PROMPTS = {"authors": ("o", "the authors' prompts"), "ours": ("s", "our prompts")}
RECIPE_NAMES = {
    "as published": "as published",
    "mask": "special tokens left out",
    "copies": "copies left out",
    "z-scores": "no z-scores",
    "embedding": "no embedding",
    "scale": "tree without scale",
}


def _paper_side(axis: Axes, paper: int) -> None:
    """Shade the side of zero on which the paper's sign lies, whatever the data reach."""
    low, high = span(axis.get_xlim())
    reach = 1.08 * max(abs(low), abs(high))
    axis.axvspan(0, paper * reach, color=COLORS["accent"], alpha=0.07, linewidth=0, zorder=0)
    axis.axvline(0, color="#444444", linewidth=1)
    axis.set_xlim(-reach, reach)
    axis.grid(axis="y", visible=False)


def _intervals(axis: Axes, rows: pd.DataFrame, y: Sequence[float], coder: str, marker: str) -> None:
    color = COLORS[coder]
    axis.hlines(y, rows["low"], rows["high"], color=color, linewidth=2)
    axis.plot(rows["estimate"], y, marker, color=color, markersize=5.5)


NO_SIGNS = "No concept was replayed with a code beside the stream."


@says_if_empty(NO_SIGNS)
def signs_forest(signs: pd.DataFrame) -> Figure:
    """The protocol as published: each code against the residual stream, one panel a measure."""
    shown = signs[signs["recipe"] == "as published"]
    rows = shown.set_index(["measure", "coder", "prompts"])
    codes = [coder for coder in CODERS if coder in rows.index.get_level_values("coder")]
    figure, axes = panels(len(PAPER_SIGNS), width=9.6, height=0.72 * len(codes) + 1.3, sharey=True)
    for axis, (measure, paper) in zip(axes, PAPER_SIGNS.items(), strict=True):
        for at, coder in enumerate(codes):
            for shift, (whose, (marker, _)) in zip((-0.14, 0.14), PROMPTS.items(), strict=True):
                if (measure, coder, whose) in rows.index:
                    _intervals(axis, rows.loc[[(measure, coder, whose)]], [at + shift], coder, marker)
        _paper_side(axis, paper)
        axis.set_title(TITLES[measure])
        note_missing(axis, shown[shown["measure"] == measure], why="one concept")
        axis.set_xlabel("log ratio to the residual stream")
    axes[0].set_yticks(range(len(codes)), [NAMES[coder] for coder in codes])
    axes[0].set_ylim(len(codes) - 0.5, -0.5)
    for marker, label in PROMPTS.values():
        axes[-1].plot([], [], marker, color="#444444", label=label)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@says_if_empty(NO_SIGNS)
def steps_forest(signs: pd.DataFrame) -> Figure:
    """The protocol without one of its steps at a time: the SAE and a random dictionary, one panel a measure."""
    shown = signs[signs["prompts"].eq(signs["prompts"].iloc[0]) & signs["coder"].isin(CLOSE)]
    rows = shown.set_index(["measure", "coder", "recipe"])
    figure, axes = panels(len(PAPER_SIGNS), width=9.6, height=0.46 * len(RECIPE_NAMES) + 1.3, sharey=True)
    for axis, (measure, paper) in zip(axes, PAPER_SIGNS.items(), strict=True):
        for shift, (coder, marker) in zip((-0.14, 0.14), CLOSE.items(), strict=True):
            for at, recipe in enumerate(RECIPE_NAMES):
                if (measure, coder, recipe) in rows.index:
                    _intervals(axis, rows.loc[[(measure, coder, recipe)]], [at + shift], coder, marker)
        _paper_side(axis, paper)
        axis.axhline(0.5, color="#bbbbbb", linewidth=0.8)
        axis.set_title(TITLES[measure])
        note_missing(axis, shown[shown["measure"] == measure], why="one concept")
        axis.set_xlabel("log ratio to the residual stream")
    axes[0].set_yticks(range(len(RECIPE_NAMES)), RECIPE_NAMES.values())
    axes[0].set_ylim(len(RECIPE_NAMES) - 0.5, -0.5)
    for coder, marker in CLOSE.items():
        axes[-1].plot([], [], marker, color=COLORS[coder], label=NAMES[coder])
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@says_if_empty("No code of this study has two clusters whose centres could be moved.")
def correlations_strip(correlations: pd.DataFrame) -> Figure:
    """Separation against error by code: over all steps, over kept ones, and over kept ones of shuffled errors."""
    rows = correlations[correlations["prompts"] == correlations["prompts"].iloc[0]]
    means = rows.groupby(["concept", "coder"], sort=False)[["r_all", "r_kept", "r_null"]].mean().reset_index()
    shown = {"r_all": "all steps", "r_kept": "steps that were kept", "r_null": "kept, errors shuffled before"}
    codes = [coder for coder in CODERS if coder in set(means["coder"])]
    figure, axes = panels(len(shown), width=9.6, height=0.5 * len(codes) + 1.2, sharex=True, sharey=True)
    for axis, (column, title) in zip(axes, shown.items(), strict=True):
        for at, coder in enumerate(codes):
            values = means[means["coder"] == coder][column].to_numpy()
            spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
            axis.plot(values, at + spread, "o", color=COLORS[coder], markersize=4.5, alpha=0.8)
            known = values[np.isfinite(values)]
            axis.plot([known.mean()] if len(known) else [], [at][: len(known)], "|", **MEAN)
        axis.axvline(0, color="#444444", linewidth=1)
        axis.set(xlim=(-1.05, 1.05), title=title, xlabel="correlation")
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(codes)), [NAMES[coder] for coder in codes])
    axes[0].set_ylim(len(codes) - 0.5, -0.5)
    return figure


@says_if_empty("The autoencoder has no concept with two clusters whose centres could be moved.", known="separation")
def one_walk(steps: pd.DataFrame) -> Figure:
    """Separation and error along the walks of one concept's poles, and which of their steps were kept."""
    kept = kept_records(steps)
    figure, axis = panels(width=6.4, height=3.6)
    for _, walk in steps.groupby("scale"):
        axis.plot(walk["separation"], walk["mse"], "-", color=COLORS["muted"], linewidth=1, marker=".", markersize=4)
    for (name, part), marker in zip(kept.groupby("loss", sort=False), ("^", "v"), strict=True):
        axis.plot(part["separation"], part["mse"], marker, color=COLORS["accent"], markersize=8, label=f"least {name}")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set(xlabel="average distance of poles", ylabel="mean squared error, z-scored")
    axis.legend(fontsize=SMALL)
    return figure
