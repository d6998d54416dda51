"""Figures of chapter 2: how the SAE was trained, what it buys, and which latents mark a concept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saema_utils.figures import (
    COLORS,
    GREY,
    NAMES,
    SEQUENTIAL,
    SMALL,
    direct_label,
    line_style,
    nothing_to_draw,
    panels,
    says_if_empty,
    span,
)

_DOTS = {"marker": "o", "markersize": 3.5, "markeredgewidth": 0}


def training_curve(history: pd.DataFrame, evaluation: pd.DataFrame) -> Figure:
    """Explained variance of held-out tokens against tokens seen, and latents that have fallen silent.

    An SAE that was not trained here has no history: its final value is drawn alone.
    """
    if history.empty:
        figure, ax = panels(width=6.6, height=0.4 * len(evaluation) + 1.0)
        names = evaluation["representation"].map(NAMES)
        colors = [COLORS[name] for name in evaluation["representation"]]
        sns.barplot(
            evaluation, x="explained_variance", y=names, hue=names, palette=colors, saturation=1, width=0.5, ax=ax
        )
        ax.set(xlabel="explained variance of held-out tokens", ylabel="", xlim=(_floor(evaluation), 1))
        return figure
    figure, (left, right) = panels(2, width=8.2, height=3.1)
    shown = history.assign(tokens=history["tokens"] / 1000)
    sns.lineplot(shown, x="tokens", y="explained_variance", **line_style("sae"), ax=left)
    direct_label(left, *shown[["tokens", "explained_variance"]].iloc[-1], "SAE", COLORS["sae"])
    for level in evaluation.loc[evaluation["representation"] == "random_dictionary", "explained_variance"]:
        left.axhline(level, **line_style("random_dictionary"))
        at = {"xycoords": left.get_yaxis_transform(), "xytext": (-2, 7), "ha": "right"}
        direct_label(left, 1, level, NAMES["random_dictionary"], COLORS["random_dictionary"], **at)
    left.set(xlabel="tokens seen (thousands)", ylabel="explained variance", title="It learns to reconstruct")
    left.set_ylim(_floor(history), 1)
    sns.lineplot(shown, x="tokens", y="dead", color=COLORS["accent"], ax=right)
    right.set(xlabel="tokens seen (thousands)", ylabel="latents silent for an epoch", title="Some latents die")
    right.set_ylim(0, max(1.0, 1.1 * span(history["dead"], around=[0])[1]))
    return figure


def _floor(table: pd.DataFrame) -> float:
    """Where an axis of explained variance begins: at zero, unless something is worse than guessing the mean."""
    return min(0, span(table["explained_variance"])[0])


def features_found(found: np.ndarray, by_chance: np.ndarray) -> Figure:
    """How close the dictionary comes to each true feature of a toy, beside a random dictionary."""
    figure, ax = panels(width=6.6, height=2.9)
    order = np.arange(1, len(found) + 1)
    for values, name, text in ((found, "sae", "trained SAE"), (by_chance, "random_dictionary", "random dictionary")):
        sns.lineplot(x=order, y=np.sort(values)[::-1], **_DOTS, **line_style(name), ax=ax)
        direct_label(ax, order[-1], values.min(), text, COLORS[name])
    ax.set(xlabel="true features, best found first", ylabel="cosine with the nearest latent", ylim=(0, 1.03))
    return figure


@says_if_empty("No latent was measured.", known="firing_rate")
def density_histogram(density: pd.DataFrame) -> Figure:
    """How often latents fire, on a logarithmic scale, with the silent ones counted apart."""
    figure, ax = panels(width=6.8, height=3.0)
    rate, tokens = density["firing_rate"], int(density["tokens"].iloc[0])
    alive = rate[rate > 0]
    bins = np.linspace(-np.log10(tokens), 0, 41)
    sns.histplot(x=alive, log_scale=True, bins=bins, color=COLORS["sae"], linewidth=0, alpha=0.85, ax=ax)
    if len(alive):
        ax.axvline(alive.mean(), color=GREY, linestyle=":", linewidth=1.2)
    direct_label(ax, alive.mean(), 1, "mean", GREY, xycoords=ax.get_xaxis_transform(), xytext=(0, 6), ha="center")
    silent = f"{(rate == 0).sum()} of {len(rate)} latents never fired"
    direct_label(ax, 0.02, 0.93, silent, COLORS["accent"], xycoords="axes fraction")
    ax.set(xlabel=f"share of {tokens:,} tokens on which a latent fires", ylabel="latents", xlim=(1 / tokens, 1))
    return figure


@says_if_empty("No code was cut down to its strongest coefficients.", known="explained_variance")
def sparsity_frontier(curve: pd.DataFrame) -> Figure:
    """Explained variance when only the strongest coefficients of each token are kept."""
    figure, ax = panels(width=7.0, height=3.4)
    for name, rows in curve.groupby("representation"):
        shown = _until_flat(rows)[["kept", "explained_variance"]]
        sns.lineplot(shown, x="kept", y="explained_variance", **_DOTS, **line_style(name), ax=ax)
        direct_label(ax, *shown.iloc[-1], NAMES[name], COLORS[name], xytext=(0, 10), ha="center")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.set(xlabel="coefficients kept per token", ylabel="explained variance", ylim=(_floor(curve), 1))
    return figure


def _until_flat(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows up to where keeping more changes nothing (the code has no more coefficients)."""
    rising = np.flatnonzero(rows["explained_variance"].diff().abs() > 1e-6)
    return rows.iloc[: rising[-1] + 1 if len(rising) else 1]


