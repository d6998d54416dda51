"""Chapter 4 of a run: local and global geometry of every concept, in every representation.

What runs how often: both protocols on all five representations; the paper's protocol, the only
random one, over all seeds of the study for the residual stream and the SAE, and over two seeds (one in
a study of fewer than five) for the controls: reconstruction, PCA, random dictionary. Resamples over
sentences belong to the direct protocol, and to the residual stream, the SAE and the random dictionary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from saema_utils.chapters.activations.concepts import concept_activations, concept_tensors, concepts_of
from saema_utils.chapters.sae.coders import control_tensors, study_coders
from saema_utils.distances import pairwise_distances
from saema_utils.evidence.geometry import compare_representations
from saema_utils.geometry.circles import circle_rows
from saema_utils.geometry.clusters import LocalRepresentations, umap_embedding
from saema_utils.geometry.concept import (
    ConceptClouds,
    centred_by_template,
    cluster_cloud,
    cluster_merging_row,
    cluster_row,
    concept_clouds,
    local_spectra,
    word_merging_row,
    word_row,
)
from saema_utils.geometry.dimension import local_dimensions
from saema_utils.geometry.matching import merged_words
from saema_utils.geometry.resamples import interval_row, pole_rows, resampled_rows
from saema_utils.geometry.topology import persistence
from saema_utils.rulers.shapes import ruler_table
from saema_utils.rulers.words import synthetic_merging_table
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, table
from saema_utils.runtime import progress
from saema_utils.study import GeometryRecipe, Study

RESAMPLED = ("residual", "sae", "random_dictionary")
MAPPED = ("residual", "sae")
MEASURE = {"measure": "what is measured: a column of 04_geometry or 04_merging"}


def clouds_of(run: RunDirectory, concept: str) -> ConceptClouds:
    """The distinct tokens of one concept in every representation: what the chapter measures."""
    return concept_clouds(concept_activations(run)[concept], study_coders(run), run.device)


@parts("04_geometry", of=concepts_of, needs=(concept_tensors, control_tensors))
def measured_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Every table of the chapter for one concept after the other."""
    activations, coders = concept_activations(run), study_coders(run)
    for concept in progress(concepts, "geometry of concepts", len(concepts)):
        yield concept, concept_tables(concept_clouds(activations[concept], coders, run.device), run.study)


