"""Plots of chapter 7 and of sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.chapters.scorecard.figures import VERDICT_COLORS
from saema_utils.figures import COLORS, NAMES, TOWARDS_CLAIM, despined_grid, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SYMBOLS = {"supported": "✓", "not supported": "✗", "inconclusive": "?"}
METRIC_NAMES = {
    "explained_variance": "explained variance",
    "l0": "L0 (latents per token)",
    "dead_fraction": "dead latents (share)",
    "ce_recovered": "cross-entropy recovered (share)",
}
_REACH = 4.0


def _claims(table: pd.DataFrame) -> pd.DataFrame:
    """Claims in units of their margin: 1 is the smallest effect worth the name, on the side the paper expects."""
    found = table[table["kind"] == "claim"]
    scaled = {name: found[name] / found["margin"] for name in ("estimate", "low", "high")}
    return found.assign(**scaled)


def _empty(text: str) -> Figure:
    figure, axes = panels(height=1.4)
    axes.text(0.5, 0.5, text, ha="center", va="center", color="#444444")
    axes.set_axis_off()
    return figure


def effects_by_run(table: pd.DataFrame) -> Figure:
    """Every claimed effect in every run: colour is its size in margins, the sign its verdict."""
    found = _claims(table)
    if found.empty:
        return _empty("no run has finished chapters 3 to 5 yet")
    claims, runs = found["metric"].unique(), found["run"].unique()
    grid = found.pivot(index="metric", columns="run", values="estimate").reindex(claims)[runs]
    width = min(16.0, 4.2 + max(0.55 * len(runs), 1.2))
    figure, axes = panels(width=width, height=0.34 * len(claims) + 1.6)
    image = axes.imshow(np.clip(grid, -_REACH, _REACH), cmap=TOWARDS_CLAIM, vmin=-_REACH, vmax=_REACH, aspect="auto")
    for row in found.itertuples():
        x, y = list(runs).index(row.run), list(claims).index(row.metric)
        dark = abs(np.clip(row.estimate, -_REACH, _REACH)) > 0.62 * _REACH
        axes.text(x, y, SYMBOLS[row.verdict], ha="center", va="center", color="white" if dark else "#222222")
    axes.set_yticks(range(len(claims)), claims)
    axes.set_xticks(
        range(len(runs)), runs, rotation=0 if len(runs) == 1 else 35, ha="center" if len(runs) == 1 else "right"
    )
    axes.grid(visible=False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, extend="both", shrink=0.9, pad=0.02)
    bar.set_label("effect, in smallest sizes\nworth the name")
    axes.set_title("✓ supported   ✗ not supported   ? inconclusive", fontsize=9, fontweight="normal")
    return figure


def sae_quality(table: pd.DataFrame) -> Figure:
    """Held-out quality of every run's SAE beside its controls, one panel a metric, one line a run."""
    found = table[table["kind"] == "sae"]
    if found.empty:
        return _empty("no run has finished chapter 2 yet")
    runs, metrics = list(found["run"].unique()), [m for m in METRIC_NAMES if m in set(found["metric"])]
    rows = (len(metrics) + 1) // 2
    figure, axes = panels(2, rows, width=8.4, height=0.24 * len(runs) + 1.35, sharey=True, squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for name in ("random_dictionary", "pca", "sae"):
            points = found[(found["metric"] == metric) & (found["representation"] == name)]
            filled = {"facecolors": COLORS[name]} if name == "sae" else {"facecolors": "none"}
            axis.scatter(
                points["estimate"],
                points["run"].map(runs.index),
                edgecolors=COLORS[name],
                s=46,
                label=NAMES[name],
                **filled,
            )
        axis.set_xlabel(METRIC_NAMES[metric])
        axis.set_ylim(len(runs) - 0.4, -0.6)
        axis.set_yticks(range(len(runs)), runs)
        axis.margins(x=0.12)
        values = found.loc[found["metric"] == metric, "estimate"]
        if metric == "l0" and values.min() > 0 and values.max() > 30 * values.min():
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
    despined_grid(figure, axes, len(metrics))
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=3)
    return figure


