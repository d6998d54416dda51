"""Texts as tokens: one BOS in front, padding on the right, and where in the text each token stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saema_utils.errors import ActivationError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class TokenBatch:
    """Texts as tokens, padded on the right.

    Attributes
    ----------
    tokens
        [P, T] token ids; BOS stands first in every row, once.
    real
        [P, T] True where a token of the text or the BOS stands (False: padding).
    special
        [P, T] True at BOS and wherever the tokenizer reads a special token.
    offsets
        [P, T, 2] first and last-plus-one character of each token in its text; zeros where there is none.
    """

    tokens: Int[Tensor, "P T"]
    real: Bool[Tensor, "P T"]
    special: Bool[Tensor, "P T"]
    offsets: Int[Tensor, "P T 2"]

    @property
    def lengths(self) -> Int[Tensor, " P"]:
        return self.real.sum(1)


def tokenize(model: TransformerBridge, texts: Sequence[str]) -> TokenBatch:
    """Tokens of texts, each with one BOS in front, and where in the text each token stands.

    Raises
    ------
    ActivationError
        If there is no text, a text has no tokens, or is longer than the model's context.
    """
    if not texts:
        raise ActivationError("there are no texts to tokenize; give at least one prompt.")
    tokenizer = model.tokenizer
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    bos = tokenizer.bos_token_id
    front = [] if bos is None else [bos]
    rows = []
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if front and ids[:1] == front:  # the text itself begins with the BOS token: keep one
            ids, offsets = ids[1:], offsets[1:]
        rows.append((front + ids, [(0, 0)] * len(front) + [tuple(pair) for pair in offsets]))
    longest, limit = max(len(ids) for ids, _ in rows), getattr(model.cfg, "n_ctx", None) or math.inf
    shortest = min(range(len(rows)), key=lambda i: len(rows[i][0]))
    if len(rows[shortest][0]) <= len(front):
        raise ActivationError(f"text {texts[shortest]!r} has no tokens. Replace or remove it.")
    if longest > limit:
        raise ActivationError(f"a text has {longest} tokens; the model takes at most {limit}. Shorten it.")
    pad = _padding(tokenizer, getattr(model.cfg, "d_vocab", None) or math.inf)
    tokens = torch.full((len(rows), longest), pad)
    offsets = torch.zeros(len(rows), longest, 2, dtype=torch.long)
    real = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (ids, pairs) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        offsets[i, : len(ids)] = torch.tensor(pairs)
        real[i, : len(ids)] = True
    return TokenBatch(tokens, real, special_tokens(model, tokens) & real, offsets)


def _padding(tokenizer: Any, rows: float) -> int:
    """A token to pad with that the model has a vector for: many tokenizers were given one that it has none for."""
    return next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None and t < rows), 0)


def special_tokens(model: TransformerBridge, tokens: Int[Tensor, "P T"]) -> Bool[Tensor, "P T"]:
    """True at the first position of every row and wherever a special token stands.

    The first position is masked even for a model without a BOS: whatever stands there is a sink.
    """
    special = torch.isin(tokens, torch.tensor(sorted(set(model.tokenizer.all_special_ids)), dtype=tokens.dtype))
    special[:, 0] = True
    return special
