"""Do the paper's signs come back under the paper's own protocol, and does a code that learned nothing give them too?

The unit is a concept; seeds are averaged first. Counts, dimensions and lengths are compared as ratios, code over
residual stream (the logarithm is averaged; of a count, that of the count plus one).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saema_utils.evidence.geometry import COUNTS
from saema_utils.evidence.verdicts import lies
from saema_utils.statistics import mean_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from saema_utils.evidence.claims import Claim

PAPER_SIGNS = {"n_local": -1, "intrinsic_dimension": 1, "mst_weight": -1}
"""What the paper reports of a sparse code beside the stream: fewer clusters, more dimensions, a lighter tree."""
NOT_REPLAYED = "not replayed"
SIGNS = ("as in the paper", "opposite", "neither")


def replay_signs(structure: pd.DataFrame) -> pd.DataFrame:
    """Every code against the residual stream, by the protocol and without each of its steps.

    Parameters
    ----------
    structure
        Columns prompts, coder (``residual`` among them), concept, recipe, seed and the measures. The recipe ``scale``
        is made here: the protocol's own clusters, their tree measured free of scale.

    Returns
    -------
    Columns prompts, coder, recipe, measure, paper (its sign), estimate (mean log ratio), low, high (95 %, over
    concepts), n_concepts, sign (one of :data:`SIGNS`, by the interval; ``no interval`` without one).
    """
    import pandas as pd

    columns = ["prompts", "coder", "recipe", "measure", "paper", "estimate", "low", "high", "n_concepts", "sign"]
    scaled = structure[structure["recipe"] == "as published"].assign(recipe="scale")
    scaled["mst_weight"] = scaled["mst_weight_scale_free"]
    rows = []
    for (prompts, recipe), part in pd.concat([structure, scaled]).groupby(["prompts", "recipe"], sort=False):
        for measure, paper in PAPER_SIGNS.items():
            if recipe == "scale" and measure != "mst_weight":
                continue
            means = log_means(part, measure).reindex(columns=part["coder"].unique())
            for coder in (name for name in means if name != "residual"):
                changes = (means[coder] - means["residual"]).dropna()
                interval = mean_interval(changes.to_numpy())
                row = {"prompts": prompts, "coder": coder, "recipe": recipe, "measure": measure, "paper": paper}
                row |= {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
                rows.append(row | {"n_concepts": interval.n, "sign": sign(interval.low, interval.high, paper)})
    return pd.DataFrame(rows, columns=columns)


def log_means(part: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Concepts by coders: log of a measure (of a count plus one), seeds averaged; NaN where it is not positive."""
    values = part[measure].astype(float) + (measure in COUNTS)
    logs = np.log(values.where(values > 0))
    return part.assign(value=logs).pivot_table(index="concept", columns="coder", values="value", sort=False)


def sign(low: float, high: float, paper: int) -> str:
    """Whether an interval leaves zero out on the paper's side, on the other, or not at all."""
    if not np.isfinite([low, high]).all():
        return "no interval"
    side = {"above": 1, "below": -1}.get(lies(low, high, 0, 0))
    return "neither" if side is None else "as in the paper" if side == paper else "opposite"


def reproduces(claim: Claim, tables: Mapping[str, pd.DataFrame]) -> str:
    """Whether the paper's own measure, by its own protocol on its own prompts, shows what is claimed.

    Parameters
    ----------
    tables
        By name those that ``claim.paper`` reads: the signs of the replay; its correlations, of which the mean over
        concepts must lie on the claim's side of zero with its interval; or values, likewise.

    Returns
    -------
    ``yes`` or ``no``; ``not replayed`` where the paper gives no measure, or the replay has no interval.
    """
    where = dict(claim.paper)
    if not where:
        return NOT_REPLAYED
    rows = tables[where.pop("table")]
    column = where.pop("column", "value")
    for name, wanted in where.items():
        rows = rows[rows[name] == wanted]
    if "sign" in rows:
        found = rows["sign"].iloc[0] if len(rows) else "no interval"
    else:
        interval = mean_interval(rows.groupby("concept")[column].mean().to_numpy())
        found = sign(interval.low, interval.high, claim.turn)
    return NOT_REPLAYED if found == "no interval" else "yes" if found == SIGNS[0] else "no"