geometry_table = measured_concepts.whole(
    "04_geometry",
    "Local and global geometry of each concept, before and after sparse coding.",
    {
        "space": "where lengths were measured: in the data's own space, or in the embedding",
        "n_points": "tokens (or prompts, of protocol words) measured",
        "n_copies": "tokens left out because their vector repeats an earlier one",
        "n_local": "local representations found",
        "noise_fraction": "share of tokens in none of them",
        "betti0": "pieces that the cloud falls into",
        "intrinsic_dimension": "TwoNN dimension, mean over local representations",
        "intrinsic_dimension_error": "its standard error",
        "intrinsic_dimension_cloud": "TwoNN dimension of all tokens together",
        "intrinsic_dimension_cloud_error": "its standard error",
        "intrinsic_dimension_embedding": "TwoNN dimension read off the UMAP embedding, as the paper does",
        "effective_rank": "effective rank of the local representations' covariance, at equal size, mean over tokens",
        "effective_rank_error": "its standard error over draws of members",
        "aedp": "average Euclidean distance of poles",
        "mst_weight": "total weight of the minimum spanning tree of the poles",
        "mst_weight_scale_free": "mean edge of that tree in units of the cloud's own radius",
        "average_geodesic_distance": "mean way along the cloud from pole to pole",
        "geodesic_scale_free": "the same in units of the cloud's own radius",
        "procrustes_disparity": "how far the poles differ in shape from the residual stream's",
        "procrustes_chance": "the same for poles paired at random",
        "procrustes_p": "share of random pairings at least as alike",
        "n_matched": "poles that were matched",
    },
)
merging_table = measured_concepts.whole(
    "04_merging",
    "Clusters against words, and against the tokens' texts.",
    {
        "ami": "adjusted mutual information of clusters and words: 1 when they are the same, 0 by chance",
        "coverage": "share of the words' tokens that are in a cluster",
        "n_tokens": "tokens of words that are in a cluster",
        "purity": "share of prompts whose nearest other prompt has the same word",
        "purity_chance": "what that share would be by chance",
        "ami_token": "adjusted mutual information of clusters and the texts of all tokens",
    },
)
merged_words_table = measured_concepts.whole(
    "04_merged_words",
    "Which words share a cluster when there are as many clusters as words.",
    {
        "cluster": "number of the cluster",
        "words": "the words that are at home in it",
        "n_words": "how many these are",
        "n_tokens": "how many of their prompts it holds",
    },
)
circles_table = measured_concepts.whole(
    "04_circles",
    "Cyclic order of words that form a cycle, with permutation tests.",
    {
        "n_words": "words of the concept that belong to the cycle",
        "period": "places in the whole cycle",
        "score": "circularity in the plane of the first two principal components: 1 for words in order, equally spaced",
        "low": "lower end of the middle 95 % of scores without a random fifth of the prompts",
        "high": "upper end of that range",
        "p_value": "share of shuffled orders that score as high",
        "distance_score": "rank correlation of all distances with steps around the cycle",
        "distance_p_value": "share of shuffled orders with as high a correlation",
        "variance_share": "share of the variance that the plane holds",
        "betti1": "loops among the words in all dimensions",
        "betti1_plane": "loops among the words in the plane",
        "loop_ratio": "death of the longest loop over its birth, or over the last merge of components if that is later",
    },
)
circle_points_table = measured_concepts.whole(
    "04_circle_points",
    "Each word of a cycle in the principal plane of its representation.",
    {"place": "the word's place in the cycle"},
)
local_table = measured_concepts.whole(
    "04_local",
    "Every local representation, its size, dimension, spectrum, and commonest token.",
    {
        "cluster": "number of the local representation",
        "n_tokens": "its tokens",
        "intrinsic_dimension": "its TwoNN dimension",
        "intrinsic_dimension_error": "standard error of that dimension",
        "participation_ratio": "participation ratio of its covariance, of equally many members in each cluster",
        "effective_rank": "effective rank of that covariance",
        "effective_rank_error": "standard deviation of the effective rank over draws of members",
        "commonest_token": "the text that most of its tokens have",
        "token_share": "share of its tokens with that text",
    },
)
uncertainty_table = measured_concepts.whole(
    "04_uncertainty",
    """Errors over sentences of one concept's measures.

    The unit is the template, shared by all words: each is left out in turn (jackknife, Student's quantile). Prompts
    that share no templates are the unit themselves (:mod:`~saema_utils.geometry.resamples`). In protocol ``words``,
    representation ``sae / residual`` is the logarithm of the ratio, both sides of each resample being the same prompts.
    """,
    MEASURE
    | {
        "representation": "where it was measured; 'sae / residual' is the logarithm of a ratio",
        "method": "how prompts were resampled",
        "unit": "what was resampled: sentences (template) or single prompts",
        "estimate": "the measure on all prompts",
        "error": "its standard error",
        "n_resamples": "resamples that gave a value",
    },
)
MAP = {
    "prompt": "number of the prompt that the token stands in",
    "word": "the word that the prompt is about",
    "is_word": "whether the token belongs to that word",
    "cluster": "local representation by the paper's protocol; -1 is noise",
    "context": "the prompt, with the token in brackets",
}
map_table = measured_concepts.whole(
    "04_map", "Two-dimensional UMAP of the tokens, with text, prompt (and its words), word and cluster.", MAP
)
word_map_table = measured_concepts.whole(
    "04_word_map",
    "Two-dimensional UMAP of the word in every prompt, its sentence's share taken off.",
    {"template": "number of the sentence that the word stands in", "cluster": "its cluster, of as many as words"},
)
persistence_table = measured_concepts.whole(
    "04_persistence",
    "Births and deaths of components and loops of each cloud of tokens.",
    {
        "degree": "0 for components, 1 for loops",
        "birth": "scale at which it appears, in units of the median distance",
        "death": "scale at which it is gone, in the same units",
    },
)


