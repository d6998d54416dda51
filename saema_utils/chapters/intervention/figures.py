"""Figures of chapter 5: doses, searches, splicing, and training for separability."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saema_utils.chapters.activations.figures import ring
from saema_utils.chapters.intervention.findings import CHANGES, SEARCHES, STOPS, closed_form, edit_names, gaming_ratios
from saema_utils.evidence.effects import within_levels
from saema_utils.evidence.verdicts import CONTRADICTED, SUPPORTED
from saema_utils.figures import (
    COLORS,
    NAMES,
    SEQUENTIAL,
    SMALL,
    line_style,
    note,
    note_missing,
    nothing_to_draw,
    panels,
    says_if_empty,
)
from saema_utils.geometry.circles import MIN_MEMBERS, cyclic_score
from saema_utils.interactive import interactive as interactive  # the page shows a figure of this chapter with it
from saema_utils.interactive import menu, nothing_to_show, slider, steered
from saema_utils.intervention.edits import ARMS
from saema_utils.statistics import paired_interval, written
from saema_utils.wording import in_prose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plotly.graph_objects import Figure as PlotlyFigure

ZERO = {"color": "#888888", "linewidth": 1}
EXTENT = {"errorbar": ("pi", 100), "err_kws": {"alpha": 0.13, "linewidth": 0}}  # band: smallest to largest
BELOW = {"loc": "outside lower center", "fontsize": SMALL, "columnspacing": 1.2, "handletextpad": 0.4}
NO_EDIT = "No concept has two words left whose poles could be moved."
FARTHEST = 1.0  # dose at which the poles stand twice as far apart: rings of larger ones would leave no room for words
NOWHERE = 1e-6  # of half the room that the poles took: rounding
SEARCH_COLORS = [COLORS[name] for name in ("poles", "accent", "permuted_labels", "residual", "random_direction")]


@says_if_empty(NO_EDIT)
def dose_curves(curves: pd.DataFrame, best: pd.DataFrame, ceiling: float = 1.6) -> Figure:
    """Relative error of every arm against dose, mean and range over concepts; below it each arm's best doses, larger.

    Dots are measured. Through them goes the closed form where it is the curve; where latents that stop have bent the
    curve away, dots are joined by straight lines. A tick is a best dose at which the closed form holds, a cross one
    at which a latent has already stopped. ``curves`` come from :func:`.with_parabola`.
    """
    size = {"width": 9.2, "height": 2.6, "height_ratios": (4, 1)}
    figure, (upper, lower) = panels(2, 2, **size, sharex="row", sharey="row")
    titles = ("All latents may move", "Support kept: latents stop at zero")
    reach = curves["alpha"].min(), curves["alpha"].max()
    for ax, below, kept, title in zip(upper, lower, (False, True), titles, strict=True):
        ax.axhline(1, color="#bbbbbb", linewidth=1)
        for axis in (ax, below):
            axis.axvline(0, color="#bbbbbb", linewidth=1)
        for row, arm in enumerate(reversed(ARMS)):
            part, stars = (t[(t["arm"] == arm) & (t["preserve_sparsity"] == kept)] for t in (curves, best))
            y, line = "relative", part
            if part["misfit"].max() <= STOPS:
                y, line = "parabola", closed_form(stars, np.linspace(*reach, 121))
            line = line.groupby(["alpha", "concept"])[y].mean().reset_index()
            sns.lineplot(line, x="alpha", y=y, label=NAMES[arm], legend=False, ax=ax, **EXTENT, **line_style(arm))
            ax.plot(part.groupby("alpha")["relative"].mean(), ".", color=COLORS[arm], markersize=4)
            _best_doses(below, stars, row, COLORS[arm], reach)
        ax.set(xlabel="dose alpha (poles at 1 + alpha times their distance)", title=title, ylim=(0.98, ceiling))
        below.set(xlabel="best dose alpha of each concept", yticks=[], ylim=(-0.7, len(ARMS) - 0.3))
    edge = 1.1 * max(0.1, best["alpha_star"].clip(*reach).abs().max())
    lower[0].set_xlim(-edge, edge)
    upper[0].set_ylabel("squared error, relative to no edit")
    # Curves leave the panels through the ceiling close together: names beside their ends would collide.
    handles, names = upper[0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], ncols=4, **BELOW)
    return figure


def _best_doses(ax: Axes, rows: pd.DataFrame, height: float, color: str, reach: tuple[float, float]) -> None:
    """One mark a concept: a tick where the closed form holds for every draw, else a cross."""
    found = rows.groupby("concept").agg(alpha=("alpha_star", "mean"), exact=("exact", "all"))
    for exact, marker, size in ((True, "|", 9), (False, "x", 5)):
        alphas = found.loc[found["exact"].astype(bool) == exact, "alpha"].clip(*reach)
        ax.plot(alphas, np.full(len(alphas), height), marker, color=color, markersize=size, markeredgewidth=1.4)


@says_if_empty(NO_EDIT)
def misleading_correlation(curves: pd.DataFrame, correlation: pd.DataFrame, concept: str) -> Figure:
    """One curve read from its two sides, and the correlation over concepts in each range of doses."""
    mine = (curves["concept"] == concept) & (curves["arm"] == "poles") & ~curves["preserve_sparsity"]
    curve = curves[mine].dropna(subset=["aedp", "relative"]).sort_values("alpha")
    if curve.empty:
        return nothing_to_draw(f"The poles of {concept} have no distance that could be told from the error.")
    figure, (left, right) = panels(2, 1, width=9.2, height=3.9, width_ratios=(1, 1.25))
    left.plot("aedp", "relative", data=curve, color="#bbbbbb", linewidth=1)
    for part, end, aligned, label, color in (
        (curve[curve["alpha"] <= 0], 0, "left", "moving together", COLORS["accent"]),
        (curve[curve["alpha"] >= 0], -1, "right", "moving apart", COLORS["poles"]),
    ):
        style = {"scatter_kws": {"s": 16, "alpha": 1}, "line_kws": {"linestyle": ":", "linewidth": 1.8}}
        sns.regplot(part, x="aedp", y="relative", ci=None, color=color, ax=left, **style)
        place = curve[["aedp", "relative"]].iloc[end]
        left.annotate(
            f"  {label}  ", place, (0, 5), textcoords="offset points", ha=aligned, color=color, fontsize=SMALL
        )
    start = curve.loc[curve["alpha"] == 0, ["aedp", "relative"]].iloc[0]
    left.scatter(*start, s=70, facecolor="none", edgecolor="black", zorder=4)
    left.annotate("no edit", start, xytext=(0, -14), textcoords="offset points", fontsize=SMALL)
    left.set(xlabel="average distance of poles (latent units)", ylabel="squared error, relative to no edit")
    left.set_title(f"One concept: {concept}")
    dense = correlation[~correlation["preserve_sparsity"]].groupby(["range", "arm", "concept"], sort=False)["r"].mean()
    dense = dense.reset_index().replace({"arm": NAMES}).assign(range=lambda t: t["range"].str.replace(" (", "\n("))
    arms = {NAMES[arm]: COLORS[arm] for arm in ARMS}
    style = {"hue_order": list(arms), "palette": arms, "dodge": True, "jitter": False, "alpha": 0.75}
    sns.stripplot(dense, x="r", y="range", hue="arm", ax=right, **style)
    right.axvline(0, **ZERO)
    right.axvspan(-0.97, -0.89, color="#999999", alpha=0.25, linewidth=0)
    right.annotate("reported by the paper", (-0.87, -0.6), ha="left", fontsize=SMALL, color="#555555")
    right.set(xlim=(-1.12, 1.12), ylim=(None, -0.85), xticks=np.linspace(-1, 1, 5), ylabel="")
    right.set(xlabel="correlation of pole distance with error", title="Every concept, four ranges of doses")
    right.yaxis.grid(True)
    right.get_legend().remove()
    figure.legend(*right.get_legend_handles_labels(), ncols=4, **BELOW)
    return figure


@says_if_empty(NO_EDIT, known="mse")
def search_courses(searches: pd.DataFrame) -> Figure:
    """Courses of the gradient searches: the distance they change, its scale-free reading, and the error they cause."""
    figure, axes = panels(3, 1, width=9.6, height=3.4)
    columns = ("aedp", "separation_scale_free", "mse")
    labels = ("average distance of poles\n(relative to no edit)", "scale-free separation\n(difference from no edit)")
    for ax, column, label in zip(axes, columns, (*labels, "squared error\n(relative to no edit)"), strict=True):
        start = searches.groupby(["concept", "restart", "search", "direction"])[column].transform("first")
        shown = searches[column] - start if column == "separation_scale_free" else searches[column] / start
        for ((search, direction), name), color in zip(SEARCHES.items(), SEARCH_COLORS, strict=True):
            part = searches.assign(shown=shown)[(searches["search"] == search) & (searches["direction"] == direction)]
            style = {"color": color, "linestyle": "--" if search == "random" else "-", "legend": False}
            sns.lineplot(part, x="step", y="shown", label=name, ax=ax, **EXTENT, **style)
        ax.set(xlabel="gradient step", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, **BELOW)
    return figure


def spliced_effects(losses: pd.DataFrame) -> Figure:
    """Cross-entropy change at the word and after it, with and without the SAE's error term, by arm and dose."""
    losses = losses.dropna(subset="ce_change")
    if losses.empty:
        return nothing_to_draw("No edit was spliced into the model where it predicts something.")
    doses = sorted(set(losses["alpha"]) - {0})
    order = ["no edit", *(in_prose(f"{NAMES[arm]} {alpha:+g}") for arm in ARMS for alpha in doses)]
    places = [place for place in ("concept", "after") if place in set(losses["position"])]
    figure, axes = panels(2, len(places), width=9.2, height=3.3, sharey=True, sharex=True, squeeze=False)
    for ax, (place, error_term) in zip(axes.flat, itertools.product(places, (False, True)), strict=True):
        part = losses.assign(edit=edit_names(losses).map(in_prose))[
            (losses["position"] == place) & (losses["error_term"] == error_term)
        ]
        style = {"x": "ce_change", "y": "edit", "hue": "arm", "order": order, "legend": False, "ax": ax}
        style["palette"] = COLORS | {"unedited": "black"}
        sns.stripplot(part, **style, size=4, alpha=0.35, jitter=False)
        sns.pointplot(part, **style, errorbar=None, linestyle="none", markersize=7)
        ax.axvline(0, **ZERO)
        ax.yaxis.grid(True)
        ax.set_xscale("symlog", linthresh=0.1)
        what = "Edit added to the true activations" if error_term else "Edited reconstruction alone"
        where = "predictions at the word" if place == "concept" else "predictions after it"
        ax.set(xlabel="change of cross-entropy (nats per token)", ylabel="", title=f"{what},\n{where}")
    return figure


