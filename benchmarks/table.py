"""From pytest-benchmark's JSON to what a reader wants: a table of ratios, laws of growth, one figure.

No clock runs here: everything follows from the measured file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIB, FITS = 2**20, 24 * 2**30


def sides(measured: Mapping[str, Any]) -> pd.DataFrame:
    """One row a piece of work, device and side: median over the rounds of all turns, memory, facts."""
    found: dict[tuple, dict] = {}
    for entry in measured["benchmarks"]:
        facts = entry["extra_info"]
        key = (facts["work"], facts["device"], facts["side"])
        row = found.setdefault(key, {"times": []})
        row["times"] += entry["stats"]["data"]
        row.update({name: value for name, value in facts.items() if value is not None})
    rows = [
        {
            **row,
            "rounds": len(row["times"]),
            "seconds": row.get("recorded", statistics.median(row["times"]) * row.get("scale", 1)),
        }
        for row in found.values()
    ]
    return pd.DataFrame(rows).drop(columns="times")


def benchmark_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """Both sides of every piece of work, their ratio, memory and rounds, in the order of the files."""
    every = sides(measured)
    every = every[every.get("axis", pd.Series(index=every.index, dtype=object)).isna()]
    rows = []
    for (work, device), group in every.groupby(["work", "device"], sort=False):
        by_side = group.set_index("side")
        ours = by_side.loc["ours"]
        plain = by_side.loc["plain"] if "plain" in by_side.index else None
        seconds = plain["seconds"] if plain is not None else math.nan
        notes = [str(side["note"]) for side in (ours, plain) if side is not None and isinstance(side.get("note"), str)]
        if plain is None and ours.get("family") == "three modes":
            seconds, power = extrapolated(every, device, ours["size"])
            notes = [f"plain extrapolated: grows as latents^{power:.2f}"]
        rows.append(
            {
                "Work": work,
                "Device": device,
                "Package (s)": figures(ours["seconds"]),
                "Plain (s)": figures(seconds),
                "Times faster": figures(seconds / ours["seconds"]),
                "Aim": aim(ours.get("aim"), ours.get("seconds_aim"), "s"),
                "Package, tokens/s": figures(ours.get("tokens", math.nan) / ours["seconds"]),
                "Package, peak (MiB)": figures(ours.get("memory", math.nan) / MIB),
                "Plain, peak (MiB)": figures(plain.get("memory", math.nan) / MIB) if plain is not None else "",
                "Times less memory": figures(plain.get("memory", math.nan) / ours.get("memory", math.nan))
                if plain is not None
                else "",
                "Aim for memory": aim(ours.get("memory_aim"), ours.get("bytes_aim", math.nan) / MIB, "MiB"),
                "Rounds": f"{ours['rounds']}" + (f", {plain['rounds']}" if plain is not None else ""),
                "Note": "; ".join(dict.fromkeys([*notes, *few_rounds(ours, plain)])),
            }
        )
    return pd.DataFrame(rows)


def few_rounds(ours: pd.Series, plain: pd.Series | None) -> list[str]:
    """Which sides were measured fewer than five times; a time that a run recorded itself is no median."""
    counts = {"package": ours["rounds"], "plain": 5 if plain is None else plain["rounds"]}
    is_recorded = pd.notna(ours.get("recorded", math.nan))
    return [] if is_recorded else [f"{side} measured {_times(n)}" for side, n in counts.items() if n < 5]


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def aim(ratio: float | None, most: float | None, unit: str) -> str:
    """What was aimed at: a ratio to the plain side, or the most that the package may take."""
    if most is not None and not math.isnan(most):
        return f"under {most:,.0f} {unit}"
    return figures(math.nan if ratio is None else ratio)


def page_table(found: pd.DataFrame) -> pd.DataFrame:
    """What of the benchmark table fits the width of a page: notes go below the work, both sides share a cell."""

    def pair(row: pd.Series, unit: str) -> str:
        values = [row[f"{side}{unit}"] or "-" for side in ("Package", "Plain")]
        return "" if values == ["-", "-"] else " / ".join(values)

    rows = []
    for _, row in found.iterrows():
        device = "" if row["Device"] == "cpu" else f" ({row['Device']})"
        rows.append(
            {
                "Work": f"{row['Work']}{device}" + (f"; *{row['Note']}*" if row["Note"] else ""),
                "Package / plain (s)": pair(row, " (s)"),
                "Times faster": row["Times faster"],
                "Aim": row["Aim"],
                "Peak (MiB)": pair(row, ", peak (MiB)"),
                "Times less": row["Times less memory"],
                "Aim ": row["Aim for memory"],
            }
        )
    return pd.DataFrame(rows)


def extrapolated(every: pd.DataFrame, device: str, size: float) -> tuple[float, float]:
    """Seconds of the plain spectrum at a size that was not tried, and the fitted power of the latents."""
    known = every[(every["family"] == "three modes") & (every["side"] == "plain") & (every["device"] == device)]
    power = slope(known["size"], known["seconds"])
    last = known.loc[known["size"].idxmax()]
    return last["seconds"] * (size / last["size"]) ** power, power


def slope(x: Any, y: Any) -> float:
    """Exponent of the power law through the points, by least squares in logarithms."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-12)), 1)[0])


