"""Figures of chapter 4. Each takes tables and returns a matplotlib Figure (one returns plotly's)."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saema_utils.evidence.geometry import MEASURES
from saema_utils.figures import (
    COLORS,
    CYCLIC,
    GREY,
    NAMES,
    NOISE_MARKER,
    PLOTLY_SYMBOLS,
    SMALL,
    class_style,
    keep_apart,
    note_missing,
    nothing_to_draw,
    panels,
    present,
    says_if_empty,
    scatter_classes,
    span,
    write_beside,
)
from saema_utils.interactive import interactive as interactive  # for the page
from saema_utils.interactive import menu, nothing_to_show, steered
from saema_utils.statistics import written
from saema_utils.wording import in_prose

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

ORDER = ("residual", "sae", "reconstruction", "pca", "random_dictionary")
SPARSE = ("residual", "sae", "random_dictionary")  # the stream, and two sparse codes of it
MARKERS = {"residual": "o", "sae": "o", "reconstruction": "s", "pca": "D", "random_dictionary": "^"}
UP = (0, 1)
LINE = {"color": "#444444", "linewidth": 0.9}
TICKS = (0.1, 0.2, 0.33, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)
CLOSE_TICKS = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2)  # for ratios within a factor of three


def _legend(axis: Axes) -> None:
    """Beside the axes, with the representations' names in words."""
    handles, labels = axis.get_legend_handles_labels()
    names = [NAMES.get(label, label) for label in labels]
    axis.legend(handles, names, fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def circle_grid(points: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Words of each cycle in the plane of their first two principal components, joined in their order."""
    points = points.dropna(subset=["x", "y"])
    concepts = list(dict.fromkeys(points["concept"]))
    names = present(points, ("residual", "sae", "reconstruction", "random_dictionary"))
    if not concepts:
        return nothing_to_draw("The words of this study form no cycle that this book knows.")
    figure, axes = panels(len(names), len(concepts), width=2.4 * len(names), height=2.6, squeeze=False)
    words, scores = (t.set_index(["concept", "representation"]).sort_index() for t in (points, scores))
    for concept, row in zip(concepts, axes, strict=True):
        row[0].set_ylabel(concept, fontsize=11, fontweight="bold")
        for name, axis in zip(names, row, strict=True):
            _circle(axis, words.loc[[(concept, name)]].sort_values("place"), scores.loc[(concept, name)])
    for name, axis in zip(names, axes[0], strict=True):
        axis.set_title(NAMES[name], color=COLORS[name])
    keep_apart(figure)
    return figure


def _circle(axis: Axes, words: pd.DataFrame, score: pd.Series) -> None:
    xy = words[["x", "y"]].to_numpy()
    closed = np.vstack([xy, xy[:1]]) if len(xy) == score["period"] else xy
    axis.plot(*closed.T, color=COLORS["muted"], linewidth=0.9, zorder=1)
    hues = matplotlib.colormaps[CYCLIC](words["place"] / score["period"])
    axis.scatter(*xy.T, c=hues, s=26, zorder=2, edgecolor="#444444", linewidth=0.4)
    centre, reach = xy.mean(axis=0), 1.3 * (np.abs(xy).max() or 1)
    write_beside(axis, words["word"].astype(str).str[:3], xy, xy - centre)
    axis.set(xticks=[], yticks=[], aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    axis.spines[:].set_visible(False)
    p = "p < 0.001" if score["p_value"] < 0.001 else f"p = {written(score['p_value'], '.3f')}"
    axis.set_xlabel(f"circularity {written(score['score'], '.2f')}, {p}", fontsize=SMALL)


def _maps(table: pd.DataFrame, concept: str) -> tuple[Figure, Iterator[tuple[Axes, str, pd.DataFrame]]]:
    """An empty map for each representation of a concept, with its rows."""
    rows = table[table["concept"] == concept].dropna(subset=["x", "y"])
    if rows.empty:
        return nothing_to_draw(_no_map(concept)), iter(())
    names = present(rows, ORDER)
    figure, axes = panels(len(names), width=4.7 * len(names), height=4.4, squeeze=False)
    for axis in axes[0]:
        axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        axis.margins(0.09)
    parts = (rows[rows["representation"] == name] for name in names)
    return figure, zip(axes[0], names, parts, strict=True)


def _no_map(concept: str) -> str:
    return f"No map of {concept}: it has too few tokens, or prompts, to be drawn."


def map_of_tokens(table: pd.DataFrame, concept: str) -> Figure:
    """All tokens of one concept before and after sparse coding, coloured by local representation."""
    figure, maps = _maps(table, concept)
    for axis, name, part in maps:
        noise, clustered = part[part["cluster"] < 0], part[part["cluster"] >= 0]
        axis.scatter(noise["x"], noise["y"], s=9, color=COLORS["muted"], marker=NOISE_MARKER, alpha=0.6, linewidth=0.8)
        scatter_classes(axis, clustered["x"], clustered["y"], clustered["cluster"], 17)
        for _, members in clustered.groupby("cluster"):
            _label_cluster(axis, members)
        axis.set_title(f"{NAMES[name]}: {clustered['cluster'].nunique()} clusters", color=COLORS[name])
    keep_apart(figure)
    return figure


def _label_cluster(axis: Axes, members: pd.DataFrame) -> None:
    """Over a cluster: its name, in bold if that is of words."""
    text, of_words = _cluster_name(members)
    style = {"fontweight": "bold"} if of_words else {"color": GREY}
    write_beside(axis, [text], [(members["x"].median(), members["y"].max())], [UP], **style)


def _cluster_name(members: pd.DataFrame) -> tuple[str, bool]:
    """The words if these are the cluster's tokens, else its commonest token; and which of the two it is."""
    if members["is_word"].mean() > 0.5:
        words = members[members["is_word"]]["word"].unique()
        return (str(words[0]) if len(words) == 1 else f"{len(words)} words"), True
    token = str(members["token"].astype(str).mode().iloc[0]).strip() or "space"
    return token if any(map(str.isalnum, token)) else f"“{token}”", False


def map_of_words(table: pd.DataFrame, concept: str) -> Figure:
    """The word in every sentence of one concept: a style per word, rings where a cluster holds two words."""
    figure, maps = _maps(table, concept)
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.6}
    for axis, name, part in maps:
        mixed = part.groupby("cluster")["word"].transform("nunique") > 1
        scatter_classes(axis, part["x"], part["y"], part["word"].factorize()[0], 26)
        rings = {"facecolor": "none", "edgecolor": COLORS["accent"], "linewidth": 1, "zorder": 1}
        axis.scatter(part["x"][mixed], part["y"][mixed], s=70, **rings)
        for word, members in part.groupby("word"):
            places = members[["x", "y"]].to_numpy()
            middle = places[np.hypot(*(places - np.median(places, axis=0)).T).argmin()]
            write_beside(axis, [str(word)], [middle], [UP], fontweight="bold", bbox=box, zorder=3)
        axis.set_title(in_prose(f"{NAMES[name]}: {mixed.mean():.0%} merged"), color=COLORS[name])
    keep_apart(figure)
    return figure


def _dots(axis: Axes, rows: pd.DataFrame, y: str, hue: str, palette: dict[str, str], **style: Any) -> None:
    """Rows of dots at ``centre``, each with its interval from ``low`` to ``high``."""
    # Seaborn knows no given intervals, but the centre is the median of the three, and the interval their range.
    three = rows.melt([y, hue], ["low", "centre", "high"], value_name="x")
    style |= {"estimator": "median", "errorbar": ("pi", 100), "linestyles": "none", "markersize": 4}
    sns.pointplot(three, x="x", y=y, hue=hue, palette=palette, err_kws={"linewidth": 1.8}, ax=axis, **style)
    axis.set(xlabel="", ylabel="")


def _concepts(parts: dict[str, pd.DataFrame], width: float = 8.6) -> tuple[Figure, Any]:
    """A panel for each table by its title: a row a concept, in it a dot a representation."""
    first = next(iter(parts.values()))
    figure, axes = panels(len(parts), width=width, height=0.36 * first["concept"].nunique() + 1.3, sharey=True)
    names = present(first, ORDER)
    style = {"dodge": 0.125 * len(names), "hue_order": names, "markers": [MARKERS[name] for name in names]}
    for axis, (title, rows) in zip(axes, parts.items(), strict=True):
        rows = rows.assign(concept=rows["concept"].str.replace("_", " "))
        _dots(axis, rows, "concept", "representation", COLORS, **style)
        axis.get_legend().remove()
        axis.set_title(title, fontsize=10)
    _legend(axes[-1])
    return figure, axes


def merging_dots(table: pd.DataFrame) -> Figure:
    """How well words stay apart, per concept: residual stream and SAE, controls below them."""
    return _merging(table[table["protocol"].eq("words") & table["representation"].ne("reconstruction")])


@says_if_empty("No concept has two words in prompts enough to compare.", known="ami")
def _merging(rows: pd.DataFrame) -> Figure:
    ami, purity = (rows.assign(centre=rows[c], low=rows[c], high=rows[c]) for c in ("ami", "purity"))
    titles = {"words and clusters agree (AMI)": ami, "nearest neighbour has the same word": purity}
    figure, axes = _concepts(titles)
    chance = rows[rows["representation"] == "residual"]["purity_chance"]
    axes[1].scatter(chance, np.arange(len(chance)), marker="|", s=60, color=COLORS["accent"], label="chance")
    for axis, label in zip(axes, ("1 = every word its own cluster, 0 = chance", "share of prompts"), strict=True):
        axis.set(xlabel=label, xlim=(min(0.0, span(ami["ami"])[0]) - 0.03, 1.03))
    _legend(axes[1])
    return figure


@says_if_empty("No local representation was measured.")
def dimension_intervals(geometry: pd.DataFrame) -> Figure:
    """Mean intrinsic dimension of local representations (direct protocol), with its 95 % interval."""
    rows = geometry[geometry["protocol"].eq("direct") & geometry["representation"].isin(SPARSE)]
    titles = {"intrinsic_dimension": "mean over local representations", "intrinsic_dimension_cloud": "all tokens"}
    parts = {}
    for column, title in titles.items():
        centre, reach = rows[column], 1.96 * rows[f"{column}_error"]
        parts[title] = rows.assign(centre=centre, low=centre - reach, high=centre + reach)
    figure, axes = _concepts(parts)
    for axis in axes:
        axis.set_xlabel("intrinsic dimension (TwoNN)")
        axis.set_xlim(left=0)
    return figure


def persistence_diagrams(table: pd.DataFrame, concept: str) -> Figure:
    """Persistence diagrams of one concept's tokens: components on the left edge, loops above the diagonal."""
    rows = table[table["concept"] == concept].dropna(subset=["birth", "death"])
    names, top = present(rows, SPARSE), 1.05 * span(rows["death"], around=[0])[1]
    if not names:
        return nothing_to_draw(f"No component and no loop of {concept} was measured.")
    figure, axes = panels(len(names), width=3.0 * len(names), height=3.2, sharex=True, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        components, loops = (rows[rows["representation"].eq(name) & rows["degree"].eq(degree)] for degree in (0, 1))
        axis.plot([0, top], [0, top], color=COLORS["muted"], linewidth=0.9)
        sns.rugplot(components, y="death", ax=axis, height=0.04, color="#444444", alpha=0.7, linewidth=1.2)
        sns.scatterplot(loops, x="birth", y="death", ax=axis, color=COLORS["accent"], alpha=0.7, s=26)
        axis.set_title(NAMES[name], color=COLORS[name])
        axis.set(xlabel="birth / median distance", xlim=(-0.05 * top, top), ylim=(0, top))
    axes[0, 0].set_ylabel("death / median distance")
    return figure


def comparison_forest(comparison: pd.DataFrame, against: str = "residual") -> Figure:
    """SAE relative to one representation: ratio or difference per measure, 95 % intervals over concepts."""
    rows = comparison[(comparison["against"] == against) & comparison["estimate"].notna()]
    rows = rows.assign(centre=rows["estimate"], clear=rows["change"].isin(["higher", "lower"]))
    if rows.empty:
        return nothing_to_draw("No concept has a value on both sides.")
    rows["name"] = rows["measure"].map(MEASURES) + " (" + rows["protocol"] + ")"
    parts = [_ratios(rows[rows["effect"] == "log ratio"]), rows[rows["effect"] == "difference"]]
    lengths = [max(3, len(part)) for part in parts]
    figure, axes = panels(1, 2, width=7.6, height=0.13 * sum(lengths) + 0.9, height_ratios=lengths)
    titles = f"SAE / {NAMES[against]}", f"SAE minus {NAMES[against]}"
    for axis, part, title, no_change in zip(axes, parts, titles, (1, 0), strict=True):
        _dots(axis, part, "name", "clear", {True: COLORS["sae"], False: COLORS["muted"]}, legend=False)
        axis.axvline(no_change, **LINE)
        axis.set_title(title, fontsize=10)
        note_missing(axis, part, "centre", "one concept")
    axes[1].set_xlabel("difference (0 = no change)")
    axes[1].locator_params(axis="x", nbins=6)  # a sign and three decimals take the width of two ticks
    _ratio_axis(axes[0], parts[0], "ratio (1 = no change)")
    return figure


def _ratios(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(**{column: np.exp(rows[column]) for column in ("centre", "low", "high")})


def _ratio_axis(axis: Axes, rows: pd.DataFrame, label: str) -> None:
    """A logarithmic axis with plain ticks that covers what is shown."""
    from matplotlib.ticker import NullLocator

    low, high = span(rows[["low", "centre", "high"]], around=[1])
    low, high = 0.93 * low, 1.07 * high
    ticks = [tick for tick in (CLOSE_TICKS if high < 3 * low else TICKS) if low <= tick <= high]
    axis.set(xscale="log", xlabel=label)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xlim(low, high)


def word_change_intervals(uncertainty: pd.DataFrame) -> Figure:
    """What the codes do to the words' poles, concept by concept: ratios with intervals over sentences."""
    is_ratio = uncertainty["representation"].astype(str).str.endswith(" / residual")
    return _word_changes(uncertainty[is_ratio & uncertainty["estimate"].notna()])


@says_if_empty("No concept has two words in prompts enough to compare.")
def _word_changes(rows: pd.DataFrame) -> Figure:
    codes = rows["representation"].str.removesuffix(" / residual")
    rows = _ratios(rows.assign(representation=codes, centre=rows["estimate"]))
    tree, distance = (rows[rows["measure"] == f"{measure}_scale_free"] for measure in ("mst_weight", "aedp"))
    parts = {"tree that joins the words' poles": tree, "mean distance between the words' poles": distance}
    figure, axes = _concepts(parts, width=9.6)
    for axis, part in zip(axes, parts.values(), strict=True):
        axis.axvline(1, **LINE)
        _ratio_axis(axis, part, "ratio to the residual stream (1 = no change)")
        note_missing(axis, part, "centre", "one sentence a word")
    return figure


@says_if_empty("No local representation was looked for.")
def numbers_by_seed(geometry: pd.DataFrame) -> Figure:
    """Numbers of local representations: every seed of the paper's protocol, and the direct protocol."""
    names = ("residual", "sae")
    rows = geometry[geometry["representation"].isin(names)]
    rows = rows.assign(concept=rows["concept"].str.replace("_", " "))
    paper, direct = (rows[rows["protocol"] == protocol] for protocol in ("paper", "direct"))
    figure, axis = panels(width=7.6, height=0.36 * rows["concept"].nunique() + 1.3)
    style = {"x": "n_local", "y": "concept", "hue": "representation", "hue_order": names, "palette": COLORS}
    style |= {"dodge": True, "jitter": False, "ax": axis}
    sns.stripplot(paper, size=5.5, alpha=0.6, **style)
    sns.stripplot(direct, marker="|", size=10, linewidth=1.8, legend=False, **style)
    axis.set(xlabel="number of local representations (dots: paper's protocol, a seed each; bars: direct)", ylabel="")
    axis.set_xlim(left=0)
    _legend(axis)
    return figure


def map_to_hover(table: pd.DataFrame, concept: str) -> PlotlyFigure:
    """A plotly figure: the tokens of a concept in one representation at a time, to hover over, each in its prompt.

    A token keeps the colour and shape of its cluster in the first representation, the residual stream, wherever it
    goes. A map has no axes of its own: each is turned towards the first one, and as large as the panel.
    """
    import plotly.graph_objects as go

    rows = table[table["concept"] == concept].dropna(subset=["x", "y"])
    if rows.empty:
        return nothing_to_show(_no_map(concept))
    names = present(rows, SPARSE)
    maps = [rows[rows["representation"] == name].reset_index(drop=True) for name in names]
    figure, kinds = go.Figure(), []
    for name, part in zip(names, maps, strict=True):
        home = maps[0]["cluster"].reindex(part.index, fill_value=-1)
        part = part.assign(**_towards(part, maps[0]))
        figure.add_scatter(**_tokens(part, home), name=_in_short(NAMES[name], part, home), showlegend=True)
        figure.add_scatter(**_islands(part), showlegend=False)
        kinds += 2 * [NAMES[name]]
    for trace, kind in zip(figure.data, kinds, strict=True):
        trace.visible = kind == kinds[0]
    figure.update_xaxes(visible=False, range=[-1.08, 1.08])
    figure.update_yaxes(visible=False, range=[-1.08, 1.14])
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10})
    return steered(figure, 460, menus=[menu("representation", kinds, buttons=True)] if len(names) > 1 else [])


def _towards(part: pd.DataFrame, first: pd.DataFrame) -> pd.DataFrame:
    """Places on a map in a panel from -1 to 1, turned (and mirrored) so that tokens are near where the first has them.

    Half of a place is its rank along the axis: far islands come nearer, and close ones apart, in unchanged order.
    """
    here, there = (rows[["x", "y"]] - rows[["x", "y"]].mean() for rows in (part, first))
    if len(here) == len(there):
        u, _, v = np.linalg.svd(here.to_numpy().T @ there.to_numpy())
        here = (here @ u @ v).set_axis(["x", "y"], axis=1)
    reach = (here.max() - here.min()).replace(0, 1)
    return ((here - here.min()) / reach + here.rank(pct=True) - 1).round(3)


def _tokens(part: pd.DataFrame, home: pd.Series) -> dict[str, Any]:
    """The dots of a map: large and with a rim where the token is of a word of the concept."""
    styles = [class_style(cluster) if cluster >= 0 else (COLORS["muted"], None) for cluster in home]
    text = [
        f"{html.escape(str(row.context))}<br>word: {html.escape(str(row.word))}<br>"
        + ("noise" if row.cluster < 0 else f"local representation {row.cluster}")
        for row in part.itertuples()
    ]
    marker = {
        "color": [color for color, _ in styles],
        "symbol": ["x-thin-open" if mark is None else PLOTLY_SYMBOLS[mark] for _, mark in styles],
        "size": np.where(part["is_word"], 10, 7),
        "line": {"width": np.where(part["is_word"], 1.5, 0), "color": COLORS["muted"]},
        "opacity": 0.85,
    }
    return {"x": part["x"], "y": part["y"], "mode": "markers", "text": text, "hoverinfo": "text", "marker": marker}


def _islands(part: pd.DataFrame) -> dict[str, Any]:
    """The name of each cluster above it."""
    clusters = part[part["cluster"] >= 0].groupby("cluster")
    names = [(html.escape(name), of_words) for name, of_words in (_cluster_name(members) for _, members in clusters)]
    text = [f"<b>{name}</b>" if of_words else name for name, of_words in names]
    places = {"x": clusters["x"].median(), "y": clusters["y"].max()}
    return {**places, "mode": "text", "text": text, "textposition": "top center", "hoverinfo": "skip"}


def _in_short(name: str, part: pd.DataFrame, home: pd.Series) -> str:
    """What a switch to this map shows: how many clusters there are, and whether they are those of the first map."""
    clustered = part["cluster"] >= 0
    alike = home[clustered].groupby(part["cluster"]).agg(lambda colours: colours.value_counts().iloc[0]).sum()
    share = written(alike / clustered.sum() if clustered.any() else np.nan, ".0%")
    count = part["cluster"][clustered].nunique()
    return in_prose(f"{name}: {count} clusters, {share} of tokens in the colour of their cluster")
