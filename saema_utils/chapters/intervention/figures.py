"""Figures of chapter 5: doses, searches, splicing, and training for separability."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saema_utils.chapters.intervention.findings import STOPS, with_parabola
from saema_utils.figures import COLORS, NAMES, SEQUENTIAL, line_style, panels
from saema_utils.intervention.edits import ARMS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as PlotlyFigure

MARKERS = {"poles": "o", "random_direction": "s", "permuted_labels": "^", "global_scaling": "D", "unedited": "x"}
SEARCH_NAMES = {
    ("aedp", "raise"): "raise pole distance", ("aedp", "lower"): "lower pole distance",
    ("gromov_wasserstein", "raise"): "bend their shape (GW up)",
    ("gromov_wasserstein", "lower"): "towards the residual's shape (GW down)",
    ("random", "raise"): "random, equal size",
}  # fmt: skip
SEARCH_COLORS = {
    ("aedp", "raise"): COLORS["poles"], ("aedp", "lower"): COLORS["accent"],
    ("gromov_wasserstein", "raise"): COLORS["permuted_labels"],
    ("gromov_wasserstein", "lower"): COLORS["residual"], ("random", "raise"): COLORS["random_direction"],
}  # fmt: skip


def _relative(doses: pd.DataFrame, column: str = "mse") -> pd.DataFrame:
    """The column over its value at alpha = 0 of the same curve."""
    keys = ["concept", "arm", "seed", "preserve_sparsity"]
    start = doses[doses["alpha"] == 0].set_index(keys)[column]
    out = doses.copy()
    out["relative"] = out[column].to_numpy() / start.reindex(out.set_index(keys).index).to_numpy()
    return out


def dose_curves(doses: pd.DataFrame, best: pd.DataFrame, ceiling: float = 1.6) -> Figure:
    """Relative error of every arm against dose, mean and range over concepts, with each arm's best dose.

    Dots are measured. Through them goes the closed form where it is the curve; where latents that stop have bent the
    curve away, dots are joined by straight lines. A tick is a best dose at which the closed form holds, a cross one
    at which a latent has already stopped.
    """
    figure, axes = panels(2, 1, width=9.2, height=4.0, sharey=True)
    table = with_parabola(_relative(doses), best)
    titles = ("All latents may move", "Support kept: latents stop at zero")
    for ax, preserve, title in zip(axes, (False, True), titles, strict=True):
        ax.axhline(1, color="#bbbbbb", linewidth=1)
        ax.axvline(0, color="#bbbbbb", linewidth=1)
        ax.set_ylim(0.965, ceiling)
        for row, arm in enumerate(reversed(ARMS)):
            part = table[(table["arm"] == arm) & (table["preserve_sparsity"].astype(bool) == preserve)]
            curve = part.groupby(["alpha", "concept"])["relative"].mean().unstack("concept").sort_index()
            mean = curve.mean(axis=1)
            x, y = mean.index.to_numpy(), mean.to_numpy()
            if part["misfit"].max() <= STOPS:  # the mean of parabolas is one, and three of its points tell it
                x = np.linspace(x.min(), x.max(), 200)
                y = np.polyval(np.polyfit(part["alpha"], part["parabola"], 2), x)
            ax.plot(x, y, label=NAMES[arm], **line_style(arm))
            ax.plot(mean.index, mean, ".", color=COLORS[arm], markersize=4)
            ax.fill_between(
                mean.index, curve.min(axis=1), curve.max(axis=1), color=COLORS[arm], alpha=0.13, linewidth=0
            )
            _best_doses(ax, best[(best["arm"] == arm) & (best["preserve_sparsity"].astype(bool) == preserve)],
                        0.972 + 0.006 * row, COLORS[arm], (doses["alpha"].min(), doses["alpha"].max()))  # fmt: skip
        ax.set_xlabel("dose alpha (poles at 1 + alpha times their distance)")
        ax.set_title(title)
    axes[0].set_ylabel("squared error, relative to no edit")
    axes[1].annotate(
        "ticks: best doses", (0.99, 0.015), xycoords="axes fraction", ha="right", va="bottom",
        fontsize=8, color="#666666",
    )  # fmt: skip
    # Curves leave the panels through the ceiling close together: names beside their ends would collide.
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside lower center", ncols=len(ARMS), frameon=False)
    return figure


def _best_doses(ax: Axes, rows: pd.DataFrame, height: float, color: str, reach: tuple[float, float]) -> None:
    """One mark a concept: a tick where the closed form holds for every draw, else a cross."""
    found = rows.groupby("concept").agg(alpha=("alpha_star", "mean"), exact=("exact", "all"))
    for exact, marker, size in ((True, "|", 7), (False, "x", 5)):
        alphas = found.loc[found["exact"].astype(bool) == exact, "alpha"].clip(*reach)
        ax.plot(alphas, np.full(len(alphas), height), marker, color=color, markersize=size, markeredgewidth=1.4)


def misleading_correlation(doses: pd.DataFrame, correlation: pd.DataFrame, concept: str) -> Figure:
    """One curve read three ways, and the correlation over concepts in each range of doses."""
    figure, (left, right) = panels(2, 1, width=9.2, height=3.7, width_ratios=(1, 1.25))
    dense = _relative(doses[~doses["preserve_sparsity"].astype(bool) & (doses["concept"] == concept)])
    curve = dense[dense["arm"] == "poles"].sort_values("alpha")
    together, apart = curve[curve["alpha"] <= 0], curve[curve["alpha"] >= 0]
    left.plot(curve["aedp"], curve["relative"], color="#bbbbbb", linewidth=1)
    for part, color, label in (
        (together, COLORS["accent"], "moving together"),
        (apart, COLORS["poles"], "moving apart"),
    ):
        left.scatter(part["aedp"], part["relative"], s=16, color=color, zorder=3)
        fit = np.polyfit(part["aedp"], part["relative"], 1)
        left.plot(part["aedp"], np.polyval(fit, part["aedp"]), color=color, linestyle=":")
        end = part.iloc[0] if label == "moving together" else part.iloc[-1]
        left.annotate(
            label, (end["aedp"], end["relative"]), xytext=(6, 6) if part is together else (-6, 4),
            textcoords="offset points", ha="left" if part is together else "right", color=color, fontsize=9,
        )  # fmt: skip
    start = curve[curve["alpha"] == 0].iloc[0]
    left.scatter([start["aedp"]], [start["relative"]], s=70, facecolor="none", edgecolor="black", zorder=4)
    left.annotate(
        "no edit", (start["aedp"], start["relative"]), xytext=(0, -14), textcoords="offset points", fontsize=9
    )
    left.set_xlabel("average distance of poles (latent units)")
    left.set_ylabel("squared error, relative to no edit")
    left.set_title(f"One concept: {concept}")
    dense = correlation[~correlation["preserve_sparsity"].astype(bool)]
    ranges = list(dict.fromkeys(dense["range"]))
    for offset, arm in enumerate(ARMS):
        part = dense[dense["arm"] == arm].groupby(["range", "concept"])["r"].mean().reset_index()
        y = [ranges.index(name) + 0.18 * (offset - 1.5) for name in part["range"]]
        right.scatter(part["r"], y, s=22, marker=MARKERS[arm], color=COLORS[arm], alpha=0.75, label=NAMES[arm])
    right.axvline(0, color="#888888", linewidth=1)
    right.axvspan(-0.97, -0.89, color="#999999", alpha=0.25, linewidth=0)
    right.annotate("reported by the paper", (-0.87, -0.5), ha="left", fontsize=8, color="#555555")
    right.set_yticks(range(len(ranges)), [name.replace(" (", "\n(") for name in ranges])
    right.set_ylim(len(ranges) - 0.5, -0.75)
    right.set_xlim(-1.12, 1.12)
    right.set_xlabel("correlation of pole distance with error")
    right.set_title("Every concept, four ranges of doses")
    right.legend(
        loc="upper center", bbox_to_anchor=(0.4, -0.17), ncol=4, fontsize=8, handletextpad=0.2, columnspacing=1
    )
    return figure


def search_courses(searches: pd.DataFrame) -> Figure:
    """Courses of the gradient searches: the distance they change, its scale-free reading, and the error they cause."""
    figure, axes = panels(3, 1, width=10.2, height=3.4)
    columns = (
        ("aedp", "average distance of poles\n(relative to no edit)"),
        ("separation_scale_free", "scale-free separation\n(difference from no edit)"),
        ("mse", "squared error\n(relative to no edit)"),
    )
    for ax, (column, label) in zip(axes, columns, strict=True):
        for (objective, direction), name in SEARCH_NAMES.items():
            part = searches[(searches["search"] == objective) & (searches["direction"] == direction)]
            if part.empty:
                continue
            wide = part.pivot_table(index="step", columns=["concept", "restart"], values=column)
            shown = wide - wide.loc[0] if column == "separation_scale_free" else wide / wide.loc[0]
            color = SEARCH_COLORS[objective, direction]
            style = "--" if objective == "random" else "-"
            ax.plot(shown.index, shown.mean(axis=1), color=color, linestyle=style, label=name)
            low, high = shown.min(axis=1), shown.max(axis=1)
            ax.fill_between(shown.index, low, high, color=color, alpha=0.1, linewidth=0)
        ax.set_xlabel("gradient step")
        ax.set_title(label, fontsize=10, fontweight="normal")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=3, fontsize=8.5)
    return figure


def spliced_effects(losses: pd.DataFrame) -> Figure:
    """Cross-entropy change at the word and after it, with and without the SAE's error term, by arm and dose."""
    figure, axes = panels(2, 1, width=9.2, height=3.8, sharey=True)
    titles = ((False, "Edited reconstruction alone"), (True, "Edit added to the true activations"))
    order = [("unedited", 0.0)] + [(a, d) for a in ARMS for d in sorted(losses["alpha"].unique()) if d != 0]
    for ax, (error_term, title) in zip(axes, titles, strict=True):
        part = losses[losses["error_term"].astype(bool) == error_term]
        for row, (arm, alpha) in enumerate(order):
            color = COLORS.get(arm, "black")
            for position, fill, shift in (("concept", color, -0.14), ("after", "white", 0.14)):
                here = part[(part["arm"] == arm) & (part["alpha"] == alpha) & (part["position"] == position)]
                values = here["ce_change"].dropna()
                if values.empty:
                    continue
                ax.plot(values, np.full(len(values), row + shift), ".", color=color, alpha=0.3, markersize=4)
                ax.plot(
                    values.mean(), row + shift, MARKERS[arm], color=color, markerfacecolor=fill, markersize=7,
                    label=("predictions at the word" if position == "concept" else "predictions after it")
                    if row == 1 and not error_term else None,
                )  # fmt: skip
        ax.axvline(0, color="#888888", linewidth=1)
        ax.set_xscale("symlog", linthresh=0.1)
        ax.set_xlabel("change of cross-entropy (nats per token)")
        ax.set_title(title)
    names = [f"{NAMES.get(arm, arm)} {alpha:+g}" if alpha else "no edit" for arm, alpha in order]
    axes[0].set_yticks(range(len(order)), names)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=2, fontsize=8.5)
    return figure


