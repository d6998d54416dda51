r"""From ranks under noise to verdicts: does the rank move, and does the SAE's move more than its controls'?

Fixed before any study was run. In the feature mode, with r(s) the effective rank at noise s,

.. math:: E = \max_{0 < s \le \mathrm{RMS}} \bigl|\log r(s) / r(0)\bigr|

is the *excursion*, and the *onset* is the place, among the levels, of the first one at which the numerical
rank is not the clean one (one past the last if it never changes). An SAE moves *more* when its excursion
beats that of the strongest control, *sooner* when its onset comes before that of the earliest control. Both
are paired by seed, because every representation meets the same noise. Whether the excursion is larger cannot be
told from noise that stays below one RMS, or that begins above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.errors import SaemaError
from saema_utils.evidence.verdicts import ALPHA, TOO_FEW, judge_alone
from saema_utils.statistics import holm, mean_interval, paired_permutation_test, paired_t_test

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

TOLERANCES = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2)
MARGIN = {"excursion": 0.1, "onset": 0.5}
"""Smallest difference worth the name: ten per cent of rank (in logs), and half a step of the noise levels."""
ONE_RMS = 1.0
STRONGEST = "strongest control"
EVERY_CONCEPT = "all concepts"
_KEYS = ["concept", "representation", "mode"]


def seeds_needed(n_concepts: int) -> int:
    """Fewest noise seeds with which a one-sided sign-flip test can survive Holm's correction over the concepts.

    n paired seeds give a one-sided p-value of at least :math:`2^{-n}` (a two-sided one needs one seed more), and the
    smallest of m is multiplied by m.
    """
    return math.floor(math.log2(n_concepts / ALPHA)) + 1


def noise_steps(table: pd.DataFrame) -> pd.Series:
    """Which of its concept's noise levels each row of a sweep has: 0 without noise, then 1, 2, ... upwards.

    Levels of one step are one level of the study. They differ between concepts in RMS, or else in activation units.
    """
    noisy = table["noise"].where(table["noise"] > 0)
    return noisy.groupby(table["concept"]).rank("dense").fillna(0).astype(int)


def why_undecided(table: pd.DataFrame) -> str:
    """Why a sweep cannot tell what happens up to one RMS of noise; empty where it can."""
    largest = table.groupby("concept")["noise_rms"].max()
    if (largest < ONE_RMS - 1e-9).any():
        return f"noise reaches {largest.min():.2g} RMS, and one RMS is asked about"
    smallest = table[table["noise"] > 0].groupby("concept")["noise_rms"].min()
    if (smallest > ONE_RMS + 1e-9).any():
        return f"noise begins at {smallest.max():.2g} RMS, and what happens up to one RMS is asked about"
    return ""


def _moved(table: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """Share of seeds whose rank is not the clean one: a row for each of ``keys``, a column for each step of noise."""
    table = table.assign(step=noise_steps(table))
    wide = table.pivot_table(index=[*keys, "seed"], columns="step", values=column, sort=False)
    if 0 not in wide:
        levels = sorted(table["noise"].unique())
        raise SaemaError(f"noise levels are {levels}; allowed: levels that include 0. Sweep from 0 up.")
    different = wide.ne(wide[0], axis=0)[sorted(step for step in wide if step > 0)]
    return different.groupby(level=keys, sort=False).mean()


def stratification_table(table: pd.DataFrame, column: str = "rank") -> pd.DataFrame:
    """The rank test by itself: one row for each concept, representation and mode of a noise sweep.

    Returns
    -------
    Columns concept, representation, mode, rank_clean, rank_min, rank_max, effective_rank_clean,
    effective_rank_max, first_noise and first_noise_rms (the lowest level at which most seeds' rank differs
    from the clean one, NaN if there is none, in activation units and in RMS),
    moved (largest share of seeds whose rank differs at one level), n_seeds, called: ``stratified`` when the
    rank changes at some level for most seeds, ``smooth`` when it does not.
    """
    import pandas as pd

    moved = _moved(table, _KEYS, column)
    most = moved > 0.5
    first = most.idxmax(axis=1).where(most.any(axis=1))
    groups, clean = table.groupby(_KEYS, sort=False), table[table["noise"] == 0].groupby(_KEYS, sort=False)
    sizes = table.groupby([*(table[key] for key in _KEYS), noise_steps(table)])[["noise", "noise_rms"]].first()
    first_sizes = sizes.reindex(pd.MultiIndex.from_arrays([*map(first.index.get_level_values, _KEYS), first]))
    found = first_sizes.set_axis(first.index).rename(columns=lambda name: f"first_{name}")
    found = found.assign(
        rank_clean=clean[column].first().astype(int),
        rank_min=groups[column].min().astype(int),
        rank_max=groups[column].max().astype(int),
        effective_rank_clean=clean["effective_rank"].first(),
        effective_rank_max=groups["effective_rank"].max(),
        moved=moved.max(axis=1),
        n_seeds=groups["seed"].nunique(),
        called=np.where(first.isna(), "smooth", "stratified"),
    )
    order = ["rank_clean", "rank_min", "rank_max", "effective_rank_clean", "effective_rank_max"]
    return found[[*order, "first_noise", "first_noise_rms", "moved", "n_seeds", "called"]].reset_index()


def tolerance_table(table: pd.DataFrame) -> pd.DataFrame:
    """The rank test once for each tolerance of a sweep: does the verdict hang on it?

    The sweep is measured with :func:`~saema_utils.stratification.spectra.ranks_at`.

    Columns concept, representation, mode, rtol, then those of :func:`stratification_table`.
    """
    import pandas as pd

    parts = []
    for column in [c for c in table if c.startswith("rank@")]:
        part = stratification_table(table, column)
        part.insert(3, "rtol", float(column.removeprefix("rank@")))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def movement(table: pd.DataFrame, mode: int = 2) -> pd.DataFrame:
    """Excursion and onset of every concept, representation and seed (definitions at the top of this module)."""
    keys = ["concept", "representation", "seed"]
    table = table[table["mode"] == mode]
    table = table.assign(step=noise_steps(table))
    ranks, effective, scale = (
        table.pivot_table(index=keys, columns="step", values=column, sort=False, dropna=False).sort_index(axis=1)
        for column in ("rank", "effective_rank", "noise_rms")
    )
    noisy = [step for step in ranks if step > 0]
    near = scale[noisy] <= ONE_RMS + 1e-9
    change = np.abs(np.log(effective[noisy].div(effective[0], axis=0))).where(near)
    different = ranks[noisy].ne(ranks[0], axis=0).to_numpy()
    onset = np.where(different.any(axis=1), different.argmax(axis=1), len(noisy)) + 1.0
    return change.max(axis=1).to_frame("excursion").assign(onset=onset).reset_index()


def advantage(moves: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """By concept (rows) and seed: how much more, or sooner, the SAE moves than each control and the strongest.

    Columns are a control's name or ``strongest control``; positive means that the SAE moves more
    (excursion) or sooner (onset, in steps of the noise levels).
    """
    wide = moves.pivot(index=["concept", "seed"], columns="representation", values=statistic)
    sign = 1 if statistic == "excursion" else -1
    controls = [name for name in wide if name != "sae"]
    if "sae" not in wide or not controls:
        raise SaemaError(f"representations are {list(wide)}; allowed: 'sae' and at least one control.")
    gaps = wide[controls].rsub(wide["sae"], axis=0) * sign
    gaps[STRONGEST] = gaps[controls].min(axis=1, skipna=True)
    return gaps


def controls_table(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The test: does the SAE's rank move more, or sooner, than its controls'?

    Per concept the units are noise seeds. An excursion, a mean over hundreds of tokens' noise, is close to normal and
    gets a paired t-test: a sign-flip test of five seeds cannot survive correction over nine concepts
    (:func:`seeds_needed`). An onset is a whole number, often the same for every seed, and gets the sign flip all the
    same: its concepts can be decided by many seeds only. Over ``all concepts`` the units are concepts (means over
    seeds); that row is the one to quote (:func:`over_concepts`), for seeds only repeat the noise. All tests are
    two-sided. Per concept, p-values are Holm-adjusted over the concepts of one statistic and control.

    Returns
    -------
    Columns concept, statistic (excursion, onset), control, difference (positive: SAE more or sooner), low, high
    (95 %, Student's where units are few), n, p, p_holm, margin, verdict (on the claim that the SAE's rank moves more,
    or sooner: :func:`~saema_utils.evidence.verdicts.judge_alone`), reason. Excursions are too few units to tell where
    the noise does not span one RMS, and ``reason`` says so (:func:`why_undecided`).
    """
    import pandas as pd

    moves = movement(table)
    rows, means = [], {}
    for statistic in MARGIN:
        gaps = advantage(moves, statistic)
        for control in gaps:
            units = {c: part.to_numpy() for c, part in gaps[control].groupby("concept", sort=False)}
            means[statistic, control] = np.array([values.mean() for values in units.values()])
            rows += concept_rows(statistic, control, units, seed=seed)
    rows += over_concepts(means, seed=seed)
    order = {key: place for place, key in enumerate(means)}
    found = pd.DataFrame(sorted(rows, key=lambda row: order[row["statistic"], row["control"]]))
    undecided = {c: why_undecided(part) for c, part in table[table["mode"] == 2].groupby("concept", sort=False)}
    undecided[EVERY_CONCEPT] = next(filter(None, undecided.values()), "")
    reason = found["concept"].map(undecided).where(found["statistic"] == "excursion", "")
    return found.assign(verdict=found["verdict"].where(reason == "", TOO_FEW), reason=reason)


