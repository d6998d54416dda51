"""What chapter 5 finds: the few numbers that its sentences stand on, taken from its tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from saema_utils.chapters.found import Found, of_rows
from saema_utils.chapters.found import in_short as in_short
from saema_utils.evidence.effects import causal_verdict, partial_correlation, training_values
from saema_utils.evidence.verdicts import CONTRADICTED, SUPPORTED
from saema_utils.figures import NAMES
from saema_utils.intervention.edits import ARMS
from saema_utils.statistics import NO_INTERVAL, mean_interval, with_interval, written

CHANGES = {"steps": "More training steps", "k": "More active latents (k)", "width": "A wider dictionary"}
CURVE = ["concept", "arm", "seed", "preserve_sparsity"]
TOGETHER, APART = "moving together (alpha <= 0)", "moving apart (alpha >= 0)"
SEARCHES = {
    ("aedp", "raise"): "raise pole distance",
    ("aedp", "lower"): "lower pole distance",
    ("gromov_wasserstein", "raise"): "bend their shape (GW up)",
    ("gromov_wasserstein", "lower"): "towards the residual's shape (GW down)",
    ("random", "raise"): "random, equal size",
}
GAMED = {
    "aedp": "pole distance (AEDP)",
    "latent_rms": "size of the latents",
    "separation": "scale-free separation",
    "unexplained": "unexplained variance of the words",
}
REWARDED = {
    "separation_words": "separation of unseen words",
    "explained_variance": "explained variance of text",
    "ev_words": "of unseen words",
    "ce_recovered": "recovered cross-entropy",
}
EDITS = ("no edit", "poles -0.5", "poles +0.5")  # whose cost the page tells
STOPS = 1e-3  # share of the unedited error by which a measured error may leave its parabola and still be on it


def closed_form(best: pd.DataFrame, alphas: object) -> pd.DataFrame:
    """The parabola of each row of ``05_optimum`` at each dose: column ``parabola``, relative to the error unedited.

    It is not fitted: its three numbers come from errors and steps at dose zero.
    """
    table = best[[*CURVE, "slope", "curvature", "mse_at_zero"]].merge(pd.DataFrame({"alpha": alphas}), how="cross")
    bend = table["curvature"] / (2 * table["mse_at_zero"])
    return table.assign(parabola=1 + table["slope"] * table["alpha"] + bend * table["alpha"] ** 2)


def with_parabola(doses: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """Doses beside their closed form: columns ``relative`` (error over that unedited), ``parabola`` and ``misfit``."""
    table = doses.merge(closed_form(best, doses["alpha"].unique()), on=[*CURVE, "alpha"], how="left")
    relative = table["mse"] / table["mse_at_zero"]
    return table.assign(relative=relative, misfit=(table["parabola"] - relative).abs())


def mean_by_arm(table: pd.DataFrame, column: str) -> pd.Series:
    """Mean over concepts with all latents free, in the order of the arms; draws of one concept count as one.

    The poles' is NaN where nothing was measured.
    """
    if "preserve_sparsity" in table:
        table = table[~table["preserve_sparsity"].astype(bool)]
    means = table.groupby(["arm", "concept"])[column].mean().groupby("arm").mean()
    return means.reindex([arm for arm in ARMS if arm in means or arm == ARMS[0]])


def sides(correlation: pd.DataFrame) -> dict[str, float]:
    """Mean correlation over doses that bring poles together and over those that push them apart, with scaling's."""
    return {
        f"{NAMES[arm]} {word}": float(mean_by_arm(correlation[correlation["range"] == side], "r").get(arm, np.nan))
        for arm in ("poles", "global_scaling")
        for side, word in ((TOGETHER, "together"), (APART, "apart"))
    }


def search_costs(searches: pd.DataFrame) -> dict[str, float]:
    """Mean change of the error at the end of each search, as a share of the error without edit."""
    course = searches.set_index(["search", "direction", "concept", "restart"])
    ends, starts = (course.loc[course["step"] == step, "mse"] for step in (course["step"].max(), 0))
    change = (ends / starts - 1).groupby(["search", "direction"]).mean()
    return {name: change[search] for search, name in SEARCHES.items() if search in change}


def edit_names(losses: pd.DataFrame) -> pd.Series:
    """What each row of ``05_language_model`` has edited, in words: arm and dose."""
    names = losses["arm"].replace(NAMES) + losses["alpha"].map(" {:+g}".format).astype(str)
    return names.where(losses["alpha"] != 0, "no edit")


def costs_at_the_word(losses: pd.DataFrame) -> dict[str, float]:
    """Mean change of cross-entropy at the word when the edited reconstruction stands alone, by arm and dose.

    Of :data:`EDITS` also those that were not spliced in, as NaN.
    """
    here = losses[(losses["position"] == "concept") & ~losses["error_term"].astype(bool)]
    found = here.groupby(edit_names(here), sort=False)["ce_change"].mean().to_dict()
    return dict.fromkeys(EDITS, np.nan) | found


