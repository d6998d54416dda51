"""Plots of chapter 8 and of sweeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saema_utils.chapters.scorecard.figures import VERDICT_COLORS, draw_intervals, in_margins
from saema_utils.evidence.verdicts import VERDICTS
from saema_utils.figures import (
    COLORS,
    NAMES,
    SMALL,
    TOWARDS_CLAIM,
    despined_grid,
    keep_apart,
    note_missing,
    nothing_to_draw,
    panels,
    write_beside,
)
from saema_utils.statistics import written
from saema_utils.wording import SIGNS, in_prose

METRIC_NAMES = {
    "explained_variance": "explained variance",
    "l0": "L0 (latents per token)",
    "dead_fraction": "dead latents (share)",
    "ce_recovered": "cross-entropy recovered (share)",
}
CODERS = {"random_dictionary": ("s", 70), "pca": ("D", 70), "sae": ("o", 30)}  # the last is drawn on top
_REACH = 4.0
NO_CLAIM = "No run has been judged yet (chapter 7)."
LEGEND = {verdict: f"{SIGNS[verdict]} {verdict}" for verdict in VERDICTS}
"""What the sign of each verdict means."""


def _claims(table: pd.DataFrame) -> pd.DataFrame:
    return in_margins(table[table["kind"] == "claim"])


def by_run(table: pd.DataFrame) -> pd.DataFrame:
    """Metrics as rows, runs as columns: estimates as text, with the sign of the verdict."""
    shown = table[table["representation"] == "sae"]
    text = [f"{written(row.estimate, '.3g')} {SIGNS.get(row.verdict, '')}".rstrip() for row in shown.itertuples()]
    wide = shown.assign(text=text).pivot(index="metric", columns="run", values="text")
    wide = wide.reindex(index=shown["metric"].unique(), columns=shown["run"].unique())
    return wide.fillna("").rename_axis(columns=None).reset_index()


def effects_by_run(table: pd.DataFrame) -> Figure:
    """Every claimed effect in every run: colour is its size in margins, the sign its verdict."""
    found = _claims(table)
    if found.empty:
        return nothing_to_draw(NO_CLAIM)
    claims, runs = found["metric"].unique(), found["run"].unique()
    effects, verdicts = (
        found.pivot(index="metric", columns="run", values=name).reindex(index=claims, columns=runs)
        for name in ("estimate", "verdict")
    )
    marks = verdicts.apply(lambda run: run.map(SIGNS)).fillna("")
    width = min(16.0, 4.2 + max(0.55 * len(runs), 1.2))
    figure, axes = panels(width=width, height=0.34 * len(claims) + 1.8)
    scale = {"extend": "both", "shrink": 0.9, "pad": 0.02, "label": "effect in margins"}
    look = {"cmap": TOWARDS_CLAIM, "vmin": -_REACH, "vmax": _REACH, "cbar_kws": scale}
    sns.heatmap(effects.clip(-_REACH, _REACH), annot=marks, fmt="", ax=axes, **look)
    alone = len(runs) == 1
    axes.set_xticklabels(runs, rotation=0 if alone else 35, ha="center" if alone else "right", rotation_mode="anchor")
    axes.set(xlabel="", ylabel="")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    signs = list(LEGEND.values())
    lines = ("    ".join(signs[start : start + 2]) for start in range(0, len(signs), 2))
    axes.set_title("\n".join(lines), fontsize=SMALL, fontweight="normal")
    return figure


def sae_quality(table: pd.DataFrame) -> Figure:
    """Held-out quality of every run's SAE beside its controls, one panel a metric, one line a run."""
    found = table[(table["kind"] == "sae") & table["representation"].isin(CODERS)]
    if found.empty:
        return nothing_to_draw("No run has finished chapter 2 yet.")
    runs, metrics = list(found["run"].unique()), [m for m in METRIC_NAMES if m in set(found["metric"])]
    rows = (len(metrics) + 1) // 2
    figure, axes = panels(2, rows, width=8.4, height=0.24 * len(runs) + 1.35, sharey=True, squeeze=False)
    found = found.assign(row=found["run"].map(runs.index), coder=found["representation"].map(NAMES))
    look = {
        "palette": {NAMES[name]: COLORS[name] for name in CODERS},
        "markers": {NAMES[name]: marker for name, (marker, _) in CODERS.items()},
        "sizes": {NAMES[name]: size for name, (_, size) in CODERS.items()},
    }
    for axis, metric in zip(axes.flat, metrics, strict=False):
        points = found[found["metric"] == metric].sort_values(
            "coder", key=lambda names: names.map(list(look["sizes"]).index)
        )
        kinds = dict.fromkeys(("hue", "style", "size"), "coder")
        sns.scatterplot(points, x="estimate", y="row", legend=axis is axes.flat[0], ax=axis, **kinds, **look)
        axis.set(xlabel=METRIC_NAMES[metric], ylabel="", ylim=(len(runs) - 0.4, -0.6))
        axis.set_yticks(range(len(runs)), runs)
        axis.margins(x=0.12)
        values = points["estimate"]
        if metric == "l0" and values.min() > 0 and values.max() > 30 * values.min():
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
    despined_grid(figure, axes, len(metrics))
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    axes.flat[0].get_legend().remove()
    return figure


