"""An autoencoder meets its model on a hundred tokens: does it give back what it reads?

What its configuration says may be wrong or say too little. A reconstruction that is worse than the mean of the tokens
shows that it reads other vectors than it was trained on, whatever the reason, before a chapter measures anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saema_utils.errors import SaeError
from saema_utils.model.residual_stream import capture_residual_stream, find_sinks
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.fidelity import measure_fidelity
from saema_utils.text.tokens import tokenize

if TYPE_CHECKING:
    from jaxtyping import Float
    from sae_lens import SAE
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

# Short, plain and about different things: about 150 tokens of a large vocabulary, several hundred of a small one.
TEXTS = (
    "The river rises in the hills and runs south to the sea.",
    "She opened the letter, read it twice, and put it away.",
    "In 1969 two men walked on the moon for the first time.",
    "Add the flour slowly and stir until no lumps are left.",
    "Most birds fly south in October and come back in April.",
    "The court decided on Monday that the law could stand.",
    "He plays the violin, but his brother prefers football.",
    "Prices fell by three percent after the bank spoke.",
    "A triangle with two equal sides has two equal angles.",
    "It was raining in Paris when the last train left.",
    "Red and yellow paint make orange if you mix them well.",
)
BETTER = 0.2  # of the variance: what names a reason must explain clearly more than nothing


@dataclass(frozen=True)
class SaeTrial:
    """How well an SAE gives back tokens of plain English.

    Attributes
    ----------
    explained_variance
        Share of the variance over tokens; 0 for their mean, negative for worse.
    l0
        Mean number of active latents.
    norm
        Mean norm of the tokens' vectors.
    """

    n_tokens: int
    explained_variance: float
    l0: float
    norm: float

    def __str__(self) -> str:
        share = f"explains {100 * self.explained_variance:.0f} % of the variance"
        return f"{share} of {self.n_tokens} tokens of plain English ({self.l0:.1f} active latents a token)"


def try_out(model: TransformerBridge, sae: SAE, hook_name: str) -> SaeTrial:
    """Encode and decode the model's vectors of a few sentences; special tokens and sinks are left out.

    Raises
    ------
    ActivationError
        If an activation is not finite.
    """
    (x,) = _vectors(model, [hook_name])
    return _trial(sae, x)


def check_reconstructs(trial: SaeTrial, model: TransformerBridge, sae: SAE, hook_name: str, which: str) -> None:
    """Refuse an SAE that is no better than the mean of the tokens, and say what may be the reason.

    Raises
    ------
    SaeError
        With the numbers, and what would make it explain more if something does.
    """
    if trial.explained_variance > 0:
        return
    reasons = list(_reasons(model, sae, hook_name)) or [
        "its weights are untrained or damaged, or it was trained on another model or place than its files say"
    ]
    raise SaeError(
        f"{which} {trial} at {hook_name}, where their mean alone explains 0 % (their mean norm is {trial.norm:.3g}). "
        f"Likely: {'; '.join(reasons)}. Choose --model, --layer or --sae to match, or use --sae train."
    )


def _trial(sae: SAE, x: Float[Tensor, "N D"]) -> SaeTrial:
    x = x.to(sae.device)
    found = measure_fidelity(SaeCoder(sae), x)
    return SaeTrial(len(x), found.explained_variance, found.l0, float(x.norm(dim=-1).mean()))


def _vectors(model: TransformerBridge, hook_names: list[str]) -> list[Float[Tensor, "N D"]]:
    """Vectors of the sentences' ordinary tokens at each hook."""
    batch = tokenize(model, TEXTS)
    captured = capture_residual_stream(model, batch.tokens, hook_names, lengths=batch.lengths)
    found = []
    for name in hook_names:
        ordinary = batch.real & ~batch.special
        sinks, _ = find_sinks(captured[name].norm(dim=-1), ordinary)
        found.append(captured[name][ordinary & ~sinks])
    return found


def _reasons(model: TransformerBridge, sae: SAE, hook_name: str) -> Iterator[str]:
    """What would make it explain clearly more than nothing: another scale, a centred stream, another layer."""
    layer = int(hook_name.split(".")[1])
    near = [n for n in range(layer - 2, layer + 3) if 0 <= n < model.cfg.n_layers and n != layer]
    names = {n: hook_name.replace(f".{layer}.", f".{n}.") for n in near}
    here, *others = _vectors(model, [hook_name, *names.values()])
    scale = math.sqrt(here.shape[-1]) / float(here.norm(dim=-1).mean())
    scaled, centred = _trial(sae, scale * here), _trial(sae, here - here.mean(dim=-1, keepdim=True))
    if scaled.explained_variance > BETTER:
        yield (
            f"it reads vectors scaled to a mean norm of sqrt(d_in) (times {scale:.3g} it explains "
            f"{100 * scaled.explained_variance:.0f} %): fold that in with sae.fold_activation_norm_scaling_factor"
        )
    if centred.explained_variance > BETTER:
        yield (
            f"its model's writing weights were centred (then it explains {100 * centred.explained_variance:.0f} %): "
            "say so in cfg.json, metadata.model_from_pretrained_kwargs: {center_writing_weights: true}"
        )
    best, n = max(((_trial(sae, x).explained_variance, n) for x, n in zip(others, near, strict=True)), default=(0, 0))
    if best > BETTER:
        yield f"it was trained on another layer (at {names[n]} it explains {100 * best:.0f} %)"
