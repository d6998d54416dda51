"""How often does the rule of each claim say what is so, where it is known what is so?

For each claim of ``claims.yaml`` many studies are drawn from a world (:mod:`~saema_utils.rulers.worlds`) whose
true effect is 0, 1, 2 or 3 margins, and judged as chapter 7 judges the real one, by few of the claim's analyses. A rule
is any good if it hardly ever supports what is not there, and mostly what is twice as large as it asks for.

Units differ: each has a true effect of its own, normal about that of the world. A claim that is judged beside a code
which learned nothing meets one more world, in which that code shows as large an effect.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.errors import SaemaError, unknown_name
from saema_utils.evidence.claims import Claim, load_claims
from saema_utils.evidence.multiverse import ITSELF, LEAD, contrasts_of, effects_of, joint_test, margins_of
from saema_utils.evidence.verdicts import VERDICTS, Evidence, judge
from saema_utils.rulers.worlds import CODE, NOTHING, Asked, World, stream
from saema_utils.rulers.worlds_of_edits import EDITS
from saema_utils.rulers.worlds_of_geometry import GEOMETRY
from saema_utils.rulers.worlds_of_ranks import RANKS
from saema_utils.statistics import mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

TRUTHS = (0, 1, 2, 3)  # true effects, in margins
SHOWN_BY_NOTHING = 2  # the true effect that a code which learned nothing shows as well
NOTHING_THERE, AS_LARGE = "nothing there", "as large"
SPREAD = 0.5  # standard deviation of true effects between units, in margins
UNITS, SEEDS = 9, 6  # concepts of a study, and autoencoders of the training experiment
WORLDS: dict[str, World] = {**RANKS, **GEOMETRY, **EDITS}
RULES = tuple(WORLDS)
COLUMNS = ("rule", "truth", "control", *VERDICTS, "n", "units")


def laboratory(n_draws: int = 100, seed: int = 0, rules: Sequence[str] = RULES) -> pd.DataFrame:
    """Verdicts of every rule on studies whose answer is known (:func:`laboratory_of`)."""
    import pandas as pd

    return pd.concat([laboratory_of(rule, n_draws, seed) for rule in rules], ignore_index=True)


def laboratory_of(claim_id: str, n_draws: int = 100, seed: int = 0) -> pd.DataFrame:
    """Verdicts of one rule.

    Returns
    -------
    One row a world: columns rule, truth (true effect, in margins, on the paper's side), control (what a code that
    learned nothing shows: ``nothing there``, or ``as large`` an effect), the share of each verdict, n (studies drawn),
    units (of each study).
    """
    import pandas as pd

    if claim_id not in RULES:
        raise SaemaError(unknown_name("rule", claim_id, RULES))
    claim = few_analyses(_claims()[claim_id])
    n_units = SEEDS if claim.unit == "seed" else UNITS
    values = values_of_world(claim, n_draws * n_units, seed)
    rows = []
    for truth, control in cases(claim):
        found = verdicts_on(values, between(claim, truth, control), n_units)
        shares = {verdict: found.count(verdict) / n_draws for verdict in VERDICTS}
        facts = {"rule": claim_id, "truth": truth, "control": control}
        rows.append(facts | shares | {"n": n_draws, "units": n_units})
    return pd.DataFrame(rows, columns=list(COLUMNS))


@functools.cache
def _claims() -> dict[str, Claim]:
    return {claim.id: claim for claim in load_claims()}


def few_analyses(claim: Claim) -> Claim:
    """The claim with no other ways than those of the analyses that its world holds."""
    held = [{**claim.primary, **analysis} for analysis in WORLDS[claim.id].analyses]
    ways = {name: tuple(dict.fromkeys(analysis[name] for analysis in held)) for name in ("measure", *claim.choices)}
    measures = {name: claim.measures[name] for name in ways.pop("measure")}
    return replace(claim, measures=measures, choices=ways)


def cases(claim: Claim) -> list[tuple[int, str]]:
    """True effects, and what a code that learned nothing shows."""
    alone = [(truth, NOTHING_THERE) for truth in TRUTHS]
    return [*alone, (SHOWN_BY_NOTHING, AS_LARGE)] if claim.nothing else alone


def values_of_world(claim: Claim, n: int, seed: int) -> pd.DataFrame:
    """Values of ``n`` units of every case at once: a representation for each true effect (:func:`between`)."""
    rng = stream(claim, seed, "effects")
    sides = [(claim.code, CODE, TRUTHS)]
    if claim.nothing:
        sides.append((claim.nothing, NOTHING, (0, SHOWN_BY_NOTHING)))
    asked = []
    for name, side, truths in sides:
        apart = rng.normal(size=n)
        for truth in truths:
            # What cannot be negative cannot differ between units where it is nothing.
            spread = min(SPREAD, truth / 3) if WORLDS[claim.id].one_sided else SPREAD
            asked.append(Asked(_called(name, truth), side, claim.margin * (truth + spread * apart)))
    return WORLDS[claim.id].values(claim, asked, seed)


def _called(name: str, truth: int) -> str:
    return f"{name} of {truth} margins"


def between(claim: Claim, truth: int, control: str) -> Claim:
    """The claim about the representations of one case."""
    shown = SHOWN_BY_NOTHING if control == AS_LARGE else 0
    nothing = _called(claim.nothing, shown) if claim.nothing else ""
    return replace(claim, code=_called(claim.code, truth), nothing=nothing)


def verdicts_on(values: pd.DataFrame, claim: Claim, n_units: int) -> list[str]:
    """The verdict on every ``n_units`` units in turn.

    Those of :func:`~saema_utils.evidence.multiverse.verdict_of`, whose tables would take most of the time.
    """
    values = values[values["representation"].isin([claim.code, claim.baseline, claim.nothing])]
    sized, named = {}, {}
    for contrast in contrasts_of(claim):
        effects = effects_of(values, claim, contrast)
        sized[contrast] = effects.to_numpy() / margins_of(effects, claim)[:, None]
        named[contrast] = effects.index.get_loc(tuple(claim.primary[name] for name in effects.index.names))
    found = []
    for start in range(0, sized[ITSELF].shape[1], n_units):
        evidence = {
            contrast: _evidence(whole[:, start : start + n_units], named[contrast]) for contrast, whole in sized.items()
        }
        found.append(judge(evidence[ITSELF], evidence.get(LEAD), claim.minimum_n))
    return found


def _evidence(effects: Float[np.ndarray, "S C"], named: int) -> Evidence:
    interval = mean_interval(effects[named])
    return Evidence(interval.low, interval.high, interval.n, *joint_test(effects))
