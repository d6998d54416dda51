"""Chapter 6 of a run: the authors' protocol, on their prompts and on the study's own.

What runs how often: the protocol as published on all codes; the stream, the SAE and the random dictionary also with a
second seed of the embedding (in a study of five seeds or more), without each of the protocol's steps, and on the
study's own prompts. The random walks of the poles belong to the protocol as published.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saema_utils.chapters.activations.concepts import concept_tensors, concepts_of
from saema_utils.chapters.activations.corpus import corpus_activations
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.sae.coders import control_tensors, sae_l0, study_coders
from saema_utils.errors import GeometryError
from saema_utils.evidence.replay import replay_signs
from saema_utils.model.residual_stream import capture_residual_stream, find_sinks
from saema_utils.replay.nudges import correlations, walk_poles
from saema_utils.replay.structure import RECIPES, Structure, TokenKinds, kinds_of_tokens, measure_structure
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, table
from saema_utils.runtime import in_processes, progress
from saema_utils.saes.coders import Coder, SaeCoder
from saema_utils.saes.training import untrained_sae
from saema_utils.text.concepts import authors_prompts, build_prompts
from saema_utils.text.tokens import tokenize

CODERS = ("sae", "random_dictionary", "untrained_sae", "pca")
CLOSELY = ("residual", "sae", "random_dictionary")
N_SEEDS = 2
WHOSE = {"prompts": "whose prompts: the authors', or those of the study", "coder": "what encoded the residual stream"}
RECIPE = {"recipe": "the protocol as published, or the step of it that was switched off"}


def replay_coders(run: RunDirectory) -> dict[str, Coder]:
    """The study's SAE, and three codes that learned no feature: two of its width and sparsity, one of its error."""
    coders = study_coders(run)
    width, k = coders["sae"].n_latents, max(1, round(sae_l0(run)))
    recipe = dataclasses.replace(run.study.sae, d_sae=width, k=min(k, width))
    newborn = untrained_sae(corpus_activations(run).train, recipe, run.study.seed, run.device)
    return {name: coders.get(name) or SaeCoder(newborn, name) for name in CODERS}


def replay_prompts(run: RunDirectory) -> dict[str, dict[str, list[str]]]:
    """By whose they are and by concept: the texts of the prompts, the authors' where they have some for a concept."""
    theirs = authors_prompts()
    ours = {concept: [prompt.text for prompt in found.prompts] for concept, found in build_prompts(run.study).items()}
    return {"authors": {concept: theirs[concept] for concept in ours if concept in theirs}, "ours": ours}


@dataclasses.dataclass(frozen=True)
class ReplayTokens:
    """Every token of a concept's prompts, BOS and padding among them.

    Vectors [N, D], what kind each is, and [N] whether its error counts: it is neither padding nor special.
    """

    residual: Tensor
    kinds: TokenKinds
    counted: Tensor


def replay_tokens(model: Any, texts: list[str], hook_name: str) -> ReplayTokens:
    """All tokens of texts as the authors take them: rows padded to one length, the padding run through the model."""
    batch = tokenize(model, texts)
    residual = capture_residual_stream(model, batch.tokens, hook_name)
    real = batch.real & ~batch.special
    sinks, _ = find_sinks(residual.norm(dim=-1), real)
    flat = residual.flatten(0, 1)
    return ReplayTokens(flat, kinds_of_tokens(flat, (real & ~sinks).flatten().numpy()), real.flatten())


@parts("06_replay", of=concepts_of, needs=(concept_tensors, control_tensors))
def replayed_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """What the protocol finds in one concept after the other."""
    model, coders, prompts = language_model(run), replay_coders(run), replay_prompts(run)
    seeds, jobs = run.study.seeds[: N_SEEDS if run.study.n_seeds >= 5 else 1], []
    asked = [(concept, whose) for concept in concepts for whose, texts in prompts.items() if concept in texts]
    for concept, whose in progress(asked, "tokens of the replay", len(asked)):
        tokens = replay_tokens(model, prompts[whose][concept], run.study.hook_name)
        # Where a concept has no prompts of the authors', the study's own are looked at as closely.
        jobs.append((tokens, coders, seeds, whose == "authors" or concept not in prompts["authors"]))
    results = zip(asked, in_processes(replay_concept, jobs, "replay of concepts", run.device), strict=True)
    for concept, parts_of_it in itertools.groupby(results, key=lambda item: item[0][0]):
        found, walked = [], []
        for (_, whose), (rows, walks) in parts_of_it:
            head = {"prompts": whose, "concept": concept}
            found += [head | row for row in rows]
            walked += [walk.assign(**head) for walk in walks]
        steps = pd.concat(walked, ignore_index=True) if walked else pd.DataFrame()
        yield concept, {"06_replay": pd.DataFrame(found), "06_replay_steps": steps.reindex(columns=STEP_COLUMNS)}


STEP_COLUMNS = ["prompts", "concept", "coder", "seed", "scale", "step", "separation", "mse"]