def coefficient_sweep(sweep: pd.DataFrame, effects: pd.DataFrame) -> Figure:
    """What training for separability changes, paired by seed: separation gained, explained variance gained or lost.

    ``effects`` (``05_coefficient_effects``) gives means and intervals, ``sweep`` each seed's line behind them.
    """
    figure, axes = panels(3, 1, width=10.2, height=3.5)
    columns = (
        (("separation_train", "trained words"), ("separation_words", "unseen words")),
        (("explained_variance", "running text"),),
        (("ev_train", "trained words"), ("ev_words", "unseen words"), ("ev_sentences", "unseen sentences")),
    )
    titles = ("Scale-free separation", "Explained variance, running text", "Explained variance, concept words")
    palette = (COLORS["sae"], COLORS["accent"], COLORS["random_direction"])
    for ax, lines, title in zip(axes, columns, titles, strict=True):
        for (column, name), color in zip(lines, palette, strict=False):
            wide = sweep.pivot(index="coefficient", columns="seed", values=column)
            change = wide - wide.loc[0.0]
            shift = 0.12 * (lines.index((column, name)) - (len(lines) - 1) / 2)
            x = np.arange(len(change)) + shift  # side by side, so that no interval hides another
            found = effects[effects["measure"] == column].set_index("coefficient").reindex(change.index)
            mean = found["estimate"].fillna(0.0)
            reach = np.abs(found[["low", "high"]].sub(mean, axis=0)).fillna(0.0).to_numpy().T
            ax.plot(x, change.to_numpy(), color=color, alpha=0.3, linewidth=0.9)
            ax.errorbar(x, mean, yerr=reach, color=color, marker="o", markersize=4, capsize=3, label=name)
        ax.axhline(0, color="#888888", linewidth=1)
        ax.set_xticks(np.arange(len(change)), [f"{c:+g}" if c else "0" for c in change.index])
        ax.set_xlabel("coefficient of the separation term")
        ax.set_title(title, fontsize=10)
        if len(lines) > 1:
            ax.legend(fontsize=8)
    axes[0].set_ylabel("difference from coefficient 0")
    return figure


