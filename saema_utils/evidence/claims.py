"""Claims, the rules that judge them, and nothing else.

``claims.yaml`` holds each claim with its statistic, control and decision rule, and says which of them were
changed after the default study had been run. This module turns tables into one number per unit (a
concept, or a seed) and numbers into a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saema_utils.errors import ClaimError, unknown_name
from saema_utils.evidence.rank import ONE_RMS, movement
from saema_utils.evidence.verdicts import lies
from saema_utils.plain import check_fields, from_plain
from saema_utils.runs.files import read_yaml
from saema_utils.statistics import Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
VERDICTS = ("supported", "not supported", "inconclusive")
FEATURE_MODE = 2
BOUNDED = ("rank_change_share",)  # statistics with a ceiling, which a control may already have reached


@dataclass(frozen=True)
class Claim:
    """One claim as ``claims.yaml`` states it. ``margin`` has the unit of the statistic."""

    id: str
    claim: str
    source: str
    statistic: str
    table: str
    control: str
    against: str
    unit: str
    direction: Literal["greater", "less"]
    margin: float
    minimum_units: int
    figure: str
    reads: str
    column: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, f"claim {self.id!r}", ClaimError)
        if self.statistic not in STATISTICS:
            raise ClaimError(unknown_name(f"statistic of claim {self.id!r}", self.statistic, STATISTICS))


def load_claims(path: Path = CLAIMS_FILE) -> tuple[Claim, ...]:
    """Read and validate the claims; a missing or unknown field raises ClaimError."""
    entries = read_yaml(path, "claims file", ClaimError)
    if not isinstance(entries, list):
        raise ClaimError(f"claims file {path} is no list of claims; allowed: '- id: ...' and its fields, for each.")
    claims = [from_plain(Claim, entry, f"claim {n} in {path.name}", ClaimError) for n, entry in enumerate(entries, 1)]
    if len({claim.id for claim in claims}) != len(claims):
        raise ClaimError(f"{path} holds two claims with one id. Give each its own.")
    return tuple(claims)


def decide(interval: Interval, direction: str, margin: float, minimum_units: int) -> str:
    """The verdict: where the interval lies with respect to the margin, given enough units."""
    if interval.n < minimum_units:
        return "inconclusive"
    short_of = {"most": margin} if direction == "greater" else {"least": margin}
    where = lies(interval.low, interval.high, **short_of)
    return {"across": "inconclusive", "within": "not supported"}.get(where, "supported")


@dataclass(frozen=True)
class Judgement:
    """Interval over units and verdict; how many units could not be counted, and why (empty if all were)."""

    interval: Interval
    verdict: str
    dropped: int = 0
    reason: str = ""


def judgement(claim: Claim, table: pd.DataFrame, *, seed: int = 0) -> Judgement:
    """Interval over units and verdict of one claim on its table, with the units that were left out.

    The interval is Student's where units are few (:func:`~saema_utils.statistics.mean_interval`).
    """
    per_unit = STATISTICS[claim.statistic](table, claim)
    interval = mean_interval(per_unit.to_numpy(), seed=seed)
    dropped = len(per_unit) - interval.n
    why = "no value, or a control that leaves no room" if claim.statistic in BOUNDED else "no value"
    return Judgement(
        interval,
        decide(interval, claim.direction, claim.margin, claim.minimum_units),
        dropped,
        f"{dropped} of {len(per_unit)} {claim.unit}s left out: {why}" if dropped else "",
    )


# ---- statistics: table and claim in, one value per unit out (NaN where a unit decides nothing) ----


def _sides(per_seed: pd.Series, table: pd.DataFrame, claim: Claim, treatment: str, level: str) -> pd.DataFrame:
    """Treatment and control by concept, seeds averaged; NaN where one of them has no value anywhere."""
    known = dict.fromkeys(table[level])
    for name in (treatment, claim.against):
        if name not in known:
            raise ClaimError(
                f"table {claim.table} has no {level} {name!r}, which claim {claim.id!r} compares; "
                f"it has: {', '.join(map(str, known))}. Run its chapter again."
            )
    means = per_seed.groupby(["concept", level]).mean().unstack(level)
    wide = means.reindex(index=list(dict.fromkeys(table["concept"])), columns=[treatment, claim.against])
    return wide.set_axis(["own", "control"], axis=1)


def _difference(sides: pd.DataFrame) -> pd.Series:
    return sides["own"] - sides["control"]


def _less_favourable(sides: pd.DataFrame, claim: Claim) -> pd.Series:
    """The value itself or its lead over the control, whichever speaks less for a claim about a sign.

    A lead alone would let a claim of a negative correlation be carried by a control whose correlation is positive.
    """
    both = sides.assign(lead=_difference(sides))[["own", "lead"]]
    worst = both.max(axis=1) if claim.direction == "less" else both.min(axis=1)
    return worst.where(both.notna().all(axis=1))


def rank_change_share(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Share of noisy levels (up to one RMS) at which the numerical rank is not the clean one.

    A concept counts only where the control leaves room for a difference as large as the margin: beside a control
    whose rank changes at every level, no representation's could change more often.
    """

    def share(rows: pd.DataFrame) -> float:
        clean = rows.loc[rows["noise"] == 0, "rank"].iloc[0]
        noisy = rows[rows["noise"] > 0]
        return float((noisy["rank"] != clean).mean()) if len(noisy) else float("nan")

    rows = table[(table["mode"] == FEATURE_MODE) & (table["noise_rms"] <= ONE_RMS + 1e-9)]
    per_seed = rows.groupby(["concept", "representation", "seed"]).apply(share, include_groups=False)
    sides = _sides(per_seed, table, claim, "sae", "representation")
    return _difference(sides).where(1 - sides["control"] >= claim.margin)


