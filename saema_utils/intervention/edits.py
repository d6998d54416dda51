"""The four arms of the intervention: in which direction each latent is moved, and how an edit is applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from saema_utils.arrays import any_numbers
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


@any_numbers
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
    return directions_of(*check_labelled(latents, labels), arm, seed, preserve_sparsity)(slice(None))


def directions_of(
    latents: Float[Tensor, "N F"], labels: Int[Tensor, " N"], k: int, arm: str, seed: int, preserve_sparsity: bool
) -> Callable[[slice], Float[Tensor, "n F"]]:
    """:func:`edit_direction` of some rows at a time, by the poles of all; labels are 0 to k-1, or -1."""
    if arm not in ARMS:
        raise InterventionError(unknown_name("arm", arm, ARMS))
    if arm == "global_scaling":
        return lambda rows: torch.where((labels[rows] >= 0)[:, None], latents[rows], 0)
    chosen = (cluster_means(latents, labels, k), arm, chance_of_arm(arm, k, latents.shape[1], seed), preserve_sparsity)
    return lambda rows: direction_from_poles(latents[rows], labels[rows], *chosen)


def chance_of_arm(arm: str, k: int, n_latents: int, seed: int) -> Tensor | None:
    """What is drawn once for an arm: an order of the clusters, or a Gaussian vector for each; None for the poles."""
    draws = generator(seed, arm)
    if arm == "random_direction":
        return torch.randn((k, n_latents), generator=draws, dtype=torch.float64)
    return torch.randperm(k, generator=draws) if arm == "permuted_labels" else None


def direction_from_poles(
    latents: Float[Tensor, "n F"],
    labels: Int[Tensor, " n"],
    poles: Float[Tensor, "K F"],
    arm: str,
    drawn: Tensor | None,
    preserve_sparsity: bool = False,
) -> Float[Tensor, "n F"]:
    """The direction of tokens labelled 0 to K-1, or -1, by poles that need not be their own means.

    ``drawn`` is what :func:`chance_of_arm` gives, the rest as in :func:`edit_direction`.
    """
    known = labels >= 0
    own = poles - poles.mean(0)
    norms = own.norm(dim=1, keepdim=True)
    towards = own
    if arm == "random_direction":
        towards = _of_norm(torch.where(own != 0, drawn.to(own.dtype).to(own.device), 0), norms)
    elif arm == "permuted_labels":
        # A random cyclic order: every cluster gets another one's pole, all such orders alike.
        order = drawn.to(own.device)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        towards = _of_norm(own[other], norms)
    direction = torch.zeros_like(latents)
    direction[known] = towards[labels[known]]
    if not preserve_sparsity:
        return direction
    direction = torch.where(latents != 0, direction, 0)
    if arm != "poles":
        kept = torch.zeros_like(latents)
        kept[known] = own[labels[known]]
        direction = _of_norm(direction, torch.where(latents != 0, kept, 0).norm(dim=1, keepdim=True))
    return direction


def _of_norm(vectors: Tensor, norms: Tensor) -> Tensor:
    return vectors * (norms / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny))


@any_numbers
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


@any_numbers
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