def natural_variation(natural: pd.DataFrame) -> Figure:
    """Without any separation term: both over training, and their deviations from the mean of each step."""
    figure, (left, right) = panels(2, 1, width=9.2, height=3.6)
    steps = natural["step"].unique()
    for _, course in natural.groupby("seed"):
        left.plot(course["separation"], course["explained_variance"], color="#bbbbbb", linewidth=1, zorder=1)
    dots = left.scatter(
        natural["separation"],
        natural["explained_variance"],
        c=np.log10(natural["step"]),
        cmap=SEQUENTIAL,
        s=26,
        zorder=2,
    )
    bar = figure.colorbar(dots, ax=left, label="training step", ticks=np.log10([steps.min(), steps.max()]))
    bar.ax.set_yticklabels([f"{steps.min()}", f"{steps.max()}"])
    left.set_xlabel("scale-free separation of concepts")
    left.set_ylabel("explained variance, held-out text")
    left.set_title("Along training, both move")
    groups = natural.groupby("step")[["separation", "explained_variance"]]
    centred = (natural[["separation", "explained_variance"]] - groups.transform("mean")) / groups.transform("std")
    right.axhline(0, color="#cccccc", linewidth=1)
    right.axvline(0, color="#cccccc", linewidth=1)
    right.scatter(
        centred["separation"], centred["explained_variance"], c=np.log10(natural["step"]), cmap=SEQUENTIAL, s=26
    )
    right.locator_params(axis="x", nbins=5)
    right.set_xlabel("separation, in standard deviations of its step")
    right.set_ylabel("explained variance, likewise")
    right.set_title("At one step, between seeds")
    return figure


