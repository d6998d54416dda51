"""Figures of chapter 1: norms and sinks, what a sink does to variance, and maps of words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saema_utils.figures import (
    COLORS,
    CYCLIC,
    DIVERGING,
    GREY,
    SMALL,
    direct_label,
    keep_apart,
    nothing_to_draw,
    panels,
    says_if_empty,
    span,
    write_beside,
)
from saema_utils.interactive import interactive as interactive  # for the page
from saema_utils.interactive import menu, nothing_to_show, slider, steered
from saema_utils.model.residual_stream import SINK_FACTOR
from saema_utils.statistics import written
from saema_utils.wording import in_prose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plotly.graph_objects import Figure as PlotlyFigure

_KINDS = {"first": COLORS["accent"], "sink": COLORS["pca"], "ordinary": COLORS["residual"]}
_NAMES = ("first position", "later sink", "ordinary token")
_SIZES = dict(zip(_KINDS, (26, 26, 10), strict=True))
_CONCEPT_COLORS = (COLORS["sae"], COLORS["accent"])
_DRAWN = 1000
_NO_MAP = "No concept of this study has four words or more, so there is no map to draw."


@says_if_empty("No token was captured.", known="ratio")
def norms_by_position(table: pd.DataFrame) -> Figure:
    """Norm of every token against its position, in sentences and in prompts of one bare word."""
    figure, axes = panels(2, width=7.2, height=3.4, sharey=True, width_ratios=[3, 2])
    rng = np.random.default_rng(0)
    for ax, (context, title) in zip(axes, (("sentence", "In sentences"), ("bare word", "A word alone")), strict=True):
        shown = table[table["context"] == context]
        # All that stand out, and of the dense middle a random part.
        shown = shown[~shown["ratio"].between(0.8, 1.4) | (rng.random(len(shown)) < _DRAWN / max(len(shown), 1))]
        spread = shown["position"] + rng.uniform(-0.22, 0.22, len(shown))
        look = {"hue": "kind", "palette": _KINDS, "hue_order": _KINDS, "size": "kind", "sizes": _SIZES}
        sns.scatterplot(shown, x=spread, y="ratio", alpha=0.6, linewidth=0, **look, ax=ax)
        ax.axhline(SINK_FACTOR, color=COLORS["muted"], linestyle="--", linewidth=1)
        ax.set(yscale="log", title=title, xlabel="position in the prompt (tokens)", ylabel="norm / median norm")
        ax.xaxis.get_major_locator().set_params(integer=True)
        _name_sinks(ax, shown[shown["kind"] == "sink"])
    above = f"masked above {SINK_FACTOR:g} times the median"
    right = {"xytext": (-2, 6), "xycoords": axes[0].get_yaxis_transform(), "ha": "right", "fontsize": SMALL}
    direct_label(axes[0], 1, SINK_FACTOR, above, GREY, **right)
    handles, _ = axes[0].get_legend_handles_labels()
    figure.legend(handles, _NAMES, loc="outside lower center", ncols=3, fontsize=SMALL)
    for ax in axes:
        if legend := ax.get_legend():  # none where nothing was drawn
            legend.remove()
    return figure


def _name_sinks(ax: Axes, sinks: pd.DataFrame) -> None:
    """Write the tokens of the largest sinks beside them, each token once."""
    taken: list[float] = []
    for row in sinks.sort_values("ratio", ascending=False).drop_duplicates("token").head(6).itertuples():
        text = str(row.token).strip()
        # Half a character decodes to the replacement sign, which says nothing.
        if text and "\ufffd" not in text and all(abs(np.log(row.ratio / other)) > 0.25 for other in taken):
            taken.append(row.ratio)
            direct_label(ax, row.position + 0.25, row.ratio, f"“{text}”", "black", fontsize=SMALL)


@says_if_empty("No variance was measured.", known="share")
def variance_with_and_without_sink(table: pd.DataFrame) -> Figure:
    """Cumulative share of variance, masked and with one sink let in; bands from concept to concept."""
    figure, ax = panels(width=6.2, height=3.2)
    colors, last = {"masked": COLORS["residual"], "one sink let in": COLORS["accent"]}, table["components"].max()
    look = {"hue": "tokens", "palette": colors, "style": "tokens", "style_order": list(colors), "legend": False}
    sns.lineplot(table, x="components", y="share", errorbar=("pi", 100), **look, ax=ax)
    for tokens, share in table[table["components"] == last].groupby("tokens")["share"].mean().items():
        direct_label(ax, last, share, tokens, colors[tokens])
    ax.set(xlabel="principal components", ylabel="share of the variance", ylim=(0, 1.04), xlim=(1, max(last, 2)))
    ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def word_circles(table: pd.DataFrame, layer: int) -> Figure:
    """The words of each concept in their principal plane, joined in their order, at the studied layer and three others.

    A plane has no up and no handedness of its own: each panel is turned so that the first word stands
    on top, and mirrored if that makes the words run clockwise.
    """
    table = table.dropna(subset=["x", "y"])
    if table.empty:
        return nothing_to_draw(_NO_MAP)
    concepts, last = list(table["concept"].unique()), int(table["layer"].max())
    layers = sorted({0, last // 4, layer, last})
    figure, axes = panels(len(layers), len(concepts), width=8.0, height=2.5, squeeze=False)
    for row, concept in zip(axes, concepts, strict=True):
        for ax, shown in zip(row, layers, strict=True):
            part = table[(table["concept"] == concept) & (table["layer"] == shown)]
            if part.empty:
                ax.set_visible(False)
                continue
            _word_map(ax, part[["x", "y"]].to_numpy(), [str(word) for word in part["word"]])
            order, share = part["cyclic_order"].iloc[0], part["plane_share"].iloc[0]
            ax.set_title(f"layer {shown}", fontsize=SMALL, loc="center", pad=2)
            text = f"in order {written(order, '.0%')}\nplane holds {written(share, '.0%')}"
            ax.set_xlabel(in_prose(text), fontsize=SMALL, color=GREY)
        row[0].set_ylabel(concept, fontsize=11, fontweight="bold")
    keep_apart(figure)
    return figure


def _upright(points: np.ndarray) -> np.ndarray:
    """Turn points about their centre so that the first is on top; mirror them to run clockwise."""
    z = (points - points.mean(0)) @ np.array([1, 1j])
    z = z * (1j * np.exp(-1j * np.angle(z[0])))
    turns = np.angle(np.append(z[1:], z[:1]) / np.where(z == 0, 1, z))
    if turns.sum() > 0:
        z = -z.conj()
    return np.stack([z.real, z.imag], axis=1)


def _word_map(ax: Axes, points: np.ndarray, words: list[str]) -> None:
    points = _upright(points)
    ax.plot(*np.vstack([points, points[:1]]).T, color=COLORS["muted"], linewidth=0.9, zorder=1)
    colors = matplotlib.colormaps[CYCLIC](0.08 + 0.84 * np.arange(len(words)) / len(words))
    ax.scatter(*points.T, c=colors, s=24, zorder=2, edgecolor="white", linewidth=0.5)
    write_beside(ax, [word[:3] for word in words], points, points)
    middle, reach = (points.max(0) + points.min(0)) / 2, 0.68 * (np.ptp(points, axis=0).max() or 1)
    ax.set(xlim=middle[0] + np.array([-reach, reach]), ylim=middle[1] + np.array([-reach, reach]))
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)


def word_circles_by_layer(table: pd.DataFrame, layer: int) -> PlotlyFigure:
    """A plotly figure: the words of one concept as in :func:`word_circles`, at one layer after the other.

    Every ring is drawn as large as the panel, whatever the stream's length at its layer.
    """
    import plotly.graph_objects as go

    table = table.dropna(subset=["x", "y"])
    if table.empty:
        return nothing_to_show(_NO_MAP)
    concepts, layers = list(table["concept"].unique()), sorted(table["layer"].unique())
    figure = go.Figure()
    shown = {concept: {at: part for at, part in rows.groupby("layer")} for concept, rows in table.groupby("concept")}
    frames = {at: [_ring_at(shown[concept].get(at), concept, at) for concept in concepts] for at in layers}
    active = layers.index(layer) if layer in layers else 0
    for i, concept in enumerate(concepts):
        count = max(part["word"].nunique() for part in shown[concept].values())
        figure.add_scatter(
            **frames[layers[active]][i],
            mode="lines+markers+text",
            line={"color": COLORS["muted"], "width": 1.5},
            marker={"size": 11, "color": [*_cyclic_colors(count), "rgba(0,0,0,0)"], "line": {"width": 0}},
            hoverinfo="text",
            showlegend=True,
            visible=i == 0,
        )
    figure.update_xaxes(visible=False, range=[-1.25, 1.25], constrain="domain")
    figure.update_yaxes(visible=False, range=[-1.2, 1.2], constrain="domain", scaleanchor="x")
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10})
    steps = {str(at): [{key: [ring[key] for ring in rings] for key in rings[0]}] for at, rings in frames.items()}
    menus = [menu("concept", concepts, buttons=True)] if len(concepts) > 1 else []
    return steered(figure, 400, menus=menus, sliders=[slider("layer", steps, active)])


def _cyclic_colors(n: int) -> list[str]:
    """As many colours around a circle, none of them nearly white."""
    return [matplotlib.colors.to_hex(color) for color in matplotlib.colormaps[CYCLIC](0.08 + 0.84 * np.arange(n) / n)]


def ring(points: np.ndarray, words: Sequence[str], joined: int | None = None) -> dict[str, Any]:
    """Words as plotly takes them, each with its short name on the side that points out.

    The first ``joined`` (default: all) are joined to a ring, the others stand alone.
    """
    joined = len(words) if joined is None else joined
    places = [*range(joined), *[0][:joined]]
    for other in range(joined, len(words)):
        places += [None, other]
    sides = ("middle right", "top right", "top center", "top left")
    sides += ("middle left", "bottom left", "bottom center", "bottom right")
    x, y = (points - points.mean(axis=0)).T if len(points) else points.T
    eighths = np.round(np.arctan2(y, x) / (np.pi / 4)).astype(int) % 8
    named = [None if i == joined else place for i, place in enumerate(places)]  # the first word once
    return {
        "x": [None if i is None else round(float(points[i, 0]), 2) for i in places],
        "y": [None if i is None else round(float(points[i, 1]), 2) for i in places],
        "text": ["" if i is None else words[i][:3] for i in named],
        "hovertext": ["" if i is None else words[i] for i in places],
        "textposition": [sides[0 if i is None else eighths[i]] for i in places],
    }


def _ring_at(part: pd.DataFrame | None, concept: str, layer: int) -> dict[str, Any]:
    """The words of a concept at a layer, and what the layer does to their order; an empty ring where it has none."""
    if part is None:
        return ring(np.zeros((0, 2)), ()) | {"name": f"{concept}, layer {layer}: too few words to draw"}
    points = _upright(part[["x", "y"]].to_numpy())
    points = (points - (points.max(0) + points.min(0)) / 2) / (np.ptp(points, axis=0).max() / 2 or 1)
    order, share = part["cyclic_order"].iloc[0], part["plane_share"].iloc[0]
    says = f"neighbours in order {written(order, '.0%')}, the plane holds {written(share, '.0%')} of the variance"
    return ring(points, list(part["word"].astype(str))) | {"name": in_prose(f"{concept}, layer {layer}: {says}")}


def order_by_layer(table: pd.DataFrame, layer: int) -> Figure:
    """Share of neighbouring words in cyclic order at every layer, with the level of shuffled words."""
    table = table.dropna(subset="cyclic_order")
    if table.empty:
        return nothing_to_draw(_NO_MAP)
    figure, ax = panels(width=6.6, height=2.9)
    scores = table.drop_duplicates(["concept", "layer"])
    colors = dict(zip(scores["concept"].unique(), _CONCEPT_COLORS, strict=False))
    look = {"x": "layer", "hue": "concept", "palette": colors, "legend": False, "ax": ax}
    sns.lineplot(scores, y="cyclic_order", **look)
    sure = scores[scores["p_value"] < 0.01]
    ax.scatter(sure["layer"], sure["cyclic_order"], c=sure["concept"].map(colors), s=28, linewidth=0, zorder=3)
    sns.lineplot(scores, y="chance", linestyle=":", linewidth=1, **look)
    previous = -np.inf
    for row in scores.groupby("concept").last().sort_values("cyclic_order").itertuples():
        previous = max(row.cyclic_order, previous + 0.09)  # names of lines that end together stand above each other
        direct_label(ax, row.layer, previous, row.Index, colors[row.Index])
        direct_label(ax, 0, row.chance, f"{row.Index}, shuffled", colors[row.Index], xytext=(6, 6), fontsize=SMALL)
    ax.axvline(layer, color=COLORS["muted"], linestyle="--", linewidth=1)
    direct_label(ax, layer, 0.04, "studied", GREY, fontsize=SMALL)
    ax.set(xlabel="layer (after which block)", ylabel="neighbours in order (share)", ylim=(0, 1.05))
    ax.set_xlim(0, max(1, scores["layer"].max()))
    return figure


def similarity_matrices(similarities: dict[str, pd.DataFrame]) -> Figure:
    """Cosine similarity between the mean vectors of words, one matrix a concept, the diagonal left blank."""
    if not similarities:
        return nothing_to_draw(_NO_MAP)
    shown = {name: frame.mask(np.eye(len(frame), dtype=bool)) for name, frame in similarities.items()}
    limit = max(0.1, np.ceil(10 * span(*(frame.abs() for frame in shown.values()), around=[0])[1]) / 10)
    figure, axes = panels(len(shown), width=3.7 * len(shown), height=3.5, squeeze=False)
    for ax, (concept, frame) in zip(axes[0], shown.items(), strict=True):
        sns.heatmap(frame, cmap=DIVERGING, vmin=-limit, vmax=limit, square=True, cbar=False, ax=ax)
        ax.set_title(concept)
        ax.tick_params(length=0, labelsize=SMALL)
        ax.grid(False)
    figure.colorbar(axes[0, 0].collections[0], ax=axes[0], label="cosine similarity", shrink=0.75)
    return figure
