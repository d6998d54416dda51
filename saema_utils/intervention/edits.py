"""The four arms of the intervention: in which direction each latent is moved, and how an edit is applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saema_utils.errors import InterventionError, unknown_name
from saema_utils.intervention.separation import check_labelled, cluster_means
from saema_utils.runtime import generator

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

ARMS = ("poles", "random_direction", "permuted_labels", "global_scaling")
LARGEST_ALPHA = 100.0


#: A latent that an edit would push through zero keeps this share of itself, so that its support stays.
KEPT_SHARE = 1e-6


def edit_direction(
    latents: Float[Tensor, "N F"],
    labels: Int[Tensor, " N"],
    arm: str = "poles",
    *,
    seed: int = 0,
    preserve_sparsity: bool = False,
) -> Float[Tensor, "N F"]:
    """The direction in which each token moves at alpha = 1; zero for tokens labelled -1.

    ``poles``: from the centre of the poles to the token's own pole. ``random_direction``: Gaussian,
    one draw per cluster, on the support of the token's pole direction and of equal norm.
    ``permuted_labels``: towards the pole of another cluster (no cluster keeps its own), at the
    token's own norm. ``global_scaling``: the latent itself, so that all is multiplied by 1 + alpha.

    With ``preserve_sparsity`` directions keep only the latents that a token has on, and the random and
    permuted ones have each token's norm of what is left of the poles direction. A mask takes away
    different shares of different directions, so norms that were equal before it are not after it.
    """
    if arm not in ARMS:
        raise InterventionError(unknown_name("arm", arm, ARMS))
    z, y, k = check_labelled(latents, labels)
    known = y >= 0
    direction = torch.zeros_like(z)
    if arm == "global_scaling":
        direction[known] = z[known]
        return direction
    poles = cluster_means(z, y, k)
    towards = poles - poles.mean(0)
    norms = towards.norm(dim=1, keepdim=True)
    draws = generator(seed, arm)
    if arm == "random_direction":
        noise = torch.randn(towards.shape, generator=draws, dtype=torch.float64).to(towards.dtype).to(towards.device)
        towards = _of_norm(torch.where(towards != 0, noise, 0), norms)
    elif arm == "permuted_labels":
        # A random cyclic order: every cluster gets another one's pole, all such orders alike.
        order = torch.randperm(k, generator=draws).to(z.device)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        towards = _of_norm(towards[other], norms)
    direction[known] = towards[y[known]]
    if not preserve_sparsity:
        return direction
    direction = torch.where(z != 0, direction, 0)
    if arm != "poles":
        kept = torch.where(z != 0, edit_direction(z, y), 0)
        direction = _of_norm(direction, kept.norm(dim=1, keepdim=True))
    return direction


def _of_norm(vectors: Tensor, norms: Tensor) -> Tensor:
    return vectors * (norms / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny))


def apply_edit(
    latents: Float[Tensor, "N F"], direction: Float[Tensor, "N F"], alpha: float, preserve_sparsity: bool = False
) -> Float[Tensor, "N F"]:
    """``latents + alpha * direction``; with ``preserve_sparsity`` only where a latent is on, never through zero."""
    if not abs(alpha) <= LARGEST_ALPHA:
        raise InterventionError(
            f"alpha is {alpha!r}; allowed: {-LARGEST_ALPHA:g} to {LARGEST_ALPHA:g} (0 leaves the latents alone)."
        )
    if not preserve_sparsity:
        return latents + alpha * direction
    sign = latents.sign()
    return sign * torch.maximum(sign * (latents + alpha * direction), KEPT_SHARE * latents.abs())


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
