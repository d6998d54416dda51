r"""Does moving the poles apart lower the error, when a token is no part of the pole that it is moved by?

In-sample a token is the n-th part of its own pole. With K words in each of n sentences g, one token each,

.. math:: d_i^{\text{in-sample}} = (1 - \tfrac1n)\, d_i^{\text{cross-fitted}} + \tfrac1n\,(z_i - \bar z_{g(i)})

and what the last part does to the error says nothing about poles. Where words mean nothing (independent latents of
mean zero), it is all there is. With error e, and step t of a common scaling, ``A + 2 B alpha + C alpha^2`` then has

.. math:: \mathbb{E} B = \tfrac1n (1 - \tfrac1K)\, \mathbb{E}\langle e, t\rangle, \qquad
          \mathbb{E} C = \tfrac1n (1 - \tfrac1K)\, \mathbb{E}\|t\|^2

so that the slope is about the n-th part of scaling's, and the best dose is scaling's however many sentences there
are. With poles from the other sentences only, :math:`\mathbb{E} B = 0`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import InterventionError, require, unknown_name
from saema_utils.intervention.edits import chance_of_arm, direction_from_poles, edit_direction
from saema_utils.intervention.separation import check_labelled
from saema_utils.runtime import float64
from saema_utils.statistics import jackknife_error

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    Decode = Callable[[Tensor], Tensor]

MOVED = ("poles", "permuted_labels", "random_direction")
MEASURES = ("slope", "best_dose", "gain")
POLES = ("cross-fitted", "in-sample")
SCALINGS = ("alone", "joint")
SUPPORTS = ("free", "kept")
WEIGHTS = ("tokens", "relative")
LEAST_STEP = 1e-9  # of a step's square: less is the rounding of float32, not a direction

NO_LABELS = "fewer than two labels have tokens"
NO_POLES = "no pole is left without the token's own group"
NO_ERROR = "the reconstruction of a token has no error to be compared with"
NO_STEP = "the poles coincide, or move as a common scaling does"


# ---- the direction ------------------------------------------------------------------------------


@torch.no_grad()
@any_numbers
def cross_fitted_direction(
    latents: Float[Tensor, "N F"],
    labels: Int[Tensor, " N"],
    groups: Int[Tensor, " N"],
    arm: str = "poles",
    *,
    seed: int = 0,
    preserve_sparsity: bool = False,
) -> tuple[Float[Tensor, "N F"], Bool[Tensor, " N"]]:
    r"""The direction of each token by the poles of all groups but its own, and which tokens have one.

    .. math:: d_i = p_{k(i)}^{(-g)} - \frac1K \sum_k p_k^{(-g)}, \qquad g = g(i)

    Chance is drawn once for all groups, so a control moves a word alike in each. A word that has tokens in group g
    alone has no pole there: in g the centre is that of the other words, and its own tokens do not move.

    Parameters
    ----------
    groups
        What each token shares with others beside its label (the sentence, say).
    arm, seed, preserve_sparsity
        As in :func:`~saema_utils.intervention.edits.edit_direction`, without ``global_scaling``, which has no poles.

    Returns
    -------
    Directions, zero for tokens that have none, and a mask of those that have one.

    Raises
    ------
    InterventionError
        For another arm, and what :func:`~saema_utils.intervention.separation.check_labelled` refuses.
    """
    if arm not in MOVED:
        raise InterventionError(unknown_name("arm", arm, MOVED))
    z, y, k = check_labelled(latents, labels)
    group = _group_numbers(groups, z)
    left = _left(y, group, k)
    used = (z != 0).any(0)
    compact, drawn = z[:, used], chance_of_arm(arm, k, z.shape[1], seed)
    if arm == "random_direction":
        drawn = drawn[:, used.cpu()]
    # Sums of float32 are exact in float64: a latent that is on in one group alone is left at zero without it.
    exact = float64(compact)
    sums, moved = _sums(exact, y, k), torch.zeros_like(compact)
    for g in range(len(left)):
        rows, present = torch.nonzero(group == g)[:, 0], left[g] > 0
        if present.sum() < 2:
            continue
        others = sums - _sums(exact[rows.to(exact.device)], y[rows], k)
        # Divided where float64 is, and moved when they are no longer of it: not every device has it.
        poles = (others / left[g, :, None].to(others.device)).to(z.dtype).to(z.device)[present]
        number = torch.where(present, present.cumsum(0) - 1, -1)
        own = torch.where(y[rows] >= 0, number[y[rows].clamp_min(0)], -1)
        chance = _of_present(arm, drawn, present.cpu(), number.cpu())
        moved[rows] = direction_from_poles(compact[rows], own, poles, arm, chance, preserve_sparsity)
    direction = torch.zeros_like(z)
    direction[:, used] = moved
    return direction, _usable(y, group, left)


def _group_numbers(groups: Int[Tensor, " N"], z: Float[Tensor, "N F"]) -> Int[Tensor, " N"]:
    groups = torch.as_tensor(groups)
    require(groups.shape == z.shape[:1], "the shape of groups", tuple(groups.shape), f"({len(z)},)", InterventionError)
    return torch.unique(groups.to(z.device), return_inverse=True)[1]


def _left(y: Int[Tensor, " N"], group: Int[Tensor, " N"], k: int) -> Int[Tensor, "G k"]:
    """How many tokens of each label are outside each group."""
    n_groups, known = int(group.max()) + 1, y >= 0
    inside = torch.bincount(group[known] * k + y[known], minlength=n_groups * k).reshape(n_groups, k)
    return inside.sum(0) - inside


def _usable(y: Int[Tensor, " N"], group: Int[Tensor, " N"], left: Int[Tensor, "G k"]) -> Bool[Tensor, " N"]:
    """Tokens whose label has a pole outside their group, and not that pole alone."""
    has_pole = left > 0
    labelled, own = y >= 0, (group[y >= 0], y[y >= 0])
    usable = labelled.clone()
    usable[labelled] = has_pole[own] & (has_pole.sum(1) >= 2)[own[0]]
    return usable


def _sums(z: Float[Tensor, "n F"], labels: Int[Tensor, " n"], k: int) -> Float[Tensor, "k F"]:
    y = labels.to(z.device)
    return z.new_zeros(k, z.shape[1]).index_add(0, y[y >= 0], z[y >= 0])


def _of_present(
    arm: str, drawn: Tensor | None, present: Bool[Tensor, " k"], number: Int[Tensor, " k"]
) -> Tensor | None:
    """What was drawn for all labels, for those that have a pole; a cyclic order goes on past those that have none."""
    if arm == "permuted_labels":
        return number[drawn[present[drawn]]]
    return drawn if drawn is None else drawn[present]


# ---- every choice -------------------------------------------------------------------------------


@torch.no_grad()
def doses_under_choices(
    latents: Float[Tensor, "N F"],
    decode: Decode,
    target: Float[Tensor, "N D"],
    labellings: Mapping[str, Int[Tensor, " N"]],
    groups: Int[Tensor, " N"],
    *,
    seeds: Sequence[int],
) -> pd.DataFrame:
    r"""Slope, best dose and gain of moving the poles, under every defensible choice.

    From the sums of :func:`~saema_utils.intervention.doses.error_statistics` over the tokens that are moved:
    slope ``2 B / A``, best dose ``-B / C``, gain ``B^2 / (A C)`` where that dose is positive, else 0. Beside a common
    scaling (``joint``), B and C are those of the part of the step that is orthogonal to scaling's.

    Parameters
    ----------
    decode
        As in :func:`~saema_utils.intervention.doses.dose_response`: affine in the latents of each token.
    labellings
        By name, a label for each token; -1 for tokens that are neither moved nor counted.
    groups
        What tokens share beside their label (the sentence): poles are cross-fitted over groups.
    seeds
        Draws of the two arms of chance. Their values are averaged, not their errors.

    Returns
    -------
    Columns representation (the arm), measure, labels (name of the labelling), poles (cross-fitted, in-sample), scaling
    (alone, joint), support (free, kept: only latents that a token has on), weight (tokens, or relative: each squared
    error over the token's own without edit), value, error and reason.

    Notes
    -----
    ``error`` is the jackknife's over groups. Each leaves a group out of the sums and holds the poles as they are, like
    the intervals of :func:`~saema_utils.intervention.doses.optimum`: what other sentences would do to the poles comes
    on top. With the support kept, the parabola is that of small doses: it does not know of latents that a large one
    would stop at zero.
    """
    import pandas as pd

    require(len(seeds) > 0, "seeds", seeds, "one or more", InterventionError)
    z = torch.as_tensor(latents)
    numbered = {name: check_labelled(z, labels, fewest=0)[1:] for name, labels in labellings.items()}
    group = _group_numbers(groups, z)
    base = float64(decode(z))
    error, scaled = base - float64(torch.as_tensor(target)), float64(decode(2 * z)) - base
    rows = []
    for name, (y, k) in numbered.items():
        movable = {"cross-fitted": _usable(y, group, _left(y, group, k)), "in-sample": (y >= 0) & (k >= 2)}
        for arm, poles, support in itertools.product(MOVED, POLES, SUPPORTS):
            moved, grams = movable[poles], []
            nothing = "" if moved.any() else NO_LABELS if k < 2 else NO_POLES
            for seed in () if nothing else seeds[:1] if arm == "poles" else seeds:
                direction = _direction(z, y, group, arm, poles, seed, support == "kept")
                vectors = torch.stack([error, float64(decode(z + direction)) - base, scaled], dim=1)
                grams.append((vectors @ vectors.mT)[moved.to(error.device)])
            products = torch.stack(grams) if grams else error.new_zeros(1, 0, 3, 3)
            values = _values(products.cpu().numpy(), group[moved].cpu().numpy(), nothing)
            rows += [{"representation": arm, "labels": name, "poles": poles, "support": support} | v for v in values]
    columns = ["representation", "measure", "labels", "poles", "scaling", "support", "weight"]
    return pd.DataFrame(rows)[[*columns, "value", "error", "reason"]]


def _direction(z, y, group, arm: str, poles: str, seed: int, preserve_sparsity: bool) -> Float[Tensor, "N F"]:
    if poles == "in-sample":
        return edit_direction(z, y, arm, seed=seed, preserve_sparsity=preserve_sparsity)
    return cross_fitted_direction(z, y, group, arm, seed=seed, preserve_sparsity=preserve_sparsity)[0]


def _values(grams: Float[np.ndarray, "S n 3 3"], groups: Int[np.ndarray, " n"], nothing: str) -> list[dict]:
    """Every measure, weight and scaling from the tokens' products of error, step and scaling's step, a draw each.

    ``nothing`` is why there are no tokens, if there are none.
    """
    members = (groups == np.unique(groups)[:, None]).astype(float)
    rows = []
    for weight, scaling in itertools.product(WEIGHTS, SCALINGS):
        with np.errstate(divide="ignore", invalid="ignore"):
            weighted = grams if weight == "tokens" else grams / grams[:, :, :1, :1]
        by_group = np.einsum("gn,snij->sgij", members, weighted)
        whole = by_group.sum(1, keepdims=True)
        measures, reason = _measures(np.concatenate([whole, whole - by_group], axis=1), scaling == "joint")
        for measure, estimates in zip(MEASURES, measures, strict=True):
            value, *without = estimates.mean(0)
            error = float("nan") if reason else jackknife_error(without, len(without))
            choices = {"measure": measure, "scaling": scaling, "weight": weight}
            rows.append(choices | {"value": float(value), "error": error, "reason": nothing or reason})
    return rows


def _measures(sums: Float[np.ndarray, "S R 3 3"], joint: bool) -> tuple[Float[np.ndarray, "3 S R"], str]:
    """Slope, best dose and gain; the reason is of the first of the R rows, that of all tokens."""
    (a, b), (_, c) = np.moveaxis(sums[..., :2, :2], (2, 3), (0, 1))
    least = LEAST_STEP * c
    with np.errstate(divide="ignore", invalid="ignore"):
        if joint:
            share = sums[..., 1, 2] / sums[..., 2, 2]
            b, c = b - share * sums[..., 0, 2], c - share * sums[..., 1, 2]
        best = -b / c
        measures = np.stack([2 * b / a, best, np.where(best > 0, b * b / (a * c), 0)])
    compared, moves = a > 0, c > least
    measures[:, ~(compared & moves)] = np.nan
    reasons = ((NO_ERROR, compared), (NO_STEP, moves))
    return measures, next((reason for reason, holds in reasons if not holds[:, 0].all()), "")
