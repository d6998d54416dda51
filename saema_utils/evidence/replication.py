r"""A claim over several autoencoders: how far concepts, layers and autoencoders differ, and what a next one would show.

Concepts measured with one autoencoder are no sample of autoencoders. An effect :math:`x` of concept c in autoencoder a,
trained at layer l, is taken apart by a mixed model,

.. math:: x_{cla} = \mu + u_c + v_l + w_a + e_{cla},

whose parts are independent, normal and centred at zero. The plain interval bounds :math:`\mu`; the predictive one
bounds the effect of a new concept in a new autoencoder at a layer like these.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.evidence.claims import Claim
from saema_utils.evidence.multiverse import ITSELF, LEAD, contrasts_of, joint_test
from saema_utils.evidence.verdicts import Evidence, judge
from saema_utils.statistics import with_interval

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("concept", "layer", "sae")
REST = "rest"
COLUMNS = (
    *(
        "claim",
        "contrast",
        "estimate",
        "low",
        "high",
        "new_low",
        "new_high",
        "n",
        "minimum_n",
        "saes",
        "layers",
        "margin",
        "median",
        "joint_p",
    ),
    *(f"share_{part}" for part in (*PARTS, REST)),
    *("seeds", "holds_up", "holds_up_mean"),
)
FEWEST = 2  # concepts and autoencoders, for their differences to have a size


@dataclass(frozen=True)
class Mixture:
    """What the mixed model finds.

    ``low`` and ``high`` bound the mean effect, ``new_low`` and ``new_high`` the effect of a new concept in a new
    autoencoder (95 % both). ``variances`` are by part: concept, layer, sae, rest.
    """

    estimate: float
    low: float
    high: float
    new_low: float
    new_high: float
    variances: Mapping[str, float]

    def __str__(self) -> str:
        mean = f"mean {with_interval(self.estimate, self.low, self.high, '+.2f')}"
        bounded = np.isfinite([self.new_low, self.new_high]).all()
        return f"{mean}, the next one {self.new_low:+.2f} to {self.new_high:+.2f}" if bounded else mean


def mixture(effects: pd.DataFrame) -> Mixture:
    """Fit the mixed model by restricted maximum likelihood.

    Intervals are Student's, their degrees of freedom Satterthwaite's [1]_: a part with three levels counts as known
    as badly as it is. A part with one level has no variance of its own.

    Parameters
    ----------
    effects
        Columns effect, concept, layer, seed (an autoencoder is a seed at a layer); rows without an effect are left out.
        With fewer than two concepts or autoencoders there is no interval (NaN).

    References
    ----------
    .. [1] Satterthwaite, Biometrics Bulletin 2, 1946.
    """
    known = _named(effects[np.isfinite(effects["effect"])])
    levels = {part: known[part].nunique() for part in PARTS}
    mean = float(known["effect"].mean()) if len(known) else float("nan")
    if min(levels["concept"], levels["sae"]) < FEWEST:
        nothing = dict.fromkeys((*PARTS, REST), float("nan"))
        return Mixture(mean, *[float("nan")] * 4, nothing)
    # As many autoencoders as layers: what the two do cannot be told apart, and counts as the autoencoder's.
    free = {"concept": levels["concept"] - 1, "layer": levels["layer"] - 1, "sae": levels["sae"] - levels["layer"]}
    if free["sae"] == 0:
        free |= {"layer": 0, "sae": levels["sae"] - 1}
    free[REST] = max(1, len(known) - 1 - sum(free.values()))
    mean, variances = _fit(known, [part for part in PARTS if free[part] > 0])
    share = {part: 1 / levels[part] for part in PARTS} | {REST: 1 / len(known)}
    half, ahead = (_half_width(variances, free, {part: more + share[part] for part in share}) for more in (0, 1))
    return Mixture(mean, mean - half, mean + half, mean - ahead, mean + ahead, variances)


def _named(effects: pd.DataFrame) -> pd.DataFrame:
    return effects.assign(sae=effects["layer"].astype(str) + "-" + effects["seed"].astype(str))


def _fit(known: pd.DataFrame, parts: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Mean and variances by part; a part that is not fitted has none."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    nothing = dict.fromkeys((*PARTS, REST), 0.0)
    scale = float(known["effect"].std(ddof=1))
    if not scale > 1e-12 * float(known["effect"].abs().max()):
        return float(known["effect"].mean()), nothing
    formulas = {part: f"0 + C({part})" for part in parts}
    data = known.assign(effect=known["effect"] / scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a part without variance lies on the boundary, and is no failure
        model = MixedLM.from_formula("effect ~ 1", data, "0", formulas, groups=np.ones(len(data)))
        found = model.fit(reml=True)
    fitted = dict(zip(model.exog_vc.names, found.vcomp, strict=True)) | {REST: found.scale}
    return float(found.fe_params.iloc[0]) * scale, nothing | {p: float(v) * scale**2 for p, v in fitted.items()}


def _half_width(variances: Mapping[str, float], free: Mapping[str, int], shares: Mapping[str, float]) -> float:
    from scipy.stats import t

    parts = {part: shares[part] * variances[part] for part in variances}
    total = sum(parts.values())
    if total == 0:
        return 0.0
    freedom = total**2 / sum(value**2 / free[part] for part, value in parts.items() if value > 0)
    return float(t.ppf(0.975, freedom) * np.sqrt(total))


def replication(replicates: pd.DataFrame, claims: Sequence[Claim]) -> pd.DataFrame:
    """Every claim over all autoencoders: one row a claim and contrast.

    Parameters
    ----------
    replicates
        Columns claim, contrast, concept, layer, seed, effect (by the analysis that was named beforehand, in the unit
        of its measure) and median (over all analyses, in margins).

    Returns
    -------
    Columns claim, contrast, estimate, low, high, new_low, new_high, n (concepts), minimum_n, saes, layers, margin,
    median (over autoencoders, of the mean over concepts of ``median``), joint_p (its p under flips of whole concepts),
    the share of the variance that each part explains (share_concept, share_layer, share_sae, share_rest), seeds (two
    standard deviations between autoencoders of one layer, of their mean over concepts), and on the row of the claim
    itself holds_up (by the predictive interval) and holds_up_mean (by the plain one).
    """
    import pandas as pd

    rows = []
    for claim in claims:
        own = replicates[replicates["claim"] == claim.id]
        if own.empty:
            continue
        evidence: dict[str, dict[str, Evidence]] = {}
        start = len(rows)
        for contrast in contrasts_of(claim):
            effects = own[own["contrast"] == contrast]
            found, (wide, every) = mixture(effects), (_by_concept(effects, name) for name in ("effect", "median"))
            median, joint_p = joint_test(every.to_numpy())
            n = int(wide.notna().any().sum())
            total = sum(found.variances.values())
            shares = {f"share_{part}": v / total if total > 0 else np.nan for part, v in found.variances.items()}
            facts = {name: value for name, value in vars(found).items() if name != "variances"}
            facts |= {"n": n, "minimum_n": claim.minimum_n, "saes": int(wide.notna().any(axis=1).sum())}
            facts |= {"layers": effects.loc[effects["effect"].notna(), "layer"].nunique(), "margin": claim.margin}
            facts |= {"median": median, "joint_p": joint_p}
            rows.append({"claim": claim.id, "contrast": contrast, **facts, **shares, "seeds": between_seeds(effects)})
            ends = {"predicted": (found.new_low, found.new_high), "mean": (found.low, found.high)}
            evidence[contrast] = {
                name: Evidence(*sorted(end / claim.margin for end in pair), n, median, joint_p)
                for name, pair in ends.items()
            }
        for column, name in (("holds_up", "predicted"), ("holds_up_mean", "mean")):
            lead = evidence.get(LEAD, {}).get(name)
            rows[start][column] = judge(evidence[ITSELF][name], lead, claim.minimum_n)
    return pd.DataFrame(rows, columns=COLUMNS)


def _by_concept(effects: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row an autoencoder, a column a concept."""
    return effects.pivot(index=["layer", "seed"], columns="concept", values=name)


def between_seeds(effects: pd.DataFrame) -> float:
    """Two standard deviations between autoencoders of one layer, of the mean over those concepts that all have; NaN
    where no layer has two."""
    wide = _by_concept(effects, "effect").dropna(axis=1)
    means = wide.mean(axis=1).groupby(level="layer")
    free = (means.count() - 1).sum()
    if not free or wide.shape[1] == 0:
        return float("nan")
    return float(2 * np.sqrt(((means.count() - 1) * means.var(ddof=1).fillna(0)).sum() / free))