@table("04_map_random", needs=(concept_tensors, control_tensors), columns=MAP)
def random_map_table(run: RunDirectory) -> pd.DataFrame:
    """The map of the first concept's tokens in the latents of a random dictionary, a control of those in ``04_map``."""
    clouds, seed, representation = clouds_of(run, concepts_of(run)[0]), run.study.seeds[0], "random_dictionary"
    smallest = run.study.geometry.min_cluster_size
    local = cluster_cloud(clouds, representation, "paper", min_cluster_size=smallest, seed=seed)
    return _token_map(clouds, representation, local, seed)


@table(
    "04_comparison",
    needs=(geometry_table, merging_table),
    columns=MEASURE
    | {
        "against": "what the SAE is compared with",
        "effect": "log ratio (SAE over the other) or difference (SAE minus the other)",
        "estimate": "that effect, mean over concepts",
        "ratio": "the ratio itself, where the effect is one",
        "p_value": "p-value of a sign-flip test over concepts",
        "p_holm": "the same after Holm's correction within protocol and control",
        "n_concepts": "concepts that have a value on both sides",
        "change": "what the SAE makes of it: higher or lower where interval and corrected p agree, else unclear",
    },
)
def comparison_table(run: RunDirectory) -> pd.DataFrame:
    """The SAE against the residual stream and two controls, measure by measure."""
    return compare_representations(geometry_table(run), merging_table(run), seed=run.study.seed)


@table(
    "04_ruler",
    ruler=True,
    choices=lambda run: [run.study.seed, _repeats(run)],
    columns={
        "shape": "what was measured",
        "measure": "by which measure",
        "truth": "the value that is known",
        "estimate": "mean of the measured values",
        "bias": "estimate minus truth",
        "spread": "standard deviation over fresh samples",
        "stated_error": "mean of the error that the measure states itself",
        "n": "fresh samples",
        "note": "what explains a bias",
    },
)
def ruler(run: RunDirectory) -> pd.DataFrame:
    """Every measure on shapes of known geometry; fewer repeats in a study of few seeds."""
    return ruler_table(run.study.seed, n_repeats=_repeats(run))


def _repeats(run: RunDirectory) -> int:
    return 20 if run.study.n_seeds >= 5 else 6


@table(
    "04_synthetic_merging",
    ruler=True,
    choices=lambda run: run.study.seed,
    columns={
        "representation": "the true vectors, or an SAE with so many active latents of so many",
        "n_latents": "dimensions or latents",
        "room_for": "clusters that the code has room for",
        "homogeneity_truth": "homogeneity that so many clusters allow",
        "features_recovered": "share of true features that a decoder row points along",
        "words_recovered": "share of words whose features' sum a decoder row points along",
        "ami": "adjusted mutual information of clusters and words",
        "ami_family": "adjusted mutual information of four clusters and the four families",
        "purity": "share of tokens whose nearest other token has the same word",
    },
)
def synthetic_merging(run: RunDirectory) -> pd.DataFrame:
    """Merging in a world of known features."""
    return synthetic_merging_table(run.study.seed)


EMPTY = {  # the columns of tables that a concept may leave without a row
    "04_word_map": "concept representation x y word template cluster",
    "04_merged_words": "concept protocol representation seed cluster words n_words n_tokens",
    "04_circles": "concept cycle representation n_words period score low high p_value distance_score distance_p_value "
    "variance_share betti1 betti1_plane loop_ratio reason",
    "04_circle_points": "concept cycle representation word place x y",
    "04_local": "concept protocol representation seed cluster n_tokens intrinsic_dimension intrinsic_dimension_error "
    "participation_ratio effective_rank effective_rank_error commonest_token token_share reason",
}


