"""Figures of chapter 3. Each takes tables and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.figures import COLORS, NAMES, SEQUENTIAL, band, line_style, noise_axis, panels

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

MODE_NAMES = ("prompts (mode 0)", "positions (mode 1)", "features (mode 2)")
ORDER = ("residual", "sae", "pca", "random_dictionary", "shuffled")
SHORT = {**NAMES, "residual": "residual", "sae": "SAE", "random_dictionary": "random dict.", "shuffled": "shuffled"}


def _known(table: pd.DataFrame) -> list[str]:
    present = set(table["representation"])
    return [name for name in ORDER if name in present]


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Name each line at its right end, pushed apart where they would overlap."""
    axes.figure.draw_without_rendering()
    pixels = {name: axes.transData.transform(end)[1] for name, end in ends.items()}
    placed, previous = {}, -np.inf
    for name in sorted(pixels, key=pixels.get):
        previous = placed[name] = max(pixels[name], previous + 14 * axes.figure.dpi / 100)
    push = sum(placed.values()) / len(placed) - sum(pixels.values()) / len(pixels)  # keep the group centred
    placed = {name: at - push for name, at in placed.items()}
    for name, (x, y) in ends.items():
        lift = (placed[name] - pixels[name]) * 72 / axes.figure.dpi
        axes.annotate(
            SHORT[name], (x, y), xytext=(6, lift), textcoords="offset points", va="center", fontsize=9,
            color=COLORS[name], annotation_clip=False,
        )  # fmt: skip


def _relative(table: pd.DataFrame, column: str = "effective_rank") -> pd.DataFrame:
    """Log of a rank over its value without noise, per concept, representation, mode and seed."""
    keys = ["concept", "representation", "mode", "seed"]
    clean = table[table["noise"] == 0].set_index(keys)[column]
    change = np.log(table[column].to_numpy() / clean.loc[list(zip(*(table[k] for k in keys), strict=True))].to_numpy())
    return table.assign(change=change)


def _curve(axes: Axes, rows: pd.DataFrame, name: str, x: str = "noise_rms") -> tuple[float, float]:
    """Geometric mean over concepts of r(s)/r(0), with the range over concepts as a band; returns its end."""
    per_concept = rows.groupby(["concept", "noise"])[["change", x]].mean().reset_index()
    over = per_concept.groupby("noise").agg(
        x=(x, "mean"), mean=("change", "mean"), low=("change", "min"), high=("change", "max")
    )
    levels = np.exp(over[["mean", "low", "high"]].to_numpy()).T
    band(axes, over["x"].to_numpy(), *levels, name, label=False)
    return float(over["x"].iloc[-1]), float(levels[0][-1])


def rank_against_noise(table: pd.DataFrame) -> Figure:
    """Effective rank as a multiple of its clean value, per mode; bands are the range over concepts."""
    table = _relative(table)
    figure, axes = panels(3, width=9.6, height=3.5, sharey=True)
    for mode, axis in enumerate(axes):
        rows = table[table["mode"] == mode]
        ends = {name: _curve(axis, rows[rows["representation"] == name], name) for name in _known(rows)}
        axis.set_title(MODE_NAMES[mode])
        axis.axhline(1, color=COLORS["muted"], linewidth=0.8)
        _rms_axis(axis, table)
        _doublings(axis)
        if mode == 2:
            _label_ends(axis, ends)
    axes[0].set_ylabel("effective rank / its clean value")
    return figure


def _rms_axis(axis: Axes, table: pd.DataFrame) -> None:
    levels = sorted(table.groupby("noise")["noise_rms"].mean())
    noise_axis(axis, levels, "noise / RMS of activations")