NOT_TRAINED = "No autoencoder was trained for separation."


@says_if_empty(NOT_TRAINED)
def training_changes(trained: pd.DataFrame) -> Figure:
    """What each coefficient changes against coefficient 0: dots are seeds, bars the mean and its 95 % interval."""
    figure, axes = panels(3, 1, width=9.6, height=3.5)
    words = {"train": "trained words", "words": "unseen words", "sentences": "unseen sentences"}
    shown = {
        "Scale-free separation": ("separation_train", "separation_words"),
        "Explained variance, text": ("explained_variance",),
        "Explained variance, words": ("ev_train", "ev_words", "ev_sentences"),
    }
    wide = trained.set_index(["seed", "coefficient"])
    change = wide.select_dtypes("number") - wide.xs(0.0, level="coefficient").select_dtypes("number")
    palette = (COLORS["sae"], COLORS["accent"], COLORS["random_direction"])
    for ax, (title, columns) in zip(axes, shown.items(), strict=True):
        part = change[[*columns]].rename(columns=lambda name: words.get(name.split("_")[1], "running text"))
        part = part.melt(ignore_index=False, var_name="on").reset_index()
        style = {"x": "coefficient", "y": "value", "hue": "on", "palette": palette[: len(columns)], "ax": ax}
        sns.stripplot(part, **style, dodge=True, jitter=False, size=3.5, alpha=0.4, legend=False)
        dodge = 0.8 - 0.8 / len(columns)  # where stripplot puts them
        interval = {"errorbar": lambda values: paired_interval(values)[1:], "capsize": 0.12}
        sns.pointplot(part, **style, **interval, dodge=dodge, markersize=5, linewidth=1.8, err_kws={"linewidth": 1.5})
        ax.axhline(0, **ZERO)
        if ax.legend_ is not None:
            ax.legend_.remove()
        if trained["seed"].nunique() < 2:
            note(ax, "no interval: one seed")
        ax.set(xlabel="coefficient of the separation term", ylabel="", title=title)
        ax.set_xticks(ax.get_xticks(), [in_prose(label.get_text()) for label in ax.get_xticklabels()])
    axes[0].set_ylabel("difference from coefficient 0")
    figure.legend(*axes[2].get_legend_handles_labels(), ncols=3, **BELOW)  # text of the middle panel has one colour
    return figure


