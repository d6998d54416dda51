"""The language model of a run: one at a time in a process, on the run's device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saema_utils.model.loading import check_layer, load_language_model, model_digest
from saema_utils.runs.directory import RunDirectory

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_MODELS: dict[tuple[str, str], TransformerBridge] = {}


def language_model(run: RunDirectory) -> TransformerBridge:
    """The study's language model on the run's device; loaded once per process.

    Raises
    ------
    ModelError
        If it cannot be loaded, or has no layer ``study.layer``.
    """
    key = (run.study.model, str(run.device))
    if key not in _MODELS:
        _MODELS.clear()  # one at a time: two may not fit
        _MODELS[key] = load_language_model(run.study, run.device)
    model = _MODELS[key]
    check_layer(run.study.layer, model.cfg.n_layers, run.study.model)
    return model


def model_of(run: RunDirectory) -> str:
    """Digest of the files of the run's language model, which the run notes beside everything that it writes."""
    run.model = model_digest(run.study)
    return run.model
