"""Claims, the rules that judge them, and nothing else.

``claims.yaml`` holds each claim with its statistic, control and decision rule, all fixed before the
default study was run. This module turns tables into one number per unit (a concept, or a seed) and
numbers into a verdict.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ClaimError, unknown_name
from .statistics import Interval, bootstrap_interval

if TYPE_CHECKING:
    import pandas as pd

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
VERDICTS = ("supported", "not supported", "inconclusive")
ONE_RMS = 1.0
FEATURE_MODE = 2
_KINDS = {"str": str, "float": int | float, "int": int, "Mapping[str, Any]": Mapping}


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
    direction: str
    margin: float
    minimum_units: int
    figure: str
    reads: str
    column: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), _KINDS[f.type]
            if not isinstance(value, kind) or isinstance(value, bool) or value != value:
                wanted = "a mapping" if kind is Mapping else "text" if kind is str else "a number"
                shown = reprlib.repr(value)
                raise ClaimError(f"field {f.name!r} of claim {reprlib.repr(self.id)} is {shown}; allowed: {wanted}.")
        if self.direction not in ("greater", "less"):
            raise ClaimError(f"claim {self.id!r} has direction {self.direction!r}; allowed: greater, less.")
        if self.statistic not in STATISTICS:
            raise ClaimError(unknown_name(f"statistic of claim {self.id!r}", self.statistic, STATISTICS))


def load_claims(path: Path = CLAIMS_FILE) -> tuple[Claim, ...]:
    """Read and validate the claims; a missing or unknown field raises ClaimError."""
    import yaml

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClaimError(f"cannot read claims file {path} ({error.strerror or error}). Check the path.") from error
    except Exception as error:  # beside YAMLError, a wrong tag raises whatever its constructor does
        reason = " ".join(str(error).split())[:200]
        raise ClaimError(f"claims file {path} is not YAML ({type(error).__name__}: {reason}). Correct it.") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ClaimError(f"claims file {path} is no list of claims; allowed: '- id: ...' and its fields, for each.")
    known = {f.name for f in fields(Claim)}
    claims = []
    for number, entry in enumerate(entries, start=1):
        unknown = [name for name in entry if name not in known]
        if unknown:
            raise ClaimError(unknown_name(f"field of claim {number} in {path.name}", unknown[0], known))
        try:
            claims.append(Claim(**entry))
        except TypeError as error:
            raise ClaimError(f"claim {number} in {path.name} is incomplete ({error}). Add the field.") from error
    if len({claim.id for claim in claims}) != len(claims):
        raise ClaimError(f"{path} holds two claims with one id. Give each its own.")
    return tuple(claims)


def decide(interval: Interval, direction: str, margin: float, minimum_units: int) -> str:
    """The verdict: where the interval lies with respect to the margin, given enough units."""
    if interval.n < minimum_units or interval.low != interval.low:
        return "inconclusive"
    beyond, short = (
        (interval.low > margin, interval.high <= margin)
        if direction == "greater"
        else (interval.high < margin, interval.low >= margin)
    )
    return "supported" if beyond else "not supported" if short else "inconclusive"


def judge(claim: Claim, table: pd.DataFrame, *, seed: int = 0) -> tuple[Interval, str]:
    """Interval over units and verdict of one claim on its table."""
    per_unit = STATISTICS[claim.statistic](table, claim)
    interval = bootstrap_interval(per_unit.to_numpy(), seed=seed)
    return interval, decide(interval, claim.direction, claim.margin, claim.minimum_units)


# ---- statistics: table and claim in, one value per unit out ---------------------------------------


def _paired(per_unit: pd.Series, claim: Claim, treatment: str, level: str) -> pd.Series:
    """Treatment minus control, by unit; units that lack either are left out."""
    wide = per_unit.unstack(level)
    for name in (treatment, claim.against):
        if name not in wide:
            raise ClaimError(
                f"table {claim.table} has no {level} {name!r}, which claim {claim.id!r} compares; "
                f"it has: {', '.join(map(str, wide))}. Run its chapter again."
            )
    return (wide[treatment] - wide[claim.against]).dropna()


def _feature_mode(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["mode"] == FEATURE_MODE]
    return rows[rows["noise_rms"] <= ONE_RMS + 1e-9]


def rank_change_share(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Share of noisy levels (up to one RMS) at which the numerical rank is not the clean one."""

    def share(rows: pd.DataFrame) -> float:
        clean = rows.loc[rows["noise"] == 0, "rank"].iloc[0]
        noisy = rows[rows["noise"] > 0]
        return float((noisy["rank"] != clean).mean()) if len(noisy) else float("nan")

    keys = ["concept", "representation", "seed"]
    per_seed = _feature_mode(table).groupby(keys).apply(share, include_groups=False)
    return _paired(per_seed.groupby(["concept", "representation"]).mean(), claim, "sae", "representation")