def rank_excursion(table: pd.DataFrame, claim: Claim) -> pd.Series:
    r"""Largest :math:`|\log r(s)/r(0)|` of the effective rank up to one RMS of noise
    (:func:`~saema_utils.evidence.rank.movement`)."""
    per_seed = movement(table, FEATURE_MODE).set_index(["concept", "representation", "seed"])["excursion"]
    return _difference(_sides(per_seed, table, claim, "sae", "representation"))


def log_ratio(table: pd.DataFrame, claim: Claim, plus: float = 0.0) -> pd.Series:
    """Log of a positive column, SAE over control, averaged over seeds."""
    import numpy as np

    rows = table
    for name, value in claim.where.items():
        rows = rows[rows[name] == value]
    rows = rows.set_index(["concept", "representation"])
    values = rows[claim.column].astype(float) + plus
    return _difference(_sides(np.log(values[values > 0]), rows.reset_index(), claim, "sae", "representation"))


def log_count_ratio(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Log of a count plus one, SAE over control: no cluster at all is the smallest count, not a missing one."""
    return log_ratio(table, claim, plus=1.0)


def _doses(table: pd.DataFrame, claim: Claim, statistic: Callable[[pd.DataFrame], float]) -> pd.DataFrame:
    """A statistic of each dose curve, taken seed by seed and then averaged: the mean of several curves would
    flatter the control, whose draws cancel. Dense edits only: the closed form belongs to them."""
    dense = table[~table["preserve_sparsity"].astype(bool)]
    if dense["alpha"].nunique() < 3:
        raise ClaimError(
            f"table {claim.table} has {dense['alpha'].nunique()} dose(s); claim {claim.id!r} needs at least 3 "
            "different alphas. Add some to intervention.alphas and run chapter 5 again."
        )
    keys = ["concept", "arm", "seed"]
    curves = dense.groupby([*keys, "alpha"])[["aedp", "mse"]].mean().reset_index().groupby(keys)
    return _sides(curves.apply(statistic, include_groups=False), dense, claim, "poles", "arm")


def pole_error_correlation(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Pearson correlation over the dose grid of pole distance with error, or its lead if that is less favourable."""
    return _less_favourable(_doses(table, claim, lambda rows: rows["aedp"].corr(rows["mse"])), claim)


def _parabola(rows: pd.DataFrame) -> tuple[float, float]:
    """Vertex of the exact quadratic through the doses, and the share of the error it removes; NaN if it is flat."""
    import numpy as np

    a, b, c = np.polyfit(rows["alpha"], rows["mse"], 2)
    if not a > 1e-12 * abs(c):
        return float("nan"), float("nan")
    best = -b / (2 * a)
    return best, max(0.0, (b * b / (4 * a)) / c) if best > 0 else 0.0


def best_dose(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Dose of least error (the vertex of the parabola), or its lead over the control if that is less favourable."""
    return _less_favourable(_doses(table, claim, lambda rows: _parabola(rows)[0]), claim)


def best_gain(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Share of the error removed at the best dose that separates (zero if the best dose does not)."""
    return _difference(_doses(table, claim, lambda rows: _parabola(rows)[1]))


def training_effect(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Held-out measure at the largest coefficient minus at zero, paired by seed."""
    wide = table.groupby(["seed", "coefficient"])[claim.column].mean().unstack("coefficient")
    if 0.0 not in wide or not max(wide) > 0:
        raise ClaimError(
            f"table {claim.table} has coefficients {', '.join(f'{c:g}' for c in wide)}; claim {claim.id!r} compares "
            "0 with one above it. Add it to intervention.coefficients and run chapter 5 again."
        )
    return wide[max(wide)] - wide[0.0]


STATISTICS: dict[str, Callable[[pd.DataFrame, Claim], pd.Series]] = {
    function.__name__: function
    for function in (
        rank_change_share,
        rank_excursion,
        log_ratio,
        log_count_ratio,
        pole_error_correlation,
        best_dose,
        best_gain,
        training_effect,
    )
}
