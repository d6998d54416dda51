"""One measure at several depths: the headline measures of chapters 3 and 4 at some layers of the study's model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from saema_utils.chapters.activations.concepts import concept_tensors, concepts_of
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.families.measures import COLUMNS, concept_measures
from saema_utils.chapters.families.recipes import comparable_recipe, is_small, training_tokens
from saema_utils.chapters.sae.coders import control_tensors, keep_sae
from saema_utils.model.residual_stream import capture_concept, capture_residual_stream, find_sinks
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, table
from saema_utils.runtime import progress
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.families import small_recipe
from saema_utils.saes.fidelity import measure_fidelity
from saema_utils.saes.loading import load_sae
from saema_utils.saes.training import train_sae
from saema_utils.text.concepts import build_prompts
from saema_utils.text.corpus import corpus_tokens
from saema_utils.text.tokens import special_tokens

LAYERS = 4
LAYERS_SMALL = 2  # in a study with too little text for a trend to be read
LAYER_TOKENS = 24_000
HELDOUT_TOKENS = 4_000


def spread_layers(n_layers: int, studied: int, count: int = LAYERS) -> tuple[int, ...]:
    """``count`` layers spread over the middle two thirds of a model, the studied one among them.

    >>> spread_layers(30, 15)
    (5, 12, 15, 25)
    """
    spread = np.linspace(n_layers // 6, max(studied, 5 * n_layers // 6), min(count, n_layers)).round().astype(int)
    layers = sorted({min(int(layer), n_layers - 1) for layer in spread})
    if studied not in layers:
        layers[max(range(len(layers)), key=lambda i: (-abs(layers[i] - studied), i))] = studied
    return tuple(sorted(layers))


def _layers(run: RunDirectory) -> list[str]:
    count = LAYERS_SMALL if is_small(run) else LAYERS
    return [str(layer) for layer in spread_layers(language_model(run).cfg.n_layers, run.study.layer, count)]


@parts("09_layer_saes", of=_layers, needs=(control_tensors,))
def layer_saes(run: RunDirectory, layers: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """A TopK autoencoder at every layer, trained with the families' small recipe and kept in ``layers/``."""
    recipe, key = small_recipe(comparable_recipe(run), "topk"), layer_saes.key(run)
    captured = _corpus_at(run, tuple(map(int, layers)))
    for layer, (train, heldout) in progress(captured.items(), "training layers"):
        metadata = {"model_name": run.study.model, "hook_name": f"blocks.{layer}.hook_resid_post"}
        trained = train_sae(train, heldout, recipe, run.study.seed, run.device, metadata=metadata, description="")
        keep_sae(run, f"layers/{layer}", key, lambda: trained.sae)  # noqa: B023
        found = measure_fidelity(SaeCoder(trained.sae), heldout.to(run.device))
        fact = {"layer": layer, "explained_variance": found.explained_variance}
        yield str(layer), {layer_saes.name: pd.DataFrame([fact])}


@parts("09_layers", of=concepts_of, needs=(layer_saes, concept_tensors))
def layers_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Headline measures at every layer, concept by concept."""
    layer_saes(run)
    model, prompts = language_model(run), build_prompts(run.study)
    hooks = {f"blocks.{layer}.hook_resid_post": int(layer) for layer in _layers(run)}
    for concept in progress(concepts, "measuring layers"):
        captured = capture_concept(model, prompts[concept], list(hooks))
        frames = []
        for hook, layer in hooks.items():
            measured = concept_measures(
                captured[hook],
                {"sae": SaeCoder(load_sae(run.path / "layers" / str(layer), run.device))},
                min_cluster_size=run.study.geometry.min_cluster_size,
                seed=run.study.seed,
                device=run.device,
            )
            frames.append(measured.assign(layer=layer, depth=layer / (model.cfg.n_layers - 1)))
        yield concept, {layers_of_concepts.name: pd.concat(frames)}


@table(
    "09_layers",
    needs=(layers_of_concepts, layer_saes),
    columns={**COLUMNS, "depth": "place of the layer in the model: 0 first, 1 last"},
)
def layer_table(run: RunDirectory) -> pd.DataFrame:
    """Headline measures per layer, concept and representation, with the layer's autoencoder's explained variance."""
    explained = layer_saes(run).set_index("layer")["explained_variance"].to_dict()
    found = layers_of_concepts(run)
    return found.assign(explained_variance=found["layer"].map(explained))


def _corpus_at(
    run: RunDirectory, layers: tuple[int, ...]
) -> dict[int, tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]]:
    """Unmasked activations of the study's text at several layers from one pass: training and held-out tokens."""
    corpus, model = run.study.corpus, language_model(run)
    few = min(training_tokens(run, LAYER_TOKENS), corpus.tokens)
    recipe = dataclasses.replace(corpus, tokens=few, heldout_tokens=min(HELDOUT_TOKENS, corpus.heldout_tokens))
    text = corpus_tokens(model, recipe, run.study.seed)
    rows = torch.cat([text.heldout, text.train])
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    captured = capture_residual_stream(model, rows, hooks, description="corpus at several layers")
    ordinary, is_train = ~special_tokens(model, rows), torch.arange(len(rows))[:, None] >= len(text.heldout)
    found = {}
    for layer, hook in zip(layers, hooks, strict=True):
        residual = captured.pop(hook)
        norms = residual.norm(dim=-1)
        sinks, _ = find_sinks(norms, ordinary, typical=ordinary & is_train)
        keep = ordinary & ~sinks
        found[layer] = tuple(residual[keep & part].half() for part in (is_train, ~is_train))
    return found
