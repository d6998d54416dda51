"""What chapter 6 finds: whether the paper's signs come back, for which codes, and which step makes them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from saema_utils.chapters.found import Found, in_short
from saema_utils.chapters.replay.figures import RECIPE_NAMES, TITLES
from saema_utils.chapters.replay.tables import ReplayTokens
from saema_utils.evidence.replay import PAPER_SIGNS, SIGNS
from saema_utils.figures import NAMES
from saema_utils.replay.nudges import N_STEPS, SCALES, correlations

AS_PAPER = SIGNS[0]
MADE_OF_NOTHING = 0.1  # a correlation that the ruler of the chapter calls one


def signs_of(signs: pd.DataFrame, coder: str, prompts: str = "authors", recipe: str = "as published") -> dict[str, str]:
    """The sign of each measure for one code; measures without a row are left out."""
    rows = signs.set_index(["prompts", "coder", "recipe", "measure"])["sign"]
    keys = ((prompts, coder, recipe, measure) for measure in PAPER_SIGNS)
    return {key[-1]: rows.loc[key] for key in keys if key in rows.index}


def come_back(signs: pd.DataFrame, coder: str, measures: Collection[str], prompts: str = "authors") -> Found:
    """Whether the paper's sign comes back on these measures and none of the others has the opposite one.

    None where one lacks an interval.
    """
    found = signs_of(signs, coder, prompts)
    known = bool(found) and all(value in SIGNS for value in found.values())
    back = {measure for measure, value in found.items() if value == AS_PAPER}
    turned = SIGNS[1] in found.values()
    return Found(set(measures) <= back and not turned if known else None, in_words(found))


def shown_too(signs: pd.DataFrame, coder: str, other: str, prompts: str = "authors") -> Found:
    """Whether each of the paper's signs that a code shows is shown by another code as well.

    None where the code shows none, or one of the two lacks an interval.
    """
    mine, others = (signs_of(signs, name, prompts) for name in (coder, other))
    shown = [measure for measure, value in mine.items() if value == AS_PAPER]
    known = all(value in SIGNS for found in (mine, others) for value in found.values())
    holds = all(others.get(measure) == AS_PAPER for measure in shown) if known and shown else None
    lacking = f"{NAMES[coder]}: no sign of the paper's · " if known and not shown else ""
    return Found(holds, lacking + in_words(others))


def in_words(found: dict[str, str]) -> str:
    """Each measure with its sign."""
    return in_short({TITLES[measure]: value for measure, value in found.items()})


def what_a_step_moves(signs: pd.DataFrame, measure: str, coder: str = "sae") -> pd.Series:
    """Log ratio of a measure without each step, minus that of the protocol as published; largest change first."""
    mine = signs[(signs["coder"] == coder) & (signs["measure"] == measure)]
    mine = mine[mine["prompts"] == "authors"].set_index("recipe")["estimate"]
    if "as published" not in mine.index:
        return pd.Series(dtype=float)
    moved = mine.drop("as published") - mine["as published"]
    return moved.sort_values(key=lambda change: -change.abs())


def makes_the_sign(signs: pd.DataFrame, measure: str, step: str, coder: str = "sae") -> Found:
    """Whether a step moves a measure most and the paper's sign goes with it.

    None with fewer than two steps, and where the protocol as published does not show the sign: no step makes it then.
    """
    moved = what_a_step_moves(signs, measure, coder)
    shows = " · ".join(f"{RECIPE_NAMES[name]} {change:+.2f}" for name, change in moved.head(3).items())
    published = signs_of(signs, coder).get(measure, "")
    if len(moved.dropna()) < 2 or published != AS_PAPER:
        return Found(None, f"as published {published} · {shows}" if published else shows)
    left = signs_of(signs, coder, recipe=step).get(measure, "")
    return Found(moved.index[0] == step and left != AS_PAPER if left in SIGNS else None, shows)


def mean_correlations(correlations: pd.DataFrame, coder: str, prompts: str = "authors") -> pd.Series:
    """Mean over concepts (their seeds averaged) of r over all steps, kept steps, and kept steps of shuffled errors."""
    rows = correlations[(correlations["coder"] == coder) & (correlations["prompts"] == prompts)]
    return rows.groupby("concept")[["r_all", "r_kept", "r_null"]].mean().mean()


def choice_relates(correlations: pd.DataFrame, prompts: str = "authors") -> Found:
    """Whether the choice of records makes correlations more negative, and gives one to errors that were shuffled: for
    the SAE, and for random directions as well. None where a code was not walked.

    How strong the correlation over all steps is hangs on the clusters, hence on UMAP's draws, and is not asked.
    """
    sae, random = (mean_correlations(correlations, name, prompts) for name in ("sae", "random_dictionary"))
    shows = " · ".join(
        f"{name}: all steps {r['r_all']:+.2f}, kept {r['r_kept']:+.2f}, shuffled {r['r_null']:+.2f}"
        for name, r in (("SAE", sae), ("random directions", random))
    )
    if not np.isfinite([*sae, *random]).all():
        return Found(None, shows)
    made = (r["r_kept"] < r["r_all"] and r["r_null"] < -MADE_OF_NOTHING for r in (sae, random))
    return Found(all(map(bool, made)), shows)


def first_walk(steps: pd.DataFrame, coder: str = "sae") -> pd.DataFrame:
    """The walks of one code's poles in the first concept, prompts and seed that the table has; none if it has none."""
    mine = steps[steps["coder"] == coder]
    names = ["concept", "prompts", "seed"]
    return mine[(mine[names] == mine[names].iloc[0]).all(axis=1)] if len(mine) else mine


def how_far_poles_move(steps: pd.DataFrame, prompts: str = "authors") -> pd.Series:
    """By code, the largest change of the poles' mean distance along any walk, as a share of where it starts."""
    rows = steps[steps["prompts"] == prompts]
    walks = rows.groupby(["coder", "concept", "seed", "scale"])["separation"]
    moved = walks.transform(lambda walk: (walk - walk.iloc[0]).abs() / walk.iloc[0])
    return moved.groupby(rows["coder"]).max()


def what_is_measured(tokens: ReplayTokens) -> Found:
    """Whether fewer than half of the tokens are ordinary ones that repeat no other."""
    ordinary, first = tokens.kinds.ordinary, tokens.kinds.first
    own = float((ordinary & first).mean())
    return Found(
        own < 0.5,
        f"of {len(first)} tokens {float((~ordinary).mean()):.0%} are special, padding or sinks · "
        f"{float((ordinary & ~first).mean()):.0%} repeat another · {own:.0%} are left",
    )


def unrelated_walks(seed: int = 0, worlds: int = 100) -> pd.DataFrame:
    """Mean correlation of separation and error that were drawn apart: over all steps, and over kept ones."""
    rows = []
    for world in range(worlds):
        draws = np.random.default_rng([seed, world])
        steps = pd.DataFrame([(scale, step) for scale in SCALES for step in range(N_STEPS)], columns=["scale", "step"])
        steps["separation"] = draws.uniform(10, 12, len(steps))
        steps["mse"] = draws.uniform(1, 1.2, len(steps))
        rows.append(correlations(steps, n_shuffles=1))
    means = pd.DataFrame(rows).mean()
    return pd.DataFrame({"records": ["all steps", "kept"], "correlation": [means["r_all"], means["r_kept"]]})
