"""What chapter 7 judges: one value a concept, representation and analysis, on the study's prompts and the authors'.

The measures are those of :mod:`~saema_utils.stratification`, :mod:`~saema_utils.geometry` and
:mod:`~saema_utils.intervention`; here they are given the run's activations and autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from saema_utils.chapters.activations.concepts import (
    authors_activations,
    authors_tensors,
    concept_activations,
    concept_tensors,
    concepts_of,
)
from saema_utils.chapters.intervention.tables import encoded_words, optimised_table, searches_of
from saema_utils.chapters.intervention.training import training_choices_table
from saema_utils.chapters.sae.coders import control_tensors, study_coders
from saema_utils.distances import first_copies, pairwise_distances
from saema_utils.errors import GeometryError, InterventionError
from saema_utils.evidence.effects import training_values
from saema_utils.evidence.searches import search_values
from saema_utils.geometry.choices import geometry_under_choices
from saema_utils.geometry.clusters import find_local_representations
from saema_utils.geometry.concept import concept_clouds
from saema_utils.intervention.cross_fit import doses_under_choices
from saema_utils.model.residual_stream import ConceptActivations, label_words
from saema_utils.notebook import in_colab
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import Result, parts, table
from saema_utils.runtime import in_processes, progress
from saema_utils.saes.coders import Coder
from saema_utils.saes.fidelity import explained_variance
from saema_utils.stratification.movement import rank_movement
from saema_utils.stratification.token_cloud import TokenCloud
from saema_utils.study import Study

OURS, AUTHORS = "ours", "authors"
CODES = ("sae", "random_dictionary")
RECONSTRUCTED = {"sae": "reconstruction", "random_dictionary": "random_reconstruction"}
SEEDS = 1  # of noise: it is averaged over hundreds of tokens, and concepts differ ten times as much as seeds
DRAWS = 2  # of the random arms of an edit
SMALLEST = 10  # tokens of a cluster that is moved as a whole
NAMED_SEARCHES = (("aedp", "raise"), ("random", "raise"))
VALUE = {
    "prompts": "whose prompts: the study's own (ours), or those of the paper's authors",
    "measure": "what is measured",
    "value": "its value: a logarithm, a share or a dose, so that two representations are compared by a difference",
}

SCALING = "whether a common scaling is fitted beside (joint) or not (alone)"
WEIGHT = "whether every squared error counts alike (tokens), or relative to the token's own size or error (relative)"

# ---- what other chapters found ------------------------------------------------------------------


def as_it_stands(run: RunDirectory, made: Result) -> pd.DataFrame:
    """A table of an earlier chapter, which may be older than the code.

    Raises
    ------
    MissingInputError
        If that chapter has not been run. (In Colab, where each chapter opens on a machine of its own, the table is
        made instead.)
    """
    return made(run) if in_colab() else run.table(made.name)


def stored(*made: Result) -> Callable[[RunDirectory], list[Any]]:
    """The study, and the hashes of tables that are judged :func:`as they stand <as_it_stands>`."""

    def choices(run: RunDirectory) -> list[Any]:
        for result in made:
            as_it_stands(run, result)
        return [run.study.digest, *(run.entry(result.place)["sha256"] for result in made)]

    return choices


# ---- what is measured --------------------------------------------------------------------------


def activations_by_prompts(run: RunDirectory) -> dict[str, dict[str, ConceptActivations]]:
    """By whose prompts they are and by concept: the residual stream."""
    return {OURS: concept_activations(run), AUTHORS: authors_activations(run)}


def judged_coders(run: RunDirectory) -> dict[str, Coder]:
    """The study's autoencoder, and the control that learned nothing."""
    found = study_coders(run)
    return {name: found[name] for name in CODES}


MEASURED = (concept_tensors, control_tensors, authors_tensors)

# ---- values ------------------------------------------------------------------------------------


@parts("07_rank_values", of=concepts_of, needs=MEASURED)
def rank_values_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """How far noise moves each rank of a concept's covariances. One concept a part."""
    activations, coders = activations_by_prompts(run), judged_coders(run)
    encoders = {"residual": _itself, **{name: coder.encode for name, coder in coders.items()}}
    for concept in progress(concepts, "ranks under every choice", len(concepts)):
        found = []
        for whose, by_concept in activations.items():
            if (own := by_concept.get(concept)) is not None:
                cloud = TokenCloud.of(own.residual.to(run.device), own.mask, concept)
                moved = rank_movement([cloud], encoders, seeds=run.study.seeds[:SEEDS])
                found.append(moved.assign(prompts=whose))
        yield concept, {"07_rank_values": pd.concat(found, ignore_index=True)}


