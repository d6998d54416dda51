"""Residual streams: tokens in, activations out, with a mask of what may be measured.

What is masked, and why:

* **padding** stands on the right and means nothing (attention is causal, so it changes nothing either);
* **special tokens** (the beginning-of-sequence token, put in front of every text exactly once, and
  any other token the tokenizer calls special) carry no concept;
* **attention sinks** are ordinary tokens whose norm exceeds five times the median norm of all
  ordinary tokens captured together. Their norms are tens to hundreds of times the median, so that a
  single one decides every variance and rank; between the two groups lies a wide gap, and the exact
  factor does not matter.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saema_utils.errors import ActivationError, HookNeverFiredError
from saema_utils.model.fit import check_ids
from saema_utils.runtime import batch_size, free_memory, run_in_batches
from saema_utils.text.concepts import ConceptPrompts
from saema_utils.text.tokens import TokenBatch, tokenize

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

SINK_FACTOR = 5.0
RESIDUAL_HOOK = re.compile(r"blocks\.\d+\.hook_(resid_pre|resid_post|in|out)")
# Enough rows to keep the cores busy, few enough to stay in their caches. Fixed, so that
# rounding does not depend on how much memory happens to be free.
TOKENS_PER_BATCH = {"cpu": 2048, "mps": 8192, "cuda": 16384}


def capture_residual_stream(
    model: TransformerBridge,
    tokens: Int[Tensor, "P T"],
    hook_name: str | Sequence[str],
    *,
    lengths: Int[Tensor, " P"] | None = None,
    description: str = "",
) -> Float[Tensor, "P T D"] | dict[str, Float[Tensor, "P T D"]]:
    """Activations at one hook (a tensor) or at several in one pass (a dictionary by name).

    The forward pass stops as soon as every hook has fired. Rows are sorted by length, and each batch is
    cut to its longest row; positions past a row's length hold zeros.

    Parameters
    ----------
    tokens
        [P, T] token ids, padded on the right.
    hook_name
        Such as ``blocks.15.hook_resid_post`` or ``blocks.15.hook_out``.
    lengths
        [P] how many leading positions of each row are real (default: all).
    description
        Names the progress bar; none is shown without it.

    Returns
    -------
    float32 on the CPU.

    Raises
    ------
    HookNeverFiredError
        If a hook name exists nowhere in the model, or never fired.
    ActivationError
        If an activation is not finite, or all of them together would fill the memory.
    ModelError
        If the model has no vector for a token.
    """
    names = [hook_name] if isinstance(hook_name, str) else list(hook_name)
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ActivationError(f"tokens have shape {tuple(tokens.shape)}; allowed: [prompts, positions], not empty.")
    check_ids(model, tokens)
    n, longest = tokens.shape
    lengths = torch.full((n,), longest) if lengths is None else lengths
    order = lengths.argsort(descending=True, stable=True)
    device = next(model.parameters()).device
    needed, free = 4 * n * longest * model.cfg.d_model * len(names), free_memory(torch.device("cpu"))
    if needed > free / 2:
        raise ActivationError(
            f"{n} texts of up to {longest} tokens would take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. "
            "Use fewer or shorter prompts."
        )
    captured = {name: torch.zeros(n, longest, model.cfg.d_model) for name in names}
    bytes_per_row = longest * (8 * model.cfg.d_model + 4 * model.cfg.n_heads * longest) * 4
    size = batch_size(bytes_per_row, device, largest=max(1, TOKENS_PER_BATCH.get(device.type, 2048) // longest))

    def work(start: int, stop: int) -> None:
        rows = order[start:stop]
        width = int(lengths[rows].max())
        found = _forward_until(model, tokens[rows, :width].to(device), names)
        for name, activations in found.items():
            inside = torch.arange(width) < lengths[rows, None]
            captured[name][rows, :width] = activations.float().cpu() * inside[..., None]

    with torch.inference_mode(), _plain_blocks(model, names, longest):
        run_in_batches(work, n, size, description)
    for name, activations in captured.items():
        require_finite(activations, f"activations at {name}")
    return captured[names[0]] if isinstance(hook_name, str) else captured


def _forward_until(model: TransformerBridge, tokens: Int[Tensor, "B T"], names: list[str]) -> dict[str, Tensor]:
    """One forward pass that ends when every named hook has fired."""
    from transformer_lens.model_bridge.exceptions import StopAtLayerException

    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook_function(activations: Tensor, hook: Any) -> Tensor:
            found[name] = activations
            if len(found) == len(names):
                raise StopAtLayerException(activations)
            return activations

        return hook_function

    with model.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        model.forward(tokens, return_type=None, use_cache=False)
    missing = [name for name in names if name not in found]
    if missing:
        last = model.cfg.n_layers - 1
        raise HookNeverFiredError(
            f"hook {missing[0]!r} never fired; residual-stream hooks of this model are blocks.0.hook_resid_post "
            f"to blocks.{last}.hook_resid_post. Correct the name and run again."
        )
    return found


@contextlib.contextmanager
def _plain_blocks(model: TransformerBridge, names: list[str], longest: int) -> Iterator[None]:
    """Let the blocks compute as transformers does, attention in one fused kernel, where no hook looks inside them.

    transformer_lens computes attention and norms step by step, so that every step can be hooked. They are left to
    that for a hook inside a block, and for models whose attention is more than softmax (caps on scores, other kinds,
    windows shorter than the longest text). The fused kernel can turn NaN into zeros, so broken weights are left to it
    as well: there they show.
    """
    from transformer_lens.model_bridge.generalized_components import (
        PositionEmbeddingsAttentionBridge,
        RMSNormalizationBridge,
    )

    config = model.original_model.config
    attentions = [getattr(block, "attn", None) for block in model.blocks]
    fits = (
        all(RESIDUAL_HOOK.fullmatch(name) for name in names)
        and all(type(attention) is PositionEmbeddingsAttentionBridge for attention in attentions)
        and not getattr(config, "attn_logit_softcapping", None)
        and longest <= (getattr(config, "sliding_window", None) or longest)
        # One pass over each: NaN and infinity survive a sum.
        and bool(torch.stack([p.sum() for a in attentions for p in a.parameters()]).isfinite().all())
    )
    if not fits:
        yield
        return
    norms = [getattr(block, name, None) for block in model.blocks for name in ("ln1", "ln2")]
    # Such a norm returns what the original returns, and computes its scale once more for the hook.
    stepwise = attentions + [
        norm for norm in norms if type(norm) is RMSNormalizationBridge and norm.use_native_layernorm_autograd
    ]
    before = config._attn_implementation
    try:
        config._attn_implementation = "sdpa"
        for part in stepwise:
            # Into __dict__, because a Module takes what is set on it for a part of its own.
            part.__dict__["forward"] = part.original_component.forward
        yield
    finally:
        config._attn_implementation = before
        for part in stepwise:
            part.__dict__.pop("forward", None)


def require_finite(values: Tensor, what: str) -> None:
    """Refuse NaN and infinity, and say how many there are."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ActivationError(
            f"{what} hold {bad} values that are NaN or infinite. Use float32 (--device cpu), or check the weights."
        )


