"""What chapter 6 finds: how often its rule errs, how many claims hold, and how firm the verdicts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saema_utils.evidence.claims import VERDICTS, decide, judgement, load_claims
from saema_utils.statistics import Interval, mean_interval

__all__ = [
    "Certainty",
    "Interval",
    "VerdictCounts",
    "certainty",
    "count_verdicts",
    "decide",
    "distance_from_margin",
    "judgement",
    "load_claims",
    "simulated_verdicts",
]


def simulated_verdicts(
    effects: Mapping[str, float], *, units: int, spread: float, margin: float, minimum_units: int, n: int, seed: int
) -> pd.DataFrame:
    """How often the rule gives each verdict on ``n`` studies of ``units`` normal values whose true mean is known.

    Returns
    -------
    Shares: one row a verdict, one column an effect, by its name.
    """
    rng = np.random.default_rng(seed)

    def verdict(effect: float) -> str:
        return decide(mean_interval(rng.normal(effect, spread, units)), "greater", margin, minimum_units)

    made = {name: pd.Series([verdict(effect) for _ in range(n)]) for name, effect in effects.items()}
    shares = pd.DataFrame({name: verdicts.value_counts(normalize=True) for name, verdicts in made.items()})
    return shares.reindex(VERDICTS).fillna(0.0).rename_axis("verdict")


@dataclass(frozen=True)
class VerdictCounts:
    """How many claims got which verdict, and how many had too few units for any other than *inconclusive*."""

    supported: int
    ruled_out: int
    inconclusive: int
    lacking_units: int

    @property
    def total(self) -> int:
        return self.supported + self.ruled_out + self.inconclusive

    @property
    def mostly_ruled_out(self) -> bool | None:
        """Whether no claim is supported and most are ruled out; None where most lack units."""
        if 2 * self.lacking_units > self.total:
            return None
        return self.supported == 0 and 2 * self.ruled_out > self.total

    def in_short(self) -> str:
        lacking = f" ({self.lacking_units} of them for want of units)" if self.lacking_units else ""
        return (
            f"of {self.total}: {self.supported} supported · {self.ruled_out} not supported · "
            f"{self.inconclusive} inconclusive{lacking}"
        )


def count_verdicts(card: pd.DataFrame, minimum_units: Mapping[str, int]) -> VerdictCounts:
    """Count the verdicts of a scorecard; ``minimum_units`` is what each claim asks for, by its id."""
    counts = card["verdict"].value_counts()
    return VerdictCounts(*(int(counts.get(v, 0)) for v in VERDICTS), int(_lacks_units(card, minimum_units).sum()))


@dataclass(frozen=True)
class Certainty:
    """:func:`distance_from_margin` without its sign, by claim; only of claims that have units enough."""

    distance: pd.Series

    @property
    def fragile(self) -> str | None:
        """The claim whose interval ends nearest to its margin: there a verdict turns."""
        return None if self.distance.empty else (self.distance - 1).abs().idxmin()

    @property
    def firm(self) -> str | None:
        """The claim whose margin lies farthest out, if there are two to compare."""
        return None if len(self.distance) < 2 else self.distance.idxmax()

    @property
    def hangs_by_a_thread(self) -> bool | None:
        """Whether an interval a tenth wider or narrower would turn a verdict; None without a claim to ask."""
        return None if self.distance.empty else bool((self.distance - 1).abs().min() < 0.1)

    def in_short(self) -> str:
        return " · ".join(f"{name}: {self.distance[name]:.3g} reaches" for name in (self.fragile, self.firm) if name)


def certainty(card: pd.DataFrame, minimum_units: Mapping[str, int]) -> Certainty:
    """Which verdict little would change, and which much.

    A claim that lacks units is inconclusive wherever its interval lies, so no interval could turn its verdict.
    """
    distance = distance_from_margin(card).abs().set_axis(card["claim"])
    return Certainty(distance[~_lacks_units(card, minimum_units).to_numpy()].dropna())


def distance_from_margin(card: pd.DataFrame) -> pd.Series:
    """Estimate minus margin, over the reach of its interval on the margin's side; turned as the paper expects.

    Above 1 the interval lies beyond the margin, below -1 short of it, and between them it holds it.
    """
    above = card["estimate"] >= card["margin"]
    reach = (card["estimate"] - card["low"]).where(above, card["high"] - card["estimate"])
    turn = card["direction"].map({"greater": 1, "less": -1})
    return turn * (card["estimate"] - card["margin"]) / reach.where(reach > 0)


def _lacks_units(card: pd.DataFrame, minimum_units: Mapping[str, int]) -> pd.Series:
    return card["n"] < card["claim"].map(minimum_units)
