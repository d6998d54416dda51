"""The unmasked tokens of one concept with their places in the tensor."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from saema_utils.distances import first_copies, pairwise_distances
from saema_utils.errors import ActivationError
from saema_utils.runtime import float64, generator
from saema_utils.study import NoiseUnit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class NoiseSize(NamedTuple):
    """A level of noise in units of the activations, and in multiples of their RMS (NaN where all of them are zero)."""

    absolute: float
    rms: float


@dataclass(frozen=True)
class TokenCloud:
    """The unmasked tokens of one concept with their places in the prompt x position tensor."""

    concept: str
    points: Float[Tensor, "N D"]
    prompt: Int[Tensor, " N"]
    position: Int[Tensor, " N"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, residual: Float[Tensor, "P T D"], mask: Bool[Tensor, "P T"], concept: str = "") -> TokenCloud:
        """Take the unmasked tokens; refuses shapes that disagree, values that are not finite, and an empty mask."""
        if residual.dim() != 3 or tuple(mask.shape) != tuple(residual.shape[:2]):
            raise ActivationError(
                f"residual has shape {tuple(residual.shape)} and mask {tuple(mask.shape)}; "
                "allowed: [prompts, positions, width] and [prompts, positions]."
            )
        if residual.is_complex():
            raise ActivationError(f"residual is {residual.dtype}; allowed: real numbers. Pass its real part.")
        prompt, position = mask.to(residual.device).bool().nonzero(as_tuple=True)
        if len(prompt) < 2:
            raise ActivationError(
                f"{len(prompt)} of {mask.numel()} tokens of {concept or 'this concept'} are unmasked; "
                "allowed: at least 2. Check the mask or add prompts."
            )
        points = residual.detach()[prompt, position]
        points = points if points.dtype == torch.float64 else points.float()
        if not torch.isfinite(points).all():
            raise ActivationError(
                f"activations of {concept or 'this concept'} hold NaN or infinite values at unmasked tokens; "
                "mask those tokens or capture them again."
            )
        return cls(concept, points, prompt, position, tuple(mask.shape))

    def __len__(self) -> int:
        return len(self.points)

    @functools.cached_property
    def rms(self) -> float:
        """Root mean square of one coordinate of one token."""
        return float(float64(self.points).pow(2).mean().sqrt())

    def noise_size(self, level: float, unit: NoiseUnit = "absolute") -> NoiseSize:
        """A level of noise, given in one unit, in both: each keeps the digits that it was given with."""
        if unit == "rms":
            return NoiseSize(float(level) * self.rms, float(level))
        return NoiseSize(float(level), float(level) / self.rms if self.rms else math.nan)

    def noise(self, seed: int, shape: Float[Tensor, "D D"] | None = None) -> Float[Tensor, "N D"]:
        """Standard normal noise of one seed; with ``shape``, along a covariance at equal norm per token.

        Drawn on the CPU for the whole tensor, so that a token's noise depends neither on the mask nor
        on the device. ``shape`` is a square root of a covariance: each token's draw is multiplied by it
        and scaled back to the length that it had.
        """
        size = (*self.shape, self.points.shape[1])
        draw = torch.randn(size, generator=generator(seed, f"noise:{self.concept}"))
        draw = draw[self.prompt.cpu(), self.position.cpu()].to(self.points)
        if shape is None:
            return draw
        shaped = draw @ shape.to(draw)
        return shaped * (draw.norm(dim=1, keepdim=True) / shaped.norm(dim=1, keepdim=True).clamp(min=1e-30))

    def noisy(self, level: float, seed: int, shape: Float[Tensor, "D D"] | None = None) -> Float[Tensor, "N D"]:
        """The points with noise of standard deviation ``level``, absolute; the points themselves at level 0."""
        return self.points + level * self.noise(seed, shape) if level else self.points

    @functools.cached_property
    def first_of_each(self) -> Int[Tensor, " M"]:
        """Rows of the first of tokens that stand in one context (:func:`~saema_utils.distances.first_copies`).

        A causal model gives the shared beginning of two prompts the same activations up to rounding: they
        are the same point, and noise parts them.
        """
        kept = first_copies(pairwise_distances(self.points))
        return torch.from_numpy(kept).nonzero()[:, 0].to(self.points.device)

    @functools.cached_property
    def distinct(self) -> TokenCloud:
        """The tokens of :attr:`first_of_each` only."""
        keep = self.first_of_each
        return TokenCloud(self.concept, self.points[keep], self.prompt[keep], self.position[keep], self.shape)

    @functools.cached_property
    def same_position(self) -> tuple[Tensor, Tensor]:
        """Where in the N x N Gram matrix pairs with equal position stand, and which prompts they join."""
        return _pairs(self.position, self.prompt, self.shape[0])

    @functools.cached_property
    def same_prompt(self) -> tuple[Tensor, Tensor]:
        """Where pairs of one prompt stand, and which positions they join."""
        return _pairs(self.prompt, self.position, self.shape[1])


def _pairs(equal: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    i, j = (equal[:, None] == equal[None, :]).nonzero(as_tuple=True)
    return i * len(equal) + j, target[i] * size + target[j]