def find_sinks(
    norms: Float[Tensor, "*shape"],
    ordinary: Bool[Tensor, "*shape"],
    typical: Bool[Tensor, "*shape"] | None = None,
    factor: float = SINK_FACTOR,
) -> tuple[Bool[Tensor, "*shape"], float]:
    """Attention sinks among ordinary tokens: norm above ``factor`` times the median norm of typical ones.

    Parameters
    ----------
    norms
        Euclidean norms of the residual stream.
    ordinary
        True at tokens that are neither padding nor special.
    typical
        True at tokens whose median norm is compared with (default: the ordinary ones).

    Returns
    -------
    A mask of the sinks, and the median norm of typical tokens.

    Raises
    ------
    ActivationError
        If no token is typical.
    """
    typical = ordinary if typical is None else typical
    if not typical.any():
        raise ActivationError("every token is padding or special: nothing is left to measure. Use longer prompts.")
    median = float(norms[typical].median())
    return ordinary & (norms > factor * median), median


@dataclass(frozen=True)
class ConceptActivations:
    """The residual stream over all prompts of one concept, and what of it may be measured.

    Attributes
    ----------
    residual
        [P, T, D], float32, zeros at padding.
    mask
        [P, T], True at tokens that are neither padding, special, nor sinks.
    word_mask
        [P, T], the tokens of each prompt's concept word, a subset of ``mask``.
    token_strings
        One list per prompt, without padding.
    """

    prompts: ConceptPrompts
    residual: Float[Tensor, "P T D"]
    tokens: Int[Tensor, "P T"]
    mask: Bool[Tensor, "P T"]
    word_mask: Bool[Tensor, "P T"]
    token_strings: list[list[str]]
    n_special: int
    n_sinks: int
    n_padding: int
    median_norm: float

    def points(self) -> Float[Tensor, "N D"]:
        """The unmasked token vectors, prompt by prompt."""
        return self.residual[self.mask]

    @property
    def point_prompts(self) -> Int[Tensor, " N"]:
        """Which prompt each point comes from."""
        return self.mask.nonzero()[:, 0]

    @property
    def point_positions(self) -> Int[Tensor, " N"]:
        """At which position of its prompt each point stands."""
        return self.mask.nonzero()[:, 1]

    @property
    def prompt_words(self) -> Int[Tensor, " P"]:
        """Index into ``prompts.words`` of each prompt's word."""
        index = {word: i for i, word in enumerate(self.prompts.words)}
        return torch.tensor([index[prompt.word] for prompt in self.prompts.prompts])

    @property
    def prompt_templates(self) -> Int[Tensor, " P"]:
        """Number of each prompt's template, in order of first appearance."""
        index = {t: i for i, t in enumerate(dict.fromkeys(prompt.template for prompt in self.prompts.prompts))}
        return torch.tensor([index[prompt.template] for prompt in self.prompts.prompts])

    def word_vectors(self) -> Float[Tensor, "P D"]:
        """Mean over the tokens of each prompt's word; NaN where all of them are sinks."""
        weights = self.word_mask.to(self.residual.dtype)
        return torch.einsum("ptd,pt->pd", self.residual, weights) / weights.sum(1, keepdim=True)

    @property
    def rms(self) -> float:
        """Root mean square of one coordinate over the points."""
        return float(self.points().double().square().mean().sqrt())


