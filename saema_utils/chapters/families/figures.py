"""Figures of chapter 8: families of autoencoders, and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saema_utils.chapters.families.measures import MEASURES, RESIDUAL
from saema_utils.chapters.families.tables import NAMES as FAMILY_NAMES
from saema_utils.figures import COLORS, NAMES, direct_label, panels
from saema_utils.study import ARCHITECTURES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYER_MEASURES = ("excursion", "merging", "intrinsic_dimension", "circularity")
AXIS = {
    "excursion": "rank excursion |log ratio|",
    "merging": "AMI of clusters with words",
    "intrinsic_dimension": "TwoNN dimension",
    "circularity": "cyclic order (1 = perfect)",
    "alpha_star": "alpha*; ring: beyond scaling",
}


def sparsity_match(training: pd.DataFrame) -> Figure:
    """How close each family came to the same L0, and what it explains there; one dot per seed."""
    k = float(training["k"].iloc[0])
    figure, (left, right) = panels(2, width=7.6, height=3.2, sharey=True)
    for row, family in enumerate(reversed(ARCHITECTURES)):
        part = training[training["architecture"] == family]
        left.plot(part["l0_trained"], [row] * len(part), "o", markerfacecolor="none", color=COLORS["muted"])
        left.plot(part["l0"], [row] * len(part), "o", color=COLORS["sae"])
        right.plot(part["explained_variance"], [row] * len(part), "o", color=COLORS["sae"])
    left.axvline(k, color="#444444", linewidth=1)
    left.axvspan(0.9 * k, 1.1 * k, color=COLORS["sae"], alpha=0.1, linewidth=0)
    left.set_xlabel("active latents per token (L0)")
    left.set_xlim(0, max(1.15 * k, 1.08 * training[["l0", "l0_trained"]].to_numpy().max()))
    left.annotate(f"asked for: {k:g}", (k, len(ARCHITECTURES) - 0.55), ha="right", va="bottom", fontsize=8,
                  xytext=(-3, 0), textcoords="offset points")  # fmt: skip
    left.set_yticks(range(len(ARCHITECTURES)), [FAMILY_NAMES[name] for name in reversed(ARCHITECTURES)])
    left.set_ylim(-0.6, len(ARCHITECTURES) - 0.1)
    right.set_xlabel("explained variance, held-out tokens")
    left.set_title("equally sparse?")
    right.set_title("how much is kept")
    return figure


def family_strips(families: pd.DataFrame) -> Figure:
    """Every measure: one row a family, one dot a seed, the residual stream as a line.

    Rings beside the best doses: those once all latents may be scaled as well.
    """
    figure, axes = panels(len(MEASURES), width=10.5, height=3.3, sharey=True)
    residual = families[families["architecture"] == RESIDUAL]
    for ax, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for row, family in enumerate(reversed(ARCHITECTURES)):
            values = families.loc[families["architecture"] == family, measure]
            ax.plot(values, [row] * len(values), "o", color=COLORS["sae"], alpha=0.85)
            if measure == "alpha_star":
                beyond = families.loc[families["architecture"] == family, "alpha_beyond"]
                ax.plot(beyond, [row] * len(beyond), "o", markerfacecolor="none", color=COLORS["accent"])
        _reference_line(ax, residual[measure], named=ax is axes[0])
        ax.set_title("\n".join(_two_lines(title)), fontsize=9)
        ax.set_xlabel(AXIS[measure], fontsize=8)
        ax.margins(x=0.15)
    axes[0].set_yticks(range(len(ARCHITECTURES)), [FAMILY_NAMES[name] for name in reversed(ARCHITECTURES)])
    axes[0].set_ylim(-0.6, len(ARCHITECTURES) - 0.4)
    return figure


def _reference_line(ax: Axes, values: pd.Series, named: bool) -> None:
    """The residual stream's value; zero for a measure that it does not have."""
    known = values.notna().any()
    x = float(values.mean()) if known else 0.0
    ax.axvline(x, color=COLORS["residual"] if known else "#444444", linewidth=1.4 if known else 0.8)
    if known and named:
        ax.annotate(NAMES[RESIDUAL], (x, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right",
                    va="bottom", color=COLORS["residual"], xytext=(-2, 0), textcoords="offset points")  # fmt: skip


def _two_lines(text: str) -> list[str]:
    words = text.split()
    half = (len(words) + 1) // 2
    return [" ".join(words[:half]), " ".join(words[half:])]


def families_or_seeds(spread: pd.DataFrame) -> Figure:
    """Spread between families over spread between two seeds of one family, for each measure."""
    known = spread[np.isfinite(spread["ratio"])].sort_values("ratio")
    figure, ax = panels(width=6.6, height=2.8)
    ax.hlines(range(len(known)), 1, known["ratio"], color=COLORS["sae"], linewidth=2)
    ax.plot(known["ratio"], range(len(known)), "o", color=COLORS["sae"])
    ax.axvline(1, color="#444444", linestyle=":", linewidth=1.2)
    ax.set_xscale("log")
    ax.margins(y=0.15)
    titles = {**MEASURES, "explained_variance": "explained variance", "dead_fraction": "dead latents"}
    ax.set_yticks(range(len(known)), [titles.get(name, name) for name in known["measure"]])
    ax.set_xlabel("spread between families / spread between seeds")
    if known.empty:
        ax.annotate("one seed only: no spread between seeds to compare with", (0.5, 0.5), ha="center",
                    xycoords="axes fraction", color=COLORS["muted"])  # fmt: skip
    return figure


def over_depth(layers: pd.DataFrame, studied: int) -> Figure:
    """Measures of chapters 3 and 4 by layer: mean over concepts, and the middle half of concepts as a band."""
    figure, axes = panels(len(LAYER_MEASURES), width=10.5, height=3.1)
    for ax, measure in zip(axes, LAYER_MEASURES, strict=True):
        for name in (RESIDUAL, "sae"):
            grouped = layers[layers["representation"] == name].groupby("layer")[measure]
            middle, low, high = grouped.mean(), grouped.quantile(0.25), grouped.quantile(0.75)
            x = middle.index.to_numpy()
            ax.plot(x, middle, "o-", color=COLORS[name], markersize=4)
            ax.fill_between(x, low, high, color=COLORS[name], alpha=0.16, linewidth=0)
            if ax is axes[0] and np.isfinite(middle.to_numpy()[-1]):
                direct_label(ax, x[-1], middle.to_numpy()[-1], NAMES[name].split()[0], COLORS[name])
        ax.axvline(studied, color="#444444", linestyle=":", linewidth=1)
        ax.set_title("\n".join(_two_lines(MEASURES[measure])), fontsize=9)
        ax.set_xlabel("layer")
        ax.set_ylabel(AXIS[measure], fontsize=8)
        ax.set_xticks(sorted(layers["layer"].unique()))
    return figure