def at_largest_coefficient(effects: pd.DataFrame) -> pd.DataFrame:
    """What rewarding separation most changes: unseen words' separation first, then three of reconstruction."""
    most = effects[effects["coefficient"] == effects["coefficient"].max()].set_index("measure")
    return most.reindex(list(REWARDED)).rename(index=REWARDED)


def gaming_ratios(gaming: pd.DataFrame) -> pd.DataFrame:
    """Every autoencoder over the one before: pole distance, size, separation, and what it leaves unexplained."""
    shown = gaming.assign(unexplained=1 - gaming["ev_train"]).set_index("autoencoder")[list(GAMED)]
    before = shown.reindex(["before"]).iloc[0]
    return (shown / before).drop("before", errors="ignore").rename(columns=GAMED)


@of_rows
def size_was_bought(gaming: pd.DataFrame) -> Found:
    """Whether rewarding the plain distance makes latents larger and leaves more of the words unexplained than the same
    training without reward; both are told, as ratios to the autoencoder before."""
    ratios = gaming_ratios(gaming)[[GAMED["latent_rms"], GAMED["unexplained"]]]
    plain, neither = (ratios.reindex([name]).iloc[0] for name in ("trained on AEDP", "trained on neither"))
    shown = (f"{name} {written(plain[name], '.2f')} against {written(neither[name], '.2f')}" for name in ratios)
    return Found(
        bool((plain > neither).all()),
        "over the autoencoder before, with the reward against without: " + " · ".join(shown),
    )


@of_rows
def reward_buys_separation(effects: pd.DataFrame) -> Found:
    """Whether the largest reward raises the separation of unseen words beyond its interval, and no measure of
    reconstruction; from ``05_coefficient_effects``. None where one lacks an interval."""
    most = at_largest_coefficient(effects)
    shows = " · ".join(
        f"{row.Index} {with_interval(row.estimate, row.low, row.high, '+.2g')}" for row in most.itertuples()
    )
    separated, *reconstructed = most["low"]
    return Found(None if most["low"].isna().any() else separated > 0 >= max(reconstructed), shows)


@of_rows
def whom_the_reward_serves(choices: pd.DataFrame) -> Found:
    """Whether, of two trainings with opposite wishes, the rewarded one explains more of unseen sentences and less of
    unseen words, each beyond its interval; from ``05_training_choices``, at the largest coefficient."""
    plain = choices[(choices["measure"] == "explained_variance") & (choices["pooled"] == "all tokens")]
    odd = training_values(plain[(plain["weight"] == "tokens") & (plain["scaling"] == "alone")])
    odd = odd[(odd["representation"] == "odd") & (odd["coefficient"] == odd["coefficient"].max())]
    by_text = {on: mean_interval(values.to_numpy()) for on, values in odd.groupby("on", sort=False)["value"]}
    told = " · ".join(f"{on} {with_interval(i.estimate, i.low, i.high, '+.1%')}" for on, i in by_text.items())
    shows = f"half the difference of explained variance: {told}"
    sentences, words = by_text["unseen sentences"], by_text["unseen words"]
    bounded = np.isfinite([sentences.low, words.high]).all()
    return Found(sentences.low > 0 > words.high if bounded else None, shows)


def natural_relation(natural: pd.DataFrame) -> dict[str, float]:
    """Correlation of separation with explained variance over all checkpoints, and with the step held fixed."""
    pair = ("separation", "explained_variance")
    return {
        "over all checkpoints": natural[pair[0]].corr(natural[pair[1]]),
        "at one step": partial_correlation(natural, *pair, "step")[0],
    }


def reversed_changes(reversed_cause: pd.DataFrame) -> pd.DataFrame:
    """What the largest level of each change has over the smallest, mean over seeds; of :data:`CHANGES`."""
    levels = reversed_cause.groupby(["change", "level"])[["explained_variance", "separation"]].mean()
    changes = levels.groupby("change").agg(lambda values: values.iloc[-1] - values.iloc[0])
    return changes.reindex(list(CHANGES))


def verdict_counts(effects: pd.DataFrame) -> str:
    """The three kinds of evidence and their verdicts, and how many effects stand behind them, in one line.

    Where none of these has an interval, that alone.
    """
    if effects[["low", "high"]].isna().all(axis=None):
        return f"{NO_INTERVAL} of {len(effects)} effects: one concept, one seed"
    votes = "; ".join(f"{kind}: {verdict}" for kind, verdict in causal_verdict(effects).items())
    supported, contradicted = (effects["verdict"].eq(verdict) for verdict in (SUPPORTED, CONTRADICTED))
    surviving = (supported & effects["survives"]).sum()
    corrected = f" ({surviving} after correction)" if supported.any() else ""
    return f"{votes} · of {len(effects)} effects, for it {supported.sum()}{corrected}, against it {contradicted.sum()}"
