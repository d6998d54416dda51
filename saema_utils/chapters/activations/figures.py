"""Figures of chapter 1: norms and sinks, what a sink does to variance, and maps of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saema_utils.figures import COLORS, CYCLIC, DIVERGING, direct_label, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {
    "first": (COLORS["accent"], "first position"),
    "sink": (COLORS["pca"], "later sink"),
    "ordinary": (COLORS["residual"], "ordinary token"),
}
_DRAWN = 1000
_CONCEPT_COLORS = (COLORS["sae"], COLORS["accent"])


def norms_by_position(table: pd.DataFrame, factor: float) -> Figure:
    """Norm of every token against its position, in sentences and in prompts of one bare word."""
    figure, axes = panels(2, width=7.2, height=3.4, sharey=True, width_ratios=[3, 2])
    rng = np.random.default_rng(0)
    for ax, (context, title) in zip(axes, (("sentence", "In sentences"), ("bare word", "A word alone")), strict=True):
        shown = table[table["context"] == context]
        for kind, (color, label) in _KINDS.items():
            part = _thinned(shown[shown["kind"] == kind], rng)
            spread = rng.uniform(-0.22, 0.22, len(part))
            size, alpha = (10, 0.35) if kind == "ordinary" else (26, 0.8)
            ax.scatter(
                part["position"] + spread, part["ratio"], s=size, alpha=alpha, color=color, label=label, linewidth=0
            )
        ax.axhline(factor, color=COLORS["muted"], linestyle="--", linewidth=1)
        ax.set(yscale="log", title=title, xlabel="position in the prompt (tokens)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        _name_sinks(ax, shown[shown["kind"] == "sink"])
    axes[0].set_ylabel("norm / median norm of ordinary tokens")
    axes[0].annotate(
        f"masked above {factor:g} times the median", (0.98, factor), xycoords=("axes fraction", "data"), xytext=(0, 4),
        textcoords="offset points", ha="right", fontsize=8, color="#555555",
    )  # fmt: skip
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _thinned(part: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """At most a thousand or so points: all that stand out, and a random part of the dense middle."""
    out = ~part["ratio"].between(0.8, 1.4).to_numpy()
    return part[out | (rng.random(len(part)) < _DRAWN / max(len(part), 1))]


def _name_sinks(ax: Axes, sinks: pd.DataFrame) -> None:
    """Write the tokens of the largest sinks beside them, each token once."""
    largest = sinks.sort_values("ratio", ascending=False).drop_duplicates("token").head(6)
    taken: list[float] = []
    for row in largest.itertuples():
        text = str(row.token).strip()
        # Half a character decodes to the replacement sign, which says nothing.
        if not text or "\ufffd" in text or any(abs(np.log(row.ratio / other)) < 0.25 for other in taken):
            continue
        taken.append(row.ratio)
        ax.annotate(
            f"“{text}”",
            (row.position + 0.25, row.ratio),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def variance_with_and_without_sink(table: pd.DataFrame) -> Figure:
    """Cumulative share of variance, masked and with one sink let in; one thin line a concept."""
    figure, ax = panels(width=6.2, height=3.2)
    looks = {"masked": (COLORS["residual"], "-"), "one sink let in": (COLORS["accent"], "--")}
    for tokens, (color, dash) in looks.items():
        part = table[table["tokens"] == tokens].pivot(index="components", columns="concept", values="share")
        ax.plot(part.index, part, color=color, linestyle=dash, linewidth=0.8, alpha=0.45)
        mean = part.mean(axis=1)
        ax.plot(part.index, mean, color=color, linestyle=dash, linewidth=2.2)
        direct_label(ax, part.index[-1], mean.iloc[-1], tokens, color)
    ax.set(
        xlabel="principal components",
        ylabel="share of the variance",
        ylim=(0, 1.04),
        xlim=(1, table["components"].max()),
    )
    ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def word_circles(table: pd.DataFrame, layers: list[int]) -> Figure:
    """The words of each concept in their principal plane, one panel a layer, joined in their order.

    A plane has no up and no handedness of its own: each panel is turned so that the first word stands
    on top, and mirrored if that makes the words run clockwise.
    """
    concepts = list(dict.fromkeys(table["concept"]))
    figure, axes = panels(len(layers), len(concepts), width=8.0, height=2.5, squeeze=False)
    for row, concept in zip(axes, concepts, strict=True):
        for ax, layer in zip(row, layers, strict=True):
            part = table[(table["concept"] == concept) & (table["layer"] == layer)]
            if part.empty:
                ax.set_visible(False)
                continue
            _word_map(ax, part[["x", "y"]].to_numpy(), [str(word) for word in part["word"]])
            order, share = part["cyclic_order"].iloc[0], part["plane_share"].iloc[0]
            ax.set_title(f"layer {layer}", fontsize=9, loc="center", pad=2)
            ax.set_xlabel(f"in order {order:.0%}, plane holds {share:.0%}", fontsize=7.5, color="#555555")
        row[0].set_ylabel(concept, fontsize=11, fontweight="bold")
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
    import matplotlib

    points = _upright(points)
    closed = np.vstack([points, points[:1]])
    ax.plot(*closed.T, color=COLORS["muted"], linewidth=0.9, zorder=1)
    colors = matplotlib.colormaps[CYCLIC](0.08 + 0.84 * np.arange(len(words)) / len(words))
    ax.scatter(*points.T, c=colors, s=24, zorder=2, edgecolor="white", linewidth=0.5)
    middle = (points.max(0) + points.min(0)) / 2
    reach = 0.68 * np.ptp(points, axis=0).max()
    for (x, y), word in zip(points, words, strict=True):
        length = np.hypot(x, y) or 1.0
        ax.annotate(
            word[:3], (x, y), xytext=(10 * x / length, 9 * y / length), textcoords="offset points",
            ha="center", va="center", fontsize=7, zorder=3,
        )  # fmt: skip
    ax.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    ax.grid(False)


def order_by_layer(table: pd.DataFrame, layer: int) -> Figure:
    """Share of neighbouring words in cyclic order at every layer, with the level of shuffled words."""
    figure, ax = panels(width=6.6, height=2.9)
    ends = []
    for color, (concept, part) in zip(_CONCEPT_COLORS, table.groupby("concept", sort=False), strict=False):
        scores = part.groupby("layer")[["cyclic_order", "chance", "p_value"]].first()
        ax.plot(scores.index, scores["cyclic_order"], color=color)
        sure = scores[scores["p_value"] < 0.01]
        ax.scatter(sure.index, sure["cyclic_order"], color=color, s=22, zorder=3)
        ax.plot(scores.index, scores["chance"], color=color, linestyle=":", linewidth=1)
        ax.annotate(
            f"{concept}, shuffled", (scores.index[0], scores["chance"].iloc[0]), xytext=(6, 3),
            textcoords="offset points", fontsize=8, color=color,
        )  # fmt: skip
        ends.append((scores["cyclic_order"].iloc[-1], scores.index[-1], concept, color))
    previous = -np.inf
    for y, x, concept, color in sorted(ends):
        previous = max(y, previous + 0.09)
        direct_label(ax, x, previous, concept, color)
    ax.axvline(layer, color=COLORS["muted"], linestyle="--", linewidth=1)
    ax.annotate("studied", (layer, 0.03), xytext=(4, 0), textcoords="offset points", fontsize=8, color="#555555")
    ax.set(xlabel="layer (after which block)", ylabel="neighbours in order (share)", ylim=(0, 1.05))
    ax.set_xlim(table["layer"].min(), table["layer"].max())
    return figure


def similarity_matrices(matrices: dict[str, np.ndarray], words: dict[str, list[str]]) -> Figure:
    """Cosine similarity between the mean vectors of words, one matrix a concept, the diagonal left blank."""
    others = [m[~np.eye(len(m), dtype=bool)] for m in matrices.values()]
    limit = max(0.1, float(np.ceil(10 * np.nanmax(np.abs(np.concatenate(others)), initial=0)) / 10))
    figure, axes = panels(len(matrices), width=3.7 * len(matrices), height=3.5, squeeze=False)
    image = None
    for ax, (concept, matrix) in zip(axes[0], matrices.items(), strict=True):
        shown = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
        image = ax.imshow(shown, cmap=DIVERGING, vmin=-limit, vmax=limit)
        ticks = range(len(matrix))
        ax.set_xticks(ticks, words[concept], rotation=90, fontsize=7.5)
        ax.set_yticks(ticks, words[concept], fontsize=7.5)
        ax.set_title(concept)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    figure.colorbar(image, ax=axes[0], label="cosine similarity", shrink=0.75)
    return figure


__all__ = [
    "norms_by_position", "order_by_layer", "similarity_matrices", "variance_with_and_without_sink",
    "word_circles",
]  # fmt: skip