def _itself(x: Tensor) -> Tensor:
    return x


rank_values = rank_values_of_concepts.whole(
    "07_rank_values",
    "How far noise moves each rank of each covariance, under every choice.",
    VALUE
    | {
        "mode": "unfolding by prompt, position or feature",
        "noise": "isotropic, or shaped like the activations",
        "tokens": "all, or one for each distinct context",
        "change": "mean of the log ratio to no noise (signed), or of its size (absolute)",
        "upto": "largest noise, in RMS of the stream",
    },
)


@parts("07_geometry_values", of=concepts_of, needs=MEASURED)
def geometry_values_of_concepts(
    run: RunDirectory, concepts: list[str]
) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """The geometry of a concept under every choice. One concept a part."""
    yield from _each_concept(run, concepts, "07_geometry_values", "geometry under every choice", _geometry)


def _geometry(activations: ConceptActivations, coders: dict[str, Coder], seed: int) -> pd.DataFrame:
    try:
        clouds = concept_clouds(activations, coders, _device(coders), reconstructed=RECONSTRUCTED)
        return geometry_under_choices(clouds, seed=seed)
    except GeometryError as error:
        return _nothing(str(error))


def _device(coders: dict[str, Coder]) -> torch.device:
    return coders["sae"].dictionary().device


def _nothing(reason: str) -> pd.DataFrame:
    return pd.DataFrame([{"representation": "residual", "measure": "", "value": float("nan"), "reason": reason}])


def _each_concept(
    run: RunDirectory, concepts: list[str], name: str, description: str, measure: Any
) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """A measure of each concept on all prompts that it has, from as many processes as there are threads."""
    activations, coders = activations_by_prompts(run), judged_coders(run)
    asked = [(c, whose) for c in concepts for whose, by_concept in activations.items() if c in by_concept]
    jobs = [(activations[whose][concept], coders, run.study.seed) for concept, whose in asked]
    results = zip(asked, in_processes(measure, jobs, description, run.device), strict=True)
    found: list[pd.DataFrame] = []
    for number, ((concept, whose), values) in enumerate(results):
        found.append(values.assign(prompts=whose, concept=concept))
        if number + 1 == len(asked) or asked[number + 1][0] != concept:
            yield concept, {name: pd.concat(found, ignore_index=True)}
            found = []


geometry_values = geometry_values_of_concepts.whole(
    "07_geometry_values",
    "Each measure of local and global geometry, under every choice.",
    VALUE
    | {
        "family": "the question that the measure belongs to",
        "items": "what is measured: vectors of words, one a prompt, or all distinct tokens",
        "labels": "what makes a pole: words, or clusters found in the residual stream or in the code",
        "smallest": "smallest cluster allowed",
        "space": "euclidean, cosine, or standardised as in the paper",
        "centring": "whether the mean of each sentence is taken off first",
        "detail": "a choice that the measure alone has",
    },
)


@parts("07_dose_values", of=concepts_of, needs=MEASURED)
def dose_values_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """What moving the poles does to the error, under every choice. One concept a part."""
    yield from _each_concept(run, concepts, "07_dose_values", "doses under every choice", _doses)


def _doses(activations: ConceptActivations, coders: dict[str, Coder], seed: int) -> pd.DataFrame:
    """Words as poles on their own tokens, and clusters as poles on all distinct ones."""
    sae, device = coders["sae"], _device(coders)
    sentence, found = activations.prompt_templates, []
    try:
        vectors, words, place = label_words(activations)
        # A prompt that begins with its word gives it the vector that others gave: no sentence is left out there.
        first = torch.as_tensor(first_copies(pairwise_distances(vectors)))
        found.append(_moved(sae, vectors[first].to(device), {"words": words[first]}, sentence[place[first]], seed))
        cloud = TokenCloud.of(activations.residual, activations.mask).distinct
        distances = pairwise_distances(cloud.points)
        clusters = find_local_representations(None, method="direct", min_cluster_size=SMALLEST, distances=distances)
        labels = {"clusters of residual": torch.as_tensor(clusters.labels)}
        found.append(_moved(sae, cloud.points.to(device), labels, sentence[cloud.prompt.cpu()], seed))
    except (GeometryError, InterventionError) as error:
        found.append(_nothing(str(error)))
    return pd.concat(found, ignore_index=True)


def _moved(sae: Coder, x: Tensor, labellings: dict[str, Tensor], groups: Tensor, seed: int) -> pd.DataFrame:
    with torch.no_grad():
        latents = sae.encode(x)

    def decode(z: Tensor) -> Tensor:
        return sae.decode(z.to(x.dtype), like=x)

    labels = {name: found.to(x.device) for name, found in labellings.items()}
    return doses_under_choices(latents, decode, x, labels, groups.to(x.device), seeds=range(seed, seed + DRAWS))