def replay_concept(
    tokens: ReplayTokens, coders: Mapping[str, Coder], seeds: tuple[int, ...], closely: bool
) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """One concept: rows of what the protocol finds, and the walks of each code's poles.

    With ``closely`` those of :data:`CLOSELY` also with every seed and without each of the protocol's steps; otherwise
    these alone.
    """
    residual = tokens.residual
    rows, walks = [], []
    for name in (name for name in ("residual", *coders) if closely or name in CLOSELY):
        with torch.no_grad():
            latents = residual if name == "residual" else coders[name].encode(residual.to(_device(coders[name])))
        firing = latents[:, (latents != 0).any(dim=0)]
        in_full = closely and name in CLOSELY
        for recipe in RECIPES if in_full else RECIPES[:1]:
            kept = tokens.kinds.kept(recipe)
            for seed in seeds if in_full and recipe == RECIPES[0] else seeds[:1]:
                row = {"coder": name, "recipe": recipe, "seed": seed, "n_tokens": int(kept.sum())}
                found, labels = structure_row(firing[torch.as_tensor(kept, device=firing.device)], recipe, seed=seed)
                rows.append(row | found)
                if recipe == RECIPES[0] and name != "residual" and found["n_local"] > 1:
                    walks.append(_walk(tokens, latents, coders[name], labels, seed).assign(coder=name, seed=seed))
    return rows, walks


def _device(coder: Coder) -> torch.device:
    return coder.dictionary().device


def structure_row(
    points: Tensor, recipe: str = RECIPES[0], *, seed: int = 0
) -> tuple[dict[str, Any], np.ndarray | None]:
    """What :func:`~saema_utils.replay.structure.measure_structure` finds, as a row of ``06_replay``, and the labels.

    NaN and no labels where there are too few tokens; ``reason`` says so.
    """
    try:
        found = dataclasses.asdict(measure_structure(points, recipe, seed=seed))
    except GeometryError as error:
        names = (field.name for field in dataclasses.fields(Structure) if field.name != "labels")
        return dict.fromkeys(names, float("nan")) | {"reason": str(error)}, None
    labels, n = found.pop("labels"), found["n_local"]
    return found | {"reason": "" if n > 1 else f"{n} clusters: no poles to join"}, labels


def _walk(tokens: ReplayTokens, latents: Tensor, coder: Coder, labels: Any, seed: int) -> pd.DataFrame:
    dictionary = coder.dictionary()
    place = dictionary.device
    # The authors decode without what a run-time normalisation would put back.
    bias = coder.sae.b_dec if isinstance(coder, SaeCoder) else coder.decode(torch.zeros(coder.n_latents, device=place))
    return walk_poles(latents, tokens.residual.to(place), labels, tokens.counted.to(place), dictionary, bias, seed=seed)


replay_table = replayed_concepts.whole(
    "06_replay",
    "What the authors' protocol finds in each concept, by code, and without each of its steps.",
    WHOSE
    | RECIPE
    | {
        "n_tokens": "tokens measured",
        "n_local": "clusters in the embedding",
        "intrinsic_dimension": "TwoNN dimension of the clusters, by a straight line, in the space of the clusters",
        "mst_weight": "total length of the tree of the clusters' means there",
        "mst_weight_scale_free": "mean edge of that tree in units of the cloud's own radius",
    },
)
steps_table = replayed_concepts.whole(
    "06_replay_steps",
    "Separation and error at every step of the poles' random walks.",
    WHOSE
    | {
        "scale": "by how much larger the steps of a walk are",
        "step": "number of the step; at 0 nothing has moved",
        "separation": "average distance of poles, in latents",
        "mse": "mean squared error of z-scored vectors",
    },
)


@table(
    "06_replay_signs",
    needs=(replay_table,),
    columns=WHOSE
    | RECIPE
    | {
        "measure": "column of 06_replay",
        "paper": "the sign that the paper reports: 1 for more than in the residual stream, -1 for less",
        "estimate": "log ratio to the residual stream, mean over concepts",
        "n_concepts": "concepts with a value on both sides",
        "sign": "whether its interval lies on the paper's side of zero",
    },
)
def signs_table(run: RunDirectory) -> pd.DataFrame:
    """Whether the paper's signs come back, code by code and step by step."""
    return replay_signs(replay_table(run))


@table(
    "06_replay_correlations",
    needs=(steps_table,),
    columns=WHOSE
    | {
        "r_all": "correlation of separation and error over all steps",
        "r_kept": "the same over the steps that a joint loss kept",
        "r_null": "the same over kept steps when errors had been shuffled, mean",
        "r_null_low": "lower end of the middle 95 % of that",
        "r_null_high": "upper end of it",
    },
)
def correlations_table(run: RunDirectory) -> pd.DataFrame:
    """How separation and error go together over all steps, over those that were kept, and by the choice alone."""
    steps, rows = steps_table(run), []
    for names, part in steps.groupby(["prompts", "concept", "coder", "seed"], sort=False):
        head = dict(zip(("prompts", "concept", "coder", "seed"), names, strict=True))
        rows.append(head | correlations(part, seed=run.study.seed))
    columns = ["prompts", "concept", "coder", "seed", "r_all", "r_kept", "r_null", "r_null_low", "r_null_high"]
    return pd.DataFrame(rows, columns=columns)
