"""Plots of chapter 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saema_utils.figures import COLORS, NAMES, SEQUENTIAL, direct_label, line_style, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training_curve(history: pd.DataFrame, evaluation: pd.DataFrame) -> Figure:
    """Explained variance of held-out tokens against tokens seen, and latents that have fallen silent.

    An SAE that was not trained here has no history: its final value is drawn alone.
    """
    if history.empty:
        return _final_values(evaluation)
    figure, (left, right) = panels(2, width=8.2, height=3.1)
    tokens = history["tokens"] / 1000
    left.plot(tokens, history["explained_variance"], **line_style("sae"))
    direct_label(left, tokens.iloc[-1], history["explained_variance"].iloc[-1], "SAE", COLORS["sae"])
    rows = evaluation.set_index("representation")
    if "random_dictionary" in rows.index:
        level = rows.loc["random_dictionary", "explained_variance"]
        left.axhline(level, **line_style("random_dictionary"))
        left.annotate(
            "random dictionary", (1, level), xycoords=("axes fraction", "data"), xytext=(-2, 4), ha="right",
            textcoords="offset points", color=COLORS["random_dictionary"], fontsize=9,
        )  # fmt: skip
    left.set(xlabel="tokens seen (thousands)", ylabel="explained variance", title="It learns to reconstruct")
    left.set_ylim(min(0, history["explained_variance"].min()), 1)
    right.plot(tokens, history["dead"], color=COLORS["accent"])
    right.set(xlabel="tokens seen (thousands)", ylabel="latents silent for an epoch", title="Some latents die")
    right.set_ylim(0, max(1.0, 1.1 * history["dead"].max()))
    return figure


def _final_values(evaluation: pd.DataFrame) -> Figure:
    figure, axes = panels(width=6.6, height=0.4 * len(evaluation) + 1.0)
    names = list(evaluation["representation"])[::-1]
    axes.barh(
        range(len(names)), evaluation["explained_variance"][::-1], color=[COLORS[name] for name in names], height=0.5
    )
    axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
    axes.set(xlabel="explained variance of held-out tokens", xlim=(min(0, evaluation["explained_variance"].min()), 1))
    return figure


def recovery(found: np.ndarray, by_chance: np.ndarray) -> Figure:
    """How close the dictionary comes to each true feature of a toy, beside a random dictionary."""
    figure, axes = panels(width=6.6, height=2.9)
    order = np.arange(1, len(found) + 1)
    for values, name, text in ((found, "sae", "trained SAE"), (by_chance, "random_dictionary", "random dictionary")):
        axes.plot(order, np.sort(values)[::-1], marker="o", markersize=3, **line_style(name))
        direct_label(axes, order[-1], values.min(), text, COLORS[name])
    axes.set(xlabel="true features, best found first", ylabel="cosine with the nearest latent", ylim=(0, 1.03))
    return figure


def density_histogram(density: pd.DataFrame) -> Figure:
    """How often latents fire, on a logarithmic scale, with the silent ones counted apart."""
    figure, axes = panels(width=6.8, height=3.0)
    rate, tokens = density["firing_rate"].to_numpy(), int(density["tokens"].iloc[0])
    alive, silent = rate[rate > 0], int((rate == 0).sum())
    bins = np.logspace(np.log10(1 / tokens), 0, 41)
    axes.hist(alive, bins=bins, color=COLORS["sae"], alpha=0.85)
    axes.set_xscale("log")
    axes.axvline(alive.mean(), color="#444444", linestyle=":", linewidth=1.2)
    axes.annotate(
        "mean", (alive.mean(), 1), xycoords=("data", "axes fraction"), xytext=(4, -10), textcoords="offset points",
        fontsize=9, color="#444444",
    )  # fmt: skip
    axes.annotate(
        f"{silent} of {len(rate)} latents never fired", (0.02, 0.9), xycoords="axes fraction", color=COLORS["accent"],
        fontsize=9,
    )  # fmt: skip
    axes.set(xlabel=f"share of {tokens:,} tokens on which a latent fires", ylabel="latents")
    return figure


def sparsity_frontier(curve: pd.DataFrame) -> Figure:
    """Explained variance when only the strongest coefficients of each token are kept."""
    figure, axes = panels(width=7.0, height=3.4)
    shown = curve.groupby("representation").apply(_until_flat, include_groups=False).reset_index(level=0)
    for name, rows in shown.groupby("representation"):
        axes.plot(rows["kept"], rows["explained_variance"], marker="o", markersize=3.5, **line_style(name))
        last = rows.iloc[-1]
        axes.annotate(
            NAMES[name], (last["kept"], last["explained_variance"]), xytext=(0, 7), textcoords="offset points",
            ha="center", color=COLORS[name], fontsize=9, annotation_clip=False,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = [2**i for i in range(12) if 2**i <= shown["kept"].max()]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="coefficients kept per token", ylabel="explained variance", ylim=(min(0, shown.min().iloc[-1]), 1))
    return figure


def _until_flat(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows up to where keeping more changes nothing (the code has no more coefficients)."""
    values = rows["explained_variance"].to_numpy()
    rising = np.flatnonzero(np.abs(np.diff(values)) > 1e-6)
    return rows.iloc[: (rising[-1] + 2 if len(rising) else 1)]


