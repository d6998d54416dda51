"""What chapter 3's sentences rest on: tables in, counts and differences out, each short enough for one line.

Counts are of concepts in the feature mode, unless named otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from saema_utils.chapters.found import Count, Effect, Found, how_many
from saema_utils.chapters.found import in_short as in_short
from saema_utils.evidence.rank import EVERY_CONCEPT, ONE_RMS, why_undecided
from saema_utils.evidence.verdicts import TOO_FEW


def recovered_by_noise(recovered: pd.DataFrame) -> dict[float, Count]:
    """Tensors of ``03_recovery`` whose prescribed ranks came back, by the noise added to them."""
    return {noise: Count.true(part) for noise, part in recovered.groupby("noise")["recovered"]}


def flagged_by_test(rates: pd.DataFrame, world: str) -> dict[str, float]:
    """Share of the worlds of one kind that each test of ``03_laboratory`` calls stratified."""
    return dict(rates[rates["world"] == world].set_index("test")["flagged"])


def rank_by_sinks(ranks: pd.DataFrame, representation: str = "sae") -> dict[str, float]:
    """Geometric mean over concepts of the feature mode's effective rank, by what ``03_sinks`` let into the tensor."""
    rows = ranks[(ranks["mode"] == 2) & (ranks["representation"] == representation)]
    return {
        kept: float(np.exp(np.log(part).mean())) for kept, part in rows.groupby("kept", sort=False)["effective_rank"]
    }


def stratified_concepts(verdicts: pd.DataFrame) -> dict[str, Count]:
    """Concepts whose rank noise changes, by representation (rows of ``stratification_table``)."""
    rows = verdicts[verdicts["mode"] == 2]
    return {
        name: Count.true(part == "stratified") for name, part in rows.groupby("representation", sort=False)["called"]
    }


def gains_that_are_repeats(places: pd.DataFrame, representation: str = "residual") -> Count:
    """Positions that gain exactly as much rank as they have repeated contexts, of all with a gain or a repeat."""
    places = places[(places["axis"] == "position") & (places["representation"] == representation)]
    gains, repeats = places["rank_gain"], places["n_tokens"] - places["n_distinct"]
    return Count.true((gains == repeats)[(gains != 0) | (repeats != 0)])


def tolerances_matter(verdicts: pd.DataFrame, representation: str = "sae") -> tuple[Count, float]:
    """What a tolerance decides (rows of ``03_tolerance``).

    Returns
    -------
    Concepts whose verdict is not the same at all tolerances; and the largest ratio, over concepts, of the first noise
    levels that change one concept's rank at different tolerances: 1 where the tolerance changes nothing. Tolerances
    at which the rank never changes are left out of the ratio.
    """
    rows = verdicts[(verdicts["mode"] == 2) & (verdicts["representation"] == representation)].groupby("concept")
    first = rows["first_noise_rms"]
    return Count.true(rows["called"].nunique() > 1), float((first.max() / first.min()).fillna(1.0).max())


def advantages(verdicts: pd.DataFrame, statistic: str = "excursion") -> dict[str, Effect]:
    """By how much the SAE moves more (or sooner) than each control, over all concepts (rows of ``controls_table``).

    No verdict where the table gives a reason against one, such as noise that does not reach one RMS.
    """
    rows = verdicts[(verdicts["concept"] == EVERY_CONCEPT) & (verdicts["statistic"] == statistic)].fillna(
        {"reason": ""}
    )
    found = {}
    for row in rows.itertuples():
        verdict = None if row.verdict == TOO_FEW else row.verdict
        found[row.control] = Effect(row.difference, row.low, row.high, verdict, reason=row.reason or how_many(row.n))
    return found


@dataclass(frozen=True)
class Drift:
    """Mean angle by which leading feature directions turn, in degrees, and mean share of the support that stays."""

    angle: float
    support: float

    def __str__(self) -> str:
        return f"{self.angle:.0f}° and {self.support:.0%}"


def drift_near_one_rms(drift: pd.DataFrame) -> dict[str, Drift]:
    """By representation, at each concept's largest noise level of ``03_subspace_drift`` up to one RMS; empty where the
    noise does not span one RMS."""
    rows = drift[(drift["mode"] == 2) & (drift["noise_rms"] <= ONE_RMS + 1e-9)]
    if rows.empty or why_undecided(drift):
        return {}
    rows = rows[rows["noise"] == rows.groupby("concept")["noise"].transform("max")]
    means = rows.groupby("representation", sort=False)[["angle_mean", "support_kept"]].mean()
    return {name: Drift(*row) for name, row in zip(means.index, means.to_numpy(), strict=True)}


def keeps_its_place(drift: pd.DataFrame) -> Found:
    """Whether, near one RMS, the SAE's leading directions turn less than a random dictionary's, and more of its
    tokens' active latents stay."""
    turned = drift_near_one_rms(drift)
    sae, random = turned.get("sae"), turned.get("random_dictionary")
    if not (sae and random):
        return Found(None, why_undecided(drift))
    holds = sae.angle < random.angle and sae.support > random.support
    return Found(holds, f"turned, and latents in common: {in_short(turned)}")
