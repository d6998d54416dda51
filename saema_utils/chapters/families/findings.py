"""What chapter 8 finds: how equal the families were made, and which findings are those of one family or depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from saema_utils.chapters.families.measures import DOSES, MEASURES, RESIDUAL, STREAM_MEASURES
from saema_utils.chapters.families.tables import FAMILY_NAMES
from saema_utils.evidence.claims import load_claims


def sparsity_match(training: pd.DataFrame) -> pd.DataFrame:
    """By family: the share by which its worst seed misses the L0 asked for (off), and the mean explained variance."""
    families = training.assign(off=training["l0_off"].abs()).groupby(training["architecture"].map(FAMILY_NAMES))
    return families.agg(off=("off", "max"), explained_variance=("explained_variance", "mean"))


def gaps_of_families(families: pd.DataFrame) -> pd.DataFrame:
    """By family: each measure (mean over seeds) minus the residual stream's; measures that nobody has are left out."""
    means = families.groupby("architecture")[list(STREAM_MEASURES)].mean()
    return (means.drop(RESIDUAL) - means.loc[RESIDUAL]).dropna(axis=1, how="all")


def gaps_over_layers(layers: pd.DataFrame) -> pd.DataFrame:
    """By layer: each measure of the latents (mean over concepts) minus the residual stream's."""
    means = layers.groupby(["representation", "layer"])[list(STREAM_MEASURES)].mean()
    return means.loc["sae"] - means.loc[RESIDUAL]


def in_ranges(gaps: pd.DataFrame) -> str:
    """The smallest and the largest gap of every measure, in one line."""
    return " · ".join(f"{MEASURES[name]} {gaps[name].min():+.2f} to {gaps[name].max():+.2f}" for name in gaps)


@dataclass(frozen=True)
class BestDose:
    """The family that gains most from moving poles: doses and shares of the squared error that they remove.

    ``gain`` by the dose alone, ``gain_scaling`` by scaling all latents alike, ``gain_beyond`` by the dose on top.
    """

    family: str
    alpha_star: float
    gain: float
    alpha_beyond: float
    gain_beyond: float
    gain_scaling: float
    margin: float

    @property
    def matters(self) -> bool:
        """Whether it removes the share of the error that chapter 6 asks for."""
        return self.gain >= self.margin

    @property
    def is_shrinkage(self) -> bool:
        """Whether scaling accounts for most of it: latents came out too small, wherever their poles lie."""
        return self.gain_beyond < self.gain / 2

    def in_short(self) -> str:
        return (
            f"{self.family}: {self.gain:.2%} at {self.alpha_star:+.2f} · scaling alone {self.gain_scaling:.2%} · "
            f"on top of it {self.gain_beyond:.2%} at {self.alpha_beyond:+.2f} · asked for {self.margin:.0%}"
        )


def best_dose(families: pd.DataFrame) -> BestDose | None:
    """The family that moving poles helps most; None where no concept has two words, so that there are no poles."""
    alone = families[families["architecture"] != RESIDUAL]
    doses = alone.groupby("architecture")[list(DOSES)].mean().dropna()
    if doses.empty:
        return None
    most = doses["gain"].idxmax()
    margin = next(claim.margin for claim in load_claims() if claim.id == "worth-after-training")
    return BestDose(FAMILY_NAMES[most], **doses.loc[most], margin=margin)


def family_spread(families: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """For each measure: how far families lie apart, and how far two seeds of one family do.

    ``between`` is the standard deviation over families of their means, ``within`` the root mean square deviation of
    seeds from their family's mean (with n - 1); ``ratio`` is NaN with one seed.
    """
    alone = families[families["architecture"] != RESIDUAL]
    rows = []
    for column in columns:
        groups = alone.groupby("architecture")[column]
        between = float(groups.mean().std(ddof=1))
        degrees = int((groups.count() - 1).clip(lower=0).sum())
        square = float((alone[column] - groups.transform("mean")).pow(2).sum())
        within = math.sqrt(square / degrees) if degrees else math.nan
        row = {"measure": column, "between": between, "within": within}
        rows.append(row | {"ratio": between / within if within else math.nan})
    return pd.DataFrame(rows)