def claim_forest(table: pd.DataFrame, agreed: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Intervals of a few claims over runs, with the pooled effect as a band: do the runs agree?"""
    found = _claims(table)
    metrics = [metric for metric in metrics if metric in set(found["metric"])]
    if not metrics:
        return _empty("no run has finished chapters 3 to 5 yet")
    runs = list(found["run"].unique())
    figure, axes = panels(len(metrics), 1, width=8.4, height=0.28 * len(runs) + 1.5, sharey=True, squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=True):
        rows = found[found["metric"] == metric]
        margin = rows["margin"].iloc[0]
        pooled = agreed.set_index("metric").loc[metric]
        if pooled["runs"] > 1 and np.isfinite(pooled["error"]):
            edges = sorted((pooled["pooled"] + side * 1.96 * pooled["error"]) / margin for side in (-1, 1))
            axis.axvspan(*edges, color=COLORS["muted"], alpha=0.3, linewidth=0)
        axis.axvline(0, color="#444444", linewidth=1)
        axis.axvline(1, color=COLORS["sae"], linewidth=1, linestyle=":")
        for row in rows.itertuples():
            y, color = runs.index(row.run), VERDICT_COLORS[row.verdict]
            axis.plot([row.low, row.high], [y, y], color=color, linewidth=2.4, solid_capstyle="round")
            axis.plot(row.estimate, y, "o", color=color, markersize=5.5)
        share = pooled["i_squared"]
        axis.set_title(metric if np.isnan(share) else f"{metric}\n$I^2$ = {share:.0%}", fontsize=9.5)
        axis.set_ylim(len(runs) - 0.4, -0.6)
        axis.set_yticks(range(len(runs)), runs)
        axis.grid(axis="y", visible=False)
    figure.supxlabel("effect, in smallest sizes worth the name (95 % interval); grey band: pooled", fontsize=10)
    return figure


def null_spread(q: Sequence[float], q_apart: Sequence[float], df: int) -> Figure:
    """Simulated Q of studies that share one effect, against its theory, beside studies that do not."""
    from scipy.stats import chi2

    figure, axes = panels()
    edges = np.linspace(0, max(np.quantile(q_apart, 0.95), 12), 40)
    for values, color, label in (
        (q, COLORS["residual"], "one effect"),
        (q_apart, COLORS["accent"], "different effects"),
    ):
        axes.hist(values, bins=edges, density=True, histtype="stepfilled", alpha=0.35, color=color, label=label)
    axes.plot(edges, chi2.pdf(edges, df), color="#222222", linestyle="--", label=f"theory: chi-squared, {df} degrees")
    axes.set_xlabel("Cochran's Q over simulated sets of studies")
    axes.set_ylabel("density")
    axes.legend()
    return figure


def effects_along(table: pd.DataFrame, field: str) -> Figure:
    """How each effect and the SAE's quality move along one field of a sweep; one dot a run, a line for the mean."""
    effects = _claims(table)
    quality = table[(table["kind"] == "sae") & (table["representation"] == "sae")]
    names = [*quality["metric"].unique(), *effects["metric"].unique()]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = panels(columns, rows, width=2.5 * columns + 0.6, height=1.9, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        is_claim = name in set(effects["metric"])
        points = (effects if is_claim else quality).query("metric == @name")
        mean = points.groupby(field)["estimate"].mean()
        axis.plot(mean.index, mean, color=COLORS["sae"])
        colors = [VERDICT_COLORS[verdict] for verdict in points["verdict"]] if is_claim else COLORS["sae"]
        axis.scatter(points[field], points["estimate"], c=colors, s=26, zorder=3, linewidth=0)
        axis.set_title(METRIC_NAMES.get(name, name).split(" (")[0], fontsize=9.5)
        if is_claim:
            axis.axhline(1, color=COLORS["sae"], linewidth=1, linestyle=":")
            axis.axhline(0, color="#444444", linewidth=1)
    despined_grid(figure, axes, len(names))
    figure.supxlabel(field, fontsize=10)
    if not effects.empty:
        figure.supylabel("SAE metrics; effects in smallest sizes worth the name", fontsize=10)
    return figure


def scaling_curve(table: pd.DataFrame, critical_path: float) -> Figure:
    """Speed-up of a sweep against workers: simulated, with the ideal line and the bound of the longest chain."""
    figure, axes = panels()
    total = table.loc[table["workers"].idxmin(), "makespan"] * table["workers"].min()
    axes.plot(table["workers"], table["workers"], color=COLORS["muted"], linestyle="--", label="ideal")
    axes.axhline(total / critical_path, color=COLORS["accent"], linestyle=":", label="bound of the longest chain")
    axes.plot(table["workers"], table["speedup"], color=COLORS["sae"], marker="o", label="simulated")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("workers")
    axes.set_ylabel("speed-up over one worker")
    axes.legend()
    return figure


def sweep_figure(table: pd.DataFrame, fields: Sequence[str]) -> Figure:
    """One figure for a sweep: along its first numeric field with several values, else run by run.

    A seed is a number but no quantity: runs that differ only by it are shown side by side.
    """
    for field in fields:
        if (
            field != "seed"
            and field in table
            and np.issubdtype(table[field].dtype, np.number)
            and table[field].nunique() > 1
        ):
            return effects_along(table, field)
    return effects_by_run(table)
