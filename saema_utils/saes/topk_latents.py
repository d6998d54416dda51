"""Latents of which each token has k: kept as pairs (latent, value), never as a row of ``d_sae`` numbers.

With 32 of 32,768 latents active a dense row is a thousand times what it says. Pairs decode by adding up k rows
of the dictionary, and their inner products need no zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

SMALLEST_RATIO = 16
"""Below this many latents per active one, gathering rows costs as much as dense products (measured on two x86 CPUs,
see ``benchmarks/bench_sae_training.py``)."""
_BLOCK_BYTES = 2**25  # smaller blocks save little more, and threads wait at the end of each


@dataclass(frozen=True)
class TopKLatents:
    """Values and which latents they belong to; a latent stands at most once in a row.

    Values of zero are latents that were chosen and do not fire; no measure counts them.
    """

    values: Float[Tensor, "N k"]
    where: Int[Tensor, "N k"]
    width: int

    @classmethod
    def of(cls, preactivations: Float[Tensor, "N F"], k: int) -> TopKLatents:
        """The ``k`` largest of each row; negative ones become zero."""
        largest, where = preactivations.topk(k, dim=-1, sorted=False)
        return cls(largest.relu(), where, preactivations.shape[-1])

    @classmethod
    def joined(cls, parts: Sequence[TopKLatents]) -> TopKLatents:
        """Tokens of several parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        values, where = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "where"))
        return cls(values, where, parts[0].width)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Int[Tensor, " M"] | slice) -> TopKLatents:
        return TopKLatents(self.values[rows], self.where[rows], self.width)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.values), self.width

    def dense(self) -> Float[Tensor, "N F"]:
        return self.values.new_zeros(self.shape).scatter_(-1, self.where, self.values)

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token, latent and value of each entry that is not zero, tokens in order."""
        token, place = self.values.nonzero(as_tuple=True)
        return token, self.where[token, place], self.values[token, place]

    def __matmul__(self, rows: Float[Tensor, "F D"]) -> Float[Tensor, "N D"]:
        """``self.dense() @ rows`` from the k rows that each token needs."""
        is_cheap = self.width >= SMALLEST_RATIO * self.values.shape[1]
        if not is_cheap or self.values.device.type == "mps":  # where the gather is not to be had
            return self.dense() @ rows
        return F.embedding_bag(self.where, rows, mode="sum", per_sample_weights=self.values)


def rows_at_once(device: torch.device, width: int) -> int:
    """Tokens whose pre-activations, ``width`` wide, take 32 MiB (on an accelerator 8 times as much)."""
    room = _BLOCK_BYTES if device.type == "cpu" else 8 * _BLOCK_BYTES
    return max(1, room // (4 * width))


def dense(latents: Float[Tensor, "N F"] | TopKLatents) -> Float[Tensor, "N F"]:
    """Latents as a tensor, whichever way they are kept."""
    return latents.dense() if isinstance(latents, TopKLatents) else latents


def times_fired(latents: Float[Tensor, "N F"] | TopKLatents) -> Int[Tensor, " F"]:
    """On how many tokens each latent is not zero."""
    if isinstance(latents, TopKLatents):
        return torch.bincount(latents.entries()[1], minlength=latents.width)
    return (latents != 0).sum(0)
