"""Six families of sparse autoencoder, brought to one sparsity so that they can be compared.

Families differ in how they keep latents few. TopK, BatchTopK and Matryoshka are told the number; standard,
gated and JumpReLU pay for every active latent and must be searched for the price that gives it; whatever
has a threshold is finished by moving that.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from saema_utils.errors import SaeError
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.training import DEFAULT_PENALTY, TrainedSae, train_sae

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from sae_lens import SAE
    from torch import Tensor

    from saema_utils.study import SaeRecipe

L0_TOLERANCE = 0.1
"""Families count as equally sparse when their L0 lies within this share of what was asked for."""
LARGEST_STEP = math.log(8)
CALIBRATION_TOKENS = 4096


@dataclass(frozen=True)
class MatchedSae:
    """An autoencoder trained to a sparsity, and how it got there.

    Attributes
    ----------
    penalty
        Sparsity coefficient of the trial that was kept; NaN for families that are told k.
    trials
        (penalty, L0 on training tokens) of every training that the search ran.
    l0_trained
        L0 before the threshold was moved; equal to ``l0`` where there is none.
    l0
        Mean active latents per training token, as delivered.
    """

    trained: TrainedSae
    penalty: float
    trials: tuple[tuple[float, float], ...]
    l0_trained: float
    l0: float


def train_to_l0(
    train: Float[Tensor, "N D"],
    heldout: Float[Tensor, "M D"],
    recipe: SaeRecipe,
    seed: int = 0,
    device: str | torch.device = "cpu",
    *,
    start: float | None = None,
    max_trials: int = 4,
    **options,
) -> MatchedSae:
    """Train one family to ``recipe.k`` active latents per token.

    A family with a sparsity coefficient is trained up to ``max_trials`` times (see :func:`search_penalty`) and
    the nearest is kept; a family with a threshold then has it scaled (:func:`calibrate_threshold`). Both look
    at training tokens only, so that the held-out L0 stays an honest measurement.

    Parameters
    ----------
    start
        First coefficient to try; another seed's result saves trials.
    options
        Handed on to :func:`~saema_utils.saes.training.train_sae`.
    """
    sample = train[: min(len(train), CALIBRATION_TOKENS)].to(device).float()
    results: list[TrainedSae] = []

    def attempt(penalty: float) -> float:
        chosen = None if math.isnan(penalty) else penalty
        results.append(train_sae(train, heldout, recipe, seed, device, penalty=chosen, **options))
        return mean_l0(results[-1].sae, sample)

    if recipe.architecture in DEFAULT_PENALTY:
        trials = search_penalty(attempt, recipe.k, start or DEFAULT_PENALTY[recipe.architecture], max_trials)
    else:
        trials = ((math.nan, attempt(math.nan)),)
    nearest = min(range(len(trials)), key=lambda i: _distance(trials[i][1], recipe.k))
    penalty, before = trials[nearest]
    kept = results[nearest]
    after = calibrate_threshold(kept.sae, sample, recipe.k) if hasattr(kept.sae, "threshold") else before
    return MatchedSae(kept, penalty, trials, before, after)


def _distance(l0: float, target: float) -> float:
    return abs(math.log(max(l0, 1e-3) / target))


def search_penalty(
    l0_of: Callable[[float], float], target: float, start: float, max_trials: int = 4
) -> tuple[tuple[float, float], ...]:
    """Sparsity coefficients tried, with the L0 each gave, ending at the first that is near enough to ``target``.

    L0 falls as the coefficient rises, roughly as a power: the search is a secant on logarithms, kept inside the
    bracket once there is one. Steps are at most a factor of eight.

    Raises
    ------
    SaeError
        If the target or the start is not positive.
    """
    if target <= 0 or start <= 0 or max_trials < 1:
        raise SaeError(f"target {target}, start {start}, trials {max_trials}: all must be positive.")
    trials: list[tuple[float, float]] = []
    x = math.log(start)
    while len(trials) < max_trials:
        l0 = l0_of(math.exp(x))
        trials.append((math.exp(x), l0))
        if abs(l0 / target - 1) <= L0_TOLERANCE:
            break
        x = _next_guess([(math.log(p), math.log(max(found, 1e-3) / target)) for p, found in trials])
    return tuple(trials)


def _next_guess(points: Sequence[tuple[float, float]]) -> float:
    """Where the log excess of L0 should vanish, from (log coefficient, log excess) pairs."""
    x, y = points[-1]
    too_many = [p for p in points if p[1] > 0]
    too_few = [p for p in points if p[1] <= 0]
    if too_many and too_few:
        (a, fa), (b, fb) = max(too_many), min(too_few)
        share = min(0.9, max(0.1, fa / (fa - fb)))
        return a + share * (b - a)
    if len(points) == 1:
        return x + max(-LARGEST_STEP, min(LARGEST_STEP, y))
    (a, fa), (b, fb) = sorted(points)[:2] if y <= 0 else sorted(points)[-2:]
    slope = (fb - fa) / (b - a) if b != a else -1.0
    step = -y / min(slope, -0.1)
    return x + max(-LARGEST_STEP, min(LARGEST_STEP, step))


@torch.no_grad()
def mean_l0(sae: SAE, sample: Float[Tensor, "N D"]) -> float:
    """Mean number of latents that are not zero, over tokens."""
    return float((SaeCoder(sae).encode(sample) != 0).sum() / len(sample))


@torch.no_grad()
def calibrate_threshold(sae: SAE, sample: Float[Tensor, "N D"], target: float) -> float:
    """Scale an SAE's thresholds by one factor so that ``target`` latents fire per token; returns the L0 reached.

    Bisection on the logarithm of the factor, within an eighth to 8. A threshold kept as a running
    mean over a short training lags behind; this is what a longer one would have arrived at. Thresholds of zero
    cannot be scaled, and are left.
    """
    original = sae.threshold.data.clone()
    low, high = -math.log(8), math.log(8)
    best = (_distance(mean_l0(sae, sample), target), 0.0)
    for _ in range(14):
        middle = (low + high) / 2
        sae.threshold.data = original * math.exp(middle)
        l0 = mean_l0(sae, sample)
        best = min(best, (_distance(l0, target), middle))
        low, high = (middle, high) if l0 > target else (low, middle)
    sae.threshold.data = original * math.exp(best[1])
    return mean_l0(sae, sample)


def small_recipe(recipe: SaeRecipe, architecture: str) -> SaeRecipe:
    """The study's recipe made small enough to train a dozen families: half as wide, at most 1,152 latents, 4 epochs."""
    width = max(2 * recipe.k, min(recipe.d_sae // 2, 1152))
    sizes = {"d_sae": width, "k": min(recipe.k, width // 2)}
    shorter = {"epochs": min(4, recipe.epochs), "batch": min(1024, recipe.batch)}
    return dataclasses.replace(recipe, source="train", architecture=architecture, **sizes, **shorter)
