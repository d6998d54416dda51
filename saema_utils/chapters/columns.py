"""What the columns mean that many tables share. A table says the same of its own columns where it is declared."""

from __future__ import annotations

COMMON: dict[str, str] = {
    "concept": "the concept, such as months",
    "representation": "where it was measured: residual, sae, or a control",
    "seed": "seed of what is random",
    "latent": "number of the latent in the autoencoder",
    "layer": "layer of the language model, from 0",
    "word": "word of the concept",
    "token": "the token's text",
    "tokens": "tokens that were measured",
    "prompts": "prompts of the concept",
    "words": "words of the concept",
    "position": "place of the token in its prompt",
    "explained_variance": "share of the variance of held-out tokens that reconstructions explain",
    "l0": "mean number of active latents a token",
    "estimate": "the effect",
    "low": "lower end of its 95 % interval",
    "high": "upper end of its 95 % interval",
    "n": "units behind it",
    "p_value": "p-value",
    "verdict": "what the rule decides",
    "reason": "why a value is missing; empty where none is",
}
