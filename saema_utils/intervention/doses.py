r"""Move the poles of a concept apart or together, decode, and measure what that does.

A labelled latent *z* of cluster *k* is moved along a direction *d*: ``z' = z + alpha d``. In the
paper's arm ``d = pole_k - centre``, so that the distances between poles grow by the factor
``1 + alpha``. The decoder is linear, hence the error of the edited reconstruction is exactly

.. math:: \mathrm{MSE}(\alpha) = A + 2 B \alpha + C \alpha^2, \qquad \alpha^* = -B / C

and three numbers per token say all that a sweep over alpha can say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import InterventionError
from saema_utils.intervention.edits import ARMS, KEPT_SHARE, apply_edit, directions_of, edit_direction
from saema_utils.intervention.separation import (
    blocks_of,
    check_labelled,
    cluster_means,
    mean_pole_distance,
    separation_scale_free,
)
from saema_utils.runtime import float64

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import Tensor

    Decode = Callable[[Tensor], Tensor]

LEVEL = 0.95  # of all intervals here


@torch.no_grad()
@any_numbers
def dose_response(
    latents: Float[Tensor, "N F"],
    labels: Int[Tensor, " N"],
    decode: Decode,
    target: Float[Tensor, "N D"],
    *,
    alphas: Sequence[float],
    arms: Sequence[str] = ARMS,
    preserve_sparsity: bool = False,
    seed: int = 0,
    cross_entropy: Callable[[Tensor], float] | None = None,
) -> pd.DataFrame:
    """Edit, decode and measure at every dose of every arm.

    Parameters
    ----------
    decode
        From latents ``[N, F]`` to the model's own scale ``[N, D]``. An SAE that keeps normalisation
        state must restore it here (:class:`saema_utils.saes.coders.SaeCoder` does).
    target
        The activations that the latents encode.
    cross_entropy
        The language model's loss given a reconstruction; the column ``ce_loss`` is NaN without it.

    Returns
    -------
    Columns alpha, arm, aedp (units of the latents), separation_scale_free (0 to 1), mse (per
    dimension of the activations), fvu (share of the tokens' variance left), l0, ce_loss (nats).
    """
    import pandas as pd

    z, y, k = check_labelled(latents, labels)
    x = float64(torch.as_tensor(target))
    spread = (x - x.mean(0)).square().sum()
    # Every arm stays within the latents that some token uses, so distances need only those columns. Of wide latents
    # memory holds the given ones and the edited ones, and a block of anything else.
    used, blocks, whole = (z != 0).any(0), list(blocks_of(z)), torch.zeros_like(z)
    rows = []
    for arm in arms:
        direction = directions_of(z, y, k, arm, seed, preserve_sparsity)
        kept = [_used_part(z, direction, blocks[0], used)] if len(blocks) == 1 else []
        for alpha in alphas:
            for block, own, towards in kept or (_used_part(z, direction, block, used) for block in blocks):
                whole[block, used] = apply_edit(own, towards, alpha, preserve_sparsity)
            decoded, edited = decode(whole), whole[:, used]
            squared = (float64(decoded) - x).square()
            active = torch.cat([(edited[block] != 0).sum(1) for block in blocks])
            rows.append(
                {
                    "alpha": float(alpha),
                    "arm": arm,
                    "aedp": float(mean_pole_distance(cluster_means(edited, y, k))),
                    "separation_scale_free": float(separation_scale_free(edited, y)),
                    "mse": float(squared.mean()),
                    "fvu": float(squared.sum() / spread),
                    "l0": float(active.float().mean()),
                    "ce_loss": float("nan") if cross_entropy is None else float(cross_entropy(decoded)),
                }
            )
            del edited  # before the next is made
    return pd.DataFrame(rows)


def _used_part(
    z: Tensor, direction: Callable[[slice], Tensor], block: slice, used: Tensor
) -> tuple[slice, Tensor, Tensor]:
    return block, z[block][:, used], direction(block)[:, used]


@dataclass(frozen=True)
class Optimum:
    """The dose of least error with its bootstrap interval, from the closed form.

    ``slope`` is dMSE/dalpha at 0 over MSE(0): negative when moving along the arm helps at first.
    ``gain`` is the share of MSE(0) that the best dose removes. ``exact`` is False when the support is
    kept and some latent is stopped at zero on the way to the best dose, where the parabola ends.
    """

    alpha: float
    low: float
    high: float
    curvature: float
    curvature_low: float
    curvature_high: float
    slope: float
    slope_low: float
    slope_high: float
    gain: float
    mse_at_zero: float
    mse_at_optimum: float
    exact: bool
    n_prompts: int


@torch.no_grad()
def error_statistics(
    latents: Float[Tensor, "N F"], direction: Float[Tensor, "N F"], decode: Decode, target: Float[Tensor, "N D"]
) -> Float[Tensor, "N 3"]:
    """Per token the coefficients (A, B, C) of its squared error ``A + 2 B alpha + C alpha^2`` per dimension."""
    base = float64(decode(latents))
    step = float64(decode(latents + direction)) - base
    error = base - float64(torch.as_tensor(target))
    return torch.stack([(error * error).mean(1), (error * step).mean(1), (step * step).mean(1)], dim=1)


@any_numbers
def optimum(
    latents: Float[Tensor, "N F"],
    labels: Int[Tensor, " N"],
    decode: Decode,
    target: Float[Tensor, "N D"],
    *,
    arm: str = "poles",
    prompts: Int[Tensor, " N"] | None = None,
    preserve_sparsity: bool = False,
    seed: int = 0,
    n_resamples: int = 2000,
) -> Optimum:
    """Closed-form best dose, curvature and slope of one arm with bootstrap intervals over prompts.

    Prompts are drawn with replacement, their tokens together (tokens of one prompt are not
    independent); the poles are held fixed. ``prompts`` gives each token's prompt (default: its own).
    """
    z, y, _ = check_labelled(latents, labels)
    direction = edit_direction(z, y, arm, seed=seed, preserve_sparsity=preserve_sparsity)
    statistics = error_statistics(z, direction, decode, target).cpu().numpy()
    sums, drawn = _sums_by_prompt(np.column_stack([statistics, np.ones(len(z))]), prompts, n_resamples, seed)
    a, b, c, n = sums.sum(0)
    da, db, dc, dn = drawn.T
    with np.errstate(divide="ignore", invalid="ignore"):
        best = float(-b / c) if c > 0 else float("nan")
        alpha_interval = _interval(np.where(dc > 0, -db / dc, np.nan) if c > 0 else None, sums)
        slope_interval = _interval(2 * db / da if a > 0 else None, sums)
        curvature_interval = _interval(2 * dc / dn, sums)
    # Rounding can put the vertex of a perfect fit a hair below zero.
    at_best = max(0.0, float((a + b * best) / n)) if c > 0 else float(a / n)
    slope, gain = (float(2 * b / a), float(1 - at_best * n / a)) if a > 0 else (float("nan"), 0.0)
    exact = True
    if preserve_sparsity and np.isfinite(best):
        exact = not bool(((z.sign() * (z + best * direction)) < KEPT_SHARE * z.abs()).any())
    return Optimum(
        best,
        *alpha_interval,
        float(2 * c / n),
        *curvature_interval,
        slope,
        *slope_interval,
        gain,
        float(a / n),
        at_best,
        exact,
        len(sums),
    )


def _sums_by_prompt(
    statistics: Float[np.ndarray, "N S"], prompts: Int[Tensor, " N"] | None, n_resamples: int, seed: int
) -> tuple[Float[np.ndarray, "P S"], Float[np.ndarray, "R S"]]:
    """Statistics of tokens summed over each prompt, and over all prompts of each draw with replacement."""
    groups = np.arange(len(statistics)) if prompts is None else torch.as_tensor(prompts).cpu().numpy()
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), statistics.shape[1]))
    np.add.at(sums, index, statistics)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), n_resamples)
    return sums, draws @ sums


def _interval(values: Float[np.ndarray, " R"] | None, sums: Float[np.ndarray, "P S"]) -> tuple[float, float]:
    """The middle of the draws; NaN where there is no value, or only one prompt to draw."""
    if values is None or len(sums) < 2:
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


RANGES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "all doses": lambda t: t,
    "alpha < 1": lambda t: t[t["alpha"] < 1],
    "moving together (alpha <= 0)": lambda t: t[t["alpha"] <= 0],
    "moving apart (alpha >= 0)": lambda t: t[t["alpha"] >= 0],
}


def separation_error_correlation(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's statistic: Pearson correlation over doses of AEDP with MSE, in several ranges of alpha.

    Parameters
    ----------
    table
        Rows of :func:`dose_response`; other columns (concept, seed, ...) name further groups.

    Returns
    -------
    One row per group and range: ``r`` with AEDP, ``r_scale_free`` with the scale-free separation
    (NaN when that does not move, as under global scaling), ``n`` doses.
    """
    import pandas as pd

    groups = [name for name in ("concept", "arm", "seed", "preserve_sparsity") if name in table.columns]
    rows = []
    for key, curve in table.groupby(groups, sort=False):
        for name, choose in RANGES.items():
            part = choose(curve)
            rows.append(
                {
                    **dict(zip(groups, key if isinstance(key, tuple) else (key,), strict=True)),
                    "range": name,
                    "n": len(part),
                    "r": _pearson(part["aedp"], part["mse"]),
                    "r_scale_free": _pearson(part["separation_scale_free"], part["mse"]),
                }
            )
    return pd.DataFrame(rows)


def _pearson(a: pd.Series, b: pd.Series) -> float:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    a, b = (values[np.isfinite(a) & np.isfinite(b)] for values in (a, b))
    if len(a) < 3 or np.ptp(a) <= 1e-5 * max(1.0, np.abs(a).max()) or np.ptp(b) <= 1e-12 * np.abs(b).max():
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


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
) -> JointDose:
    """Fit the arm's dose and a common scaling together; intervals resample prompts as in :func:`.optimum`.

    Raises
    ------
    InterventionError
        For ``global_scaling`` itself, and what :func:`~saema_utils.intervention.separation.check_labelled` refuses.
    """
    if arm == "global_scaling":
        raise InterventionError("arm is 'global_scaling'; allowed: an arm to compare with it, such as 'poles'.")
    z, y, _ = check_labelled(latents, labels)
    base = float64(decode(z))
    error = base - float64(torch.as_tensor(target))
    steps = [float64(decode(z + edit_direction(z, y, name, seed=seed))) - base for name in (arm, "global_scaling")]
    pairs = ((error, error), (error, steps[0]), (error, steps[1]), (steps[0],) * 2, tuple(steps), (steps[1],) * 2)
    statistics = torch.stack([(a * b).sum(1) for a, b in pairs], dim=1).cpu().numpy()
    sums, drawn = _sums_by_prompt(statistics, prompts, n_resamples, seed)
    ee, es, et, ss, st, tt = sums.sum(0)
    alpha, beta = _solve(es, et, ss, st, tt)
    alone = float(et**2 / tt / ee) if tt > 0 and ee > 0 else 0.0
    both = float(-(alpha * es + beta * et) / ee) if ee > 0 else 0.0
    low, high = _interval(_solve(*drawn[:, 1:].T)[0], sums)
    return JointDose(float(alpha), low, high, float(beta), both - alone, alone, len(sums))


def _solve(es, et, ss, st, tt):
    determinant = ss * tt - st * st
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(es * tt - et * st) / determinant, -(et * ss - es * st) / determinant
