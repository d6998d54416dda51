"""The tables of chapter 1: what the tokens of each concept are like, and where its words stand."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from saema_utils.chapters.activations.concepts import concept_activations, concept_tensors
from saema_utils.chapters.activations.model import language_model
from saema_utils.errors import ActivationError
from saema_utils.geometry.circles import (
    cyclic_order,
    places_around,
    principal_plane,
    similarity,
    variance_shares,
    word_means,
)
from saema_utils.model.residual_stream import SINK_FACTOR, ConceptActivations, capture_concept, largest_part
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import table
from saema_utils.runtime import progress
from saema_utils.statistics import label_permutation_test
from saema_utils.text.concepts import ConceptPrompts, Prompt, build_prompts, left_out


@table(
    "01_concepts",
    needs=(concept_tensors,),
    columns={
        "left_out": "prompts of a file in which no word was found: how many, and the first few; empty if none",
        "positions": "places of the padded tensor: tokens, special tokens, sinks and padding together",
        "tokens": "ordinary tokens: what every measure sees",
        "special": "special tokens, masked",
        "sinks": "attention sinks, masked: tokens of more than five times the median norm",
        "padding": "places after the end of a prompt, masked",
        "median_norm": "median norm of the ordinary tokens' vectors",
        "rms": "root mean square of one coordinate over the ordinary tokens",
    },
)
def concept_table(run: RunDirectory) -> pd.DataFrame:
    """How many prompts, words and tokens each concept has, what is masked, and how large the stream is."""
    return pd.DataFrame(
        {
            "concept": concept,
            "prompts": len(found.prompts),
            "words": len(found.prompts.words),
            "left_out": left_out(found.prompts),
            "positions": found.mask.numel(),
            "tokens": int(found.mask.sum()),
            "special": found.n_special,
            "sinks": found.n_sinks,
            "padding": found.n_padding,
            "median_norm": found.median_norm,
            "rms": found.rms,
        }
        for concept, found in concept_activations(run).items()
    )


@table(
    "01_shared_part",
    needs=(concept_tensors,),
    columns={
        "shared": "share of the tokens' squared length that is the same for all of them",
        "largest_coordinate": "share of the squared length in the coordinate that holds most of it",
        "largest_varying": "share of the variance about the mean in the coordinate that varies most",
    },
)
def shared_part_table(run: RunDirectory) -> pd.DataFrame:
    """What the tokens of a concept have in common, and how much of it one coordinate holds."""
    return pd.DataFrame(
        {"concept": concept} | asdict(largest_part(found.points()))
        for concept, found in concept_activations(run).items()
    )


@table(
    "01_norms",
    needs=(concept_tensors,),
    columns={
        "context": "whether the word stands in a sentence or alone",
        "prompt": "number of the prompt within its concept",
        "norm": "norm of the residual vector",
        "kind": "first position, ordinary token, or sink",
        "ratio": "norm over the median norm of the concept's ordinary tokens",
    },
)
def norm_table(run: RunDirectory) -> pd.DataFrame:
    """Norm of every token, in sentences and in prompts of a bare word."""
    model, tables = language_model(run), []
    for concept, found in concept_activations(run).items():
        bare = tuple(Prompt(word, word, "{}", concept) for word in found.prompts.words)
        alone = capture_concept(model, ConceptPrompts(concept, bare), run.study.hook_name)
        tables += [_norms(found, "sentence"), _norms(alone, "bare word", found.median_norm)]
    return pd.concat(tables, ignore_index=True)


def _norms(found: ConceptActivations, context: str, median: float | None = None) -> pd.DataFrame:
    median = found.median_norm if median is None else median
    norms = found.residual.norm(dim=-1)
    rows = []
    for p, strings in enumerate(found.token_strings):
        for t, token in enumerate(strings):
            ratio = float(norms[p, t]) / median
            kind = "first" if t == 0 else "sink" if ratio > SINK_FACTOR else "ordinary"
            rows.append((found.prompts.concept, context, p, t, token, float(norms[p, t]), kind, ratio))
    columns = ["concept", "context", "prompt", "position", "token", "norm", "kind", "ratio"]
    return pd.DataFrame(rows, columns=columns)


@table(
    "01_sink_variance",
    needs=(concept_tensors,),
    columns={
        "tokens": "whether everything that should be is masked, or one sink was let in",
        "components": "number of principal components",
        "share": "share of the variance that they hold together",
    },
)
def variance_table(run: RunDirectory, k: int = 20) -> pd.DataFrame:
    """Variance shared out over principal components with everything masked, and with one sink let in."""
    rows = []
    for concept, activations in concept_activations(run).items():
        points = activations.points()
        # The first position of the first prompt is a sink in every causal model known to us.
        spoilt = torch.cat([points, activations.residual[0, :1]])
        for tokens, cloud in (("masked", points), ("one sink let in", spoilt)):
            shares = variance_shares(cloud, k)
            rows += [(concept, tokens, i + 1, float(share)) for i, share in enumerate(shares)]
    return pd.DataFrame(rows, columns=["concept", "tokens", "components", "share"])


def mapped_concepts(run: RunDirectory) -> list[str]:
    """The concepts that are drawn as maps: months and days, or else the first two of four words or more."""
    prompts = build_prompts(run.study)
    long_enough = [name for name, found in prompts.items() if len(found.words) >= 4]
    return [name for name in ("months", "days") if name in long_enough] or long_enough[:2]


@table(
    "01_word_maps",
    needs=(concept_tensors,),
    columns={
        "x": "first coordinate in the principal plane of the words' means",
        "y": "second coordinate in that plane",
        "plane_share": "share of the words' variance in the plane",
        "cyclic_order": "share of neighbours in the cycle that are neighbours around the plane",
        "chance": "mean of that over shuffled words",
        "p_value": "share of 999 shuffles at least as ordered",
    },
)
def word_maps(run: RunDirectory) -> pd.DataFrame:
    """Principal plane of the words of months and days at every layer.

    All layers are captured in one pass. A layer where fewer than four words have a mean (the rest being sinks
    in every prompt) has no rows.
    """
    prompts, chosen = build_prompts(run.study), mapped_concepts(run)
    if not chosen:
        return _no_map()
    model, maps = language_model(run), []
    hooks = {f"blocks.{layer}.hook_resid_post": layer for layer in range(model.cfg.n_layers)}
    for concept in progress(chosen, "word maps", len(chosen)):
        found = capture_concept(model, prompts[concept], list(hooks))
        maps += [word_map(found[name], hooks[name], run.study.seed) for name in hooks]
    drawn = [found for found in maps if len(found)]
    return pd.concat(drawn, ignore_index=True) if drawn else _no_map()


def _no_map() -> pd.DataFrame:
    return pd.DataFrame(columns=["concept", "layer", "word", *word_maps.columns])


def word_map(found: ConceptActivations, layer: int, seed: int) -> pd.DataFrame:
    """The words of a concept in the principal plane of their means, and whether they stand there in cyclic order.

    Columns are those of the table ``01_word_maps``; no rows where fewer than four words have a mean.
    """
    means = word_means(found)
    known = torch.isfinite(means).all(1)
    if known.sum() < 4:  # the others are sinks in every prompt
        return _no_map()
    words = [word for word, has_mean in zip(found.prompts.words, known, strict=True) if has_mean]
    plane, share = principal_plane(means[known])
    places = places_around(plane)
    order, p_value = label_permutation_test(
        lambda labels: cyclic_order(places[labels]), np.arange(len(words)), seed=seed
    )
    return pd.DataFrame(
        {
            "concept": found.prompts.concept,
            "layer": layer,
            "word": words,
            "x": plane[:, 0],
            "y": plane[:, 1],
            "plane_share": share,
            "cyclic_order": order,
            "chance": 2 / (len(words) - 1),
            "p_value": p_value,
        }
    )


def middle_of_rings(maps: pd.DataFrame) -> int:
    """The layer to study: the middle of the longest run of layers at which every ring is perfect (``01_word_maps``).

    Perfect means that all words stand around their centre between their neighbours in the cycle, in every concept that
    was drawn. Of two middles the lower one is taken, of two runs as long the earlier one. This chose the layers of
    both embedded models, before any later chapter had looked at them.

    Raises
    ------
    ActivationError
        If there is no such layer.
    """
    order = maps.groupby(["layer", "concept"])["cyclic_order"].first().unstack()
    perfect = order.eq(1).all(axis=1)
    layers = perfect.index[perfect].to_numpy()
    if not len(layers):
        raise ActivationError("no layer has all words in order in every concept; choose the layer by other means.")
    runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])


def word_similarities(run: RunDirectory) -> dict[str, pd.DataFrame]:
    """Cosine similarity between the mean vectors of words, a square frame for each concept that is mapped."""
    activations, frames = concept_activations(run), {}
    for concept in mapped_concepts(run):
        words = list(activations[concept].prompts.words)
        frames[concept] = pd.DataFrame(similarity(word_means(activations[concept])).numpy(), words, words)
    return frames
