"""Figures of chapter 4. Each takes tables and returns a matplotlib Figure (one returns plotly's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saema_utils.evidence.geometry import MEASURES
from saema_utils.figures import (
    COLORS,
    CYCLIC,
    NAMES,
    NOISE_MARKER,
    PLOTLY_SYMBOLS,
    class_style,
    panels,
    scatter_classes,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORDER = ("residual", "sae", "reconstruction", "pca", "random_dictionary")
MARKERS = {"residual": "o", "sae": "o", "reconstruction": "s", "pca": "D", "random_dictionary": "^"}


def _present(table: pd.DataFrame, wanted: Sequence[str] = ORDER) -> list[str]:
    known = set(table["representation"])
    return [name for name in wanted if name in known]


def circles(
    points: pd.DataFrame, scores: pd.DataFrame,
    representations: Sequence[str] = ("residual", "sae", "reconstruction", "random_dictionary"),
) -> Figure:  # fmt: skip
    """Words of each cycle in the plane of their first two principal components, joined in their order."""
    concepts = list(dict.fromkeys(points["concept"]))
    names = _present(points, representations)
    figure, axes = panels(len(names), len(concepts), width=2.6 * len(names), height=2.75, squeeze=False)
    for row, concept in enumerate(concepts):
        for column, name in enumerate(names):
            chosen = (points["concept"] == concept) & (points["representation"] == name)
            score = scores[(scores["concept"] == concept) & (scores["representation"] == name)].iloc[0]
            _circle(axes[row, column], points[chosen].sort_values("place"), score)
            if row == 0:
                axes[row, column].set_title(NAMES[name], color=COLORS[name])
        axes[row, 0].set_ylabel(concept, fontsize=11, fontweight="bold")
    return figure


def _circle(axis: Axes, words: pd.DataFrame, score: pd.Series) -> None:
    import matplotlib

    xy = words[["x", "y"]].to_numpy()
    closed = np.vstack([xy, xy[:1]]) if len(xy) == score["period"] else xy
    axis.plot(*closed.T, color=COLORS["muted"], linewidth=0.9, zorder=1)
    hues = matplotlib.colormaps[CYCLIC](words["place"] / score["period"])
    axis.scatter(*xy.T, c=hues, s=26, zorder=2, edgecolor="#444444", linewidth=0.4)
    centre, reach = xy.mean(axis=0), np.abs(xy).max()
    for word, at in zip(words["word"], xy, strict=True):
        out = (at - centre) / max(np.linalg.norm(at - centre), 1e-12)
        axis.annotate(
            str(word)[:3], at, xytext=9 * out, textcoords="offset points", ha="center", va="center", fontsize=7.5
        )
    axis.set(xticks=[], yticks=[], aspect="equal", xlim=(-1.3 * reach, 1.3 * reach), ylim=(-1.3 * reach, 1.3 * reach))
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.text(
        0.5, -0.02, f"circularity {score['score']:.2f}, {_p(score['p_value'])}", transform=axis.transAxes, ha="center",
        va="top", fontsize=8.5,
    )  # fmt: skip


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def local_map(table: pd.DataFrame, concept: str) -> Figure:
    """All tokens of one concept before and after sparse coding, coloured by local representation."""
    rows = table[table["concept"] == concept]
    names = _present(rows)
    figure, axes = panels(len(names), width=4.7 * len(names), height=4.4, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        part = rows[rows["representation"] == name]
        noise, clustered = part[part["cluster"] < 0], part[part["cluster"] >= 0]
        axis.scatter(noise["x"], noise["y"], s=9, color=COLORS["muted"], marker=NOISE_MARKER, alpha=0.6, linewidth=0.8)
        scatter_classes(axis, clustered["x"], clustered["y"], clustered["cluster"], 17)
        for text, (x, y), bold in _labels(clustered):
            axis.annotate(
                text, (x, y), xytext=(0, 8), textcoords="offset points", fontsize=7.5, ha="center", va="bottom",
                fontweight="bold" if bold else "normal", color="black" if bold else "#555555",
            )  # fmt: skip
        axis.set_title(f"{NAMES[name]}: {clustered['cluster'].nunique()} clusters", color=COLORS[name])
        _bare(axis)
    return figure


def _labels(clustered: pd.DataFrame) -> list[tuple[str, tuple[float, float], bool]]:
    """A label over each cluster: the words if these are its tokens, else its commonest token."""
    found = []
    for _, members in clustered.groupby("cluster"):
        at = (float(members["x"].median()), float(members["y"].max()))
        words = members[members["is_word"]]["word"].unique()
        if members["is_word"].mean() > 0.5:
            found.append((str(words[0]) if len(words) == 1 else f"{len(words)} words", at, True))
        else:
            found.append((str(members["token"].astype(str).mode().iloc[0]).strip() or "space", at, False))
    return found


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    axis.margins(0.09)
    axis.grid(False)


def word_map(table: pd.DataFrame, concept: str) -> Figure:
    """The word in every sentence of one concept: a style per word, rings where a cluster holds two words."""
    rows = table[table["concept"] == concept]
    names = _present(rows)
    words = list(dict.fromkeys(rows["word"]))
    figure, axes = panels(len(names), width=4.7 * len(names), height=4.4, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        part = rows[rows["representation"] == name]
        mixed = part.groupby("cluster")["word"].transform("nunique") > 1
        scatter_classes(axis, part["x"], part["y"], part["word"].map(words.index), 26)
        ringed = part[mixed]
        axis.scatter(
            ringed["x"], ringed["y"], s=70, facecolor="none", edgecolor=COLORS["accent"], linewidth=1, zorder=1
        )
        for word, members in part.groupby("word"):
            at = members[["x", "y"]].median()
            axis.annotate(
                str(word), at, xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, fontweight="bold",
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.6}, zorder=3,
            )  # fmt: skip
        axis.set_title(f"{NAMES[name]}: {mixed.mean():.0%} merged", color=COLORS[name])
        axis.title.set_fontsize(9.5)
        _bare(axis)
    return figure


def merging(table: pd.DataFrame, names: Sequence[str] = ("residual", "sae", "random_dictionary", "pca")) -> Figure:
    """How well words stay apart, per concept: residual stream and SAE joined, controls beside them."""
    rows = table[table["protocol"] == "words"]
    figure, axes = panels(2, width=8.6, height=0.34 * rows["concept"].nunique() + 1.3, sharey=True)
    titles = {"ami": "words and clusters agree (AMI)", "purity": "nearest neighbour has the same word"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        _dumbbells(axis, rows, column, _present(rows, names))
        axis.set_title(title, fontsize=10)
        axis.set_xlim(min(0.0, rows[column].min()) - 0.03, 1.03)
    chance = rows[rows["representation"] == "residual"].set_index("concept")["purity_chance"]
    order = list(dict.fromkeys(rows["concept"]))
    axes[1].scatter(chance.loc[order], range(len(order)), marker="|", s=60, color=COLORS["accent"], label="chance")
    axes[0].set_xlabel("1 = every word its own cluster, 0 = chance")
    axes[1].set_xlabel("share of prompts")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _dumbbells(axis: Axes, rows: pd.DataFrame, column: str, names: list[str], error: str | None = None) -> None:
    order = list(dict.fromkeys(rows["concept"]))
    wide = rows.groupby(["concept", "representation"])[column].mean().unstack().loc[order]
    if {"residual", "sae"} <= set(wide.columns):
        axis.hlines(range(len(order)), wide["residual"], wide["sae"], color="#bbbbbb", linewidth=2.2, zorder=1)
    for name in names:
        filled = name in ("residual", "sae")
        axis.scatter(
            wide[name], range(len(order)), marker=MARKERS[name], s=46 if filled else 30, zorder=3,
            facecolor=COLORS[name] if filled else "none", edgecolor=COLORS[name], label=NAMES[name],
        )  # fmt: skip
        if error:
            errors = rows.groupby(["concept", "representation"])[error].mean().unstack().loc[order][name]
            axis.errorbar(
                wide[name], range(len(order)), xerr=1.96 * errors, fmt="none", ecolor=COLORS[name], alpha=0.55,
                elinewidth=1.2, zorder=2,
            )  # fmt: skip
    axis.set_yticks(range(len(order)), order)
    axis.set_ylim(len(order) - 0.5, -0.5)


def dimensions(geometry: pd.DataFrame, names: Sequence[str] = ("residual", "sae", "random_dictionary")) -> Figure:
    """Mean intrinsic dimension of local representations (direct protocol), with its 95 % interval."""
    rows = geometry[geometry["protocol"] == "direct"]
    figure, axes = panels(2, width=8.6, height=0.34 * rows["concept"].nunique() + 1.3, sharey=True)
    present = _present(rows, names)
    _dumbbells(axes[0], rows, "intrinsic_dimension", present, "intrinsic_dimension_error")
    _dumbbells(axes[1], rows, "intrinsic_dimension_cloud", present, "intrinsic_dimension_cloud_error")
    axes[0].set_title("mean over local representations", fontsize=10)
    axes[1].set_title("all tokens of the concept", fontsize=10)
    for axis in axes:
        axis.set_xlabel("intrinsic dimension (TwoNN)")
        axis.set_xlim(left=0)
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def persistence(
    table: pd.DataFrame, concept: str, names: Sequence[str] = ("residual", "sae", "random_dictionary")
) -> Figure:
    """Persistence diagrams of one concept's tokens: components on the left edge, loops above the diagonal."""
    rows = table[table["concept"] == concept]
    names = _present(rows, names)
    figure, axes = panels(len(names), width=3.0 * len(names), height=3.2, sharex=True, sharey=True, squeeze=False)
    top = float(rows["death"].max()) * 1.05
    for axis, name in zip(axes[0], names, strict=True):
        part = rows[rows["representation"] == name]
        axis.plot([0, top], [0, top], color=COLORS["muted"], linewidth=0.9)
        for degree, marker, color, label in ((0, "_", "#444444", "components"), (1, "o", COLORS["accent"], "loops")):
            found = part[part["degree"] == degree]
            axis.scatter(found["birth"], found["death"], marker=marker, s=22, color=color, alpha=0.7, label=label)
        axis.set_title(NAMES[name], color=COLORS[name])
        axis.set_xlabel("birth / median distance")
        axis.set(xlim=(-0.03 * top, top), ylim=(0, top))
    axes[0, 0].set_ylabel("death / median distance")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    return figure