def concept_tables(clouds: ConceptClouds, study: Study) -> dict[str, pd.DataFrame]:
    """Every table of the chapter for one concept."""
    recipe, seeds = study.geometry, study.seeds
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    reference: dict[tuple[str, int], LocalRepresentations] = {}
    comparable = clouds.n_prompts >= 4 and len(set(clouds.prompt_words)) >= 2
    for representation in clouds.points:  # the residual stream comes first: the others are matched to it
        head = {"concept": clouds.concept}
        own_seeds = seeds if representation in MAPPED else seeds[: 2 if len(seeds) >= 5 else 1]
        for protocol, seed in [("direct", seeds[0]), *(("paper", seed) for seed in own_seeds)]:
            smallest = recipe.min_cluster_size
            local = cluster_cloud(clouds, representation, protocol, min_cluster_size=smallest, seed=seed)
            base = reference.setdefault((protocol, seed), local)
            names = head | {"protocol": protocol, "representation": representation, "seed": seed}
            measured = cluster_row(clouds, representation, local, base, recipe.n_neighbors, smallest)
            rows["04_geometry"].append(names | measured)
            rows["04_merging"].append(names | cluster_merging_row(clouds, local.labels))
            if seed == seeds[0]:
                rows["04_local"] += _local_rows(clouds, representation, names, local, smallest)
            if protocol == "paper" and seed == seeds[0] and representation in MAPPED:
                rows["04_map"] += _token_map(clouds, representation, local, seed).to_dict("records")
        names = head | {"protocol": "words", "representation": representation, "seed": seeds[0]}
        if comparable:
            _add_word_rows(rows, clouds, representation, names, recipe)
        else:
            reason = f"{clouds.n_prompts} prompts with an unmasked word: words cannot be compared"
            rows["04_geometry"].append(names | {"n_points": clouds.n_prompts, "reason": reason})
        rows["04_persistence"] += _persistence_rows(clouds, representation)
        if representation in RESAMPLED:
            rows["04_uncertainty"] += _left_out_rows(clouds, representation, recipe, rows["04_geometry"], seeds[0])
    if comparable:
        rows["04_uncertainty"] += _pole_rows(clouds, recipe, seeds[0])
    return {
        name: pd.DataFrame(rows[name], columns=None if rows[name] else EMPTY[name].split())
        for name in {**EMPTY, **rows}
    }


def _add_word_rows(
    rows: dict[str, list], clouds: ConceptClouds, representation: str, names: dict[str, Any], recipe: GeometryRecipe
) -> None:
    """Everything measured on the words themselves: the global representation, merging, maps and circles."""
    rows["04_geometry"].append(names | word_row(clouds, representation, recipe.n_neighbors))
    merging, labels = word_merging_row(clouds, representation)
    rows["04_merging"].append(names | merging)
    merged = merged_words(labels, clouds.prompt_words, clouds.words)
    rows["04_merged_words"] += [names | row for row in merged.to_dict("records")]
    if representation in MAPPED:
        centred, _ = centred_by_template(clouds.word_vectors[representation], clouds.templates)
        plane = _map(clouds, representation, pairwise_distances(centred), names["seed"])
        about = {"word": np.array(clouds.words)[clouds.prompt_words], "template": clouds.templates, "cluster": labels}
        rows["04_word_map"] += plane.assign(**about).to_dict("records")
    circles, points = circle_rows(clouds, representation, n_resamples=recipe.bootstrap, seed=names["seed"])
    rows["04_circles"] += circles
    rows["04_circle_points"] += points