@says_if_empty(NOT_TRAINED, known="separation")
def natural_variation(natural: pd.DataFrame) -> Figure:
    """Without any separation term: both over training, and their deviations from the mean of each step."""
    figure, (left, right) = panels(2, 1, width=9.2, height=3.6)
    pair = {"x": "separation", "y": "explained_variance"}
    dots = {**pair, "hue": "step", "palette": SEQUENTIAL, "s": 36, "linewidth": 0}
    sns.lineplot(natural, **pair, units="seed", estimator=None, sort=False, color="#bbbbbb", linewidth=1, ax=left)
    sns.scatterplot(natural, **dots, legend="full", zorder=2, ax=left)
    left.legend(title="training step")
    left.set(xlabel="scale-free separation of concepts", ylabel="explained variance, held-out text")
    left.set_title("Along training")
    right.axhline(0, **ZERO)
    right.axvline(0, **ZERO)
    at_one_step = within_levels(natural, tuple(pair.values()), "step").assign(step=natural["step"])
    sns.scatterplot(at_one_step, **dots, legend=False, ax=right)
    right.set(xlabel="separation, in standard deviations of its step", ylabel="explained variance, likewise")
    right.set_title("At one step, between seeds")
    return figure


@says_if_empty(NOT_TRAINED)
def gaming(table: pd.DataFrame) -> Figure:
    """Ratios to the start: what rewarding the raw distance buys, beside rewarding the scale-free measure."""
    figure, ax = panels(1, 1, width=8.2, height=3.0)
    ratios = gaming_ratios(table).melt(var_name="measure", ignore_index=False).reset_index()
    style = {"markers": ["o", "s", "D", "x"], "palette": [COLORS["accent"], COLORS["muted"], COLORS["sae"], "black"]}
    sns.pointplot(ratios, x="value", y="autoencoder", hue="measure", linestyle="none", ax=ax, **style)
    ax.axvline(1, **ZERO)
    ax.yaxis.grid(True)
    ax.set(xlabel="ratio to the autoencoder before", ylabel="")
    ax.get_legend().remove()
    figure.legend(*ax.get_legend_handles_labels(), ncols=4, **BELOW)
    return figure


