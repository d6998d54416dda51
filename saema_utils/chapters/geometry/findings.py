"""What the sentences of chapter 4 rest on: its tables in, few numbers and verdicts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saema_utils.chapters.found import NOTHING, Effect, Found, how_many
from saema_utils.chapters.found import in_short as in_short
from saema_utils.evidence.verdicts import TOO_FEW
from saema_utils.statistics import holm

LEVEL = 0.05
UNCLEAR = "unclear"
FOLLOWED = 0.5  # of an agreement that is 0 by chance and 1 when two partitions are the same


@dataclass(frozen=True)
class Circles:
    """Concepts whose words stand in a circle.

    Attributes
    ----------
    found
        By representation, concepts with a circle: p below 0.05 after Holm's correction over the cycles.
    scores, distance_scores
        Circularity, and rank correlation of distances over all dimensions: a row a concept, a column a representation.
    p
        The corrected p-values of circularity, laid out as the scores are.
    """

    found: Mapping[str, set[str]]
    scores: pd.DataFrame
    distance_scores: pd.DataFrame
    p: pd.DataFrame

    @property
    def there(self) -> set[str]:
        """Those of the residual stream."""
        return self.found.get("residual", set())

    def kept(self, representation: str = "sae") -> set[str]:
        """Those of the residual stream that are left in another representation."""
        return self.there & self.found.get(representation, set())

    def most_faded(self, representation: str = "sae") -> str | None:
        """The one of the residual stream whose score falls most in another representation."""
        if not self.there:
            return None
        rows = self.scores.loc[sorted(self.there)]
        return str((rows["residual"] - rows[representation]).idxmax())

    def in_short(self, representation: str = "sae", of: str = "scores") -> str:
        """The score in the residual stream and in another representation, of each cycle that is a circle in the stream;
        of circularity also what decides whether the circle is kept: its corrected p-value in the other."""
        rows = getattr(self, of)
        found = []
        for cycle, row in rows[rows.index.isin(self.there)].iterrows():
            kept = f" (p = {self.p.loc[cycle, representation]:.2g})" if of == "scores" else ""
            found.append(f"{cycle} {row['residual']:.2f} → {row[representation]:.2f}{kept}")
        return " · ".join(found)


def significant_circles(circles: pd.DataFrame) -> Circles:
    """What ``04_circles`` says of circles once its p-values are corrected for the number of cycles looked at."""
    p = circles.groupby("representation")["p_value"].transform(lambda p: holm(p.to_numpy()))
    found = {name: set(part["concept"]) for name, part in circles[p < LEVEL].groupby("representation")}
    rows = circles.assign(corrected=p).set_index(["concept", "representation"])
    columns = ("score", "distance_score", "corrected")
    return Circles(found, *(rows[column].unstack(sort=False) for column in columns))


def change(comparison: pd.DataFrame, protocol: str, measure: str, against: str = "residual") -> Effect:
    """What the SAE makes of a measure over concepts, from one row of ``04_comparison``: ``higher``, ``lower`` or
    ``unclear``, and nothing for too few concepts to say."""
    rows = comparison[comparison["protocol"].eq(protocol) & comparison["measure"].eq(measure)]
    rows = rows[rows["against"] == against]
    if rows.empty:
        return Effect(np.nan, np.nan, np.nan, None, reason=NOTHING)
    row = rows.iloc[0]
    is_ratio = row["effect"] == "log ratio"
    values = (float(np.exp(row[end]) if is_ratio else row[end]) for end in ("estimate", "low", "high"))
    reason = how_many(row["n_concepts"])
    if row["change"] == UNCLEAR and (row["low"] > 0 or row["high"] < 0):
        reason = f"p = {row['p_holm']:.2g} among all measures"
    return Effect(*values, None if row["change"] == TOO_FEW else row["change"], is_ratio, reason)


@dataclass(frozen=True)
class ClusterAgreement:
    """Adjusted mutual information of the paper's clusters with token texts and with words, over concepts and seeds."""

    tokens: float
    words: float

    @property
    def follows(self) -> str:
        """``tokens``, ``words``, or ``neither`` when both agreements are below one half."""
        if max(self.tokens, self.words) < FOLLOWED:
            return "neither"
        return "tokens" if self.tokens >= self.words else "words"


def cluster_agreement(merging: pd.DataFrame) -> dict[str, ClusterAgreement]:
    """What the paper's clusters follow in each representation, from ``04_merging``."""
    paper = merging[merging["protocol"] == "paper"].groupby("representation")[["ami_token", "ami"]].mean()
    return {name: ClusterAgreement(row["ami_token"], row["ami"]) for name, row in paper.iterrows()}


