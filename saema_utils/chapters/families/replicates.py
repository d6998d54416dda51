"""The study with other autoencoders: three of one recipe at three layers, which start from other weights.

What chapter 7 judges of one autoencoder is measured of each, and the headline measures of chapters 3 and 4 by layer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from saema_utils.chapters.activations.concepts import concept_tensors, concepts_of
from saema_utils.chapters.activations.corpus import capture_at, corpus_activations, corpus_at
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.families.measures import COLUMNS, concept_measures
from saema_utils.chapters.families.recipes import comparable_recipe, is_small, training_tokens
from saema_utils.chapters.sae.coders import control_tensors, keep_sae, study_sae
from saema_utils.chapters.scorecard.values import (
    dose_values,
    geometry_values,
    judged_coders,
    rank_values,
    values_known,
    values_of_concept,
)
from saema_utils.errors import ClaimError
from saema_utils.evidence.claims import CLAIMS_FILE, Claim, load_claims
from saema_utils.evidence.multiverse import contrasts_of, effects_of, margins_of, named_beforehand, why_missing
from saema_utils.model.residual_stream import ConceptActivations, capture_concept
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, tensors
from saema_utils.runtime import in_processes, progress
from saema_utils.saes.coders import Coder, RandomDictionary, SaeCoder
from saema_utils.saes.families import small_recipe
from saema_utils.saes.fidelity import measure_fidelity
from saema_utils.saes.loading import load_sae
from saema_utils.saes.training import train_sae
from saema_utils.study import SaeRecipe, Study
from saema_utils.text.concepts import build_prompts

SEEDS = 3
FEW_TOKENS = 4_000  # for what a mean or a share of variance needs


class Replicate(NamedTuple):
    """One autoencoder: the layer that it was trained at, and the seed of its first weights and batches."""

    layer: int
    seed: int

    def __str__(self) -> str:
        return f"{self.layer}-{self.seed}"

    @property
    def hook(self) -> str:
        return f"blocks.{self.layer}.hook_resid_post"


def replicate_layers(n_layers: int, studied: int) -> tuple[int, ...]:
    """The studied layer, and those half way to the first and to the last.

    >>> replicate_layers(30, 15)
    (7, 15, 23)
    """
    return tuple(sorted({studied // 2, studied, min(n_layers - 1, (studied + n_layers + 1) // 2)}))


def replicates_of(run: RunDirectory) -> list[Replicate]:
    """Every seed at every layer; in a study with too little text for a trend, a second layer and a second seed."""
    layers, studied = replicate_layers(language_model(run).cfg.n_layers, run.study.layer), run.study.layer
    seeds = run.study.seeds[:SEEDS]
    if is_small(run):
        found = {Replicate(layer, seeds[0]) for layer in (layers[0], studied)}
        return sorted(found | {Replicate(studied, seed) for seed in seeds[:2]})
    return [Replicate(layer, seed) for layer in layers for seed in seeds]


def _own(run: RunDirectory) -> Replicate:
    return Replicate(run.study.layer, run.study.seed)


def _names(run: RunDirectory) -> list[str]:
    return [str(replicate) for replicate in replicates_of(run)]


def _recipe(run: RunDirectory) -> SaeRecipe:
    """The study's own; where its autoencoder comes from elsewhere, a small one of the same sparsity."""
    own = run.study.sae
    return own if own.source == "train" else small_recipe(comparable_recipe(run), "topk")


@tensors("09_centres", needs=(corpus_activations,))
def centres_of_layers(run: RunDirectory) -> dict[str, Tensor]:
    """Mean of running text at every layer, about which random dictionaries are laid."""
    layers = sorted({replicate.layer for replicate in replicates_of(run)})
    capture_at(run, layers)
    return {str(layer): corpus_at(run, layer).train[:FEW_TOKENS].float().mean(0) for layer in layers}


