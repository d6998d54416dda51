r"""The best dose of an arm once every latent may also be scaled: separation, or mere shrinkage?

An SAE whose latents are a little too small gains from *any* edit that makes them larger, moving poles
apart included. Both doses together are still a quadratic, so the share of each is a 2 x 2 system:

.. math:: \min_{\alpha, \beta} \overline{(e + \alpha s + \beta t)^2}, \qquad
          s = \text{step of the arm}, \quad t = \text{step of scaling}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .edits import edit_direction
from .errors import InterventionError
from .runtime import float64
from .separation import check_labelled

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from .intervention import Decode


@dataclass(frozen=True)
class JointDose:
    """Best dose of the arm with scaling allowed for (and its bootstrap interval), and the best scaling beside it.

    ``gain`` is the share of the unedited error that the arm removes beyond the best scaling alone,
    ``gain_scaling`` what scaling alone removes.
    """

    alpha: float
    low: float
    high: float
    scaling: float
    gain: float
    gain_scaling: float
    n_prompts: int


@torch.no_grad()
def dose_beyond_scaling(
    latents: Float[Tensor, "N F"],
    labels: Int[Tensor, " N"],
    decode: Decode,
    target: Float[Tensor, "N D"],
    *,
    arm: str = "poles",
    prompts: Int[Tensor, " N"] | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> JointDose:
    """Fit the arm's dose and a common scaling together; intervals resample prompts as in :func:`.optimum`.

    Raises
    ------
    InterventionError
        For ``global_scaling`` itself, and what :func:`~saema_utils.separation.check_labelled` refuses.
    """
    if arm == "global_scaling":
        raise InterventionError("arm is 'global_scaling'; allowed: an arm to compare with it, such as 'poles'.")
    z, y, _ = check_labelled(latents, labels)
    base = float64(decode(z))
    error = base - float64(torch.as_tensor(target))
    steps = [float64(decode(z + edit_direction(z, y, name, seed=seed))) - base for name in (arm, "global_scaling")]
    pairs = ((error, error), (error, steps[0]), (error, steps[1]), (steps[0],) * 2, tuple(steps), (steps[1],) * 2)
    statistics = torch.stack([(a * b).sum(1) for a, b in pairs], dim=1).cpu().numpy()
    groups = np.arange(len(z)) if prompts is None else torch.as_tensor(prompts).cpu().numpy()
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), 6))
    np.add.at(sums, index, statistics)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), n_resamples)
    ee, es, et, ss, st, tt = sums.sum(0)
    alpha, beta = _solve(es, et, ss, st, tt)
    alone = float(et**2 / tt / ee) if tt > 0 and ee > 0 else 0.0
    both = float(-(alpha * es + beta * et) / ee) if ee > 0 else 0.0
    low = high = float("nan")
    if len(names) > 1:
        many = _solve(*(draws @ sums)[:, 1:].T)[0]
        low, high = (float(v) for v in np.nanquantile(many, [(1 - level) / 2, (1 + level) / 2]))
    return JointDose(float(alpha), low, high, float(beta), both - alone, alone, len(names))


def _solve(es, et, ss, st, tt):
    determinant = ss * tt - st * st
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(es * tt - et * st) / determinant, -(et * ss - es * st) / determinant