def gaming(table: pd.DataFrame) -> Figure:
    """Ratios to the start: what rewarding the raw distance buys, beside rewarding the scale-free measure."""
    figure, ax = panels(1, 1, width=8.2, height=3.0)
    measures = (
        ("aedp", "pole distance (AEDP)", "o"), ("latent_rms", "size of the latents", "s"),
        ("separation", "scale-free separation", "D"), ("unexplained", "unexplained variance of the words", "x"),
    )  # fmt: skip
    shown = table.assign(unexplained=1 - table["ev_train"])
    first = shown.iloc[0]
    rows = shown.iloc[1:]
    colors = (COLORS["accent"], COLORS["muted"], COLORS["sae"], "black")
    for (column, name, marker), color in zip(measures, colors, strict=True):
        ratio = rows[column] / first[column]
        ax.plot(ratio, np.arange(len(rows)), marker, color=color, markersize=8, linestyle="none", label=name)
    ax.axvline(1, color="#888888", linewidth=1)
    ax.set_yticks(range(len(rows)), rows["autoencoder"])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("ratio to the autoencoder before")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.22), ncol=4, fontsize=8, columnspacing=1, handletextpad=0.2)
    return figure


def reversed_cause(table: pd.DataFrame) -> Figure:
    """Reconstruction improved by other means, and what separation does meanwhile."""
    figure, axes = panels(3, 1, width=10.2, height=3.3)
    titles = {"steps": "More training steps", "k": "More active latents (k)", "width": "A wider dictionary"}
    for ax, (change, title) in zip(axes, titles.items(), strict=True):
        part = table[table["change"] == change].sort_values("level")
        for _, course in part.groupby("seed"):
            ax.plot(course["explained_variance"], course["separation"], color="#bbbbbb", linewidth=1)
        mean = part.groupby("level")[["explained_variance", "separation"]].mean()
        ax.plot(mean["explained_variance"], mean["separation"], color=COLORS["sae"], marker="o", markersize=4)
        for level in (mean.index[0], mean.index[-1]):
            point = mean.loc[level]
            ax.annotate(
                f"{level:g}", (point["explained_variance"], point["separation"]), xytext=(4, 5),
                textcoords="offset points", fontsize=8.5,
            )  # fmt: skip
        ax.margins(0.12)
        ax.set_xlabel("explained variance, held-out text")
        ax.set_title(title, fontsize=10)
    axes[0].set_ylabel("scale-free separation")
    return figure


