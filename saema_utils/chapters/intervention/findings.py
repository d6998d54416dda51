"""Chapter 5's sentences: words for what the tables say, whichever way they say it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.evidence.effects import causal_verdict
from saema_utils.figures import NAMES

if TYPE_CHECKING:
    import pandas as pd

CURVE = ["concept", "arm", "seed", "preserve_sparsity"]
TOGETHER, APART = "moving together (alpha <= 0)", "moving apart (alpha >= 0)"
STOPS = 1e-3  # share of the unedited error by which a measured error may leave its parabola and still be on it


def with_parabola(doses: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """Doses with the closed form beside them: columns ``parabola`` and ``misfit``, relative to the error unedited.

    The parabola is not fitted: its three numbers come from errors and steps at dose zero.
    """
    known = best[[*CURVE, "slope", "curvature", "mse_at_zero"]]
    table = doses.merge(known, on=CURVE, how="left")
    bend = table["curvature"] / (2 * table["mse_at_zero"])
    table["parabola"] = 1 + table["slope"] * table["alpha"] + bend * table["alpha"] ** 2
    table["misfit"] = (table["parabola"] - table["mse"] / table["mse_at_zero"]).abs()
    return table


def parabola_sentence(doses: pd.DataFrame, best: pd.DataFrame) -> str:
    """Where the closed form is the curve, and where latents that stop have bent the curve away from it."""
    table = with_parabola(doses, best)
    kept = table["preserve_sparsity"].astype(bool)
    free, held = table[~kept], table[kept]
    text = (
        f"With all latents free the {len(free)} measured errors lie on the closed form to within "
        f"{_small(free['misfit'].max())} of the error without edit: the curves *are* parabolas."
    )
    if held.empty:
        return text
    if held["misfit"].max() <= STOPS:
        return text + f" With the support kept no dose is off by more than {_small(held['misfit'].max())}."
    off = held.loc[held["misfit"].idxmax()]
    rows = best[best["preserve_sparsity"].astype(bool) & best["alpha_star"].notna()]
    exact = rows["exact"].astype(bool)
    return (
        f"{text} With the support kept, a latent that would be pushed through zero stops before it, and the curve "
        f"leaves its parabola: by {off['misfit']:.0%} at most ({NAMES[off['arm']]}, {off['concept']}, "
        f"alpha = {off['alpha']:g}). Those errors are therefore shown as measured, joined by lines. At the best dose "
        f"itself none has stopped in {int(exact.sum())} of {len(exact)} cases, so that the closed form holds there."
    )


def _small(share: float) -> str:
    return f"one part in {10 ** math.floor(-math.log10(max(share, 1e-15))):,}"


def correlation_sentence(correlation: pd.DataFrame) -> str:
    """What the paper's statistic reads on each side of no edit, for moved poles and for mere growth."""
    dense = correlation[~correlation["preserve_sparsity"].astype(bool)]
    r = dense.groupby(["arm", "range"])["r"].mean()
    ours, scaling = ([r[arm, side] for side in (TOGETHER, APART)] for arm in ("poles", "global_scaling"))
    text = (
        f"Doses that bring poles together give r = **{ours[0]:+.2f}**; doses that push them apart give "
        f"r = **{ours[1]:+.2f}**. "
    )
    if ours[0] < 0 < ours[1]:
        text += "The sign is that of the side we chose to look at. "
    else:
        text += "One sign on both sides: the lowest point lies far from no edit. " if ours[0] * ours[1] > 0 else ""
    text += (
        "Global scaling, which leaves the scale-free separation exactly where it is, gives "
        f"{scaling[0]:+.2f} and {scaling[1]:+.2f}"
    )
    if np.sign(ours).tolist() == np.sign(scaling).tolist():
        return text + ": the correlation sees the distance travelled, not what the distance is about."
    return text + ": here the correlation tells moving poles from mere growth."


def training_change(sweep: pd.DataFrame, name: str, coefficient: float) -> pd.Series:
    """Difference from coefficient 0, one value a seed."""
    wide = sweep.pivot_table(index="seed", columns="coefficient", values=name, dropna=False)
    return wide[coefficient] - wide[0.0]


STARTS_IN_WORDS = {"warm": "the study's own SAE", "fresh": "random weights, equal for every coefficient of a seed,"}


def training_sentence(sweep: pd.DataFrame) -> str:
    """What rewarding and punishing separation change, and whether the term does what it rewards."""
    least, most = sweep["coefficient"].min(), sweep["coefficient"].max()

    def mean(name: str, coefficient: float) -> float:
        return float(training_change(sweep, name, coefficient).mean())

    gained = training_change(sweep, "separation_words", most)
    does = "in every seed it rises, so the term does its work" if (gained > 0).all() else (
        f"it rises in {int((gained > 0).sum())} of {len(gained)} seeds, so the term does not reliably do its work"
    )  # fmt: skip
    text = (
        f"Runs begin from {STARTS_IN_WORDS[sweep['start'].iloc[0]]} and take {int(sweep['steps'].iloc[0])} steps. "
        f"At the largest coefficient ({most:g}) the separation of *unseen* words changes by **{gained.mean():+.3f}**: "
        f"{does}. Explained variance changes by **{mean('explained_variance', most):+.4f}** on running text and "
        f"**{mean('ev_words', most):+.4f}** on unseen words. "
    )
    if least >= 0:
        return text + f"Recovered cross-entropy: {mean('ce_recovered', most):+.4f}."
    return text + (
        f"Punishing separation ({least:g}) changes them by "
        f"{mean('explained_variance', least):+.4f} and {mean('ev_words', least):+.4f}. Recovered cross-entropy: "
        f"{mean('ce_recovered', most):+.4f} and {mean('ce_recovered', least):+.4f}."
    )


VOTES = {
    "supports": "supports the claim",
    "contradicts": "contradicts the claim",
    "mixed": "points both ways",
    "undecided": "decides nothing",
}


def verdict_sentence(effects: pd.DataFrame) -> str:
    """The chapter's answer: yes only if every kind of evidence supports it, in part if some does."""
    found = causal_verdict(effects)
    votes = set(found.values())
    answer = "In part."
    if "supports" not in votes:
        answer = "Not on this evidence."
    elif votes == {"supports"}:
        answer = "Yes, on this evidence."
    counts = effects["verdict"].value_counts()
    clear = effects["survives"] & effects["verdict"].eq("supports")
    return (
        f"**Does separability cause reconstruction? {answer}** Moving poles after training "
        f"{VOTES[found['after training']]}; training for separability {VOTES[found['during training']]}; natural "
        f"variation at a fixed step {VOTES[found['by itself']]}. {counts.get('supports', 0)} of {len(effects)} effects "
        f"support it ({int(clear.sum())} also after correction for looking at many), {counts.get('contradicts', 0)} "
        f"contradict it."
    )
