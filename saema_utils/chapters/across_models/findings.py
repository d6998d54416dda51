"""What chapter 8 finds: how much its ruler misses, and on what finished runs agree."""

from __future__ import annotations

import numpy as np
import pandas as pd

from saema_utils.chapters.found import NOTHING, Count, Found
from saema_utils.evidence.verdicts import DEPENDS, NO_EFFECT
from saema_utils.study import CONFIRMATORY_STUDY, DEFAULT_STUDY


def alarms(q: np.ndarray, df: int, level: float = 0.05) -> float:
    """Share of sets of studies in which Cochran's Q cries *disagreement* at this level."""
    from scipy.stats import chi2

    return float((np.asarray(q) > chi2.ppf(1 - level, df)).mean())


def beyond_chance(compared: pd.DataFrame) -> pd.Series:
    """By run: what its autoencoder explains of the variance of held-out text, minus a random dictionary's share."""
    explained = compared[(compared["kind"] == "sae") & (compared["metric"] == "explained_variance")]
    wide = explained.pivot(index="run", columns="representation", values="estimate")
    wide = wide.reindex(columns=["sae", "random_dictionary"])
    return (wide["sae"] - wide["random_dictionary"]).reindex(explained["run"].unique())


def all_beyond_chance(compared: pd.DataFrame) -> Found:
    """Whether every run's autoencoder explains more than a random dictionary does; None without one."""
    learned = beyond_chance(compared)
    if learned.dropna().empty:
        return Found(None, NOTHING)
    ends = [f"{learned[name]:.2f} ({name})" for name in dict.fromkeys((learned.idxmin(), learned.idxmax()))]
    shows = f"by {' to '.join(ends)} of the variance"
    return Found((learned > 0).all(), shows)


def pointing_apart(compared: pd.DataFrame) -> Found:
    """Whether effects point one way in one run and the other way in another; of those that two or more measured."""
    claims = compared[compared["kind"].eq("claim") & compared["estimate"].notna()]
    found = np.sign(claims["estimate"]).groupby(claims["metric"], sort=False).agg(["size", "nunique"])
    return _apart(found.loc[found["size"] > 1, "nunique"] > 1)


def training_parts_the_models(compared: pd.DataFrame) -> Found:
    """Whether training for separation has no effect by the default study and depends on the analysis by the second
    model's, each judged by all analyses of today; None where one of the two runs is not here."""
    claims = compared[compared["kind"].eq("claim") & compared["metric"].eq("cause-during-training")]
    verdicts = claims.set_index("run")["verdict"].reindex([DEFAULT_STUDY, CONFIRMATORY_STUDY])
    if verdicts.isna().any():
        return Found(None, f"no finished run of {verdicts.index[verdicts.isna()][0]} beside the others")
    shows = " · ".join(f"{study}: {verdict}" for study, verdict in verdicts.items())
    return Found(list(verdicts) == [NO_EFFECT, DEPENDS], shows)


def disagreeing(agreed: pd.DataFrame, level: float = 0.05) -> Found:
    """Whether runs lie farther apart than their errors allow: Cochran's test (Bonferroni) of every claim in
    :func:`~saema_utils.chapters.across_models.tables.agreement` that two or more runs measured."""
    if agreed.empty:
        return _apart(pd.Series(dtype=bool))
    p = agreed[agreed["df"] > 0].set_index("metric")["p"]
    return _apart(p < level / max(1, len(p)))


def _apart(parts: pd.Series) -> Found:
    """Whether there is a claim on which runs part; None where no two runs measured the same."""
    if parts.empty:
        return Found(None, "no two runs measured the same")
    found = list(parts.index[parts])
    return Found(bool(found), f"{Count.true(parts)}{': ' if found else ''}{', '.join(found)}")