def _doublings(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_locator(LogLocator(base=2))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def repeated_contexts(table: pd.DataFrame, distinct: pd.DataFrame, concept: str) -> Figure:
    """Numerical rank of one concept in the feature mode: all tokens, and one token for each distinct context."""
    figure, axes = panels(2, width=8.4, height=3.3, sharey=True)
    for axis, rows, title in zip(axes, (table, distinct), ("every token", "one token for each context"), strict=True):
        rows = rows[(rows["mode"] == 2) & (rows["concept"] == concept)]
        names = [name for name in _known(distinct) if name in set(rows["representation"])]
        ends = {}
        for name in names:
            over = rows[rows["representation"] == name].groupby("noise_rms")["rank"].agg(["mean", "min", "max"])
            band(axis, over.index.to_numpy(), over["mean"], over["min"], over["max"], name, label=False)
            ends[name] = (over.index[-1], over["mean"].iloc[-1])
        axis.set_title(title)
        _rms_axis(axis, rows)
    _label_ends(axes[1], ends)
    axes[0].set_ylabel("numerical rank, feature mode")
    return figure


def toy_spectra(spectra: Sequence[Float[Tensor, " n"]], ranks: Sequence[int], rtol: float) -> Figure:
    """Eigenvalues of the three unfoldings of a tensor of known rank, as shares of the largest."""
    figure, axes = panels(3, width=9.0, height=2.9, sharey=True)
    for mode, (axis, spectrum, rank) in enumerate(zip(axes, spectra, ranks, strict=True)):
        share = np.clip(np.asarray(spectrum) / float(spectrum[0]), 1e-17, None)[: rank * 2 + 6]
        index = np.arange(1, len(share) + 1)
        color = np.where(index <= rank, COLORS["accent"], COLORS["muted"])
        axis.vlines(index, 1e-17, share, color=color, linewidth=1.4)
        axis.scatter(index, share, c=color, s=18, zorder=3)
        axis.axhline(rtol, color=COLORS["sae"], linestyle="--", linewidth=1)
        axis.set_yscale("log")
        axis.set_ylim(1e-17, 5)
        axis.set_title(f"{MODE_NAMES[mode]}: rank {rank}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("eigenvalue number")
    axes[0].set_ylabel("share of the largest eigenvalue")
    axes[0].annotate(
        "tolerance", (1, rtol), xycoords=("axes fraction", "data"), xytext=(-2, 4), textcoords="offset points",
        color=COLORS["sae"], ha="right",
    )  # fmt: skip
    return figure


def sink_ranks(table: pd.DataFrame) -> Figure:
    """Effective rank with sinks masked, with one left in, and with all left in; thin lines are concepts."""
    kinds = ["masked", "one sink", "all sinks"]
    figure, axes = panels(3, width=9.0, height=3.1, sharey=True)
    for mode, axis in enumerate(axes):
        rows, ends = table[table["mode"] == mode], {}
        for name in _known(rows):
            wide = rows[rows["representation"] == name].pivot(index="concept", columns="kept", values="effective_rank")[
                kinds
            ]
            axis.plot(kinds, wide.to_numpy().T, color=COLORS[name], alpha=0.25, linewidth=0.9)
            mean = np.exp(np.log(wide).mean())
            axis.plot(kinds, mean, marker="o", **line_style(name))
            ends[name] = (2.0, float(mean.iloc[-1]))
        axis.set_yscale("log")
        axis.set_title(MODE_NAMES[mode])
        axis.set_xlim(-0.2, 2.2)
        if mode == 2:
            _label_ends(axis, ends)
    axes[0].set_ylabel("effective rank")
    return figure


def tolerance_map(table: pd.DataFrame, names: Sequence[str] = ("residual", "sae", "random_dictionary")) -> Figure:
    """First noise level (in RMS) at which the feature-mode rank changes, by concept and tolerance."""
    rows = table[table["mode"] == 2]
    names = [name for name in names if name in set(rows["representation"])]
    concepts = list(dict.fromkeys(rows["concept"]))
    filled = rows["first_noise_rms"].fillna(rows["first_noise_rms"].max() * 3)
    low, high = np.log10(filled.min()), np.log10(filled.max())
    figure, axes = panels(len(names), width=9.6, height=0.9 + 0.33 * len(concepts), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        wide = rows[rows["representation"] == name].pivot(index="concept", columns="rtol", values="first_noise_rms")
        wide = wide.loc[concepts]
        axis.imshow(np.log10(wide.to_numpy()), cmap=SEQUENTIAL, vmin=low, vmax=high, aspect="auto")
        middle = (low + high) / 2
        for (i, j), value in np.ndenumerate(wide.to_numpy()):
            known = np.isfinite(value)
            dark = known and np.log10(value) < middle
            axis.text(j, i, f"{value:.2g}" if known else "never", ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")  # fmt: skip
        axis.set_title(SHORT[name], color=COLORS[name])
        axis.set_xticks(range(wide.shape[1]), [f"{rtol:.0e}".replace("e-0", "e-") for rtol in wide])
        axis.set_yticks(range(len(concepts)), [concept.replace("_", " ") for concept in concepts])
        axis.set_xlabel("tolerance (share of the largest)")
        axis.grid(False)
    return figure


def subspace_drift(table: pd.DataFrame) -> Figure:
    """Mean principal angle to the clean leading subspace, per mode, and the share of the support in common."""
    figure, axes = panels(4, width=11.0, height=3.1)
    for mode, axis in enumerate(axes[:3]):
        rows = table[table["mode"] == mode]
        for name in _known(rows):
            _over_concepts(axis, rows[rows["representation"] == name], name, "angle_mean")
        axis.set_title(MODE_NAMES[mode])
        axis.set_ylim(0, 90)
        axis.set_yticks([0, 30, 60, 90])
        _rms_axis(axis, table)
    ends = {}
    rows = table[table["mode"] == 2]
    for name in _known(rows):
        ends[name] = _over_concepts(axes[3], rows[rows["representation"] == name], name, "support_kept")
    axes[3].set_title("active latents in common")
    axes[3].set_ylim(0, 1.05)
    axes[3].set_ylabel("share of the support")
    _rms_axis(axes[3], table)
    _label_ends(axes[3], ends)
    axes[0].set_ylabel("mean principal angle (degrees)")
    return figure


def _over_concepts(axis: Axes, rows: pd.DataFrame, name: str, column: str) -> tuple[float, float]:
    per_concept = rows.groupby(["concept", "noise"])[[column, "noise_rms"]].mean().reset_index()
    over = per_concept.groupby("noise").agg(
        x=("noise_rms", "mean"), mean=(column, "mean"), low=(column, "min"), high=(column, "max")
    )
    band(axis, over["x"].to_numpy(), over["mean"], over["low"], over["high"], name, label=False)
    return float(over["x"].iloc[-1]), float(over["mean"].iloc[-1])


def where_rank_moves(table: pd.DataFrame) -> Figure:
    """Rank gained by each position's tokens against how many of them repeat an earlier context."""
    rows = table[table["axis"] == "position"]
    figure, axes = panels(3, width=9.0, height=3.1, sharey=True, sharex=True)
    limit = 1.05 * max(1, rows["rank_gain"].max(), (rows["n_tokens"] - rows["n_distinct"]).max())
    for axis, name in zip(axes, _known(rows), strict=False):
        part = rows[rows["representation"] == name]
        axis.plot([0, limit], [0, limit], color=COLORS["muted"], linewidth=0.9)
        axis.scatter(part["n_tokens"] - part["n_distinct"], part["rank_gain"], s=16, alpha=0.55,
                     color=COLORS[name], linewidth=0)  # fmt: skip
        axis.set_title(SHORT[name], color=COLORS[name])
        axis.set_xlabel("repeated contexts at a position")
    axes[0].set_ylabel("rank gained under noise")
    axes[0].annotate("gain = repeats", (limit * 0.55, limit * 0.55), xytext=(6, -12),
                     textcoords="offset points", color=COLORS["muted"], fontsize=9)  # fmt: skip
    return figure


def noise_kinds(table: pd.DataFrame) -> Figure:
    """Effective rank under isotropic noise and under noise shaped like the activations, at equal norm."""
    figure, axes = panels(2, width=8.4, height=3.3, sharey=True)
    for axis, kind, title in zip(
        axes, ("isotropic", "on_manifold"), ("isotropic noise", "noise shaped like the activations"), strict=True
    ):
        rows = _relative(table[table["kind"] == kind])
        ends = {name: _curve(axis, rows[rows["representation"] == name], name) for name in _known(rows)}
        axis.axhline(1, color=COLORS["muted"], linewidth=0.8)
        axis.set_title(title)
        _rms_axis(axis, rows)
        _doublings(axis)
        _label_ends(axis, ends)
    axes[0].set_ylabel("effective rank / its clean value")
    return figure


def noise_units(table: pd.DataFrame, name: str = "sae") -> Figure:
    """Effective rank of one representation, a line a concept, against noise in both units."""
    rows = table[(table["mode"] == 2) & (table["representation"] == name)]
    over = rows.groupby(["concept", "noise"])[["effective_rank", "noise_rms"]].mean().reset_index()
    positive = over[over["noise"] > 0]
    rms = float((positive["noise"] / positive["noise_rms"]).mean())
    figure, axes = panels(2, width=8.4, height=3.2, sharey=True)
    for axis, x, label in zip(
        axes, ("noise", "noise_rms"), ("noise (activation units)", "noise / RMS of activations"), strict=True
    ):
        for _, part in over.groupby("concept"):
            axis.plot(part[x], part["effective_rank"], color=COLORS[name], alpha=0.55, linewidth=1.2)
        one = rms if x == "noise" else 1.0
        axis.axvline(one, color=COLORS["accent"], linewidth=1, linestyle=":")
        noise_axis(axis, sorted(over.groupby("noise")[x].mean()), label)
        axis.annotate("1 RMS", (one, 0.97), xycoords=("data", "axes fraction"), xytext=(-4, 0), ha="right",
                      va="top", textcoords="offset points", color=COLORS["accent"], fontsize=9)  # fmt: skip
    axes[0].set_ylabel("effective rank, feature mode")
    return figure


def forest(table: pd.DataFrame, statistic: str = "excursion") -> Figure:
    """SAE minus each control, per concept, with 95 % intervals; the shaded strip is the margin."""
    rows = table[(table["statistic"] == statistic) & (table["control"] != "strongest control")]
    concepts = list(dict.fromkeys(rows["concept"]))[::-1]
    controls = [name for name in ORDER if name in set(rows["control"])]
    offsets = np.linspace(0.26, -0.26, len(controls))
    figure, axis = panels(1, width=7.8, height=1.2 + 0.42 * len(concepts))
    margin = float(rows["margin"].iloc[0])
    axis.axvspan(-margin, margin, color=COLORS["muted"], alpha=0.18, linewidth=0)
    axis.axvline(0, color=COLORS["muted"], linewidth=1)
    axis.axhline(concepts.index("all concepts") + 0.5, color="#444444", linewidth=0.8)
    for control, offset in zip(controls, offsets, strict=True):
        part = rows[rows["control"] == control].set_index("concept").loc[concepts]
        y = np.arange(len(concepts)) + offset
        axis.hlines(y, part["low"], part["high"], color=COLORS[control], linewidth=2)
        axis.scatter(part["difference"], y, color=COLORS[control], s=24, zorder=3, label=f"minus {SHORT[control]}")
    axis.set_yticks(range(len(concepts)), [concept.replace("_", " ") for concept in concepts])
    unit = "log of effective rank" if statistic == "excursion" else "noise levels"
    axis.set_xlabel(f"← controls move more      {statistic}: SAE minus control ({unit})      SAE moves more →")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
