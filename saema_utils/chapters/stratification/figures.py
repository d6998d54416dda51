"""Figures of chapter 3. Each takes tables and returns a matplotlib Figure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from saema_utils.evidence.rank import EVERY_CONCEPT, noise_steps
from saema_utils.figures import (
    COLORS,
    MAIN,
    NAMES,
    SEQUENTIAL,
    SMALL,
    direct_label,
    noise_axis,
    note,
    note_missing,
    panels,
    present,
    says_if_empty,
    span,
)
from saema_utils.stratification.spectra import DEFAULT_RTOL
from saema_utils.wording import in_prose

MODE_NAMES = ("prompts (mode 0)", "positions (mode 1)", "features (mode 2)")
ORDER = ("residual", "sae", "pca", "random_dictionary", "shuffled")
SHORT = {**NAMES, "residual": "residual", "sae": "SAE", "random_dictionary": "random dict.", "shuffled": "shuffled"}
DASHES = {name: "" if name in MAIN else (3.7, 1.6) for name in ORDER}
NOISE = "noise / RMS of activations"
NOTHING = "No rank was measured under noise."
NEVER = 1e9  # stands for the first level of a rank that never changes: over the end of the colours


def _label_ends(axes: Axes, names: Sequence[str]) -> None:
    """Name the first lines of a panel at their right ends, pushed apart where the names would overlap."""
    axes.figure.draw_without_rendering()
    lines = {name: line.get_xydata() for name, line in zip(names, axes.get_lines(), strict=False)}
    known = {name: places[np.isfinite(places).all(axis=1)] for name, places in lines.items()}
    known = {name: places for name, places in known.items() if len(places)}
    if not known:
        return
    ends = [axes.transData.transform(places[-1]) for places in known.values()]
    height = np.array([end[1] for end in ends])
    placed, order = height.copy(), np.argsort(height)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + 14 * axes.figure.dpi / 100)
    placed -= placed.mean() - height.mean()  # keep the group centred
    for name, end, y in zip(known, ends, placed, strict=True):
        direct_label(axes, *axes.transData.inverted().transform((end[0], y)), SHORT[name], COLORS[name])


def _curves(axes: Axes, rows: pd.DataFrame, y: str, over: str = "concept") -> None:
    """A line a representation against noise in RMS, with the range over concepts (or seeds) as a band."""
    rows = rows.assign(step=noise_steps(rows))
    units = rows.groupby(["representation", over, "step"])[[y, "noise_rms"]].mean().reset_index()
    units["noise_rms"] = units.groupby("step")["noise_rms"].transform("mean")  # concepts may differ a little in RMS
    band = {"errorbar": ("pi", 100), "err_kws": {"alpha": 0.18, "linewidth": 0}}
    look = {"palette": COLORS, "dashes": DASHES, "hue_order": present(rows, ORDER), "style_order": present(rows, ORDER)}
    names = {"hue": "representation", "style": "representation", "legend": False}
    sns.lineplot(units, x="noise_rms", y=y, ax=axes, **names, **look, **band)
    noise_axis(axes, sorted(units["noise_rms"].unique()), NOISE)
    axes.set_ylabel("")


def _relative_curves(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    """Effective rank over its value without noise: geometric means, in doublings."""
    from matplotlib.ticker import MultipleLocator

    clean = rows.sort_values("noise").groupby(["concept", "representation", "seed"])["effective_rank"]
    _curves(axes, rows.assign(change=np.log2(rows["effective_rank"] / clean.transform("first"))), "change")
    axes.axhline(0, color=COLORS["muted"], linewidth=0.8)
    axes.yaxis.set_major_locator(MultipleLocator(1))
    axes.yaxis.set_major_formatter(lambda doublings, _: f"{2**doublings:g}×")
    axes.set(title=title, ylabel="effective rank / its clean value")


@says_if_empty(NOTHING, known="effective_rank")
def rank_against_noise(table: pd.DataFrame) -> Figure:
    """Effective rank as a multiple of its clean value, per mode; bands are the range over concepts."""
    figure, axes = panels(3, width=9.6, height=3.5, sharey=True)
    for mode, axis in enumerate(axes):
        _relative_curves(axis, table[table["mode"] == mode], MODE_NAMES[mode])
    _label_ends(axes[2], present(table, ORDER))
    return figure


@says_if_empty(NOTHING, known="effective_rank")
def noise_kinds(table: pd.DataFrame) -> Figure:
    """Effective rank under isotropic noise and under noise shaped like the activations, at equal norm."""
    figure, axes = panels(2, width=8.4, height=3.3, sharey=True)
    _relative_curves(axes[0], table[table["kind"] == "isotropic"], "isotropic noise")
    _relative_curves(axes[1], table[table["kind"] == "on_manifold"], "noise shaped like the activations")
    for axis in axes:
        _label_ends(axis, present(table, ORDER))
    return figure


@says_if_empty(NOTHING, known="effective_rank")
def repeated_contexts(table: pd.DataFrame, distinct: pd.DataFrame, concept: str) -> Figure:
    """Numerical rank of one concept in the feature mode: all tokens, and one token for each distinct context."""
    figure, axes = panels(2, width=8.4, height=3.3, sharey=True)
    names = present(distinct, ORDER)
    for axis, rows, title in zip(axes, (table, distinct), ("every token", "one token for each context"), strict=True):
        rows = rows[(rows["mode"] == 2) & (rows["concept"] == concept) & rows["representation"].isin(names)]
        _curves(axis, rows, "rank", over="seed")
        axis.set(title=title, ylabel="numerical rank, feature mode")
    _label_ends(axes[1], names)
    return figure


@says_if_empty(NOTHING, known="support_kept")
def drift_curves(table: pd.DataFrame) -> Figure:
    """Mean principal angle to the clean leading subspace, per mode, and the share of the support in common."""
    figure, grid = panels(2, 2, width=8.4, height=2.9)
    axes = grid.ravel()
    for mode, axis in enumerate(axes[:3]):
        _curves(axis, table[table["mode"] == mode], "angle_mean")
        axis.set(title=MODE_NAMES[mode], ylim=(0, 90), yticks=[0, 30, 60, 90])
        axis.set_ylabel("" if mode == 1 else "mean principal angle (degrees)")
    _curves(axes[3], table[table["mode"] == 2], "support_kept")
    axes[3].set(title="active latents in common", ylim=(0, 1.05), ylabel="share of the support")
    _label_ends(axes[3], present(table, ORDER))
    return figure


def toy_spectra(spectra: Sequence[Float[Tensor, " n"]], ranks: Sequence[int]) -> Figure:
    """Eigenvalues of the three unfoldings of a tensor of known rank, as shares of the largest, and the tolerance."""
    figure, axes = panels(3, width=9.0, height=2.9, sharey=True)
    for mode, (axis, spectrum, rank) in enumerate(zip(axes, spectra, ranks, strict=True)):
        share = np.clip(np.asarray(spectrum) / float(spectrum[0]), 1e-17, None)[: rank * 2 + 6]
        index = np.arange(1, len(share) + 1)
        color = np.where(index <= rank, COLORS["accent"], COLORS["muted"])
        axis.vlines(index, 1e-17, share, color=color, linewidth=1.4)
        axis.scatter(index, share, c=color, s=18, zorder=3)
        axis.axhline(DEFAULT_RTOL, color=COLORS["sae"], linestyle="--", linewidth=1)
        axis.set(title=f"{MODE_NAMES[mode]}: rank {rank}", xlabel="eigenvalue number", yscale="log", ylim=(1e-17, 5))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("share of the largest eigenvalue")
    direct_label(axes[2], axes[2].get_xlim()[1], DEFAULT_RTOL, "tolerance", COLORS["sae"])
    return figure


@says_if_empty("No token of these prompts is masked: no sink to show.", known="effective_rank")
def sink_ranks(table: pd.DataFrame) -> Figure:
    """Effective rank with sinks masked, with one left in, and with all left in; thin lines are concepts."""
    figure, axes = panels(3, width=9.0, height=3.1, sharey=True)
    names = {"x": "kept", "y": "effective_rank", "hue": "representation", "sort": False, "legend": False}
    concepts = {"estimator": None, "units": "concept", "alpha": 0.25, "linewidth": 0.9}
    for mode, axis in enumerate(axes):
        rows, look = table[table["mode"] == mode], {"palette": COLORS, "hue_order": present(table, ORDER), "ax": axis}
        axis.set_yscale("log")  # first, so that means are taken of logs
        sns.lineplot(rows, **names, **look, errorbar=None, marker="o", markeredgewidth=0)
        sns.lineplot(rows, **names, **look, **concepts)
        axis.set(title=MODE_NAMES[mode], xlabel="", ylabel="effective rank", xlim=(-0.2, 2.2))
    _label_ends(axes[2], present(table, ORDER))
    return figure


@says_if_empty(NOTHING)
def tolerance_map(table: pd.DataFrame) -> Figure:
    """First noise level (in RMS) at which the feature-mode rank changes, by concept and tolerance."""
    rows = table[table["mode"] == 2]
    concepts = list(dict.fromkeys(rows["concept"]))
    low, high = span(np.log10(rows["first_noise_rms"]))
    colors = matplotlib.colormaps[SEQUENTIAL].with_extremes(over="white")
    look = {"vmin": low, "vmax": high, "cmap": colors, "cbar": False, "annot_kws": {"fontsize": SMALL}}
    figure, axes = panels(3, width=9.6, height=0.9 + 0.33 * len(concepts), sharey=True)
    for axis, name in zip(axes, ("residual", "sae", "random_dictionary"), strict=True):
        wide = rows[rows["representation"] == name].pivot(index="concept", columns="rtol", values="first_noise_rms")
        wide = wide.loc[concepts].fillna(NEVER)
        text = wide.map(lambda level: in_prose(f"{level:.2g}") if level < NEVER else "never")
        sns.heatmap(np.log10(wide), annot=text, fmt="", ax=axis, **look)
        axis.set_title(SHORT[name], color=COLORS[name])
        axis.set_xticklabels([in_prose(f"{rtol:.0e}") for rtol in wide], rotation=0)
        axis.set(xlabel="tolerance (share of the largest)", ylabel="")
    axes[0].set_yticklabels([concept.replace("_", " ") for concept in concepts], rotation=0)
    return figure


def gain_against_repeats(table: pd.DataFrame) -> Figure:
    """Rank gained by each position's tokens against how many of them repeat an earlier context."""
    return _gains(table[table["axis"] == "position"])