def rank_excursion(table: pd.DataFrame, claim: Claim) -> pd.Series:
    r"""Largest :math:`|\log r(s)/r(0)|` of the effective rank up to one RMS of noise."""
    import numpy as np

    def excursion(rows: pd.DataFrame) -> float:
        clean = rows.loc[rows["noise"] == 0, "effective_rank"].iloc[0]
        return float(np.abs(np.log(rows["effective_rank"] / clean)).max())

    keys = ["concept", "representation", "seed"]
    per_seed = _feature_mode(table).groupby(keys).apply(excursion, include_groups=False)
    return _paired(per_seed.groupby(["concept", "representation"]).mean(), claim, "sae", "representation")


def log_ratio(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Log of a positive column, SAE over control, averaged over seeds."""
    import numpy as np

    rows = table
    for name, value in claim.where.items():
        rows = rows[rows[name] == value]
    positive = rows[rows[claim.column] > 0]
    logs = np.log(positive[claim.column]).groupby([positive["concept"], positive["representation"]]).mean()
    return _paired(logs, claim, "sae", "representation")


def _dose_curves(table: pd.DataFrame) -> pd.DataFrame:
    """Dense edits only, averaged over seeds: the closed form belongs to them."""
    dense = table[~table["preserve_sparsity"].astype(bool)]
    return dense.groupby(["concept", "arm", "alpha"])[["aedp", "mse"]].mean().reset_index()


def pole_error_correlation(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Pearson correlation over the dose grid of pole distance with error."""
    curves = _dose_curves(table).groupby(["concept", "arm"])
    r = curves.apply(lambda rows: rows["aedp"].corr(rows["mse"]), include_groups=False)
    return _paired(r, claim, "poles", "arm")


def _parabola(rows: pd.DataFrame) -> tuple[float, float]:
    """Vertex of the exact quadratic through the doses, and the share of the error it removes."""
    import numpy as np

    a, b, c = np.polyfit(rows["alpha"], rows["mse"], 2)
    best = -b / (2 * a)
    return best, max(0.0, (b * b / (4 * a)) / c) if best > 0 else 0.0


def best_dose(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Dose of least error: the vertex of the parabola."""
    curves = _dose_curves(table).groupby(["concept", "arm"])
    return _paired(curves.apply(lambda rows: _parabola(rows)[0], include_groups=False), claim, "poles", "arm")


def best_gain(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Share of the error removed at the best dose that separates (zero if the best dose does not)."""
    curves = _dose_curves(table).groupby(["concept", "arm"])
    return _paired(curves.apply(lambda rows: _parabola(rows)[1], include_groups=False), claim, "poles", "arm")


def training_effect(table: pd.DataFrame, claim: Claim) -> pd.Series:
    """Held-out measure at the largest coefficient minus at zero, paired by seed."""
    wide = table.groupby(["seed", "coefficient"])[claim.column].mean().unstack("coefficient")
    if 0.0 not in wide:
        raise ClaimError(f"table {claim.table} has no coefficient 0 to compare with. Run chapter 5 again.")
    return (wide[max(wide)] - wide[0.0]).dropna()


STATISTICS: dict[str, Callable[[pd.DataFrame, Claim], pd.Series]] = {
    function.__name__: function
    for function in (
        rank_change_share, rank_excursion, log_ratio, pole_error_correlation, best_dose, best_gain, training_effect,
    )
}  # fmt: skip