@dataclass(frozen=True)
class LargestPart:
    """What of the squared length of vectors is the same for all of them, and what one coordinate holds."""

    shared: float
    largest_coordinate: float
    largest_varying: float


def largest_part(points: Float[Tensor, "N D"]) -> LargestPart:
    r"""How much of the vectors' squared length is their mean's, and the largest shares of one coordinate.

    .. math::

        \text{shared} = \frac{N \lVert \bar x \rVert^2}{\sum_i \lVert x_i \rVert^2}, \quad
        \text{largest coordinate} = \max_d \frac{\sum_i x_{id}^2}{\sum_i \lVert x_i \rVert^2}, \quad
        \text{largest varying} = \max_d \frac{\sum_i (x_{id} - \bar x_d)^2}{\sum_i \lVert x_i - \bar x \rVert^2}

    Returns
    -------
    Shares from 0 to 1; NaN where there is no length, or nothing varies, to be shared out.

    Notes
    -----
    Coordinates that are large at every token are known as massive activations [1]_.

    References
    ----------
    .. [1] M. Sun, X. Chen, J. Z. Kolter, Z. Liu, "Massive Activations in Large Language Models", 2024.
    """
    x = points.double()
    mean = x.mean(0)
    squares, variances = x.square().mean(0), (x - mean).square().mean(0)
    length, varying = squares.sum(), variances.sum()
    return LargestPart(
        float(mean.square().sum() / length), float(squares.max() / length), float(variances.max() / varying)
    )


