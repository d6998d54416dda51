"""Search for the edit that raises or lowers separability the most, by gradient, within a given size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import InterventionError, unknown_name
from saema_utils.intervention.edits import LARGEST_ALPHA
from saema_utils.intervention.separation import (
    check_labelled,
    cluster_means,
    distance_matrix,
    gromov_wasserstein,
    mean_pole_distance,
    separation_scale_free,
)
from saema_utils.runtime import float64, generator

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import Tensor

    Decode = Callable[[Tensor], Tensor]

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


@any_numbers
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
            "restart": restart,
            "step": step,
            "objective": {"aedp": aedp, "gromov_wasserstein": gw}.get(objective, 0.0),
            "aedp": aedp,
            "gromov_wasserstein": gw,
            "separation_scale_free": float(separation_scale_free(edited, y)),
            "mse": float((float64(decode(whole)) - float64(target)).square().mean()),
            "edit_norm": float(shift.square().sum(1).mean().sqrt() / unit),
        }

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
