r"""The authors' intervention: random steps of the poles, of which the best by a joint loss are kept.

From each of five scales the poles walk ten steps, the first of them none at all; a step adds independent normal
numbers of a hundredth of the scale to every latent of every pole, and each token moves with its pole. Latents are then
z-scored token by token, decoded, and compared with the residual stream, z-scored in the same way. Of each walk two
records are kept: the step with the least 1 / separation + error, and the step with the least separation + error.

A record is chosen by a loss in which both numbers stand, so that kept records are related by the choice alone. That
is why the same walk is also read without a choice, and with errors that were shuffled before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.errors import GeometryError
from saema_utils.geometry.pole_measures import aedp, poles
from saema_utils.runtime import float64, generator

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

SCALES = (0.5, 0.8, 1.0, 1.2, 1.5)
N_STEPS = 10
STEP = 0.01
LOSSES = ("1 / separation + error", "separation + error")
_TINY = 1e-8


def walk_poles(
    latents: Float[Tensor, "N F"],
    residual: Float[Tensor, "N D"],
    labels: Int[np.ndarray, " N"],
    counted: Bool[Tensor, " N"],
    dictionary: Float[Tensor, "F D"],
    bias: Float[Tensor, " D"],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Walk the poles at every scale and measure separation and error at every step.

    The error of a token needs no edited latents: with :math:`m` and :math:`s` the mean and the standard deviation of
    :math:`z + \delta` over the latents, it decodes to :math:`(zW + \delta W - m \mathbf 1 W) / s + b`, so that a step
    costs one row a pole instead of one a token.

    Parameters
    ----------
    labels
        Cluster of each token; tokens of noise (-1) stay where they are.
    counted
        Tokens whose error counts.
    dictionary, bias
        What latents are decoded by.

    Returns
    -------
    Columns scale, step (0 moves nothing), separation (average distance of poles, in latents), mse (mean squared error
    of z-scored vectors).

    Raises
    ------
    GeometryError
        For fewer than two clusters: nothing can be moved apart.
    """
    import pandas as pd

    z, w, offset, x = map(float64, (latents, dictionary, bias, residual))
    centres = poles(z, labels)
    if len(centres) < 2:
        raise GeometryError(f"{len(centres)} clusters; allowed: at least two, to be moved apart.")
    clustered = labels >= 0
    rows = np.zeros(len(labels), dtype=np.int64)
    rows[clustered] = np.unique(labels[clustered], return_inverse=True)[1]
    row, moved = (torch.as_tensor(values, device=z.device) for values in (rows, clustered))
    counted = counted.to(z.device)
    firing, n_latents = (z != 0).any(0), z.shape[1]
    decoded, of_ones = z @ w, w.sum(0)
    sums, squares = z.sum(1), z.square().sum(1)
    target = _z_scores(x)
    random = generator(seed, "random-poles")
    records = []
    for scale in SCALES:
        drawn = torch.randn(N_STEPS, *centres.shape, generator=random).to(z) * scale * STEP
        # All steps of a walk at once: its products are far cheaper in one piece.
        shifts = drawn.roll(1, dims=0)
        shifts[0] = 0
        shifts = shifts.cumsum(0)
        along = torch.einsum("nf,tkf->tnk", z[:, firing], shifts[..., firing])
        products = shifts @ w
        for step in range(N_STEPS):
            shift = shifts[step]
            total = sums + shift.sum(1)[row] * moved
            with_shift = along[step].gather(1, row[:, None])[:, 0]
            square = squares + (2 * with_shift + shift.square().sum(1)[row]) * moved
            mean = total / n_latents
            spread = ((square - n_latents * mean.square()) / (n_latents - 1)).clamp(min=0).sqrt() + _TINY
            made = decoded + products[step][row] * moved[:, None] - mean[:, None] * of_ones
            error = (made / spread[:, None] + offset - target)[counted].square().mean()
            records.append((scale, step, aedp(centres + shift), float(error)))
    return pd.DataFrame(records, columns=["scale", "step", "separation", "mse"])


def _z_scores(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + _TINY)


def kept_records(steps: pd.DataFrame) -> pd.DataFrame:
    """Of each walk the step that each loss likes best: columns loss, scale, step, separation, mse."""
    import pandas as pd

    separation, error = _by_walk(steps, "separation"), _by_walk(steps, "mse")
    width = separation.shape[1]
    chosen = [best + width * np.arange(len(separation)) for best in _chosen(separation, error)]
    parts = [steps.iloc[rows].assign(loss=name) for name, rows in zip(LOSSES, chosen, strict=True)]
    return pd.concat(parts, ignore_index=True)[["loss", "scale", "step", "separation", "mse"]]


def correlations(steps: pd.DataFrame, *, n_shuffles: int = 200, seed: int = 0) -> dict[str, float]:
    """How separation and error go together: over all steps, over those kept, and over those kept of a null.

    In the null the errors of a walk are shuffled over its steps before the choice, so that separation and error have
    nothing to do with each other but for the choice.

    Returns
    -------
    Pearson's r over all steps and over the kept ones (r_all, r_kept), and its mean and middle 95 % over shuffles
    (r_null, r_null_low, r_null_high); NaN where separation or error never changes.
    """
    random = np.random.default_rng(seed)
    separation, error = _by_walk(steps, "separation"), _by_walk(steps, "mse")
    null = [_kept_r(separation, random.permuted(error, axis=1)) for _ in range(n_shuffles)]
    known = np.array(null)[np.isfinite(null)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return {
        "r_all": _pearson(separation.ravel(), error.ravel()),
        "r_kept": _kept_r(separation, error),
        "r_null": float(known.mean()) if len(known) else float("nan"),
        "r_null_low": float(low),
        "r_null_high": float(high),
    }


def _by_walk(steps: pd.DataFrame, column: str) -> Float[np.ndarray, "S T"]:
    return steps[column].to_numpy().reshape(steps["scale"].nunique(), -1)


def _chosen(separation: Float[np.ndarray, "S T"], error: Float[np.ndarray, "S T"]) -> list[Int[np.ndarray, " S"]]:
    """Step of least joint loss in every walk, for each of :data:`LOSSES`."""
    return [(1 / (separation + _TINY) + error).argmin(axis=1), (separation + error).argmin(axis=1)]


def _kept_r(separation: Float[np.ndarray, "S T"], error: Float[np.ndarray, "S T"]) -> float:
    walks = np.arange(len(separation))
    chosen = _chosen(separation, error)
    return _pearson(*(np.concatenate([values[walks, best] for best in chosen]) for values in (separation, error)))


def _pearson(x: Float[np.ndarray, " R"], y: Float[np.ndarray, " R"]) -> float:
    if any(np.ptp(values) <= 1e-12 * abs(values).max() for values in (x, y)):
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
