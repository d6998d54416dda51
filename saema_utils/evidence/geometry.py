"""What sparse coding changes: the SAE against the residual stream and against controls, concept by concept.

The unit is a concept; seeds are averaged first. Lengths, counts and dimensions are compared as ratios
(their logarithm is averaged; of a count, that of the count plus one, for none is a count too), scores as
differences. Each comparison has an interval over concepts (Student's where they are few) and a sign-flip
test, Holm-corrected within its protocol and control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saema_utils.evidence.verdicts import ALPHA, TOO_FEW, lies
from saema_utils.statistics import holm, mean_interval, paired_permutation_test

if TYPE_CHECKING:
    import pandas as pd

AGAINST = ("residual", "random_dictionary", "pca")
COUNTS = ("n_local",)
RATIOS = ("n_local", "intrinsic_dimension", "effective_rank", "mst_weight_scale_free", "geodesic_scale_free")
CLUSTERS_ALONE = ("n_local", "effective_rank")
DIFFERENCES = {"words": ("ami", "purity"), "direct": ("ami_token",), "paper": ("ami_token",)}
LEAST_CONCEPTS = 6
MEASURES = {
    "n_local": "local representations",
    "intrinsic_dimension": "intrinsic dimension",
    "effective_rank": "effective rank of clusters",
    "mst_weight_scale_free": "tree weight, scale-free",
    "geodesic_scale_free": "geodesic distance, scale-free",
    "ami": "clusters agree with words",
    "ami_token": "clusters agree with token texts",
    "purity": "nearest neighbour has the same word",
}


def compare_representations(
    geometry: pd.DataFrame, merging: pd.DataFrame, *, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Paired comparison of the SAE with every other representation in :data:`AGAINST`.

    Returns
    -------
    Columns protocol, measure, against, effect (``log ratio`` or ``difference``), estimate, low, high
    (95 %, over concepts), ratio, p_value, p_holm, n_concepts, change: what the SAE makes of
    it (``higher``, ``lower``, ``unclear``, or ``too few units``: fewer than six concepts cannot reach 0.05).
    """
    import pandas as pd

    rows = []
    for protocol in ("paper", "direct", "words"):
        for against in AGAINST:
            # Where words are the local representations, these two count words and sentences only.
            ratios = [measure for measure in RATIOS if protocol != "words" or measure not in CLUSTERS_ALONE]
            asked = [(geometry, measure, "log ratio") for measure in ratios]
            asked += [(merging, measure, "difference") for measure in DIFFERENCES[protocol]]
            family = []
            for table, measure, effect in asked:
                changes = paired_changes(table, protocol, measure, against, effect)
                interval = mean_interval(changes, n_resamples=n_resamples, seed=seed)
                row = {"protocol": protocol, "measure": measure, "against": against, "effect": effect}
                row |= {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
                row["ratio"] = np.exp(interval.estimate) if effect == "log ratio" else np.nan
                row |= {"p_value": paired_permutation_test(changes, seed=seed), "n_concepts": interval.n}
                family.append(row)
            for row, p in zip(family, holm([row["p_value"] for row in family]), strict=True):
                rows.append(row | {"p_holm": p, "change": direction(row, p)})
    return pd.DataFrame(rows)


def paired_changes(
    table: pd.DataFrame, protocol: str, measure: str, against: str, effect: str = "log ratio"
) -> np.ndarray:
    """SAE minus ``against`` (or log of their ratio) for each concept that has both, seeds averaged.

    A count of zero (no cluster at all) is compared as any other; what has no value is left out.
    """
    rows = table[table["protocol"] == protocol]
    values = rows.set_index(["concept", "representation"])[measure].astype(float)
    if effect == "log ratio":
        values = values + 1 if measure in COUNTS else values
        values = np.log(values[values > 0])
    means = values.groupby(level=[0, 1]).mean().unstack()
    if not {"sae", against} <= set(means.columns):
        return np.zeros(0)
    return (means["sae"] - means[against]).dropna().to_numpy()


def direction(row: dict, p_holm: float) -> str:
    """One word: ``higher`` or ``lower`` needs an interval that excludes no change and a corrected p below 0.05."""
    if row["n_concepts"] < LEAST_CONCEPTS:
        return TOO_FEW
    where = lies(row["low"], row["high"], 0, 0) if p_holm < ALPHA else "across"
    return {"above": "higher", "below": "lower"}.get(where, "unclear")