def agreement_forest(table: pd.DataFrame, agreed: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Intervals of a few claims over runs, with the pooled effect as a band: do the runs agree?"""
    found = _claims(table)
    metrics = [metric for metric in metrics if metric in set(found["metric"])]
    if not metrics:
        return nothing_to_draw(NO_CLAIM)
    runs = list(found["run"].unique())
    figure, axes = panels(len(metrics), 1, width=8.4, height=0.28 * len(runs) + 1.5, sharey=True, squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=True):
        rows = found[found["metric"] == metric]
        pooled = agreed.set_index("metric").loc[metric]
        if pooled["runs"] > 1 and np.isfinite(pooled["error"]):
            edges = (pooled["pooled"] + np.array([-1.96, 1.96]) * pooled["error"]) / rows["margin"].iloc[0]
            axis.axvspan(min(edges), max(edges), color=COLORS["muted"], alpha=0.3, linewidth=0)
        places = [runs.index(run) for run in rows["run"]]
        draw_intervals(axis, rows, places)
        for place, verdict in zip(places, rows["verdict"], strict=True):
            axis.text(1.02, place, SIGNS[verdict], transform=axis.get_yaxis_transform(), va="center", fontsize=10)
        note_missing(axis, rows, why="one unit")
        share = pooled["i_squared"]
        axis.set_title(metric if np.isnan(share) else f"{metric}\n$I^2$ = {in_prose(f'{share:.0%}')}", fontsize=SMALL)
        axis.set_ylim(len(runs) - 0.4, -0.6)
        axis.set_yticks(range(len(runs)), runs)
    figure.supxlabel("effect in margins (95 % interval); grey band: pooled", fontsize=10)
    _explain(figure, found.loc[found["metric"].isin(metrics), "verdict"])
    return figure


def null_spread(q: Sequence[float], q_apart: Sequence[float], df: int) -> Figure:
    """Simulated Q of studies that share one effect, against its theory, beside studies that do not."""
    from scipy.stats import chi2

    figure, axes = panels()
    edges = np.linspace(0, max(np.quantile(q_apart, 0.95), 12), 40)
    sets = {"one effect": np.asarray(q), "different effects": np.asarray(q_apart)}
    for (label, values), color in zip(sets.items(), (COLORS["residual"], COLORS["accent"]), strict=True):
        look = {"bins": edges, "stat": "density", "element": "step", "linewidth": 0, "alpha": 0.35}
        sns.histplot(values, color=color, label=label, ax=axes, **look)
    axes.plot(edges, chi2.pdf(edges, df), color="#222222", linestyle="--", label=f"theory: chi-squared, {df} degrees")
    axes.set(xlabel="Cochran's Q over simulated sets of studies", ylabel="density")
    axes.legend()
    return figure


def effects_along(table: pd.DataFrame, field: str) -> Figure:
    """How each effect and the SAE's quality move along one field of a sweep; one dot a run, a line for the mean."""
    effects = _claims(table)
    shown = pd.concat([table[(table["kind"] == "sae") & (table["representation"] == "sae")], effects])
    names = shown["metric"].unique()
    columns = min(4, len(names))
    figure, axes = panels(columns, -(-len(names) // columns), width=2.25 * columns + 0.6, height=1.9, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = shown[shown["metric"].eq(name) & shown["estimate"].notna()]
        sns.lineplot(points, x=field, y="estimate", errorbar=None, color=COLORS["sae"], ax=axis)
        colors = points["verdict"].map(VERDICT_COLORS).fillna(COLORS["sae"])
        axis.scatter(points[field], points["estimate"], c=colors, s=26, zorder=3, linewidth=0)
        judged = points[points["verdict"].isin(SIGNS)]
        up = np.tile([0, 1], (len(judged), 1))
        write_beside(axis, judged["verdict"].map(SIGNS), judged[[field, "estimate"]].to_numpy(), up)
        axis.margins(y=0.22)  # room for the signs
        axis.set_title(METRIC_NAMES.get(name, name).split(" (")[0], fontsize=SMALL)
        axis.set(xlabel="", ylabel="")
        if name in set(effects["metric"]):
            axis.axhline(1, color=COLORS["sae"], linewidth=1, linestyle=":")
            axis.axhline(0, color="#444444", linewidth=1)
    despined_grid(figure, axes, len(names))
    figure.supxlabel(field, fontsize=10)
    if not effects.empty:
        figure.supylabel("SAE metrics; effects in margins", fontsize=10)
        _explain(figure, effects["verdict"])
    keep_apart(figure)
    return figure


def _explain(figure: Figure, verdicts: pd.Series) -> None:
    """What the colours and signs of these verdicts mean, above the panels."""
    found = [verdict for verdict in VERDICTS if verdict in set(verdicts)]
    handles = [Line2D([], [], color=VERDICT_COLORS[verdict], marker="o", linewidth=2.4) for verdict in found]
    figure.legend(handles, [LEGEND[verdict] for verdict in found], loc="outside upper center", ncols=3, fontsize=SMALL)


def sweep_figure(table: pd.DataFrame, fields: Sequence[str]) -> Figure:
    """One figure for a sweep: along its first numeric field with several values, else run by run.

    A seed is a number but no quantity: runs that differ only by it are shown side by side.
    """
    for field in fields:
        numeric = field != "seed" and field in table and np.issubdtype(table[field].dtype, np.number)
        if numeric and table[field].nunique() > 1:
            return effects_along(table, field)
    return effects_by_run(table)
