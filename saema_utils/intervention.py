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

from .edits import ARMS, KEPT_SHARE, LARGEST_ALPHA, apply_edit, edit_direction
from .errors import InterventionError, unknown_name
from .runtime import float64, generator
from .separation import (
    check_labelled,
    cluster_means,
    distance_matrix,
    gromov_wasserstein,
    mean_pole_distance,
    separation_scale_free,
)

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import Tensor

    Decode = Callable[[Tensor], Tensor]


def scale_separation(
    latents: Float[Tensor, "N F"], labels: Int[Tensor, " N"], alpha: float, preserve_sparsity: bool = False
) -> Float[Tensor, "N F"]:
    r"""Multiply the distances between poles by 1 + alpha, moving each cluster as a whole.

    .. math:: z_i' = z_i + \alpha\,(p_{k(i)} - \bar p), \qquad \bar p = \tfrac1K \sum_k p_k

    Parameters
    ----------
    latents, labels
        One row and one label per token; tokens labelled -1 are left alone.
    alpha
        0 is the identity, -1 puts all poles on their centre.
    preserve_sparsity
        Move only latents that are on, and none through zero: support, sign and L0 are kept. The
        distances then grow by less than 1 + alpha.

    Raises
    ------
    InterventionError
        For fewer than two labels, NaN, or ``abs(alpha) > 100``.
    """
    z, _, _ = check_labelled(latents, labels)
    return apply_edit(z, edit_direction(z, labels), alpha, preserve_sparsity)


# ---- what the edit does --------------------------------------------------------------------------


@torch.no_grad()
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
        state must restore it here (:class:`saema_utils.saes.SaeCoder` does).
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
    # Every arm stays within the latents that some token uses, so distances need only those columns.
    used = (z != 0).any(0)
    compact = z[:, used]
    rows = []
    for arm in arms:
        direction = edit_direction(z, y, arm, seed=seed, preserve_sparsity=preserve_sparsity)[:, used]
        for alpha in alphas:
            edited = apply_edit(compact, direction, alpha, preserve_sparsity)
            whole = torch.zeros_like(z)
            whole[:, used] = edited
            decoded = decode(whole)
            squared = (float64(decoded) - x).square()
            rows.append(
                {
                    "alpha": float(alpha), "arm": arm,
                    "aedp": float(mean_pole_distance(cluster_means(edited, y, k))),
                    "separation_scale_free": float(separation_scale_free(edited, y)),
                    "mse": float(squared.mean()), "fvu": float(squared.sum() / spread),
                    "l0": float((edited != 0).sum(1).float().mean()),
                    "ce_loss": float("nan") if cross_entropy is None else float(cross_entropy(decoded)),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


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
    level: float = 0.95,
) -> Optimum:
    """Closed-form best dose, curvature and slope of one arm with bootstrap intervals over prompts.

    Prompts are drawn with replacement, their tokens together (tokens of one prompt are not
    independent); the poles are held fixed. ``prompts`` gives each token's prompt (default: its own).
    """
    z, y, _ = check_labelled(latents, labels)
    direction = edit_direction(z, y, arm, seed=seed, preserve_sparsity=preserve_sparsity)
    statistics = error_statistics(z, direction, decode, target).cpu().numpy()
    groups = np.arange(len(z)) if prompts is None else torch.as_tensor(prompts).cpu().numpy()
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), 4))
    np.add.at(sums, index, np.column_stack([statistics, np.ones(len(z))]))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), n_resamples)
    a, b, c, n = sums.sum(0)
    da, db, dc, dn = (draws @ sums).T

    def interval(values: np.ndarray) -> tuple[float, float]:
        if len(names) < 2:
            return float("nan"), float("nan")
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    with np.errstate(divide="ignore", invalid="ignore"):
        best = float(-b / c) if c > 0 else float("nan")
        alpha_interval = interval(np.where(dc > 0, -db / dc, np.nan)) if c > 0 else (float("nan"),) * 2
        slope_interval = interval(2 * db / da) if a > 0 else (float("nan"),) * 2
        curvature_interval = interval(2 * dc / dn)
    # Rounding can put the vertex of a perfect fit a hair below zero.
    at_best = max(0.0, float((a + b * best) / n)) if c > 0 else float(a / n)
    slope, gain = (float(2 * b / a), float(1 - at_best * n / a)) if a > 0 else (float("nan"), 0.0)
    exact = True
    if preserve_sparsity and np.isfinite(best):
        exact = not bool(((z.sign() * (z + best * direction)) < KEPT_SHARE * z.abs()).any())
    return Optimum(
        best, *alpha_interval, float(2 * c / n), *curvature_interval, slope, *slope_interval,
        gain, float(a / n), at_best, exact, len(names),
    )  # fmt: skip


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
                    "range": name, "n": len(part),
                    "r": _pearson(part["aedp"], part["mse"]),
                    "r_scale_free": _pearson(part["separation_scale_free"], part["mse"]),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _pearson(a: pd.Series, b: pd.Series) -> float:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    a, b = (values[np.isfinite(a) & np.isfinite(b)] for values in (a, b))
    if len(a) < 3 or np.ptp(a) <= 1e-5 * max(1.0, np.abs(a).max()) or np.ptp(b) <= 1e-12 * np.abs(b).max():
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


