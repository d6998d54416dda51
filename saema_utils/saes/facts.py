"""What an autoencoder is, read from the configuration beside its weights, so that nothing heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saema_utils.errors import ArtifactError
from saema_utils.runs.files import read_json


@dataclass(frozen=True)
class SaeFacts:
    """Family and size of an autoencoder, and how the text that it was trained on began.

    Attributes
    ----------
    architecture
        Family as sae_lens names it, such as ``topk`` or ``standard``.
    k
        Active latents per token of a family that is told them, else None: what fires is then measured.
    prepend_bos
        Whether training texts began with the model's BOS token. Chapters always begin with it.
    """

    architecture: str
    d_sae: int
    k: float | None = None
    prepend_bos: bool = True


def read_facts(folder: Path) -> SaeFacts:
    """Facts of an autoencoder kept in sae_lens's format.

    Raises
    ------
    ArtifactError
        If its ``cfg.json`` is not there or cannot be read.
    """
    remedy = "Save or copy the SAE again."
    config = read_json(folder / "cfg.json", "the configuration of an SAE", remedy)
    if not isinstance(config.get("d_sae"), int):
        raise ArtifactError(f"{folder / 'cfg.json'} does not say how many latents the SAE has (d_sae). {remedy}")
    prepend_bos = (config.get("metadata") or {}).get("prepend_bos") is not False
    return SaeFacts(config.get("architecture", "standard"), config["d_sae"], config.get("k"), prepend_bos)


def bos_note(facts: SaeFacts, source: str) -> str:
    """What a reader should know when an autoencoder meets texts that begin otherwise than its training texts did."""
    if facts.prepend_bos:
        return ""
    return (
        f"Note: SAE {source!r} was trained on text without a BOS token. Here every text begins with one; it is masked, "
        "but the tokens after it can see it, so fidelity may differ from what its authors report."
    )