def capture_concept(
    model: TransformerBridge, prompts: ConceptPrompts, hook_name: str | Sequence[str], description: str = ""
) -> ConceptActivations | dict[str, ConceptActivations]:
    """Residual stream of all prompts of a concept, at one hook or at several in one pass.

    Raises
    ------
    ActivationError
        If activations are not finite, or the mask leaves fewer than two tokens.
    """
    batch = tokenize(model, [prompt.text for prompt in prompts.prompts])
    names = [hook_name] if isinstance(hook_name, str) else list(hook_name)
    captured = capture_residual_stream(model, batch.tokens, names, lengths=batch.lengths, description=description)
    strings = [
        [model.tokenizer.decode([token]) for token in row[:length].tolist()]
        for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True)
    ]
    result = {name: _assemble(prompts, batch, captured[name], strings) for name in names}
    return result[hook_name] if isinstance(hook_name, str) else result


def _assemble(
    prompts: ConceptPrompts, batch: TokenBatch, residual: Float[Tensor, "P T D"], strings: list[list[str]]
) -> ConceptActivations:
    ordinary = batch.real & ~batch.special
    sinks, median = find_sinks(residual.norm(dim=-1), ordinary)
    mask = ordinary & ~sinks
    if int(mask.sum()) < 2:
        raise ActivationError(
            f"concept {prompts.concept!r} has {int(mask.sum())} unmasked tokens; allowed: at least 2. Add prompts."
        )
    spans = torch.tensor([prompt.span for prompt in prompts.prompts])
    starts, ends = batch.offsets[..., 0], batch.offsets[..., 1]
    in_word = (starts < spans[:, 1:]) & (ends > spans[:, :1])
    counts = (int(batch.special.sum()), int(sinks.sum()), int((~batch.real).sum()))
    return ConceptActivations(prompts, residual, batch.tokens, mask, mask & in_word, strings, *counts, median)


def pack(activations: Mapping[str, ConceptActivations]) -> dict[str, Tensor]:
    """Everything of several concepts as named tensors, ready for safetensors; see :func:`unpack`."""
    import json

    tensors: dict[str, Tensor] = {}
    for order, (concept, found) in enumerate(activations.items()):
        facts = {
            "order": order,
            "prompts": [[p.text, p.word, p.template, p.concept, p.start, p.end] for p in found.prompts.prompts],
            "beside": [found.prompts.left_out, found.prompts.guessed],
            "strings": found.token_strings,
            "counts": [found.n_special, found.n_sinks, found.n_padding],
            "median_norm": found.median_norm,
        }
        for name in ("residual", "tokens", "mask", "word_mask"):
            tensors[f"{concept}.{name}"] = getattr(found, name)
        tensors[f"{concept}.facts"] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
    return tensors


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, ConceptActivations]:
    """The inverse of :func:`pack`, in the same order of concepts."""
    import json

    from saema_utils.text.concepts import Prompt

    all_facts = {
        key.removesuffix(".facts"): json.loads(bytes(tensors[key].tolist()))
        for key in tensors
        if key.endswith(".facts")
    }
    found = {}
    for concept, facts in sorted(all_facts.items(), key=lambda item: item[1]["order"]):
        found[concept] = ConceptActivations(
            ConceptPrompts(
                concept, tuple(Prompt(*fields) for fields in facts["prompts"]), *map(tuple, facts["beside"])
            ),
            *(tensors[f"{concept}.{name}"] for name in ("residual", "tokens", "mask", "word_mask")),
            facts["strings"],
            *facts["counts"],
            facts["median_norm"],
        )
    return found


def label_words(activations: ConceptActivations) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, word indices and prompt indices of the tokens of a concept's words."""
    prompts = activations.word_mask.nonzero()[:, 0]
    return activations.residual[activations.word_mask], activations.prompt_words[prompts], prompts
