"""What chapter 7 finds: how often its rule errs, how many claims hold, and how firm the verdicts are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from saema_utils.chapters.found import Found
from saema_utils.evidence.claims import VERDICTS, decide
from saema_utils.statistics import Interval as Interval
from saema_utils.statistics import mean_interval


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


def count_verdicts(card: pd.DataFrame, minimum_units: Mapping[str, int]) -> Found:
    """Whether no claim of a scorecard is supported and most are ruled out; None where most lack units.

    ``minimum_units`` is what each claim asks for, by its id: with fewer it can only be *inconclusive*.
    """
    supported, ruled_out, inconclusive = card["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    lacking = int(_lacks_units(card, minimum_units).sum())
    return Found(
        bool(supported == 0 and 2 * ruled_out > len(card)) if 2 * lacking <= len(card) else None,
        f"of {len(card)}: {supported} supported · {ruled_out} not supported · {inconclusive} inconclusive"
        + (f" ({lacking} of them for want of units)" if lacking else ""),
    )


def certainty(card: pd.DataFrame, minimum_units: Mapping[str, int]) -> Found:
    """Whether an interval a tenth wider or narrower would turn a verdict; None without a claim to ask.

    The line names the claim whose interval ends nearest to its margin, for there a verdict turns, and the one whose
    margin lies farthest out, if there are two to compare. A claim that lacks units is inconclusive wherever its
    interval lies, so no interval could turn its verdict.
    """
    distance = distance_from_margin(card).abs().set_axis(card["claim"])
    distance = distance[~_lacks_units(card, minimum_units).to_numpy()].dropna()
    if distance.empty:
        return Found(None, "")
    named = [(distance - 1).abs().idxmin()] + ([distance.idxmax()] if len(distance) > 1 else [])
    shows = " · ".join(f"{name}: {distance[name]:.3g} reaches" for name in named)
    return Found(bool((distance - 1).abs().min() < 0.1), shows)


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