@says_if_empty(NOT_TRAINED, known="separation")
def reversed_cause(table: pd.DataFrame) -> Figure:
    """Reconstruction improved by other means, and what separation does meanwhile."""
    figure, axes = panels(3, 1, width=9.6, height=3.3)
    for ax, (change, title) in zip(axes, CHANGES.items(), strict=True):
        part = table[table["change"] == change].sort_values("level")
        mean = part.groupby("level")[["explained_variance", "separation"]].mean().dropna()
        style = {"x": "explained_variance", "y": "separation", "sort": False, "estimator": None, "ax": ax}
        sns.lineplot(part, **style, units="seed", color="#bbbbbb", linewidth=1)
        sns.lineplot(mean, **style, color=COLORS["sae"], marker="o", markeredgewidth=0)
        for level in dict.fromkeys(mean.index[[0, -1]] if len(mean) else ()):
            ax.annotate(f"{level:g}", mean.loc[level], xytext=(4, 5), textcoords="offset points", fontsize=SMALL)
        ax.margins(0.12)
        ax.set(xlabel="explained variance, held-out text", ylabel="", title=title)
    axes[0].set_ylabel("scale-free separation")
    return figure


@says_if_empty("No effect was measured.")
def effect_forest(table: pd.DataFrame) -> Figure:
    """Every effect with its interval, in units of the interval's half width so that all fit one axis."""
    figure, ax = panels(1, 1, width=9.2, height=0.24 * len(table) + 0.9)
    # Oriented so that right is where the causal claim points.
    scale = table["claimed"] / ((table["high"] - table["low"]) / 2).replace(0, np.nan)
    centre = (table["estimate"] * scale).clip(-8, 8)
    # The interval of a correlation does not have its estimate in the middle.
    ends = [centre + (table[side] - table["estimate"]) * scale for side in ("low", "high")]
    colors = table["verdict"].map({SUPPORTED: COLORS["sae"], CONTRADICTED: COLORS["accent"]}).fillna(COLORS["muted"])
    rows = np.arange(len(table))
    ax.hlines(rows, *ends, colors, linewidth=2)
    ax.scatter(centre, rows, color=colors, s=25)
    ax.axvline(0, **ZERO)
    names = table["effect"] + "  vs " + table["control"].replace(NAMES)
    ax.set_yticks(rows, names.map(in_prose), fontsize=SMALL)
    note_missing(ax, table, why="one concept, one seed")
    label = "effect in half-widths of its 95 % interval\n(right: as the causal claim predicts)"
    ax.set(ylim=(len(table) - 0.5, -0.5), xlim=(-9.2, 9.2), xlabel=label)
    return figure