# ---- search by gradient --------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """Where a gradient search over shifts of the poles ended, and how each restart got there.

    ``shifts`` is ``[K, F]``: what the best restart adds to each cluster. ``history`` (about twenty rows
    a restart) has columns restart, step, objective, aedp, gromov_wasserstein, separation_scale_free, mse, edit_norm (in
    units of the mean distance of a pole from the centre).
    """

    shifts: Float[Tensor, "K F"]
    history: pd.DataFrame


def optimise_separability(
    latents: Float[Tensor, "N F"],
    labels: Int[Tensor, " N"],
    decode: Decode,
    target: Float[Tensor, "N D"],
    *,
    objective: str = "aedp",
    direction: str = "raise",
    radius: float = 0.5,
    steps: int = 60,
    restarts: int = 3,
    reference: Float[Tensor, "K K"] | None = None,
    seed: int = 0,
) -> Search:
    """Shift the poles along real gradients of a separation measure, within a bound on the edit's size.

    Projected gradient steps on one shift per cluster, restricted to latents that the cluster uses,
    inside the ball of root-mean-square shift ``radius`` (in units of the poles' own distance from
    their centre: radius 0.5 is the size of ``scale_separation`` at alpha = 0.5). Steps shrink
    linearly from radius / 5. The reconstruction is only watched, never optimised.

    Parameters
    ----------
    objective
        ``aedp``; ``gromov_wasserstein`` (between the poles' distances and ``reference``, default the
        distances before the edit, both divided by their mean); or ``random`` (straight to a random
        point on the sphere of that radius: the control of equal size and support).
    direction
        ``raise`` or ``lower``.
    reference
        Distances in the order of the sorted labels, such as those of the dense residual's poles.
    """
    import pandas as pd

    for kind, value, allowed in (
        ("objective", objective, ("aedp", "gromov_wasserstein", "random")),
        ("direction", direction, ("raise", "lower")),
    ):
        if value not in allowed:
            raise InterventionError(unknown_name(kind, value, allowed))
    if not 0 < radius <= LARGEST_ALPHA or steps < 1 or restarts < 1:
        raise InterventionError(
            f"radius {radius!r}, steps {steps!r}, restarts {restarts!r}; "
            f"allowed: above 0 to {LARGEST_ALPHA:g}, at least 1, at least 1."
        )
    z, y, k = check_labelled(latents, labels)
    known, used = y >= 0, (z != 0).any(0)
    compact = float64(z[:, used])
    y, known = y.to(compact.device), known.to(compact.device)
    poles = cluster_means(compact, y, k)
    unit = (poles - poles.mean(0)).square().sum(1).mean().sqrt()
    support = cluster_means((compact != 0).to(compact), y, k) > 0
    before = distance_matrix(poles, relative=True) if reference is None else reference.to(poles)
    before = before / (before.sum() / (k * (k - 1)))
    sign = 1.0 if direction == "raise" else -1.0

    def score(shift: Tensor) -> Tensor:
        if objective == "aedp":
            return mean_pole_distance(poles + shift)
        return gromov_wasserstein(distance_matrix(poles + shift, relative=True), before, seed=seed)

    def inside(shift: Tensor) -> Tensor:
        size = shift.square().sum(1).mean().sqrt()
        return shift * (radius * unit / size.clamp_min(1e-300)).clamp_max(1.0)

    @torch.no_grad()
    def facts(shift: Tensor, restart: int, step: int) -> dict[str, float]:
        edited = compact.clone()
        edited[known] += shift[y[known]]
        whole = torch.zeros_like(z)
        whole[:, used] = edited.to(z)
        aedp = float(mean_pole_distance(poles + shift))
        gw = float(gromov_wasserstein(distance_matrix(poles + shift, relative=True), before, seed=seed))
        return {
            "restart": restart, "step": step, "objective": {"aedp": aedp, "gromov_wasserstein": gw}.get(objective, 0.0),
            "aedp": aedp, "gromov_wasserstein": gw, "separation_scale_free": float(separation_scale_free(edited, y)),
            "mse": float((float64(decode(whole)) - float64(target)).square().mean()),
            "edit_norm": float(shift.square().sum(1).mean().sqrt() / unit),
        }  # fmt: skip

    rows, ends = [], []
    for restart in range(restarts):
        noise = torch.randn(poles.shape, generator=generator(seed, f"restart {restart}"), dtype=torch.float64)
        noise = torch.where(support, noise.to(poles), 0)
        noise = noise * (radius * unit / noise.square().sum(1).mean().sqrt())
        # Distinct starts well inside the ball; a reference equal to the poles has zero gradient at 0.
        shift = 0.05 * noise
        rows.append(facts(torch.zeros_like(shift), restart, 0))
        for step in range(1, steps + 1):
            if objective == "random":
                shift = noise * step / steps
            else:
                shift = shift.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(score(shift), shift)
                gradient = torch.where(support, gradient, 0)
                size = gradient.square().sum(1).mean().sqrt().clamp_min(1e-300)
                pace = 0.2 * radius * unit * (1 - (step - 1) / steps)
                shift = inside(shift.detach() + sign * pace * gradient / size)
            if step == steps or step == 1 or step % max(1, steps // 20) == 0:
                rows.append(facts(shift.detach(), restart, step))
        ends.append(shift.detach())
    history = pd.DataFrame(rows)
    last = history[history["step"] == steps]["objective"].to_numpy() * sign
    shifts = z.new_zeros(k, z.shape[1])
    shifts[:, used] = ends[int(last.argmax())].to(z)
    return Search(shifts, history)
