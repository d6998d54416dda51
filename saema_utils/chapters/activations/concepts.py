"""The residual stream over the prompts of every concept: what all later chapters measure."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from saema_utils.chapters.activations.model import language_model, model_of
from saema_utils.model.residual_stream import ConceptActivations, capture_concept, pack, unpack
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import tensors
from saema_utils.runtime import progress
from saema_utils.text.concepts import build_prompts


def concepts_of(run: RunDirectory) -> list[str]:
    """The concepts of the study that have prompts."""
    return list(build_prompts(run.study))


def _prompts_and_model(run: RunDirectory) -> list[Any]:
    prompts = build_prompts(run.study).items()
    texts = [(name, [(p.text, p.word, *p.span) for p in found.prompts], found.left_out) for name, found in prompts]
    return [model_of(run), run.study.hook_name, texts]


@tensors("01_concepts", choices=_prompts_and_model)
def concept_tensors(run: RunDirectory) -> dict[str, Tensor]:
    """Residual stream at the study's layer over every concept's prompts."""
    model, prompts = language_model(run), build_prompts(run.study)
    for found in prompts.values():
        for remark in found.remarks:
            run.remark(remark)
    steps = progress(prompts.items(), "concept activations", len(prompts))
    return pack({name: capture_concept(model, found, run.study.hook_name) for name, found in steps})


def concept_activations(run: RunDirectory) -> dict[str, ConceptActivations]:
    """Residual stream at the study's layer over every concept's prompts, by concept.

    Made once and kept as ``tensors/01_concepts.safetensors``.
    """
    return unpack(concept_tensors(run))
