"""Put another vector into the residual stream and see what the language model makes of it.

Plain hooks of a ``TransformerBridge`` are used. A misspelt hook name is silently ignored there, so
every replacement proves that it happened, and the hooks are gone on every way out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from saema_utils.errors import HookNeverFiredError, InterventionError
from saema_utils.runtime import batch_size, run_in_batches

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    Replacement = Callable[[Tensor], Tensor] | Tensor

CLEAN = "clean"
TOKENS_PER_BLOCK = 32  # of log-probabilities at once: their table of the whole vocabulary then stays in the cache
STACKED_TOKENS = 512  # replacements of short prompts share a pass up to this size: small passes waste the processor


@dataclass(frozen=True)
class TokenLosses:
    """What the language model predicts at each position, in nats; NaN where nothing is predicted.

    Attributes
    ----------
    cross_entropy
        ``[P, T]``: minus the log-probability of token t+1 given tokens up to t.
    kl
        ``[P, T]``: KL divergence of the replaced run's next-token distribution from the clean one's.
    """

    cross_entropy: Float[Tensor, "P T"]
    kl: Float[Tensor, "P T"]

    def mean(self, where: Bool[Tensor, "P T"] | None = None) -> tuple[float, float]:
        """Mean cross-entropy and mean KL over positions (NaN when there is none)."""
        chosen = torch.isfinite(self.cross_entropy)
        if where is not None:
            chosen &= where.to(chosen.device)
        return float(self.cross_entropy[chosen].mean()), float(self.kl[chosen].mean())


def spliced_losses(
    model: TransformerBridge,
    tokens: Int[Tensor, "P T"],
    hook_name: str,
    replace: Mapping[str, Replacement],
    *,
    where: Bool[Tensor, "P T"] | None = None,
    predicted: Bool[Tensor, "P T"] | None = None,
    rows_at_once: int | None = None,
    description: str = "",
) -> dict[str, TokenLosses]:
    r"""Next-token losses with the residual stream replaced at one layer, beside the clean run.

    .. math:: \mathrm{CE}_{pt} = -\log q(w_{t+1} \mid w_{\le t}), \qquad
              \mathrm{KL}_{pt} = \sum_w p(w) \log \frac{p(w)}{q(w)}

    with *p* of the clean run and *q* of the run in which the vectors at ``where`` were replaced.

    Parameters
    ----------
    tokens
        Padded on the right (or not at all), so that padding cannot reach a real token.
    hook_name
        Such as ``blocks.15.hook_resid_post``.
    replace
        For each name either a function from activations ``[B, T, D]`` to their replacement, or the
        replacement of all prompts, ``[P, T, D]``. The name ``clean`` is taken.
    where
        Positions that are replaced (default: all). Leave out special tokens and attention sinks.
    predicted
        Real tokens: a position counts when the token after it is real (default: all are).

    Returns
    -------
    One :class:`TokenLosses` for ``clean`` and for each name in ``replace``, on the CPU.

    Raises
    ------
    HookNeverFiredError
        If the model has no such hook.
    InterventionError
        If a replacement has another shape, or is not finite.
    """
    if CLEAN in replace:
        raise InterventionError(f"replacement name {CLEAN!r} is taken by the clean run; choose another name.")
    n_rows, length = tokens.shape
    for name, new in replace.items():
        if isinstance(new, torch.Tensor) and new.shape[:2] != tokens.shape:
            raise InterventionError(
                f"replacement {name!r} has shape {tuple(new.shape)}; allowed: {(n_rows, length)} + (d_model,)."
            )
    device = next(model.parameters()).device
    real = torch.ones_like(tokens, dtype=torch.bool) if predicted is None else predicted
    ce = {name: torch.full((n_rows, length), torch.nan) for name in (CLEAN, *replace)}
    kl = {name: torch.full((n_rows, length), torch.nan) for name in (CLEAN, *replace)}

    def work(start: int, stop: int) -> None:
        rows = slice(start, stop)
        batch = tokens[rows].to(device)
        targets, counts = batch[:, 1:], real[rows, 1:]
        with torch.no_grad():
            clean = model(batch, return_type="logits").float().log_softmax(-1)
            _fill(ce[CLEAN], kl[CLEAN], rows, counts, clean, clean, targets)
            for group in _groups(list(replace), max(1, STACKED_TOKENS // batch.numel())):
                new = {n: r[rows] if isinstance(r := replace[n], torch.Tensor) else r for n in group}
                logits = run_spliced(model, batch, hook_name, new, None if where is None else where[rows])
                for name, own in zip(group, logits.chunk(len(group)), strict=True):
                    _fill(ce[name], kl[name], rows, counts, own, clean, targets)

    vocabulary = getattr(model.cfg, "d_vocab", 50_000)
    size = rows_at_once or batch_size(16 * length * vocabulary, device, largest=64)
    run_in_batches(work, n_rows, size, description)
    return {name: TokenLosses(ce[name], kl[name]) for name in ce}


def run_spliced(
    model: TransformerBridge,
    tokens: Int[Tensor, "B T"],
    hook_name: str,
    new: Mapping[str, Replacement],
    where: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "NB T V"]:
    """Logits of one pass over as many copies of the prompts as there are replacements, each copy with its own."""
    fired = 0

    def hook(activations: Tensor, hook: object = None) -> Tensor:
        nonlocal fired
        fired += 1
        copies = zip(new.items(), activations.chunk(len(new)), strict=True)
        return torch.cat([_replaced(copy, own, where, name, hook_name) for (name, own), copy in copies])

    with model.hooks(fwd_hooks=[(hook_name, hook)]):
        logits = model(tokens.repeat(len(new), 1), return_type="logits")
    if fired != 1:
        raise HookNeverFiredError(
            f"the hook at {hook_name!r} fired {fired} times in one pass; allowed: once. "
            "Use a name such as 'blocks.15.hook_resid_post' with a layer that the model has."
        )
    return logits


def _replaced(
    activations: Float[Tensor, "B T D"], new: Replacement, where: Bool[Tensor, "B T"] | None, name: str, hook_name: str
) -> Float[Tensor, "B T D"]:
    replacement = new(activations) if callable(new) else new
    if replacement.shape != activations.shape:
        raise InterventionError(
            f"replacement {name!r} has shape {tuple(replacement.shape)} at {hook_name}; "
            f"allowed: {tuple(activations.shape)}."
        )
    replacement = replacement.to(activations)
    chosen = torch.ones_like(activations[..., 0], dtype=torch.bool) if where is None else where.to(activations.device)
    if not torch.isfinite(replacement[chosen]).all():
        raise InterventionError(f"replacement {name!r} holds NaN or infinity; check the edit before splicing it in.")
    return torch.where(chosen[..., None], replacement, activations)


def _groups(names: list[str], size: int) -> list[list[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def _fill(ce: Tensor, kl: Tensor, rows: slice, counts: Tensor, logits: Tensor, log_p: Tensor, targets: Tensor) -> None:
    """Write one batch's losses into columns 0 to T-2, leaving NaN where the next token is not real."""
    blocks: list[tuple[Tensor, Tensor]] = []
    for row in range(len(targets)):
        for wanted, own, clean in zip(
            *(part[row, : targets.shape[1]].split(TOKENS_PER_BLOCK) for part in (targets, logits, log_p)), strict=True
        ):
            log_q = own.float().log_softmax(-1)
            blocks.append((-log_q.gather(-1, wanted[:, None])[:, 0], (clean.exp() * (clean - log_q)).sum(-1)))
    losses, divergence = (torch.cat(parts).view(targets.shape) for parts in zip(*blocks, strict=True))
    nothing = ~counts
    ce[rows, :-1] = losses.cpu().masked_fill(nothing, torch.nan)
    kl[rows, :-1] = divergence.clamp_min(0).cpu().masked_fill(nothing, torch.nan)