# The centres come first, so that the text is read at every layer before any two autoencoders ask for it.
@parts("09_replicate_saes", of=_names, needs=(centres_of_layers, control_tensors))
def replicate_saes(run: RunDirectory, names: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """The autoencoders, kept in ``replicates/``; the study's own is one of them and is not trained again."""
    key = replicate_saes.key(run)
    for replicate in progress([one for one in replicates_of(run) if str(one) in names], "training replicates"):
        corpus = corpus_at(run, replicate.layer)
        train, heldout = corpus.train[: training_tokens(run, len(corpus.train))], corpus.heldout[:FEW_TOKENS]
        if replicate == _own(run):
            sae = study_sae(run)
        else:
            about: dict[str, Any] = {"metadata": {"model_name": run.study.model, "hook_name": replicate.hook}}
            given = (train, heldout, _recipe(run), replicate.seed, run.device)
            made = functools.partial(train_sae, *given, **about, description="")
            sae = keep_sae(run, f"replicates/{replicate}", key, lambda: made().sae)  # noqa: B023
        found = measure_fidelity(SaeCoder(sae), heldout.to(run.device))
        facts = replicate._asdict() | {"explained_variance": found.explained_variance, "l0": found.l0}
        yield str(replicate), {replicate_saes.name: pd.DataFrame([facts | {"dead_fraction": found.dead_fraction}])}


replicate_training = replicate_saes.whole(
    "09_replicate_saes",
    "The autoencoders of other layers and seeds: how well each reconstructs held-out running text at its layer.",
    {"seed": "seed of its first weights and of its batches"},
)


def _coders(run: RunDirectory, replicate: Replicate) -> dict[str, Coder]:
    """The autoencoder, and a random dictionary of its width and sparsity."""
    if replicate == _own(run):
        return judged_coders(run)
    sae = SaeCoder(load_sae(run.path / "replicates" / str(replicate), run.device))
    l0 = replicate_saes.part(run, str(replicate))["l0"].iloc[0]
    k, centre = min(sae.n_latents, max(1, round(l0))), centres_of_layers(run)[str(replicate.layer)]
    return {"sae": sae, "random_dictionary": RandomDictionary(sae.d_in, sae.n_latents, k, replicate.seed, bias=centre)}


def rules(run: RunDirectory) -> list[str]:
    """What the effects hang on beside the study: which analysis was named beforehand."""
    return [run.study.digest, CLAIMS_FILE.read_text(encoding="utf-8")]


# What chapter 7 measures is measured here by its functions: where they change, so does this.
JUDGED = (rank_values, geometry_values, dose_values)


@parts(
    "09_replicates", of=concepts_of, needs=(replicate_saes, centres_of_layers, concept_tensors, *JUDGED), choices=rules
)
def effects_of_replicates(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Effects and headline measures of a concept with every autoencoder. One concept a part."""
    replicate_saes(run)
    model, prompts, replicates = language_model(run), build_prompts(run.study), replicates_of(run)
    coders = {replicate: _coders(run, replicate) for replicate in replicates}
    hooks = list(dict.fromkeys(replicate.hook for replicate in replicates))
    jobs = []
    for concept in concepts:
        captured = capture_concept(model, prompts[concept], hooks)
        known = values_known(run, concept)
        jobs += [(captured[r.hook], coders[r], run.study, r, known if r == _own(run) else {}) for r in replicates]
    found: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    for number, one in enumerate(in_processes(_measured, jobs, "effects with every autoencoder", run.device), 1):
        found.append(one)
        if number % len(replicates) == 0:
            effects, headline = (pd.concat(frames, ignore_index=True) for frames in zip(*found, strict=True))
            headline["depth"] = headline["layer"] / max(1, model.cfg.n_layers - 1)
            yield concepts[number // len(replicates) - 1], {"09_replicates": effects, "09_layers": headline}
            found = []


def _measured(
    activations: ConceptActivations,
    coders: dict[str, Coder],
    study: Study,
    replicate: Replicate,
    known: Mapping[str, pd.DataFrame],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every claim's effect in one concept with one autoencoder; and the headline measures, of a layer's first alone."""
    about = {"concept": activations.prompts.concept, "layer": replicate.layer, "seed": replicate.seed}
    values = values_of_concept(activations, coders, study, known)
    rows = []
    for claim in judged_claims():
        for contrast in contrasts_of(claim):
            found = _effect(values.get(claim.units), claim, contrast)
            rows.append({"claim": claim.id, "contrast": contrast, **about, **found})
    headline = pd.DataFrame()
    if replicate.seed == study.seed:
        options = {"min_cluster_size": study.geometry.min_cluster_size, "seed": study.seed}
        device = coders["sae"].dictionary().device
        headline = concept_measures(activations, {"sae": coders["sae"]}, device=device, **options)
        headline = headline.assign(layer=replicate.layer)
    return pd.DataFrame(rows), headline


def _effect(values: pd.DataFrame | None, claim: Claim, contrast: str) -> dict[str, Any]:
    """The effect by the analysis named beforehand, the median over all of them in margins, and why there is none."""
    nothing = {"effect": float("nan"), "median": float("nan")}
    if values is None:
        return nothing | {"reason": "no two words have tokens left"}
    if not values["measure"].isin(claim.measures).any():  # no cycle, say; or nothing could be measured at all
        said = values.loc[values["measure"] == "", "reason"]
        return nothing | {"reason": said.iloc[0] if len(said) else "the concept has nothing of the kind"}
    try:
        every = effects_of(values, claim, contrast)
    except ClaimError as error:
        return nothing | {"reason": str(error)}
    (effect,) = named_beforehand(every, claim)
    median = (every.iloc[:, 0] / margins_of(every, claim)).median()  # of those that have a value
    return {"effect": effect, "median": median, "reason": why_missing(values, claim) if effect != effect else ""}


@functools.cache
def judged_claims() -> tuple[Claim, ...]:
    """Those whose units are concepts; of training for separation the units are autoencoders already."""
    return tuple(claim for claim in load_claims() if claim.unit == "concept")


replicate_effects = effects_of_replicates.whole(
    "09_replicates",
    "The effect behind every claim in each concept with each autoencoder, by the analysis named beforehand and by all.",
    {
        "claim": "its id",
        "contrast": "itself: the code against its baseline; lead: against a control that learned nothing",
        "seed": "seed of the autoencoder",
        "effect": "by the analysis named beforehand, in the unit of its measure",
        "median": "over all analyses of our prompts, in margins, positive on the paper's side",
        "reason": "why there is none",
    },
)
layer_table = effects_of_replicates.whole(
    "09_layers",
    "Headline measures per layer, concept and representation, with the first autoencoder of each layer.",
    {**COLUMNS, "depth": "place of the layer in the model: 0 first, 1 last"},
)
