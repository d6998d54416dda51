"""The residual stream over the prompts of every concept: what all later chapters measure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saema_utils.chapters.activations.model import language_model, model_of
from saema_utils.model.residual_stream import ConceptActivations, capture_concept, pack, unpack
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import tensors
from saema_utils.runtime import progress
from saema_utils.text.concepts import authors_concepts, build_prompts


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


def _authors_prompts_and_model(run: RunDirectory) -> list[Any]:
    return [model_of(run), run.study.hook_name, concepts_of(run), _authors_texts(run)]


def _authors_texts(run: RunDirectory) -> dict[str, list[str]]:
    theirs = authors_concepts()
    return {name: [prompt.text for prompt in theirs[name].prompts] for name in concepts_of(run) if name in theirs}


@tensors("05_authors_concepts", choices=_authors_prompts_and_model)
def authors_tensors(run: RunDirectory) -> dict[str, Tensor]:
    """Residual stream at the study's layer over the authors' prompts, for the concepts that they have."""
    model, theirs = language_model(run), authors_concepts()
    names = list(_authors_texts(run))
    found = {name: capture_concept(model, theirs[name], run.study.hook_name) for name in progress(names, "prompts")}
    return pack(found) if found else {"none": torch.zeros(1)}


def authors_activations(run: RunDirectory) -> dict[str, ConceptActivations]:
    """Residual stream at the study's layer over the authors' prompts, by concept; of those that they have."""
    return unpack(authors_tensors(run))
