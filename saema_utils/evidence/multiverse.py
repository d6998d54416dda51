"""One claim under every defensible analysis: from values a unit to specification curves, a joint test and a verdict.

A *specification* is a measure with one way for each choice. Its values by unit are contrasted in up to two ways: the
code against its baseline (the effect ``itself``), and against a control that learned nothing (its ``lead``).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.errors import ClaimError
from saema_utils.evidence.claims import Claim
from saema_utils.evidence.verdicts import Evidence, judge
from saema_utils.statistics import Interval, errors_to_bound, mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

ITSELF, LEAD = "itself", "lead"
EXACT_UNITS = 13  # up to 2^13 patterns of signs are all tried
DRAWS = 4096


def contrasts_of(claim: Claim) -> dict[str, str]:
    """Which contrasts a claim has, and what its code is compared with in each (nothing: zero)."""
    return {ITSELF: claim.baseline} | ({LEAD: claim.nothing} if claim.nothing else {})


def allowed_rows(units: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """The rows of a table of values that are a specification of the claim.

    Raises
    ------
    ClaimError
        If the table lacks a column that the claim chooses by, or holds none of its specifications.
    """
    needed = ["measure", *claim.choices, *claim.where, "representation", claim.unit, "value"]
    missing = [name for name in needed if name not in units]
    if missing:
        raise ClaimError(
            f"the values of claim {claim.id!r} have no column {missing[0]!r}; they have: {', '.join(units)}. "
            "Run their chapter again."
        )
    # A choice that a measure does not have is empty, and comes back from a file as missing.
    blank = [name for name in claim.choices if units[name].isna().any()]
    units = units.assign(**{name: units[name].astype(object).where(units[name].notna(), "") for name in blank})
    keep = units["measure"].isin(claim.measures)
    for name, ways in (*claim.choices.items(), *((name, (value,)) for name, value in claim.where.items())):
        keep &= units[name].isin(ways)
    if not keep.any():
        raise ClaimError(f"the values of claim {claim.id!r} hold none of its specifications. Run their chapter again.")
    return units[keep]


def effects_of(units: pd.DataFrame, claim: Claim, contrast: str) -> pd.DataFrame:
    """The effect in each unit under each specification: a row a specification, a column a unit.

    In the unit of the measure, on the table's own side; seeds and the like are averaged. NaN where one of the two
    sides has no value, also for a unit that has no row of the claim at all.
    """
    against = contrasts_of(claim)[contrast]
    keys = ["measure", *claim.choices]
    rows = allowed_rows(units, claim)
    means = rows.groupby([*keys, "representation", claim.unit], sort=False)["value"].mean()
    wide = means.unstack(["representation", claim.unit])
    names = list(dict.fromkeys(units[claim.unit]))
    sides = [wide[side].reindex(columns=names) if side in wide else None for side in (claim.code, against) if side]
    absent = [side for side, found in zip((claim.code, against), sides, strict=False) if found is None]
    if absent:
        raise ClaimError(
            f"the values of claim {claim.id!r} hold no representation {absent[0]!r}, which it compares. "
            "Run their chapter again."
        )
    return sides[0] - sides[1] if against else sides[0]


def margins_of(effects: pd.DataFrame, claim: Claim) -> Float[np.ndarray, " S"]:
    """The margin of each specification, on the paper's side of zero."""
    measures = effects.index.get_level_values("measure")
    return claim.turn * np.array([claim.measures[name] for name in measures])