def forest(comparison: pd.DataFrame, against: str = "residual") -> Figure:
    """SAE relative to one representation: ratio or difference per measure, 95 % intervals over concepts."""
    rows = comparison[(comparison["against"] == against) & comparison["estimate"].notna()]
    parts = [rows[rows["effect"] == "log ratio"], rows[rows["effect"] == "difference"]]
    lengths = [max(3, len(part)) for part in parts]
    height = 0.26 * sum(lengths) / 2 + 0.9
    figure, axes = panels(1, 2, width=7.6, height=height, height_ratios=lengths)
    titles = (f"SAE / {NAMES[against]}", f"SAE minus {NAMES[against]}")
    for axis, part, title in zip(axes, parts, titles, strict=True):
        ratio = part["effect"].eq("log ratio").all()
        centre, low, high = (np.exp(part[c]) if ratio else part[c] for c in ("estimate", "low", "high"))
        for i, verdict in enumerate(part["verdict"]):
            clear = verdict.startswith("SAE")
            color = COLORS["sae"] if clear else COLORS["muted"]
            axis.plot([low.iloc[i], high.iloc[i]], [i, i], color=color, linewidth=2)
            axis.scatter(
                centre.iloc[i], i, s=34, zorder=3, edgecolor=color, facecolor=color if clear else "white", linewidth=1.4
            )
        axis.set_yticks(
            range(len(part)), [f"{MEASURES[m]} ({p})" for m, p in zip(part["measure"], part["protocol"], strict=True)]
        )
        axis.axvline(1 if ratio else 0, color="#444444", linewidth=0.9)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("ratio (1 = no change)" if ratio else "difference (0 = no change)")
        axis.set_ylim(len(part) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        if ratio and len(part):
            _ratio_axis(axis, float(low.min()), float(high.max()))
    return figure


def _ratio_axis(axis: Axes, low: float, high: float) -> None:
    """A logarithmic axis with plain ticks that covers what is shown."""
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log")
    low, high = min(low, 1.0) * 0.93, max(high, 1.0) * 1.07
    ticks = [t for t in (0.1, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 10) if low <= t <= high]
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_xlim(low, high)


def changes_of_words(uncertainty: pd.DataFrame) -> Figure:
    """What the codes do to the words' poles, concept by concept: ratios with intervals over sentences."""
    rows = uncertainty[uncertainty["representation"].str.endswith(" / residual")]
    concepts, measures = list(dict.fromkeys(rows["concept"])), list(dict.fromkeys(rows["measure"]))
    figure, axes = panels(len(measures), width=9.6, height=0.36 * len(concepts) + 1.4, squeeze=False, sharey=True)
    for axis, measure in zip(axes[0], measures, strict=True):
        part = rows[rows["measure"] == measure]
        for name, shift in (("sae", -0.14), ("random_dictionary", 0.14)):
            own = part[part["representation"] == f"{name} / residual"].set_index("concept").reindex(concepts)
            y = np.arange(len(concepts)) + shift
            axis.hlines(y, np.exp(own["low"]), np.exp(own["high"]), color=COLORS[name], linewidth=2)
            axis.plot(np.exp(own["estimate"]), y, MARKERS[name], color=COLORS[name], markersize=5, label=NAMES[name])
        axis.axvline(1, color="#444444", linewidth=0.9)
        axis.set_title(_POLE_MEASURES[measure], fontsize=10)
        axis.set_xlabel("ratio to the residual stream (1 = no change)")
        _ratio_axis(axis, float(np.exp(part["low"]).min()), float(np.exp(part["high"]).max()))
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(concepts)), [c.replace("_", " ") for c in concepts])
    axes[0, 0].set_ylim(len(concepts) - 0.5, -0.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


_POLE_MEASURES = {
    "mst_weight_scale_free": "tree that joins the words' poles",
    "aedp_scale_free": "mean distance between the words' poles",
}


def spread_over_seeds(geometry: pd.DataFrame, names: Sequence[str] = ("residual", "sae")) -> Figure:
    """Numbers of local representations: every seed of the paper's protocol, and the direct protocol."""
    concepts = list(dict.fromkeys(geometry["concept"]))
    figure, axis = panels(width=7.6, height=0.36 * len(concepts) + 1.3)
    for offset, name in zip((-0.16, 0.16), _present(geometry, names), strict=False):
        for row, concept in enumerate(concepts):
            mine = geometry[(geometry["concept"] == concept) & (geometry["representation"] == name)]
            paper, direct = (mine[mine["protocol"] == p]["n_local"] for p in ("paper", "direct"))
            first = row == 0
            axis.scatter(
                paper, np.full(len(paper), row + offset), s=26, color=COLORS[name], alpha=0.55, linewidth=0,
                label=f"{NAMES[name]}, paper's protocol (each seed)" if first else None,
            )  # fmt: skip
            axis.scatter(
                direct, np.full(len(direct), row + offset), s=46, marker="|", color=COLORS[name], linewidth=1.8,
                label=f"{NAMES[name]}, direct" if first else None,
            )  # fmt: skip
    axis.set_yticks(range(len(concepts)), concepts)
    axis.set_ylim(len(concepts) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("number of local representations")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def interactive_map(table: pd.DataFrame, concept: str, representation: str = "sae") -> Any:
    """The map of one representation to hover over: each token in its prompt, with its word and its cluster."""
    import html

    import plotly.graph_objects as go

    rows = table[(table["concept"] == concept) & (table["representation"] == representation)]
    figure = go.Figure()
    for is_word, name, size, edge in ((False, "other tokens", 6, 0), (True, "tokens of the word", 10, 1.5)):
        part = rows[rows["is_word"] == is_word]
        styles = [
            class_style(cluster) if cluster >= 0 else (COLORS["muted"], None) for cluster in part["cluster"].astype(int)
        ]
        text = [
            f"{html.escape(str(row.context))}<br>word: {html.escape(str(row.word))}<br>"
            + ("noise" if row.cluster < 0 else f"local representation {row.cluster}")
            for row in part.itertuples()
        ]
        figure.add_scatter(
            x=part["x"].round(3), y=part["y"].round(3), mode="markers", name=name, text=text, hoverinfo="text",
            marker={
                "size": size, "color": [color for color, _ in styles], "opacity": 0.85,
                "symbol": ["x-thin-open" if mark is None else PLOTLY_SYMBOLS[mark] for _, mark in styles],
                "line": {"width": edge, "color": COLORS["muted"]},
            },
        )  # fmt: skip
    figure.update_layout(height=460, legend={"orientation": "h"}, margin={"l": 10, "r": 10, "t": 10, "b": 10})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


__all__ = [
    "circles", "dimensions", "forest", "interactive_map", "local_map", "merging", "persistence",
    "spread_over_seeds", "word_map",
]  # fmt: skip