def dose_explorer(curves: pd.DataFrame, planes: pd.DataFrame) -> PlotlyFigure:
    """A plotly figure: pick a concept and a dose, and see in every arm where poles go and what becomes of the error.

    Left, poles in their principal plane (``05_planes``), the words of a cycle joined in their order; right, the error,
    with a dot on the closed form. Hovering over a measured dose tells pole distance, separation and L0.
    """
    from plotly.subplots import make_subplots

    dense = curves[~curves["preserve_sparsity"]].dropna(subset="parabola")
    if dense.empty:
        return nothing_to_show(NO_EDIT)
    doses = [float(alpha) for alpha in sorted(dense["alpha"].unique()) if alpha <= FARTHEST]
    start = doses.index(0.0) if 0.0 in doses else 0
    figure, kinds, moved = make_subplots(1, 2, horizontal_spacing=0.12), [], {}
    for concept, arm in itertools.product(dict.fromkeys(dense["concept"]), ARMS):
        errors = dense[(dense["concept"] == concept) & (dense["arm"] == arm)]
        poles = planes[(planes["concept"] == concept) & (planes["arm"] == arm)] if len(planes) else planes
        line = {"color": COLORS[arm], "width": 2.5, "dash": "solid"}
        line |= {} if arm == "poles" else {"width": 1.3, "dash": "dot"}
        figure.add_scatter(**_measured(errors), name=NAMES[arm], line=line, row=1, col=2)
        for course, look in _courses(poles, errors, arm, doses):
            moved[len(figure.data)] = course
            figure.add_scatter(**course[start], **look, line=line, marker_color=COLORS[arm], row=1)
        kinds += [concept.replace("_", " ")] * (len(figure.data) - len(kinds))
    for trace, kind in zip(figure.data, kinds, strict=True):
        trace.update(visible=kind == kinds[0], showlegend=trace.mode == "markers")
    steps = {}
    for i, dose in enumerate(doses):
        now = {key: [course[i][key] for course in moved.values()] for key in ("x", "y", "name")}
        steps[in_prose(f"{dose:+.2f}")] = now, list(moved)
    reach = 1.2 * (1 + FARTHEST)
    figure.update_xaxes(visible=False, range=[-reach, reach], constrain="domain", col=1)
    figure.update_yaxes(visible=False, range=[-reach, reach], constrain="domain", scaleanchor="x", col=1)
    figure.update_xaxes(title="dose alpha", range=[dense["alpha"].min() - 0.1, dense["alpha"].max() + 0.1], col=2)
    figure.update_yaxes(title="squared error, relative to no edit", range=[0.95, 1.8], col=2)
    figure.update_layout(margin={"t": 15, "r": 10, "l": 10, "b": 65})
    return steered(figure, 400, menus=[menu("concept", kinds)], sliders=[slider("dose", steps, start)])