def growth_points(measured: Mapping[str, Any]) -> pd.DataFrame:
    """Seconds and bytes (input and peak above it) at every size of every axis."""
    every = sides(measured)
    if "axis" not in every:
        return pd.DataFrame(columns=["axis", "fixed", "size", "seconds", "bytes"])
    points = every[every["axis"].notna()].copy()
    memory = points.get("memory", math.nan)
    points["bytes"] = memory + points["input_bytes"]
    return points[["axis", "fixed", "size", "seconds", "bytes"]].astype({"size": int}).reset_index(drop=True)


def largest(size: Any, used: Any, *, is_square: bool = False, fits: float = FITS) -> float:
    """The size at which memory reaches ``fits`` bytes by the law ``a + b n`` (``+ c n^2``), fitted, no part negative.

    A power law would promise too much: the constant share of small problems flattens its slope. Arrays are
    constant or linear in every axis; the token Gram matrix is square in tokens. Infinite where memory does not grow.
    """
    from scipy.optimize import nnls

    n, used = np.asarray(size, dtype=float), np.asarray(used, dtype=float)
    unit = n.max()
    parts = np.stack([np.ones_like(n), n / unit, is_square * (n / unit) ** 2], axis=1)
    constant, linear, square = nnls(parts / used[:, None], np.ones_like(n))[0]
    if fits <= constant:
        return 0.0
    if square > 0:
        return unit * (math.sqrt(linear**2 + 4 * square * (fits - constant)) - linear) / (2 * square)
    return unit * (fits - constant) / linear if linear > 0 else math.inf


def is_level(used: Any, least: float = 1.25) -> bool:
    """Whether growth is lost in the scatter: the largest size did not use most, or hardly more than the smallest."""
    used = np.asarray(used, dtype=float)
    return bool(used[-1] < used.max() or used[-1] < least * used[0])


def growth_table(points: pd.DataFrame) -> pd.DataFrame:
    """Fitted exponents along each axis, and the largest size that fits 24 GiB by the fitted law of memory."""
    rows = []
    for axis, group in points.groupby("axis", sort=False):
        group = group.sort_values("size")
        last = group.iloc[-1]
        is_known = bool(np.isfinite(group["bytes"].astype(float)).all())
        grows = is_known and not is_level(group["bytes"])
        most = largest(group["size"], group["bytes"], is_square=axis == "tokens") if grows else math.inf
        rows.append(
            {
                "Growth with": axis,
                "Work": last["fixed"],
                "From": f"{group['size'].iloc[0]:,}",
                "To": f"{last['size']:,}",
                "Time at the largest (s)": figures(last["seconds"]),
                "Time grows as size to the": f"{slope(group['size'], group['seconds']):.2f}",
                "Memory at the largest (MiB)": figures(last["bytes"] / MIB),
                "Memory grows as size to the": f"{slope(group['size'], group['bytes']):.2f}" if grows else "level",
                "Largest that fits 24 GiB": figures(most, 1) if math.isfinite(most) else "any",
            }
        )
        if not is_known:
            rows[-1].update({"Memory grows as size to the": "", "Largest that fits 24 GiB": ""})
    return pd.DataFrame(rows)


def figures(value: float, digits: int = 3) -> str:
    """Three digits that mean something; nothing for a number that was not measured."""
    if math.isnan(value) or value == 0:
        return "" if math.isnan(value) else "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    return f"{rounded:,.{max(0, decimals)}f}"


def growth_figure(points: pd.DataFrame) -> Figure:
    """Time (top) and memory (bottom) against each size, both axes logarithmic, with the fitted power."""
    from saema_utils.figures import COLORS, panels

    axes_names = list(dict.fromkeys(points["axis"]))
    figure, axes = panels(len(axes_names), 2, width=9.6, height=2.3, sharex="col", squeeze=False)
    for column, axis in enumerate(axes_names):
        group = points[points["axis"] == axis].sort_values("size")
        size = group["size"].to_numpy(dtype=float)
        for row, (values, color) in enumerate(
            ((group["seconds"], COLORS["sae"]), (group["bytes"] / MIB, COLORS["accent"]))
        ):
            panel, y = axes[row, column], values.to_numpy(dtype=float)
            panel.loglog(size, y, "o", color=color, markersize=5)
            if row and np.isfinite(y).all() and is_level(y):
                panel.axhline(np.exp(np.log(y).mean()), color=color, linestyle="--")
                panel.set_title("level", fontsize=9.5, fontweight="normal")
            elif np.isfinite(y).all():
                power = slope(size, y)
                middle = np.exp(np.log(y).mean()) * (size / np.exp(np.log(size).mean())) ** power
                panel.loglog(size, middle, color=color, linestyle="--")
                panel.set_title(f"power {power:.2f}", fontsize=9.5, fontweight="normal")
            panel.margins(0.12)
            panel.set_ylim(y.min() / 3 if np.isfinite(y).all() else None, y.max() * 3 if np.isfinite(y).all() else None)
            panel.set_xticks([size[0], size[-1]], [f"{size[0]:,.0f}", f"{size[-1]:,.0f}"])
            panel.minorticks_off()
        axes[1, column].set_xlabel(axis)
    axes[0, 0].set_ylabel("time (seconds)")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    return figure
