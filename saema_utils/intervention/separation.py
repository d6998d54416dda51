"""Differentiable measures of a configuration of poles: how far apart, and how far apart for their size.

Poles are the means of labelled points. Gradients flow through everything here, so that an edit can
follow them (:mod:`~saema_utils.intervention.doses`) and a training loss can hold them
(:mod:`~saema_utils.intervention.training`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import InterventionError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

FEW_POLES = 6  # all 720 ways to match them can be tried
_BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class LabelledTokens:
    """Concept tokens: vectors ``[N, D]``, the cluster of each (unique over concepts), its concept."""

    vectors: Float[Tensor, "N D"]
    clusters: Int[Tensor, " N"]
    concepts: Int[Tensor, " N"]


def blocks_of(latents: Float[Tensor, "N F"]) -> Iterator[slice]:
    """Rows that take 64 MiB at a time: work on all of them at once would hold dense latents several times over."""
    size = max(1, _BLOCK_BYTES // max(1, latents.shape[1] * latents.element_size()))
    return (slice(start, start + size) for start in range(0, max(1, len(latents)), size))


def check_labelled(latents: Tensor, labels: Tensor, fewest: int = 2) -> tuple[Tensor, Tensor, int]:
    """Latents ``[N, F]``, labels renumbered 0 to K-1 (-1: not labelled), and K.

    Raises
    ------
    InterventionError
        For shapes that do not match, latents that are not finite, or fewer than ``fewest`` labels.
    """
    z, y = torch.as_tensor(latents), torch.as_tensor(labels)
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise InterventionError(
            f"latents have shape {tuple(z.shape)} and labels {tuple(y.shape)}; allowed: [N, F] and [N]. "
            "Pass one label per token."
        )
    if not z.is_floating_point():
        raise InterventionError(f"latents are {z.dtype}; allowed: floating point. Convert them with .float().")
    if not all(torch.isfinite(z[rows]).all() for rows in blocks_of(z)):
        raise InterventionError("latents hold NaN or infinity; allowed: finite numbers. Check what was encoded.")
    y = y.to(z.device)
    names, index = torch.unique(y[y >= 0], return_inverse=True)
    if len(names) < fewest:
        raise InterventionError(
            f"labels name {len(names)} cluster(s); allowed: at least {fewest}, one pole has nothing to be apart from. "
            "Give a concept of two or more words, or find clusters first."
        )
    renumbered = torch.full_like(y, -1, dtype=torch.long)
    renumbered[y >= 0] = index
    return z, renumbered, len(names)


def cluster_means(latents: Float[Tensor, "N F"], labels: Int[Tensor, " N"], k: int) -> Float[Tensor, "k F"]:
    """Mean of each cluster 0 to k-1; rows labelled -1 are left out. Gradients flow."""
    known, sums = labels >= 0, latents.new_zeros(k, latents.shape[1])
    for rows in blocks_of(latents):
        sums = sums.index_add(0, labels[rows][known[rows]], latents[rows][known[rows]])
    return sums / torch.bincount(labels[known], minlength=k).to(latents)[:, None]


@any_numbers
def mean_pole_distance(poles: Float[Tensor, "K F"]) -> Float[Tensor, ""]:
    """Average Euclidean distance over pairs of poles (AEDP), differentiable."""
    return torch.nn.functional.pdist(poles).mean()


@any_numbers
def separation_scale_free(latents: Float[Tensor, "N F"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    r"""Share of the labelled latents' scatter that lies between the poles.

    .. math:: \eta^2 = \frac{b}{b + w}, \quad b = \frac1K\sum_k \|p_k - \bar p\|^2, \quad
              w = \frac1K\sum_k \frac1{n_k}\sum_{i \in k} \|z_i - p_k\|^2

    The correlation ratio of analysis of variance [1]_, every cluster counted alike. It lies in
    [0, 1], and is unchanged by scaling, shifting and rotating all latents, which AEDP is not.
    NaN when all latents coincide. Differentiable in the latents.

    References
    ----------
    .. [1] Fisher, Statistical Methods for Research Workers, 1925, section 45.
    """
    z, y, k = check_labelled(latents, labels)
    poles = cluster_means(z, y, k)
    known = y >= 0
    between = (poles - poles.mean(0)).square().sum(1).mean()
    # Not poles[y]: its gradient adds in an order that several threads do not fix.
    parts = ((z[rows][known[rows]], y[rows][known[rows]]) for rows in blocks_of(z))
    scatter = torch.cat([(own - poles.index_select(0, label)).square().sum(1) for own, label in parts])
    counts = torch.bincount(y[known], minlength=k).to(z)
    within = (z.new_zeros(k).index_add(0, y[known], scatter) / counts).mean()
    return between / (between + within)


@any_numbers
def gromov_wasserstein(
    distances: Float[Tensor, "K K"], reference: Float[Tensor, "L L"], *, n_starts: int = 3, seed: int = 0
) -> Float[Tensor, ""]:
    r"""Squared-loss Gromov-Wasserstein discrepancy of two distance matrices with uniform weights.

    .. math:: \min_{T \in \Pi} \sum_{ijkl} (C_{ik} - C'_{jl})^2 \, T_{ij} T_{kl}

    Solved without entropic smoothing by POT's conditional gradient [1]_, from the identity plan, the
    uniform plan, up to six poles the best of all one-to-one plans, and random ones, the lowest kept. The
    problem is not convex: with more poles the value is an upper bound. It is differentiable in both
    matrices: at an optimal plan the gradient is the partial one with the plan held fixed (envelope theorem).

    References
    ----------
    .. [1] Vayer et al., Optimal transport for structured data, ICML 2019; Flamary et al., POT, JMLR 2021.
    """
    import ot

    for matrix in (distances, reference):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
            raise InterventionError(
                f"a distance matrix has shape {tuple(matrix.shape)}; allowed: square, of two or more poles."
            )
    c1, c2 = (m.detach().cpu().double().numpy() for m in (distances, reference))
    p, q = np.full(len(c1), 1 / len(c1)), np.full(len(c2), 1 / len(c2))
    starts: list[np.ndarray | None] = [None]
    if len(c1) == len(c2):
        rng, one_to_one = np.random.default_rng(seed), np.eye(len(c1)) / len(c1)
        starts.append(one_to_one)
        if len(c1) <= FEW_POLES:
            orders = _permutations(len(c1))
            costs = np.square(c1 - c2[orders[:, :, None], orders[:, None, :]]).sum((1, 2))
            starts.append(one_to_one[:, np.argsort(orders[costs.argmin()])])
        starts += [one_to_one[rng.permutation(len(c1))] for _ in range(n_starts - len(starts))]
    plans = [ot.gromov.gromov_wasserstein(c1, c2, p, q, "square_loss", G0=start) for start in starts[:n_starts]]
    plans = [torch.as_tensor(np.asarray(plan), dtype=distances.dtype, device=distances.device) for plan in plans]
    values = [_transport_cost(distances, reference, plan) for plan in plans]
    return values[int(torch.stack([value.detach() for value in values]).argmin())]


@functools.cache
def _permutations(k: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(k))))


def _transport_cost(a: Tensor, b: Tensor, plan: Tensor) -> Tensor:
    p, q = plan.sum(1), plan.sum(0)
    return p @ a.square() @ p + q @ b.square() @ q - 2 * ((a @ plan @ b) * plan).sum()


@any_numbers
def distance_matrix(poles: Float[Tensor, "K F"], relative: bool = False) -> Float[Tensor, "K K"]:
    """Euclidean distances between poles; ``relative`` divides by their mean. Differentiable at distinct poles."""
    k = len(poles)
    upper = torch.triu_indices(k, k, 1, device=poles.device)
    pairs = torch.nn.functional.pdist(poles)
    matrix = poles.new_zeros(k, k).index_put((upper[0], upper[1]), pairs / pairs.mean() if relative else pairs)
    return matrix + matrix.T
