"""Latents, courses of searches and trained autoencoders, whose error is changed by a known effect."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saema_utils.evidence.claims import Claim
from saema_utils.evidence.effects import CHOSEN, training_values
from saema_utils.evidence.searches import RANDOM, search_values
from saema_utils.intervention.cross_fit import cross_fitted_direction
from saema_utils.intervention.doses import error_statistics
from saema_utils.intervention.edits import edit_direction
from saema_utils.rulers.worlds import BASE, CODE, NOTHING, Asked, World, stream
from saema_utils.rulers.worlds_of_geometry import SENTENCES, WORDS, D, draw_words

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor

    Directions = dict[tuple[str, str], Tensor]  # by arm and by how poles are found

# ---- doses ------------------------------------------------------------------------------------------------------

WIDE = 576  # dimensions of what is decoded: the default model's, so that noise lies along a step as little as there
MEAN = 1.0  # of latents, so that a common scaling is a step of its own
ARMS = ("poles", "permuted_labels")  # of the code, and of what has learned nothing


@functools.lru_cache(maxsize=1024)
def dose_unit(seed: int, unit: int) -> tuple[Float[Tensor, "P D"], Directions]:
    """Latents, and the steps of all arms; common to the claims about doses, for they take most of the time."""
    drawn = draw_words(np.random.default_rng([seed, unit]))
    z = torch.from_numpy(MEAN + drawn.about(drawn.poles, BASE))
    words, sentences = torch.from_numpy(WORDS), torch.from_numpy(SENTENCES)
    crossed = {(arm, "cross-fitted"): cross_fitted_direction(z, words, sentences, arm)[0] for arm in ARMS}
    return z, crossed | {(arm, "in-sample"): edit_direction(z, words, arm) for arm in ARMS}


def dose_target(
    claim: Claim,
    z: Float[Tensor, "P D"],
    directions: Directions,
    arm: str,
    effect: float,
    write: Float[Tensor, "D W"],
    noise: Float[Tensor, "P W"],
) -> Float[Tensor, "P W"]:
    """A target towards which one arm's named analysis has an effect, and the other arm's has none.

    Its squared distance from the reconstruction is, in the mean over noise, that of the poles' step.
    """
    joint = claim.primary["scaling"] == "joint"
    step, other = (
        _beyond(directions[name, "cross-fitted"], z, joint) for name in (arm, *(name for name in ARMS if name != arm))
    )
    whole, square = float(directions["poles", "cross-fitted"].square().sum()), float(step.square().sum())
    along = {
        "slope": -effect * whole / 2,
        "best_dose": effect * square,
        "gain": (max(effect, 0.0) * whole * square) ** 0.5,
    }
    alone = step - other * ((step * other).sum() / other.square().sum())
    away = alone * (along[claim.primary["measure"]] / (alone * step).sum())
    return (z + away) @ write + noise * ((whole - away.square().sum()) / noise.numel()).sqrt()


def _beyond(direction: Tensor, z: Tensor, joint: bool) -> Tensor:
    """The part of a step that no common scaling makes, where that is fitted beside."""
    return direction - z * ((direction * z).sum() / z.square().sum()) if joint else direction


def dose_values(
    choices: Mapping[str, Any],
    z: Float[Tensor, "P D"],
    directions: Directions,
    arm: str,
    write: Float[Tensor, "D W"],
    targets: Float[Tensor, "T P W"],
) -> list[float]:
    """What :func:`~saema_utils.intervention.cross_fit.doses_under_choices` finds under one choice, for each target."""
    step = _beyond(directions[arm, choices["poles"]], z, choices["scaling"] == "joint")
    many = len(targets)
    tokens = error_statistics(z.repeat(many, 1), step.repeat(many, 1), lambda y: y @ write, targets.flatten(0, 1))
    a, b, c = tokens.reshape(many, len(z), 3).sum(1).numpy().T
    measures = {"slope": 2 * b / a, "best_dose": -b / c, "gain": np.where(b < 0, b * b / (a * c), 0.0)}
    return measures[choices["measure"]].tolist()


@dataclass(frozen=True, eq=False)
class Doses(World):
    """Latents whose reconstruction misses a target by a known part of each arm's step, and by noise."""

    def values(self, claim: Claim, asked: Sequence[Asked], seed: int) -> pd.DataFrame:
        n, rng = len(asked[0].effects), stream(claim, seed)
        write = torch.from_numpy(np.linalg.qr(rng.normal(size=(WIDE, D)))[0].T)
        numbers = {one.name: np.empty((len(self.analyses), n)) for one in asked}
        for unit in range(n):
            z, directions = dose_unit(seed, unit)
            noise = torch.from_numpy(rng.normal(size=(len(z), WIDE)))
            for side, arm in enumerate(ARMS):
                ones = [one for one in asked if one.side == side]
                effects = [float(one.effects[unit]) for one in ones]
                targets = torch.stack([dose_target(claim, z, directions, arm, e, write, noise) for e in effects])
                for place, analysis in enumerate(self.analyses):
                    values = dose_values({**claim.primary, **analysis}, z, directions, arm, write, targets)
                    for one, value in zip(ones, values, strict=True):
                        numbers[one.name][place, unit] = value
        return self.table(claim, numbers)