dose_values = dose_values_of_concepts.whole(
    "07_dose_values",
    "Slope, best dose and gain of moving the poles, under every choice.",
    VALUE
    | {
        "representation": "how latents are moved: poles, or a control (permuted_labels, random_direction)",
        "labels": "what makes a pole",
        "poles": "from the other sentences only (cross-fitted), or from all (in-sample)",
        "scaling": SCALING,
        "support": "whether latents that are off may move (free) or not (kept)",
        "weight": WEIGHT,
        "error": "standard error of the value over sentences (jackknife)",
    },
)


def values_of_concept(
    activations: ConceptActivations,
    coders: dict[str, Coder],
    study: Study,
    known: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, pd.DataFrame]:
    """What chapter 7 judges, of one concept on the study's own prompts, with any autoencoder and random dictionary.

    By name of the run's table that holds the same for the study's own autoencoder; of the searches those alone that
    were named beforehand. What is ``known`` is not measured again.
    """
    cloud = TokenCloud.of(activations.residual.to(_device(coders)), activations.mask, activations.prompts.concept)
    encoders = {"residual": _itself, **{name: coder.encode for name, coder in coders.items()}}
    measures: dict[str, Callable[[], pd.DataFrame]] = {
        rank_values.name: lambda: rank_movement([cloud], encoders, seeds=study.seeds[:SEEDS]),
        geometry_values.name: lambda: _geometry(activations, coders, study.seed),
        dose_values.name: lambda: _doses(activations, coders, study.seed),
    }
    known = known or {}
    found = {name: known[name] if name in known else measure() for name, measure in measures.items()}
    words = encoded_words(activations, coders["sae"])
    if words.is_usable:
        courses = searches_of(words, study, NAMED_SEARCHES).assign(concept=cloud.concept)
        found[searched_values.name] = search_values(courses)
    return {name: values.assign(prompts=OURS, concept=cloud.concept) for name, values in found.items()}


def values_known(run: RunDirectory, concept: str) -> dict[str, pd.DataFrame]:
    """What of :func:`values_of_concept` the run holds, of its own autoencoder."""
    found = {}
    for made in (rank_values_of_concepts, geometry_values_of_concepts, dose_values_of_concepts):
        made.make(run, [concept])
        values = made.part(run, concept)
        said = values[["measure", "reason"]].astype(object).fillna("")  # an empty word comes back as missing
        found[made.name] = values.assign(measure=said["measure"], reason=said["reason"])[values["prompts"] == OURS]
    return found


@table(
    "07_search_values",
    needs=(optimised_table,),
    choices=stored(optimised_table),
    columns=VALUE
    | {
        "representation": "the search, or random edits of its size",
        "objective": "what the search raises or lowers",
        "way": "raise or lower",
        "restart": "from which start",
        "at": "where on its way the error is read",
    },
)
def searched_values(run: RunDirectory) -> pd.DataFrame:
    """What gradient searches do to the error, under every choice."""
    return search_values(as_it_stands(run, optimised_table))


@table(
    "07_training_values",
    needs=(training_choices_table,),
    choices=stored(training_choices_table),
    columns=VALUE
    | {
        "representation": "odd: half the difference between training for and against separation; even: what both cost",
        "on": "what was reconstructed",
        "coefficient": "weight of the separation term",
        "weight": WEIGHT,
        "scaling": SCALING,
        "pooled": training_choices_table.columns["pooled"],
    },
)
def trained_values(run: RunDirectory) -> pd.DataFrame:
    """What training for separability does to held-out reconstruction, under every choice."""
    return training_values(as_it_stands(run, training_choices_table))


@table(
    "07_explained",
    needs=MEASURED,
    columns={
        "explained_variance_tokens": "share of the variance of a concept's tokens that the SAE explains",
        "explained_variance_words": "the same of the tokens of its words alone",
    },
)
@torch.no_grad()
def explained_on_concepts(run: RunDirectory) -> pd.DataFrame:
    """How well the SAE reconstructs what the claims are about: a concept's tokens, and those of its words."""
    sae, rows = judged_coders(run)["sae"], []
    for concept, found in concept_activations(run).items():
        row: dict[str, Any] = {"concept": concept}
        for name, mask in (("tokens", found.mask), ("words", found.word_mask)):
            x = found.residual[mask].to(run.device)
            row[f"explained_variance_{name}"] = explained_variance(x, sae.decode(sae.encode(x), like=x))
        rows.append(row)
    return pd.DataFrame(rows)