def _local_rows(
    clouds: ConceptClouds, representation: str, names: dict[str, Any], local: LocalRepresentations, smallest: int
) -> list[dict[str, Any]]:
    """Size, dimension and spectrum of every cluster, measured in the data's own space."""
    distances = clouds.distances(representation)
    spectra = local_spectra(local.labels, distances, smallest)
    found = zip(local_dimensions(local.labels, distances), spectra, strict=True)
    rows = []
    for cluster, (dimension, spectrum) in enumerate(found):
        members = np.flatnonzero(local.labels == cluster)
        texts, counts = np.unique([clouds.tokens[m] for m in members], return_counts=True)
        row = names | {"cluster": cluster} | spectrum
        row |= {"intrinsic_dimension": dimension.estimate, "intrinsic_dimension_error": dimension.error}
        row |= {"commonest_token": str(texts[counts.argmax()]), "token_share": counts.max() / len(members)}
        rows.append(row | {"reason": dimension.reason})
    return rows


def _map(clouds: ConceptClouds, representation: str, distances: np.ndarray, seed: int) -> pd.DataFrame:
    """Places on a two-dimensional UMAP, one row a point."""
    x, y = umap_embedding(distances, n_components=2, seed=seed).astype(float).T
    return pd.DataFrame({"concept": clouds.concept, "representation": representation, "x": x, "y": y})


def _token_map(clouds: ConceptClouds, representation: str, local: LocalRepresentations, seed: int) -> pd.DataFrame:
    """Places of a concept's tokens, what each of them is, and its local representation."""
    plane = _map(clouds, representation, clouds.distances(representation, "sphere"), seed)
    about = {"prompt": clouds.prompt_of, "word": np.array(clouds.words)[clouds.word_of]}
    about |= {"is_word": clouds.is_word, "cluster": local.labels, "context": clouds.contexts}
    return plane.assign(token=clouds.tokens, **about)


def _persistence_rows(clouds: ConceptClouds, representation: str) -> list[dict[str, Any]]:
    diagrams = persistence(None, 1, distances=clouds.distances(representation))
    scale = float(np.median(clouds.distances(representation)))
    head = {"concept": clouds.concept, "representation": representation}
    return [
        head | {"degree": degree, "birth": birth / scale, "death": death / scale}
        for degree, diagram in enumerate(diagrams)
        for birth, death in diagram
        if np.isfinite(death)
    ]


def _left_out_rows(
    clouds: ConceptClouds, representation: str, recipe: GeometryRecipe, known: list[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Error of each direct-protocol measure; free prompts get a fifth of the resamples, for clustering costs."""
    own = next(r for r in known if r["protocol"] == "direct" and r["representation"] == representation)
    resamples = resampled_rows(
        clouds,
        representation,
        min_cluster_size=recipe.min_cluster_size,
        n_neighbors=recipe.n_neighbors,
        n_resamples=max(10, recipe.bootstrap // 5),
        seed=seed,
    )
    head = {"concept": clouds.concept, "protocol": "direct", "representation": representation}
    return [
        head
        | {"measure": measure}
        | interval_row(own[measure], [row[measure] for row in resamples], clouds.templates, drawn=False)
        for measure in ("n_local", "intrinsic_dimension", "mst_weight_scale_free", "geodesic_scale_free")
    ]


def _pole_rows(clouds: ConceptClouds, recipe: GeometryRecipe, seed: int) -> list[dict[str, Any]]:
    """Error of the words' tree and distances, and of what the codes change against the residual."""
    here = [name for name in RESAMPLED if name in clouds.points]
    found = pole_rows(clouds, here, recipe.bootstrap, seed)
    head = {"concept": clouds.concept, "protocol": "words"}
    rows = []
    for measure in found["residual"][0]:
        values = {name: np.array([row[measure] for row in drawn]) for name, drawn in found.items()}
        changes = {f"{name} / residual": np.log(values[name] / values["residual"]) for name in here[1:]}
        for name, (own, *drawn) in (values | changes).items():
            names = head | {"representation": name, "measure": measure}
            rows.append(names | interval_row(float(own), drawn, clouds.templates, drawn=True))
    return rows