def concept_rows(
    statistic: str, control: str, units: Mapping[str, Float[np.ndarray, " S"]], *, seed: int = 0
) -> list[dict[str, object]]:
    """The rows of one statistic and control, one a concept, from its differences by seed."""
    test = paired_t_test if statistic == "excursion" else partial(paired_permutation_test, seed=seed)
    return _rows({(concept, statistic, control): values for concept, values in units.items()}, test, seed)


def over_concepts(
    means: Mapping[tuple[str, str], Float[np.ndarray, " C"]], *, seed: int = 0
) -> list[dict[str, object]]:
    """The rows for ``all concepts``: an exact sign-flip test over concepts for each (statistic, control).

    These rows are read together, so Holm's correction is over all of them: both statistics, every control and the
    strongest.
    """
    test = partial(paired_permutation_test, seed=seed)
    return _rows({(EVERY_CONCEPT, *which): values for which, values in means.items()}, test, seed)


def _rows(
    units: Mapping[tuple[str, str, str], np.ndarray], test: Callable[[np.ndarray], float], seed: int
) -> list[dict[str, object]]:
    """A row for each (concept, statistic, control) from its differences, with Holm's correction over all of them."""
    p_values, rows = [test(values) for values in units.values()], []
    for ((concept, statistic, control), values), p, p_holm in zip(units.items(), p_values, holm(p_values), strict=True):
        interval, margin = mean_interval(values, seed=seed), MARGIN[statistic]
        row = {"concept": concept, "statistic": statistic, "control": control, "difference": interval.estimate}
        row |= {"low": interval.low, "high": interval.high, "n": interval.n, "p": p, "p_holm": p_holm}
        rows.append(row | {"margin": margin, "verdict": judge_alone(interval.low, interval.high, margin, p_holm)})
    return rows
