"""How well a coder reconstructs tokens it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saema_utils.runtime import float64
from saema_utils.saes.topk_latents import times_fired

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saema_utils.saes.coders import Coder


def explained_variance(x: Float[Tensor, "N D"], x_hat: Float[Tensor, "N D"]) -> float:
    r"""Share of the variance over tokens that a reconstruction explains; 1 minus FVU.

    .. math:: 1 - \frac{\sum_i \lVert x_i - \hat x_i \rVert^2}{\sum_i \lVert x_i - \bar x \rVert^2}

    Total over tokens, not the mean of per-token ratios; 0 for a constant guess of the mean, negative
    for worse, NaN when the tokens do not vary. One attention sink among the tokens carries most of the
    variance and makes any reconstruction of it look perfect: mask them first.
    """
    x, x_hat = float64(x), float64(x_hat)
    total = float((x - x.mean(0)).square().sum())
    return 1 - float((x - x_hat).square().sum()) / total if total > 0 else math.nan


def mean_cosine(x: Float[Tensor, "N D"], x_hat: Float[Tensor, "N D"]) -> float:
    """Mean cosine between tokens and their reconstructions."""
    return float(torch.nn.functional.cosine_similarity(float64(x), float64(x_hat), dim=-1).mean())


def fidelity_under_choices(
    x: Float[Tensor, "N D"], x_hat: Float[Tensor, "N D"], groups: Int[Tensor, " N"]
) -> list[dict[str, Any]]:
    r"""Explained variance and cosine of a reconstruction in every way of counting its tokens.

    .. math:: 1 - \frac{\sum_i w_i \lVert a_i - s \hat a_i \rVert^2}{\sum_i w_i \lVert a_i \rVert^2}, \qquad
        \frac{\sum_i w_i \cos(x_i, \hat x_i)}{\sum_i w_i}

    with :math:`a_i = x_i - \bar x` and :math:`\hat a_i = \hat x_i - \bar x`.

    Parameters
    ----------
    groups
        What a token belongs to: a concept, or a text.

    Returns
    -------
    One row a measure (explained_variance, cosine) and a way of each choice, with its value, NaN where there is none:

    - weight: every squared length counts alike (tokens), or every token (relative), so that :math:`w_i` is 1 and
      :math:`1 / \lVert a_i \rVert^2` in the first measure, :math:`\lVert x_i \rVert^2` and 1 in the second.
    - scaling: *s* is 1 (alone) or the common scale of least error (joint); empty for the cosine, which has none.
    - pooled: all tokens about one mean (all tokens), or each group about its own, then averaged (by group).
    """
    x, x_hat = float64(x), float64(x_hat)
    groups = groups.to(x.device)  # which is the CPU where the device knows no float64
    whole = [slice(None)]
    parts = {"all tokens": whole, "by group": [groups == group for group in groups.unique()] or whole}
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for pooled, rows in parts.items():
        for here in rows:
            for way, value in _fidelity_by_weight(x[here], x_hat[here]).items():
                found.setdefault((*way, pooled), []).append(value)
    names = ("measure", "weight", "scaling", "pooled")
    return [dict(zip(names, way, strict=True)) | {"value": _mean_of_known(values)} for way, values in found.items()]


def _fidelity_by_weight(x: Tensor, x_hat: Tensor) -> dict[tuple[str, str, str], float]:
    mean = x.mean(0)
    a, b = x - mean, x_hat - mean
    own, theirs, both = a.square().sum(1), b.square().sum(1), (a * b).sum(1)
    cosines, size = torch.nn.functional.cosine_similarity(x, x_hat, dim=-1), x.square().sum(1)
    found = {}
    for weight in ("tokens", "relative"):
        # A token at the mean has no error relative to its distance from there.
        w = torch.ones_like(own) if weight == "tokens" else torch.where(own > 0, 1 / own, 0.0)
        total, given, shared = (float((w * part).sum()) for part in (own, theirs, both))
        known = total > 0
        error = float((w * (a - b).square().sum(1)).sum())
        joint = (shared**2 / (total * given) if given > 0 else 0.0) if known else math.nan
        found["explained_variance", weight, "alone"] = 1 - error / total if known else math.nan
        found["explained_variance", weight, "joint"] = joint
        w = size if weight == "tokens" else torch.ones_like(size)
        found["cosine", weight, ""] = float((w * cosines).sum() / w.sum())
    return found


def _mean_of_known(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Fidelity:
    """Reconstruction of held-out tokens: shares of variance, mean cosine, mean active latents, firing rates."""

    explained_variance: float
    cosine: float
    mse: float
    l0: float
    firing_rate: Float[Tensor, " F"]

    @property
    def fvu(self) -> float:
        return 1 - self.explained_variance

    @property
    def dead_fraction(self) -> float:
        """Share of latents that fired on none of the tokens."""
        return float(float64(self.firing_rate == 0).mean())


@torch.no_grad()
def measure_fidelity(coder: Coder, x: Float[Tensor, "N D"], size: int = 2048) -> Fidelity:
    """Encode and decode tokens in slices, so that memory holds one slice of latents at a time (of TopK only pairs)."""
    mean = sum(float64(part).sum(0) for part in x.split(size)) / len(x)
    residual = total = cosine = 0.0
    fired: Tensor | None = None
    for part in x.split(size):
        values = part.float()
        latents = getattr(coder, "encode_pairs", coder.encode)(values)
        x_hat = coder.decode(latents).float()
        residual += float(float64((values - x_hat).square()).sum())
        total += float((float64(values) - mean).square().sum())
        cosine += mean_cosine(values, x_hat) * len(values)
        counts = float64(times_fired(latents))
        fired = counts if fired is None else fired + counts
    n = len(x)
    return Fidelity(
        explained_variance=1 - residual / total if total > 0 else math.nan,
        cosine=cosine / n,
        mse=residual / x.numel(),
        l0=float(fired.sum()) / n,
        firing_rate=fired / n,
    )


def recovered_features(truth: Float[Tensor, "G D"], dictionary: Float[Tensor, "F D"]) -> Float[Tensor, " G"]:
    r"""For each true direction the cosine of the dictionary row nearest to it: 1 where it was found.

    .. math:: \max_f \cos(t_g, d_f)

    Rows of zero length match nothing. Random rows reach well above 0 when there are many of them in few
    dimensions, so compare with a random dictionary of the same shape.
    """
    unit = torch.nn.functional.normalize
    return (unit(float64(truth), dim=-1) @ unit(float64(dictionary.to(truth.device)), dim=-1).T).amax(dim=-1)
