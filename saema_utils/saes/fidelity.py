"""How well a coder reconstructs tokens it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from saema_utils.runtime import float64
from saema_utils.saes.topk_latents import times_fired

if TYPE_CHECKING:
    from jaxtyping import Float
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
