"""Whether a model and its tokenizer belong together, and whether the model reads from left to right.

Three things go wrong silently or with somebody else's IndexError: a tokenizer that hands out more tokens than the
model has vectors for, a beginning-of-sequence token that is none, and a model whose vectors of a text change when
something is written after it, so that padding and context are part of every measurement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from saema_utils.errors import ModelError, one_line
from saema_utils.runtime import quietly

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from jaxtyping import Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

_RESIZE = (
    "Give the tokenizer that was saved with the model, or add the vectors (model.resize_token_embeddings), train them, "
    "and save both again."
)
# Largest relative change of a vector that rounding explains.
_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
_ROUNDING_OF_HALF = 0.1


def embedding_rows(model: TransformerBridge) -> int:
    """For how many tokens the model has a vector."""
    return model.original_model.get_input_embeddings().weight.shape[0]


def check_ids(model: TransformerBridge, tokens: Int[Tensor, "P T"]) -> None:
    """Refuse tokens that the model has no vector for.

    Raises
    ------
    ModelError
        With the largest of them, and how many vectors there are.
    """
    if int(tokens.max()) >= embedding_rows(model):
        refuse_beyond(model.tokenizer, tokens.unique().tolist(), embedding_rows(model))


def refuse_beyond(tokenizer: Any, ids: Iterable[int], rows: int, name: str = "") -> None:
    """Refuse token ids from ``rows`` on, naming the first of them as the tokenizer spells it."""
    beyond = sorted({token for token in ids if token >= rows})
    if beyond:
        spelt = tokenizer.convert_ids_to_tokens(beyond[0])
        raise ModelError(
            f"the tokenizer{f' of model {name!r}' if name else ''} gives token {beyond[0]} ({spelt!r}), but the model "
            f"has vectors for tokens 0 to {rows - 1} only ({len(tokenizer)} tokens, {rows} vectors). {_RESIZE}"
        )


def check_tokenizer(folder: Path, rows: int, texts: Iterable[str], name: str) -> None:
    """Refuse a checkpoint whose tokenizer gives tokens of these texts, or a BOS, that the model has no vector for.

    Reads the tokenizer alone, so that nothing heavy is loaded.

    Parameters
    ----------
    rows
        How many tokens the model has vectors for, as its configuration says.
    """
    try:
        with quietly():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries below raise dozens of unrelated types
        raise ModelError(
            f"the tokenizer of model {name!r} cannot be read ({one_line(error)}). Save it again with save_pretrained."
        ) from error
    check_bos(tokenizer, rows, name)
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    refuse_beyond(tokenizer, (token for ids in found for token in ids), rows, name)


def check_bos(tokenizer: Any, rows: int, name: str) -> None:
    """Refuse a beginning-of-sequence token that the model has no vector for, or that is the unknown token.

    A tokenizer without one passes: its texts begin with their own first token, which is masked.
    """
    bos, spelt = tokenizer.bos_token_id, tokenizer.bos_token
    if bos is None:
        return
    refuse_beyond(tokenizer, [bos], rows, name)
    if bos == tokenizer.unk_token_id and spelt != tokenizer.unk_token:
        raise ModelError(
            f"the tokenizer of model {name!r} says that texts begin with {spelt!r}, which it does not know (it reads "
            f"{tokenizer.unk_token!r} instead). Correct bos_token in its tokenizer_config.json."
        )


def check_causal(model: TransformerBridge, name: str) -> None:
    """Refuse a model whose vectors of a text change when text or padding follows it.

    Raises
    ------
    ModelError
        With how much they change, relative to their length.
    """
    from saema_utils.model.residual_stream import capture_residual_stream

    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    start = _some_tokens(model)
    half = start.shape[1] // 2
    alone, followed = start[:, :half], start.clone()
    padded = torch.cat([alone, start[:, :1].expand(1, start.shape[1] - half)], dim=1)
    whole = capture_residual_stream(model, torch.cat([followed, padded]), last)[:, :half]
    short = capture_residual_stream(model, alone, last)[0]
    change = float(((whole - short).norm(dim=-1) / short.norm(dim=-1).clamp_min(1e-30)).max())
    if change > _ROUNDING.get(next(model.parameters()).dtype, _ROUNDING_OF_HALF):
        raise ModelError(
            f"model {name!r} does not read from left to right: vectors of a text change by {100 * change:.0f} % when "
            "something follows it, so padding would change every result; allowed: causal language models. "
            "Choose another model."
        )


def _some_tokens(model: TransformerBridge) -> Int[Tensor, "1 T"]:
    """A dozen different ordinary tokens behind a first one."""
    rows, limit = embedding_rows(model), getattr(model.cfg, "n_ctx", None) or 12
    count = max(2, min(12, limit))
    first = model.tokenizer.bos_token_id
    ids = torch.linspace(0, rows - 1, count + 2).long()[1:-1]
    if first is not None and first < rows:
        ids[0] = first
    return ids[None]


def has_rms_norm(model: TransformerBridge) -> bool:
    """Whether the model's norms see the mean over coordinates: root mean square instead of standard deviation."""
    return any("RMSNorm" in type(part).__name__ for part in model.original_model.modules())


def check_model(model: TransformerBridge, name: str) -> None:
    """Everything above that needs no text of the study, on a model that was just loaded."""
    check_bos(model.tokenizer, embedding_rows(model), name)
    check_causal(model, name)