def _measured(errors: pd.DataFrame) -> dict[str, Any]:
    """A curve through the doses that were measured, to hover over."""
    read = ["aedp", "separation_scale_free", "l0"]
    curve = errors.groupby("alpha")[["relative", *read]].mean().reset_index()
    hover = "alpha %{x:.2f}<br>error %{y:.3f} of no edit<br>pole distance %{customdata[0]:.3g}"
    hover += "<br>scale-free separation %{customdata[1]:.3f}<br>L0 %{customdata[2]:.0f}"
    places = {"x": curve["alpha"], "y": curve["relative"], "customdata": curve[read].to_numpy()}
    return {**places, "mode": "lines+markers", "marker": {"size": 4}, "hovertemplate": hover}


def _courses(
    poles: pd.DataFrame, errors: pd.DataFrame, arm: str, doses: Sequence[float]
) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """What moves with the dose in one arm of one concept, at each dose, and its look: the poles, the dot, the words."""
    rings = [_poles_at(poles, dose, NAMES[arm]) for dose in doses]
    dots = [_dot_at(poles, errors, arm, dose) for dose in doses]
    size, rim = 9 if arm == "poles" else 5, {"color": "white", "width": 1.5}
    courses = [
        (rings, {"mode": "lines+markers", "marker": {"size": size}, "hoverinfo": "text", "col": 1}),
        (dots, {"mode": "markers", "marker": {"size": 12, "line": rim}, "hoverinfo": "skip", "col": 2}),
    ]
    if arm == "poles":
        # Words wait where the poles were until these come back: in one point nobody could read them.
        words = [_poles_at(poles, max(dose, 0.0), "") for dose in doses]
        look = {"mode": "markers+text", "marker": {"size": size, "opacity": 0}, "cliponaxis": False}
        courses.append((words, {**look, "hoverinfo": "skip", "col": 1}))
    return courses


def _moved(poles: pd.DataFrame, dose: float) -> tuple[np.ndarray, np.ndarray]:
    """Places of a concept's poles at a dose, in a frame that the poles arm fills at the last one; and in the cycle."""
    unmoved, step = poles[["x", "y"]].to_numpy(), poles[["step_x", "step_y"]].to_numpy()
    middle, reach = (unmoved.max(axis=0) + unmoved.min(axis=0)) / 2, np.ptp(unmoved, axis=0).max() / 2
    return (unmoved + dose * step - (1 + FARTHEST) * middle) / (reach or 1), poles["place"].to_numpy()


def _poles_at(poles: pd.DataFrame, dose: float, name: str) -> dict[str, Any]:
    """The poles of one concept at a dose of an arm: the words of a cycle as a ring, others alone."""
    if not len(poles):
        return {"x": [], "y": [], "name": name}
    points, place = _moved(poles, dose)
    order = np.argsort(np.where(place < 0, place.max() + 1, place), kind="stable")
    words = list(poles["word"].astype(str).iloc[order])
    return ring(points[order], words, int((place >= 0).sum())) | {"name": name}


def _dot_at(poles: pd.DataFrame, errors: pd.DataFrame, arm: str, dose: float) -> dict[str, Any]:
    """The dot on the closed form of one concept's error in an arm, named for what it says, and what a cycle says."""
    error = errors.loc[errors["alpha"] == dose, "parabola"].mean()
    says = f"{NAMES[arm]}: error {written(error, '.3f')}"
    points, place = _moved(poles, dose) if len(poles) else (np.zeros((0, 2)), np.zeros(0))
    around = points[place >= 0]
    if len(points) > 1 and np.ptp(points, axis=0).max() < NOWHERE:
        says += ", all poles in one point"
    elif len(around) >= MIN_MEMBERS:
        score = cyclic_score(around - around.mean(axis=0), place[place >= 0], int(poles["period"].iloc[0]))
        says += f", circularity {score:.2f}"
    return {"x": [dose], "y": [round(error, 4)], "name": says}
