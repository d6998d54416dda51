"""What chapter 7 finds: how much its ruler misses, and on what finished runs agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


def alarms(q: np.ndarray, df: int, level: float = 0.05) -> float:
    """Share of sets of studies in which Cochran's Q cries *disagreement* at this level."""
    from scipy.stats import chi2

    return float((np.asarray(q) > chi2.ppf(1 - level, df)).mean())


def beyond_chance(compared: pd.DataFrame) -> pd.Series:
    """By run: what its autoencoder explains of the variance of held-out text, minus a random dictionary's share."""
    explained = compared[(compared["kind"] == "sae") & (compared["metric"] == "explained_variance")]
    wide = explained.pivot(index="run", columns="representation", values="estimate")
    return (wide["sae"] - wide["random_dictionary"]).reindex(explained["run"].unique())


@dataclass(frozen=True)
class Apart:
    """The claims on which runs part, of those that two or more runs measured."""

    of: int
    claims: tuple[str, ...]

    @property
    def found(self) -> bool | None:
        """Whether there is any; None where no two runs measured the same."""
        return bool(self.claims) if self.of else None

    def in_short(self) -> str:
        return f"{len(self.claims)} of {self.of}{': ' if self.claims else ''}{', '.join(self.claims)}"


def pointing_apart(compared: pd.DataFrame) -> Apart:
    """The effects that point one way in one run and the other way in another."""
    claims = compared[compared["kind"].eq("claim") & compared["estimate"].notna()]
    found = np.sign(claims["estimate"]).groupby(claims["metric"], sort=False).agg(["size", "nunique"])
    shared = found[found["size"] > 1]
    return Apart(len(shared), tuple(shared.index[shared["nunique"] > 1]))


def disagreeing(agreed: pd.DataFrame, level: float = 0.05) -> Apart:
    """The claims on which runs lie farther apart than their errors allow: Cochran's test (Bonferroni) of every row of
    :func:`~saema_utils.chapters.across_models.tables.agreement`."""
    tested = agreed[agreed["df"] > 0] if len(agreed) else agreed
    return Apart(len(tested), tuple(tested["metric"][tested["p"] < level / len(tested)]) if len(tested) else ())