@says_if_empty("No reconstruction was put in the place of the residual stream.", known="ce_spliced")
def cross_entropy(evaluation: pd.DataFrame) -> Figure:
    """Next-token loss with each reconstruction in place of the residual stream, between its two bounds."""
    figure, ax = panels(width=7.0, height=0.42 * len(evaluation) + 1.2)
    clean, zero = evaluation[["ce_clean", "ce_zero_ablated"]].iloc[0]
    for value, text, ha in ((clean, "untouched", "left"), (zero, "zeros", "right")):
        ax.axvline(value, color=GREY, linewidth=1, linestyle=":")
        at = {"xytext": (4 if ha == "left" else -4, 7), "xycoords": ax.get_xaxis_transform(), "ha": ha}
        direct_label(ax, value, 1, text, GREY, **at)
    names = evaluation["representation"].map(NAMES)
    colors = [COLORS[name] for name in evaluation["representation"]]
    ax.hlines(names, clean, evaluation["ce_spliced"], colors, linewidth=2)
    ax.scatter(evaluation["ce_spliced"], names, color=colors, zorder=3)
    ax.set(xlabel="cross-entropy of the next token (nats)", ylim=(len(evaluation) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    return figure


def concept_heatmap(latents: pd.DataFrame, concept: str) -> Figure:
    """Mean activation of a concept's most telling latents on each of its words."""
    rows = latents[latents["concept"] == concept]
    grid = rows.pivot_table(index="rank", columns="word", values="activation", sort=False).sort_index()
    if grid.empty:
        return nothing_to_draw(f"No latent tells {concept} from other text.")
    first = rows.drop_duplicates("rank").sort_values("rank")
    figure, ax = panels(width=7.6, height=0.36 * len(grid) + 1.9)
    bar = {"location": "bottom", "shrink": 0.45, "aspect": 40, "pad": 0.02, "label": "mean activation (length it adds)"}
    names, step = [f"latent {latent}" for latent in first["latent"]], -(-grid.shape[1] // 26)
    sns.heatmap(grid, cmap=SEQUENTIAL, vmin=0, yticklabels=names, xticklabels=step, cbar_kws=bar, ax=ax)
    ax.set(xlabel="", ylabel="")
    ax.grid(False)
    ax.set_xticklabels(ax.get_xticklabels(), rotation=55, ha="right", rotation_mode="anchor")
    _firing_words(ax, first["tokens"].fillna(""), grid.shape[1] + 0.3)
    return figure


def _firing_words(ax: Axes, tokens: pd.Series, right: float) -> None:
    """At the right of each row, the running-text tokens that make its latent fire most."""
    direct_label(ax, right, -0.4, "fires in running text on", GREY, fontsize=SMALL, style="italic")
    for y, text in enumerate(tokens):
        short = text if len(text) <= 42 else text[:41].rsplit(" ·", 1)[0]
        direct_label(ax, right, y + 0.5, short.replace("$", r"\$"), GREY, fontsize=SMALL)
