"""What chapter 9 finds: how equal the families were made, and what is one family's, one depth's or one start's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from saema_utils.chapters.families.measures import DOSES, MEASURES, RESIDUAL, STREAM_MEASURES
from saema_utils.chapters.families.tables import FAMILY_NAMES, VARIANCE_PARTS
from saema_utils.chapters.found import Count, Found, in_short
from saema_utils.chapters.scorecard.findings import none_supported
from saema_utils.evidence.claims import load_claims
from saema_utils.evidence.multiverse import ITSELF
from saema_utils.statistics import NO_INTERVAL, with_interval


def sparsity_match(training: pd.DataFrame) -> pd.DataFrame:
    """By family: the share by which its worst seed misses the L0 asked for (off), and the mean explained variance."""
    families = training.assign(off=training["l0_off"].abs()).groupby(training["architecture"].map(FAMILY_NAMES))
    return families.agg(off=("off", "max"), explained_variance=("explained_variance", "mean"))


def gaps_of_families(families: pd.DataFrame) -> pd.DataFrame:
    """By family: each measure (mean over seeds) minus the residual stream's; measures that nobody has are left out."""
    means = families.groupby("architecture")[list(STREAM_MEASURES)].mean()
    return (means.drop(RESIDUAL, errors="ignore") - means.reindex([RESIDUAL]).iloc[0]).dropna(axis=1, how="all")


def gaps_over_layers(layers: pd.DataFrame) -> pd.DataFrame:
    """By layer: each measure of the latents (mean over concepts) minus the residual stream's; measures that no concept
    has are left out."""
    means = layers.groupby(["representation", "layer"])[list(STREAM_MEASURES)].mean()
    sae, residual = (means[means.index.get_level_values(0) == name].droplevel(0) for name in ("sae", RESIDUAL))
    return (sae - residual).dropna(axis=1, how="all")


def lower_at_every_depth(
    layers: pd.DataFrame, measures: Sequence[str] = ("intrinsic_dimension", "circularity")
) -> Found:
    """Whether the latents lie below the residual stream at every layer, on each of some measures."""
    gaps = gaps_over_layers(layers)
    lower = (gaps.max() < 0)[[*measures]].all() if set(measures) <= set(gaps) else None
    return Found(lower, f"latents minus residual stream: {in_ranges(gaps)}")


def excursion_by_recipe(families: pd.DataFrame, layers: pd.DataFrame) -> Found:
    """Whether the rank of TopK latents moves less than the stream's by the small recipe of the families, and no less at
    any layer by the study's own, which is wider and trains longer; None where one side has no rank."""
    small, own = gaps_of_families(families), gaps_over_layers(layers)
    if "excursion" not in small or "excursion" not in own or "topk" not in small.index:
        return Found(None, "no rank was measured on one of the two sides")
    family, layer = small.loc["topk", "excursion"], own["excursion"]
    shows = f"family {family:+.2f} · study's recipe {layer.min():+.2f} to {layer.max():+.2f}"
    return Found(bool(family < 0 <= layer.min()), f"TopK latents minus residual stream: {shows}")


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
    margin = next(claim.measures["gain"] for claim in load_claims() if claim.id == "worth-after-training")
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


def none_for_the_next(replication: pd.DataFrame) -> Found:
    """Whether no claim is supported for a new concept in a new autoencoder; None where most claims lack units."""
    return none_supported(replication[replication["contrast"] == ITSELF])


def what_differs_most(replication: pd.DataFrame) -> Found:
    """Whether, in most claims, concepts differ more than autoencoders and layers do together."""
    own = replication[replication["contrast"] == ITSELF].dropna(subset=["share_concept"])
    if own.empty:
        return Found(None, "the variance of no claim could be divided")
    others = own["share_layer"] + own["share_sae"]
    more = Count.true(own["share_concept"] > others)
    shares = {name: own[f"share_{part}"].median() for part, name in VARIANCE_PARTS.items()}
    return Found(more.n > more.of / 2, f"in {more} claims · median shares: {in_short(shares, '.0%')}")


def margins_beyond_starts(replication: pd.DataFrame) -> Found:
    """Whether most margins exceed what autoencoders of one layer differ by (two standard deviations of the mean)."""
    own = replication[replication["contrast"] == ITSELF].dropna(subset=["seeds"])
    if own.empty:
        return Found(None, "one autoencoder a layer")
    ratio = (own["seeds"] / own["margin"].abs()).set_axis(own["claim"])
    wider = Count.true(ratio < 1)
    return Found(2 * wider.n > wider.of, f"{wider} · in margins, largest: {in_short(ratio.nlargest(3), '.2f')}")


def replication_in_brief(replication: pd.DataFrame) -> pd.DataFrame:
    """Every claim as a page shows it: the mean and the next autoencoder's interval, and what the rule makes of each."""
    own = replication[replication["contrast"] == ITSELF]
    means = [with_interval(*ends) for ends in own[["estimate", "low", "high"]].itertuples(index=False)]
    bounded = np.isfinite(own[["new_low", "new_high"]]).all(axis=1)
    ahead = [f"{row.new_low:.2g} to {row.new_high:.2g}" for row in own.itertuples()]
    shown = own.assign(mean=means, ahead=np.where(bounded, ahead, NO_INTERVAL))
    names = {"claim": "claim", "mean": "mean (95 %)", "holds_up_mean": "on the mean", "ahead": "the next one (95 %)"}
    names |= {"holds_up": "on the next one", "margin": "margin"}
    return shown[list(names)].rename(columns=names)