@says_if_empty("No position holds two tokens: no context can repeat.")
def _gains(rows: pd.DataFrame) -> Figure:
    rows = rows.assign(repeats=rows["n_tokens"] - rows["n_distinct"])
    figure, axes = panels(3, width=9.0, height=3.1, sharey=True, sharex=True)
    limit = 1.05 * max(1, span(rows[["rank_gain", "repeats"]])[1])
    for axis, name in zip(axes, present(rows, ORDER), strict=False):
        part = rows[rows["representation"] == name]
        axis.plot([0, limit], [0, limit], color=COLORS["muted"], linewidth=0.9)
        axis.scatter(part["repeats"], part["rank_gain"], s=16, alpha=0.55, color=COLORS[name], linewidth=0)
        axis.set_title(SHORT[name], color=COLORS[name])
        axis.set_xlabel("repeated contexts at a position")
    axes[0].set_ylabel("rank gained under noise")
    direct_label(axes[0], limit * 0.55, limit * 0.5, "gain = repeats", COLORS["muted"])
    return figure


@says_if_empty(NOTHING, known="effective_rank")
def noise_units(table: pd.DataFrame) -> Figure:
    """The SAE's effective rank, a line a concept, against noise in both units."""
    rows = table[(table["mode"] == 2) & (table["representation"] == "sae")]
    rows = rows.assign(step=noise_steps(rows))
    rows = rows.groupby(["concept", "step"])[["effective_rank", "noise", "noise_rms"]].mean().reset_index()
    one_rms = {"noise": (rows["noise"] / rows["noise_rms"]).mean(), "noise_rms": 1.0}
    figure, axes = panels(2, width=8.4, height=3.2, sharey=True)
    lines = {"units": "concept", "estimator": None, "color": COLORS["sae"], "alpha": 0.55, "linewidth": 1.2}
    for axis, x, label in zip(axes, one_rms, ("noise (activation units)", NOISE), strict=True):
        sns.lineplot(rows, x=x, y="effective_rank", ax=axis, **lines)
        levels = sorted(rows.groupby("step")[x].mean())
        noise_axis(axis, levels, label)
        if not levels[0] <= one_rms[x] <= levels[-1]:
            note(axis, f"1 RMS ({one_rms[x]:.3g}) lies outside")
            continue
        axis.axvline(one_rms[x], color=COLORS["accent"], linewidth=1, linestyle=":")
        at = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (-4, 0),
            "textcoords": "offset points",
            "fontsize": SMALL,
        }
        axis.annotate("1 RMS", (one_rms[x], 0.97), ha="right", va="top", color=COLORS["accent"], **at)
    axes[0].set_ylabel("effective rank, feature mode")
    return figure