def follow_texts(merging: pd.DataFrame, geometry: pd.DataFrame) -> Found:
    """Whether the paper's clusters follow the texts of tokens, in the stream and in the SAE's latents."""
    agreement = cluster_agreement(merging)
    if not {"residual", "sae"} <= set(agreement):
        return Found(None, NOTHING)
    before, after = agreement["residual"], agreement["sae"]
    return Found(
        before.follows == after.follows == "tokens",
        f"agreement with texts {before.tokens:.2f} → {after.tokens:.2f} · with words {before.words:.2f} → "
        f"{after.words:.2f} · {share_of_copies(geometry):.0%} of tokens were copies",
    )


def share_of_copies(geometry: pd.DataFrame) -> float:
    """Share of all tokens that repeat the vector of an earlier one."""
    each = geometry.drop_duplicates("concept")
    tokens = (each["n_copies"] + each["n_points"]).sum()
    return float(each["n_copies"].sum() / tokens) if tokens else np.nan


def seed_spread(geometry: pd.DataFrame) -> float:
    """Largest difference in the number of clusters between two seeds of the paper's protocol, stream and SAE."""
    paper = geometry[geometry["protocol"].eq("paper") & geometry["representation"].isin(["residual", "sae"])]
    numbers = paper.groupby(["concept", "representation"])["n_local"]
    return float((numbers.max() - numbers.min()).max())


def clusters_by_words(geometry: pd.DataFrame, min_cluster_size: int) -> dict[str, float]:
    """Mean number of the paper's clusters in the residual stream, of concepts with ``few`` words and with ``many``.

    Few is fewer than the smallest cluster allowed. A side without a concept is left out.
    """
    rows = geometry[geometry["representation"] == "residual"]
    numbers = rows.groupby(["protocol", "concept"])["n_local"].mean().unstack("protocol")
    numbers = numbers.reindex(columns=["paper", "words"]).dropna()
    side = np.where(numbers["words"] >= min_cluster_size, "many", "few")
    return numbers["paper"].groupby(side).mean().to_dict()


def fresh_merges(merged: pd.DataFrame) -> list[str]:
    """Groups of words that share a cluster in the SAE while no two of them did in the residual stream."""
    found = []
    for concept, rows in merged.groupby("concept", sort=False):
        groups = {name: [w.split(", ") for w in part["words"]] for name, part in rows.groupby("representation")}
        for group in groups.get("sae", []):
            if all(len(set(group) & set(before)) < 2 for before in groups.get("residual", [])):
                found.append(f"{' and '.join(group)} ({concept})")
    return found


def moved_trees(uncertainty: pd.DataFrame, code: str) -> tuple[int, int, int]:
    """Concepts whose words' tree a code makes lighter, or heavier, by an interval without 1; and of how many that
    have an interval."""
    chosen = uncertainty["measure"].eq("mst_weight_scale_free") & uncertainty["representation"].eq(f"{code} / residual")
    rows = uncertainty[chosen].dropna(subset=["low", "high"])
    return int((rows["high"] < 0).sum()), int((rows["low"] > 0).sum()), len(rows)


def words_shape(geometry: pd.DataFrame) -> tuple[float, float, float]:
    """Procrustes disparity of the words' poles in the SAE and in the stream: mean, mean by chance, largest p-value."""
    words = geometry[geometry["protocol"].eq("words") & geometry["representation"].eq("sae")]
    found = words[["procrustes_disparity", "procrustes_chance", "procrustes_p"]]
    return float(found.iloc[:, 0].mean()), float(found.iloc[:, 1].mean()), float(found.iloc[:, 2].max())


def ruler_facts(ruler: pd.DataFrame) -> dict[str, float]:
    """How the rulers of ``04_ruler`` do where they are good, and where they are not.

    ``holes`` is the largest error of a mean Betti number; ``five``, ``twenty`` and ``embedded`` are dimensions read off
    spheres of five and twenty and off a UMAP embedding of the five; ``alike`` is the Procrustes disparity, in truth 1,
    of poles that have nothing to do with each other.
    """
    rows = ruler.set_index(["shape", "measure"])["estimate"]
    return {
        "holes": float(ruler["bias"][ruler["measure"].str.startswith("Betti")].abs().max()),
        "five": rows["5-sphere, 400 points", "intrinsic dimension"],
        "twenty": rows["20-sphere, 400 points", "intrinsic dimension"],
        "embedded": rows["5-sphere, 400 points", "dimension of its UMAP embedding"],
        "alike": rows["12 unrelated poles, 576 dimensions", "Procrustes disparity"],
    }