def specifications(units: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """Every analysis of a claim: one row a specification and contrast.

    Returns
    -------
    Columns claim, contrast, against, measure, the claim's choices, primary (whether it was named beforehand),
    estimate, low, high (mean over units with its 95 % interval), n, margin.
    """
    import pandas as pd

    found = []
    for contrast, against in contrasts_of(claim).items():
        effects = effects_of(units, claim, contrast)
        table = effects.index.to_frame(index=False)
        primary = np.logical_and.reduce([table[name] == way for name, way in claim.primary.items()])
        intervals = pd.DataFrame([mean_interval(row) for row in effects.to_numpy()])
        head = pd.DataFrame({"claim": claim.id, "contrast": contrast, "against": against or "zero"}, index=table.index)
        facts = intervals[["estimate", "low", "high", "n"]].assign(margin=margins_of(effects, claim))
        found.append(pd.concat([head, table.assign(primary=primary), facts], axis=1))
    return pd.concat(found, ignore_index=True)


@functools.cache
def _signs(n: int) -> np.ndarray:
    if n <= EXACT_UNITS:
        return 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    signs = np.random.default_rng(0).choice([-1, 1], (DRAWS, n))
    return np.concatenate([np.ones((1, n), dtype=int), signs])  # what was observed is one of its own flips


def joint_test(effects: Float[np.ndarray, "S C"]) -> tuple[float, float]:
    r"""Median over specifications of the mean effect, and its two-sided p-value under flips of whole units.

    .. math:: T = \operatorname{median}_s \frac{1}{n_s} \sum_c x_{sc}

    If sparse coding did nothing to a unit, all its effects would be as likely with the other sign, whatever they have
    in common: the signs of a unit are flipped together across all specifications [1]_. Exact up to thirteen units.

    Parameters
    ----------
    effects
        In margins; NaN where a unit has no value. Specifications and units without any are left out.

    References
    ----------
    .. [1] Simonsohn, Simmons and Nelson, Nature Human Behaviour 4, 2020.
    """
    known = np.isfinite(effects)
    effects, known = effects[known.any(axis=1)][:, known.any(axis=0)], known[known.any(axis=1)][:, known.any(axis=0)]
    if not effects.size:
        return float("nan"), float("nan")
    means = _signs(effects.shape[1]) @ np.where(known, effects, 0.0).T / known.sum(axis=1)
    flipped = np.abs(np.median(means, axis=1))
    observed = float(np.median(means[0]))
    return observed, float((flipped >= abs(observed) * (1 - 1e-12)).mean())


def shares_of_choices(effects: pd.DataFrame, margins: Float[np.ndarray, " S"]) -> pd.Series:
    r"""How much of the variance of the estimates each choice explains by itself, largest first.

    .. math:: \eta^2 = 1 - \frac{\sum_g \sum_{s \in g} (x_s - \bar x_g)^2}{\sum_s (x_s - \bar x)^2}

    Estimates in margins; a choice with one way explains nothing and is left out.
    """
    import pandas as pd

    estimates = (effects.mean(axis=1) / margins).dropna()
    total = float(((estimates - estimates.mean()) ** 2).sum())
    found = {}
    for name in estimates.index.names:
        groups = estimates.groupby(level=name)
        if groups.ngroups > 1:
            within = float(((estimates - groups.transform("mean")) ** 2).sum())
            found[name] = 1 - within / total if total > 0 else 0.0
    return pd.Series(found, dtype=float).sort_values(ascending=False)


def in_short(units: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """What a claim's analyses say together: one row a contrast.

    Returns
    -------
    Columns claim, contrast, specifications (with a value), median (of the estimates, in margins, positive on the
    paper's side), share_paper_sign, share_beyond_margin, joint_p, matters_most (the choice that explains most) and
    matters_share (how much).
    """
    import pandas as pd

    rows = []
    for contrast in contrasts_of(claim):
        effects = effects_of(units, claim, contrast)
        margins = margins_of(effects, claim)
        sized = effects.to_numpy() / margins[:, None]
        sized = sized[np.isfinite(sized).any(axis=1)]
        estimates = np.nanmean(sized, axis=1) if len(sized) else np.zeros(0)
        median, joint_p = joint_test(sized)
        shares = shares_of_choices(effects[np.isfinite(effects).any(axis=1)], margins[np.isfinite(effects).any(axis=1)])
        rows.append(
            {
                "claim": claim.id,
                "contrast": contrast,
                "specifications": len(estimates),
                "median": median,
                "share_paper_sign": float((estimates > 0).mean()) if len(estimates) else np.nan,
                "share_beyond_margin": float((estimates > 1).mean()) if len(estimates) else np.nan,
                "joint_p": joint_p,
                "matters_most": shares.index[0] if len(shares) else "",
                "matters_share": float(shares.iloc[0]) if len(shares) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def evidence_of(specs: pd.DataFrame, short: pd.DataFrame, claim: Claim, contrast: str) -> Evidence | None:
    """The named analysis and all of them together, in margins; None for a contrast that the claim does not have."""
    if contrast not in contrasts_of(claim):
        return None
    row = specs[(specs["claim"] == claim.id) & (specs["contrast"] == contrast) & specs["primary"]]
    whole = short[(short["claim"] == claim.id) & (short["contrast"] == contrast)].iloc[0]
    if row.empty:
        return Evidence(float("nan"), float("nan"), 0, whole["median"], whole["joint_p"])
    row = row.iloc[0]
    low, high = sorted((row["low"] / row["margin"], row["high"] / row["margin"]))
    return Evidence(low, high, int(row["n"]), float(whole["median"]), float(whole["joint_p"]))


def verdict_of(specs: pd.DataFrame, short: pd.DataFrame, claim: Claim) -> str:
    """The verdict on a claim from its specifications (:func:`specifications`) and their summary (:func:`in_short`)."""
    own = evidence_of(specs, short, claim, ITSELF)
    return judge(own, evidence_of(specs, short, claim, LEAD), claim.minimum_n)


def power(values: Float[np.ndarray, " n"], margin: float, truth: float = 2.0, level: float = 0.95) -> float:
    """How often an interval of as many units, as scattered as these, would lie beyond the margin if the true effect
    were ``truth`` margins (Student's noncentral t); NaN for fewer than two units."""
    from scipy.stats import nct

    known = np.asarray(values, dtype=float) / margin
    known = known[np.isfinite(known)]
    n = len(known)
    if n < 2:
        return float("nan")
    error = known.std(ddof=1) / np.sqrt(n)
    return float(nct.sf(errors_to_bound(n, level), n - 1, (truth - 1) / error)) if error > 0 else 1.0


def primary_effects(units: pd.DataFrame, claim: Claim, contrast: str = ITSELF) -> pd.Series:
    """The effect in each unit by the analysis that was named beforehand; empty where there is none."""
    return named_beforehand(effects_of(units, claim, contrast), claim)


def named_beforehand(effects: pd.DataFrame, claim: Claim) -> pd.Series:
    """Of the effects under each specification those of the one named beforehand; NaN where it is not there."""
    key = tuple(claim.primary[name] for name in effects.index.names)
    return effects.loc[key] if key in effects.index else effects.iloc[0] * np.nan


def why_missing(units: pd.DataFrame, claim: Claim) -> str:
    """Why units have no value in the analysis that was named beforehand; empty where all have one."""
    rows = allowed_rows(units, claim)
    absent = units[~units[claim.unit].isin(rows[claim.unit])]
    known = set(rows[claim.unit])
    for name, way in claim.primary.items():
        rows = rows[rows[name] == way]
    otherwise = len(known - set(rows[claim.unit]))
    rows = rows[rows["representation"].isin([claim.code, claim.baseline]) & rows["value"].isna()]
    # Where nothing at all could be measured, a row without a measure says why.
    said = [*rows["reason"].dropna(), *absent.loc[absent["measure"].fillna("") == "", "reason"].dropna()]
    if otherwise:
        said.append(f"{claim.unit}s that lack the analysis named beforehand, not others: {otherwise}")
    if len(absent) and not said:
        said = [f"{absent[claim.unit].nunique()} {claim.unit}s have nothing of the kind"]
    return "; ".join(dict.fromkeys(map(str, said)))


def interval_of(units: pd.DataFrame, claim: Claim, contrast: str = ITSELF) -> Interval:
    """Mean and 95 % interval over units of :func:`primary_effects`."""
    return mean_interval(primary_effects(units, claim, contrast).to_numpy())