def effect_forest(table: pd.DataFrame) -> Figure:
    """Every effect with its interval, in units of the interval's half width so that all fit one axis."""
    figure, ax = panels(1, 1, width=9.6, height=0.24 * len(table) + 0.9)
    colors = {"supports": COLORS["sae"], "contradicts": COLORS["accent"]}
    # Oriented so that right is where the causal claim points.
    scale = table["claimed"] / ((table["high"] - table["low"]) / 2).replace(0, np.nan)
    centre = (table["estimate"] * scale).clip(-8, 8)
    # The interval of a correlation does not have its estimate in the middle.
    ends = [centre + (table[side] - table["estimate"]) * scale for side in ("low", "high")]
    for row, (value, low, high, verdict) in enumerate(zip(centre, *ends, table["verdict"], strict=True)):
        color = colors.get(verdict, COLORS["muted"])
        ax.plot([low, high], [row, row], color=color, linewidth=2)
        ax.plot(value, row, "o", color=color, markersize=5)
    ax.axvline(0, color="#444444", linewidth=1)
    ax.set_yticks(range(len(table)), [_contrast(r) for r in table.itertuples()], fontsize=7.5)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlim(-9.2, 9.2)
    ax.set_xlabel("effect in half-widths of its 95 % interval (right: as the causal claim predicts)")
    return figure


def _contrast(row) -> str:
    return f"{row.effect}  vs {NAMES.get(row.control, row.control)}"


def interactive_dose_response(table: pd.DataFrame) -> PlotlyFigure:
    """A plotly figure: pick a concept, hover over any arm's dose to read distance, separation, error and L0."""
    import plotly.graph_objects as go

    dense = _relative(table[~table["preserve_sparsity"].astype(bool)])
    concepts = list(dict.fromkeys(dense["concept"]))
    figure = go.Figure()
    for concept in concepts:
        for arm in ARMS:
            part = dense[(dense["concept"] == concept) & (dense["arm"] == arm)]
            curve = part.groupby("alpha")[["relative", "aedp", "separation_scale_free", "l0"]].mean().reset_index()
            figure.add_scatter(
                x=curve["alpha"], y=curve["relative"], name=NAMES[arm], mode="lines+markers", marker={"size": 5},
                line={"color": COLORS[arm], "dash": "solid" if arm == "poles" else "dash"},
                visible=concept == concepts[0], customdata=curve[["aedp", "separation_scale_free", "l0"]].to_numpy(),
                hovertemplate="alpha %{x:.2f}<br>error %{y:.3f} of no edit<br>pole distance %{customdata[0]:.3g}"
                "<br>scale-free separation %{customdata[1]:.3f}<br>L0 %{customdata[2]:.0f}",
            )  # fmt: skip
    buttons = [
        {
            "label": concept, "method": "update",
            "args": [{"visible": [other == concept for other in concepts for _ in ARMS]}],
        }
        for concept in concepts
    ]  # fmt: skip
    figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.18, "yanchor": "top"}],
        xaxis_title="dose alpha", yaxis_title="squared error, relative to no edit", yaxis_range=[0.95, 1.8],
        legend={"orientation": "h", "y": -0.22}, margin={"t": 60, "r": 10}, height=430,
    )  # fmt: skip
    return figure