# ---- searches and training ------------------------------------------------------------------------------------

DOWN_THE_COURSE = ((0.0, 0.0), (0.25, 0.4375), (0.5, 0.75), (1.0, 1.0))  # of the edit, and of its effect: levels off
ERROR = 0.3  # standard deviation of a measured error or explained variance, in margins
COST = 5.0  # of any wish, for or against separation, at the largest coefficient, in margins


@dataclass(frozen=True, eq=False)
class Searches(World):
    """Courses of searches, and of random edits, whose error changes by a known share."""

    def values(self, claim: Claim, asked: Sequence[Asked], seed: int) -> pd.DataFrame:
        import pandas as pd

        rng, found = stream(claim, seed), []
        courses = {one.name: _courses(claim, one, rng) for one in asked}
        first = {side: next(one.name for one in asked if one.side == side) for side in (CODE, NOTHING)}
        for one in asked:  # the measure reads searches beside random edits, and one of the two is kept
            pair = pd.concat([courses[name] for name in (first | {one.side: one.name}).values()], ignore_index=True)
            values = search_values(pair)
            kept = claim.code if one.side == CODE else claim.nothing
            found.append(values[values["representation"] == kept].assign(representation=one.name))
        return pd.concat(found, ignore_index=True)


def _courses(claim: Claim, one: Asked, rng: np.random.Generator) -> pd.DataFrame:
    import pandas as pd

    edits, parts = np.array(DOWN_THE_COURSE).T
    logs = one.effects[:, None] * parts
    logs[:, 1:] += ERROR * abs(claim.margin) * rng.normal(size=(len(logs), len(parts) - 1))
    n, steps = logs.shape
    search = claim.primary["objective"] if one.side == CODE else RANDOM
    kinds = {"search": search, "direction": "raise", "restart": 0}
    numbers = {"concept": np.repeat(np.arange(n), steps), "step": np.tile(np.arange(steps), n)}
    return pd.DataFrame(numbers | kinds | {"edit_norm": np.tile(edits, n), "mse": np.exp(logs).ravel()})


@dataclass(frozen=True, eq=False)
class Training(World):
    r"""Autoencoders for which a wish c for separation changes what is reconstructed by :math:`b c + d c^2`."""

    def values(self, claim: Claim, asked: Sequence[Asked], seed: int) -> pd.DataFrame:
        import pandas as pd

        rng, wishes, found = stream(claim, seed), np.array(claim.choices["coefficient"]), []
        coefficients, largest = np.concatenate([-wishes, [0.0], wishes]), wishes.max()
        chosen = [{name: {**claim.primary, **analysis}[name] for name in CHOSEN} for analysis in self.analyses]
        for name, _, effects in asked:
            n, parts = len(effects), []
            seeds, every = np.repeat(np.arange(n), len(coefficients)), np.tile(coefficients, n)
            for ways in {tuple(ways.values()): ways for ways in chosen}.values():
                margin = claim.measures[ways["measure"]]
                slopes = effects / claim.margin * margin / largest
                values = slopes[:, None] * coefficients - COST * margin * (coefficients / largest) ** 2
                values = (values + ERROR * margin * rng.normal(size=values.shape)).ravel()
                parts.append(pd.DataFrame({"seed": seeds, "coefficient": every, "value": values}).assign(**ways))
            values = training_values(pd.concat(parts, ignore_index=True))
            found.append(values[values["representation"] == claim.code].assign(representation=name))
        return pd.concat(found, ignore_index=True)


EDITS: dict[str, World] = {
    "correlation": Doses(({}, {"scaling": "joint"}, {"poles": "in-sample"})),
    "cause-after-training": Doses(({}, {"scaling": "alone"}, {"poles": "in-sample"})),
    "worth-after-training": Doses(({}, {"scaling": "alone"}, {"poles": "in-sample"}), one_sided=True),
    "gradient": Searches(({}, {"at": "half of the edit"}, {"at": "a quarter of the edit"}, {"at": "least error"})),
    "cause-during-training": Training(
        (
            {},
            {"on": "unseen words"},
            {"pooled": "by group"},
            {"measure": "cosine", "weight": "relative", "scaling": ""},
            {"coefficient": 0.03},
        )
    ),
}
