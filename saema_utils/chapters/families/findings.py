"""What chapter 9 finds: how equal the families were made, and which findings are those of one family or depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from saema_utils.chapters.families.measures import DOSES, MEASURES, RESIDUAL, STREAM_MEASURES
from saema_utils.chapters.families.tables import FAMILY_NAMES
from saema_utils.chapters.found import Found
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


def best_dose(families: pd.DataFrame) -> Found:
    """Whether the family that gains most from moving poles gains by scaling: its latents came out too small.

    None where its dose does not remove the share of the squared error that chapter 7 asks for, or where no concept has
    two words, so that there are no poles. Scaling accounts for most of a gain where the dose on top of it removes
    less than half as much.
    """
    alone = families[families["architecture"] != RESIDUAL]
    doses = alone.groupby("architecture")[list(DOSES)].mean().dropna()
    if doses.empty:
        return Found(None, "no concept has two words, so that there are no poles")
    most = doses.loc[doses["gain"].idxmax()]
    margin = next(claim.margin for claim in load_claims() if claim.id == "worth-after-training")
    return Found(
        bool(most["gain_beyond"] < most["gain"] / 2) if most["gain"] >= margin else None,
        f"{FAMILY_NAMES[most.name]}: {most['gain']:.2%} at {most['alpha_star']:+.2f} · scaling alone "
        f"{most['gain_scaling']:.2%} · on top of it {most['gain_beyond']:.2%} at {most['alpha_beyond']:+.2f} · "
        f"asked for {margin:.0%}",
    )


def family_spread(families: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """For each measure: how far families lie apart, and how far two seeds of one family do.

    ``between`` is the standard deviation over families of their means, ``within`` the root mean square deviation of
    seeds from their family's mean (with n - 1); ``ratio`` is NaN with one seed.
    """
    alone, columns = families[families["architecture"] != RESIDUAL], list(columns)
    groups = alone.groupby("architecture")[columns]
    squares = (alone[columns] - groups.transform("mean")).pow(2).sum()
    within = np.sqrt(squares / (groups.count() - 1).clip(lower=0).sum().replace(0, np.nan))
    table = pd.DataFrame({"between": groups.mean().std(ddof=1), "within": within})
    table["ratio"] = table["between"] / within.replace(0, np.nan)
    return table.rename_axis("measure").reset_index()
