"""Every effect of an intervention beside its control, with an interval and a verdict.

Differences are paired (by concept, or by seed), a negative finding is stated as plainly as a positive
one, and all p-values of a table are adjusted together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.evidence.verdicts import CONTRADICTED, DEPENDS, SUPPORTED, TOO_FEW, judge_alone
from saema_utils.statistics import (
    FEW,
    cohens_d_paired,
    holm,
    jackknife_error,
    paired_interval,
    paired_permutation_test,
    paired_t_test,
)

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("random_direction", "permuted_labels")


#: What a coefficient is asked about: separation, and reconstruction of running text and of concept words.
SWEPT = (
    "separation_train",
    "separation_words",
    "separation_sentences",
    "explained_variance",
    "ev_train",
    "ev_words",
    "ev_sentences",
    "cosine",
    "cosine_words",
    "ce_recovered",
)
#: Choices of what is reconstructed, and of how its tokens count: columns of ``05_training_choices``.
CHOSEN = ("measure", "on", "weight", "scaling", "pooled")
LEVEL = 0.95


def partial_correlation(table: pd.DataFrame, x: str, y: str, given: str) -> tuple[float, int]:
    """Correlation of x and y within each level of ``given``, both in standard deviations from that level's mean.

    Every level counts alike: without the division, the level that scatters most (the earliest training
    step, say) would decide alone. Of levels with equally many rows it is the mean of the levels' own r.

    Returns
    -------
    r (NaN when nothing varies) and its degrees of freedom (rows minus levels minus 1).
    """
    centred = within_levels(table, (x, y), given)
    freedom = len(table) - table[given].nunique() - 1
    sizes = np.sqrt((centred**2).sum())
    if freedom < 1 or sizes[x] == 0 or sizes[y] == 0:
        return float("nan"), max(0, freedom)
    return float((centred[x] * centred[y]).sum() / (sizes[x] * sizes[y])), freedom


def within_levels(table: pd.DataFrame, columns: Sequence[str], given: str) -> pd.DataFrame:
    """Columns as deviations from the mean of their level, in its standard deviations (0 where nothing varies)."""
    groups = table.groupby(given)[list(columns)]
    centred, spread = table[list(columns)] - groups.transform("mean"), groups.transform("std")
    # A constant column's deviations are rounding, not information.
    return (centred / spread).where(spread > 1e-12 * table[list(columns)].abs(), 0.0)


def effects(
    doses: pd.DataFrame,
    best: pd.DataFrame,
    losses: pd.DataFrame,
    trained: pd.DataFrame,
    natural: pd.DataFrame,
    joint: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per effect and control.

    Columns: effect, control, claimed (sign that the causal claim predicts), estimate, low, high, d (Cohen's,
    paired), n, unit, p (of the same test as the interval), p_holm (adjusted for all rows), verdict (by the
    interval alone: :func:`~saema_utils.evidence.verdicts.judge_alone`), survives (whether the verdict also stands once
    the table's number of rows is allowed for).
    """
    import pandas as pd

    rows = [*_after_training(doses, best), *_language_model(losses), *_during_training(trained), *_by_itself(natural)]
    if joint is not None and len(joint):
        wide = _wide(joint, "alpha")
        name = "best dose alpha*, scaling fitted beside"
        rows[3:3] = [_row(name, control, 1, wide["poles"] - wide[control], "concept") for control in CONTROLS]
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].to_numpy())
    table["verdict"] = [judge_alone(*sorted(row.claimed * np.array([row.low, row.high]))) for row in table.itertuples()]
    decided = table["verdict"].isin([SUPPORTED, CONTRADICTED])
    table["survives"] = decided & (table["p_holm"] < 1 - LEVEL)
    return table


def paired_p(differences: np.ndarray) -> float:
    """P-value of the mean of paired differences: Student's t below thirty pairs, sign flips from there on.

    As :func:`saema_utils.statistics.paired_interval`. Three pairs have eight patterns of signs: their smallest p is
    0.25 however clear the effect, and no adjustment for many tests could then agree with any interval.
    """
    n = np.isfinite(differences).sum()
    return paired_permutation_test(differences) if n >= FEW else paired_t_test(differences)