@says_if_empty(NOTHING)
def advantage_forest(table: pd.DataFrame) -> Figure:
    """Excursion of the SAE minus that of each control, with 95 % intervals; the shaded strip is the margin.

    A note says where intervals are missing, or noise is too weak or too strong for the question.
    """
    rows = table[(table["statistic"] == "excursion") & table["control"].isin(ORDER)]
    concepts = list(dict.fromkeys(rows["concept"]))[::-1]
    controls = [name for name in ORDER if name in set(rows["control"])]
    figure, axis = panels(1, width=7.8, height=1.2 + 0.42 * len(concepts))
    margin = float(rows["margin"].iloc[0])
    axis.axvspan(-margin, margin, color=COLORS["muted"], alpha=0.18, linewidth=0)
    axis.axvline(0, color=COLORS["muted"], linewidth=1)
    axis.axhline(concepts.index(EVERY_CONCEPT) + 0.5, color="#444444", linewidth=0.8)
    for control, offset in zip(controls, np.linspace(0.26, -0.26, len(controls)), strict=True):
        part = rows[rows["control"] == control].set_index("concept").loc[concepts]
        sides = (part["difference"] - part["low"], part["high"] - part["difference"])
        dots = {"fmt": "o", "markersize": 5, "linewidth": 2, "color": COLORS[control]}
        y = np.arange(len(concepts)) + offset
        axis.errorbar(part["difference"], y, xerr=sides, label=f"minus {SHORT[control]}", **dots)
    axis.set_yticks(range(len(concepts)), [concept.replace("_", " ") for concept in concepts])
    axis.set_xlabel("← control moves more      SAE minus control (log of effective rank)      SAE moves more →")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    if why := next(filter(None, rows["reason"].fillna("")), ""):
        note(axis, why, y=0.98, va="top")
    note_missing(axis, rows, "difference", "one seed or concept")
    return figure