def cross_entropy(evaluation: pd.DataFrame) -> Figure:
    """Next-token loss with each reconstruction in place of the residual stream, between its two bounds."""
    figure, axes = panels(width=7.0, height=0.42 * len(evaluation) + 1.2)
    clean, zero = evaluation["ce_clean"].iloc[0], evaluation["ce_zero_ablated"].iloc[0]
    for value, text, place in ((clean, "untouched", "left"), (zero, "zeros", "right")):
        axes.axvline(value, color="#444444", linewidth=1, linestyle=":")
        axes.annotate(
            text, (value, 1), xycoords=("data", "axes fraction"), xytext=(4 if place == "left" else -4, 3),
            textcoords="offset points", ha=place, fontsize=9, color="#444444",
        )  # fmt: skip
    for y, row in enumerate(evaluation.iloc[::-1].itertuples()):
        color = COLORS[row.representation]
        axes.plot([clean, row.ce_spliced], [y, y], color=color, linewidth=2)
        axes.plot(row.ce_spliced, y, "o", color=color)
    axes.set_yticks(range(len(evaluation)), [NAMES[name] for name in evaluation["representation"].iloc[::-1]])
    axes.set(xlabel="cross-entropy of the next token (nats)", ylim=(-0.6, len(evaluation) - 0.4))
    axes.grid(axis="y", visible=False)
    return figure


def concept_heatmap(latents: pd.DataFrame, concept: str) -> Figure:
    """Mean activation of a concept's most telling latents on each of its words."""
    rows = latents[latents["concept"] == concept]
    grid = rows.pivot_table(index="word", columns="rank", values="activation", sort=False)
    grid = grid[sorted(grid.columns)]
    first = rows.drop_duplicates("rank").sort_values("rank")
    many = len(grid) > 26
    figure, axes = panels(width=7.6, height=0.36 * grid.shape[1] + 1.9)
    image = axes.imshow(grid.to_numpy().T, aspect="auto", cmap=SEQUENTIAL, vmin=0)
    axes.set_yticks(range(grid.shape[1]), [f"latent {latent}" for latent in first["latent"]])
    step = max(1, len(grid) // 26) if many else 1
    axes.set_xticks(
        range(0, len(grid), step), list(grid.index)[::step], rotation=55, ha="right", rotation_mode="anchor"
    )
    axes.grid(visible=False)
    _firing_words(axes, first["tokens"].fillna("").tolist(), len(grid))
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.45, aspect=40, pad=0.02)
    bar.set_label("mean activation (length it adds)")
    return figure


def _firing_words(axes: Axes, tokens: list[str], right: int) -> None:
    """At the right of each row, the running-text tokens that make its latent fire most."""
    for y, text in enumerate(tokens):
        short = text if len(text) <= 42 else text[:41].rsplit(" ·", 1)[0]
        axes.annotate(
            short.replace("$", r"\$"), (right - 0.3, y), va="center", fontsize=8, color="#595959", annotation_clip=False
        )
    axes.annotate(
        "fires in running text on", (right - 0.3, -0.85), va="center", fontsize=8, style="italic", color="#595959",
        annotation_clip=False,
    )  # fmt: skip