def _row(effect: str, control: str, claimed: int, differences: np.ndarray, unit: str) -> dict[str, object]:
    d = np.asarray(differences, dtype=float)
    d = d[np.isfinite(d)]
    estimate, low, high = paired_interval(d)
    return {
        "effect": effect,
        "control": control,
        "claimed": claimed,
        "estimate": estimate,
        "low": low,
        "high": high,
        "d": cohens_d_paired(d),
        "n": len(d),
        "unit": unit,
        "p": paired_p(d),
    }


def _wide(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Concepts by arms, seeds averaged."""
    return table.groupby(["concept", "arm"])[value].mean().unstack("arm")


def _after_training(doses: pd.DataFrame, best: pd.DataFrame) -> list[dict]:
    rows = []
    best = best[~best["preserve_sparsity"].astype(bool)]
    if "alpha_star" in best:
        stars, slopes = _wide(best, "alpha_star"), _wide(best, "slope")
        rows.append(_row("best dose alpha*", "zero", 1, stars["poles"], "concept"))
        for control in CONTROLS:
            rows.append(_row("best dose alpha*", control, 1, stars["poles"] - stars[control], "concept"))
            rows.append(_row("slope of MSE at 0", control, -1, slopes["poles"] - slopes[control], "concept"))
    dense = doses[~doses["preserve_sparsity"].astype(bool)]
    start = dense[dense["alpha"] == 0].groupby("concept")["mse"].mean()
    apart = [alpha for alpha in dense["alpha"].unique() if alpha >= 0.5]
    if apart:
        change = _wide(dense[dense["alpha"] == min(apart)], "mse").div(start, axis=0) - 1
        for control in CONTROLS:
            name = f"relative change of MSE at alpha = {min(apart):g}"
            rows.append(_row(name, control, -1, change["poles"] - change[control], "concept"))
    return rows


def _language_model(losses: pd.DataFrame) -> list[dict]:
    rows = []
    if "alpha" not in losses:
        return rows
    here = losses[(losses["position"] == "concept") & ~losses["error_term"].astype(bool)]
    plain = here[here["arm"] == "unedited"].set_index("concept")["cross_entropy"]
    for alpha in sorted(a for a in here["alpha"].unique() if a > 0):
        wide = _wide(here[here["alpha"] == alpha], "cross_entropy")
        rows.append(_row(f"cross-entropy at alpha = {alpha:g}", "unedited", -1, wide["poles"] - plain, "concept"))
        for control in CONTROLS:
            name = f"cross-entropy at alpha = {alpha:g}"
            rows.append(_row(name, control, -1, wide["poles"] - wide[control], "concept"))
    return rows


def _during_training(trained: pd.DataFrame) -> list[dict]:
    rows = []
    for measure, name in (
        ("explained_variance", "held-out explained variance, corpus"),
        ("ev_words", "held-out explained variance, unseen words"),
        ("ev_sentences", "held-out explained variance, unseen sentences"),
    ):
        wide = trained.pivot_table(index="seed", columns="coefficient", values=measure)
        for coefficient in (c for c in wide.columns if c > 0):
            label = f"{name}, coefficient {coefficient:g}"
            rows.append(_row(label, "coefficient 0", 1, wide[coefficient] - wide[0.0], "seed"))
            # Any extra term costs something; the opposite sign costs the same pressure without the separation.
            if -coefficient in wide:
                rows.append(
                    _row(label, f"coefficient {-coefficient:g}", 1, wide[coefficient] - wide[-coefficient], "seed")
                )
    return rows


def _by_itself(natural: pd.DataFrame, n_resamples: int = 999) -> list[dict]:
    """Partial correlation given the step, its interval over seeds (jackknife), p by shuffling seeds within steps."""
    r, freedom = partial_correlation(natural, "separation", "explained_variance", "step")
    seeds = natural["seed"].unique()
    low = high = p = float("nan")
    if np.isfinite(r) and len(seeds) > 2:
        left_out = [
            partial_correlation(natural[natural["seed"] != s], "separation", "explained_variance", "step")[0]
            for s in seeds
        ]
        centre, *z = np.arctanh(np.clip([r, *left_out], -0.999999, 0.999999))
        error = jackknife_error(z, len(z))
        low, high = (float(np.tanh(centre + side * 1.96 * error)) for side in (-1, 1))
        rng, null = np.random.default_rng(0), []
        pair = ["separation", "explained_variance"]
        scores = natural[["seed", "step"]].join(within_levels(natural, pair, "step"))
        a, b = (scores.pivot_table(index="seed", columns="step", values=name).to_numpy() for name in pair)
        for _ in range(n_resamples):
            # A seed's whole course is moved: its checkpoints are not independent.
            shuffled = a[rng.permutation(len(a))]
            null.append((shuffled * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
        p = float((np.sum(np.abs(null) >= abs(r) - 1e-12) + 1) / (n_resamples + 1))
    return [
        {
            "effect": "separation with explained variance, training step held fixed",
            "control": "no relation",
            "claimed": 1,
            "estimate": r,
            "low": low,
            "high": high,
            "d": float("nan"),
            "n": freedom,
            "unit": "degrees of freedom",
            "p": p,
        }
    ]


def coefficient_effects(trained: pd.DataFrame) -> pd.DataFrame:
    """What each coefficient of the separation term changes against coefficient 0, paired by seed.

    Columns: coefficient, measure (a column of ``05_separability_training``), estimate, low, high, d, n, p,
    p_holm (adjusted for all rows).
    """
    import pandas as pd

    rows = []
    for measure in SWEPT:
        wide = trained.pivot_table(index="seed", columns="coefficient", values=measure, dropna=False)
        for coefficient in (c for c in wide.columns if c != 0):
            row = _row("", "", 0, wide[coefficient] - wide[0.0], "seed")
            kept = {name: row[name] for name in ("estimate", "low", "high", "d", "n", "p")}
            rows.append({"coefficient": coefficient, "measure": measure, **kept})
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].to_numpy())
    return table


def training_values(trained: pd.DataFrame) -> pd.DataFrame:
    r"""What training for separation does to reconstruction, parted into what its sign decides and what any wish costs.

    .. math:: \text{odd} = \frac{v(c) - v(-c)}{2}, \qquad \text{even} = \frac{v(c) + v(-c)}{2} - v(0)

    Near an optimum of the reconstruction any added wish costs :math:`O(c^2)`, which is all in the even part.

    Parameters
    ----------
    trained
        Reconstruction by autoencoders of each seed and coefficient, under every choice: the table
        ``05_training_choices``.

    Returns
    -------
    Columns seed, representation (odd, even), :data:`CHOSEN`, coefficient (above zero), value, reason (why there is
    none).
    """
    import pandas as pd

    trained = trained.assign(scaling=trained["scaling"].fillna(""))  # an empty word comes back from a file as missing
    wide = trained.groupby([*CHOSEN, "seed", "coefficient"], sort=False)["value"].mean().unstack()
    found = []
    for coefficient in sorted(c for c in wide if c > 0):
        towards, away, without = (wide.get(c, pd.Series(np.nan, wide.index)) for c in (coefficient, -coefficient, 0.0))
        parts = {"odd": (towards - away) / 2, "even": (towards + away) / 2 - without}
        for representation, values in parts.items():
            needed = (-coefficient, 0.0) if representation == "even" else (-coefficient,)
            untrained = [f"{c:g}" for c in needed if c not in wide]
            reason = f"not trained at coefficient {untrained[0]}" if untrained else "nothing to measure it on"
            facts = {"representation": representation, "coefficient": coefficient}
            facts["reason"] = np.where(np.isfinite(values), "", reason)
            found.append(values.rename("value").reset_index().assign(**facts))
    return pd.concat(found, ignore_index=True)


def causal_verdict(table: pd.DataFrame) -> dict[str, str]:
    """What the effects say together, after training, during training, and by itself.

    Each is *supported* or *contradicted* when all decided rows agree and at least half are decided, *depends on the
    analysis* when they disagree, else *too few units*. The controls count, not the comparison with nothing.
    """
    parts = {
        "after training": table[(table["unit"] == "concept") & table["control"].isin(CONTROLS)],
        "during training": table[(table["unit"] == "seed") & (table["control"] == "coefficient 0")],
        "by itself": table[~table["unit"].isin(["concept", "seed"])],
    }
    return {name: _together(rows["verdict"].tolist()) for name, rows in parts.items()}


def _together(verdicts: list[str]) -> str:
    decided = [verdict for verdict in verdicts if verdict in (SUPPORTED, CONTRADICTED)]
    if len(set(decided)) > 1:
        return DEPENDS
    return decided[0] if decided and 2 * len(decided) >= len(verdicts) else TOO_FEW
