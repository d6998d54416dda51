"""Chapter 4 of a run: local and global geometry of every concept, in every representation.

What runs how often: both protocols on all five representations; the paper's protocol, the only
random one, over all seeds of the study for the residual stream and the SAE, and over two seeds (one in
a study of fewer than five) for the controls: reconstruction, PCA, random dictionary. Resamples over
sentences belong to the direct protocol, and to the residual stream, the SAE and the random dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .artifacts import RunDirectory
from .clouds import pairwise_distances
from .concept_geometry import (
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
from .dimension import local_dimensions
from .files import digest, source_digest
from .geometry import umap_embedding
from .geometry_verdicts import compare_representations
from .matching import merged_words
from .prompt_resamples import interval_row, pole_rows, resampled_rows
from .runtime import progress
from .shapes import ruler_table
from .stage1_activations import concept_activations, concepts_key
from .stage2_sae import coders_key, study_coders
from .synthetic_words import synthetic_merging_table
from .topology import persistence
from .word_circles import circle_rows

if TYPE_CHECKING:
    import pandas as pd

    from .geometry import LocalRepresentations
    from .study import GeometryRecipe, Study

PROTOCOLS = ("paper", "direct", "words")
RESAMPLED = ("residual", "sae", "random_dictionary")
MAPPED = ("residual", "sae")
TABLES = (
    "04_geometry", "04_merging", "04_merged_words", "04_circles", "04_circle_points", "04_local",
    "04_uncertainty", "04_map", "04_word_map", "04_persistence",
)  # fmt: skip


def geometry_key(run: RunDirectory) -> str:
    """Digest of everything the tables of this chapter are made from."""
    study = run.study.as_dict()
    return digest([concepts_key(run), coders_key(run), study["geometry"], study["seed"], study["n_seeds"],
                   source_digest("stage4_geometry")])  # fmt: skip


def geometry_table(run: RunDirectory) -> pd.DataFrame:
    """``04_geometry``: one row per concept, protocol, representation and seed.

    Columns: concept, protocol (``paper``, ``direct``, or ``words``: the words themselves as local
    representations), representation, seed, space (where lengths were measured), n_points, n_copies,
    n_local, noise_fraction, betti0, intrinsic_dimension (mean over local representations) and its
    error, intrinsic_dimension_cloud (all tokens) and its error, intrinsic_dimension_embedding, effective_rank
    (of the local representations' covariance, from as many members of each as the smallest cluster has; mean over
    tokens) and its error (over draws of members), aedp,
    mst_weight, mst_weight_scale_free, average_geodesic_distance, geodesic_scale_free,
    procrustes_disparity (against the residual stream) with its chance level and p-value, n_matched,
    reason (why a value is missing).
    """
    return _tables(run)["04_geometry"]


def merging_table(run: RunDirectory) -> pd.DataFrame:
    """``04_merging``: clusters against words, and against token texts, per concept, protocol, representation, seed."""
    return _tables(run)["04_merging"]


def merged_words_table(run: RunDirectory) -> pd.DataFrame:
    """``04_merged_words``: which words share a cluster when there are as many clusters as words."""
    return _tables(run)["04_merged_words"]


def circles_table(run: RunDirectory) -> pd.DataFrame:
    """``04_circles``: cyclic order of words that form a cycle, with permutation tests; may be empty."""
    return _tables(run)["04_circles"]


def circle_points_table(run: RunDirectory) -> pd.DataFrame:
    """``04_circle_points``: each word of a cycle in the plane of its representation."""
    return _tables(run)["04_circle_points"]


def local_table(run: RunDirectory) -> pd.DataFrame:
    """``04_local``: every local representation, its size, dimension, spectrum, and commonest token."""
    return _tables(run)["04_local"]


def uncertainty_table(run: RunDirectory) -> pd.DataFrame:
    """``04_uncertainty``: errors over sentences of one concept's measures.

    Columns: concept, protocol, representation, measure, method, unit, estimate, error, low, high (95 %), n_resamples.
    The unit is the template, shared by all words: each is left out in turn (jackknife, Student's quantile). Prompts
    that share no templates are the unit themselves (:mod:`~saema_utils.prompt_resamples`). In protocol ``words``,
    representation ``sae / residual`` is the logarithm of the ratio, both sides of each resample being the same prompts.
    """
    return _tables(run)["04_uncertainty"]


def map_table(run: RunDirectory) -> pd.DataFrame:
    """``04_map``: two-dimensional UMAP of the tokens, with text, prompt (and its words), word and cluster."""
    return _tables(run)["04_map"]


def word_map_table(run: RunDirectory) -> pd.DataFrame:
    """``04_word_map``: two-dimensional UMAP of the word in every prompt, its sentence's share taken off."""
    return _tables(run)["04_word_map"]


def persistence_table(run: RunDirectory) -> pd.DataFrame:
    """``04_persistence``: births and deaths of components and loops of each cloud of tokens."""
    return _tables(run)["04_persistence"]


def comparison_table(run: RunDirectory) -> pd.DataFrame:
    """``04_comparison``: the SAE against the residual stream and two controls; see geometry_verdicts."""
    key = digest([geometry_key(run), source_digest("geometry_verdicts")])
    return run.cached_table(
        "04_comparison",
        key,
        lambda: compare_representations(geometry_table(run), merging_table(run), seed=run.study.seed),
    )


def ruler(run: RunDirectory) -> pd.DataFrame:
    """``04_ruler``: every measure on shapes of known geometry; fewer repeats in a study of few seeds."""
    n_repeats = 20 if run.study.n_seeds >= 5 else 6
    key = digest([run.study.seed, n_repeats, source_digest("shapes")])
    return run.cached_table("04_ruler", key, lambda: ruler_table(run.study.seed, n_repeats))


def synthetic_merging(run: RunDirectory) -> pd.DataFrame:
    """``04_synthetic_merging``: merging in a world of known features."""
    key = digest([run.study.seed, source_digest("synthetic_words")])
    return run.cached_table("04_synthetic_merging", key, lambda: synthetic_merging_table(run.study.seed))


def _tables(run: RunDirectory) -> dict[str, pd.DataFrame]:
    """All tables of the chapter; concepts that are finished are read, the others computed."""
    import pandas as pd

    key = geometry_key(run)
    if not all(run.is_fresh(f"tables/{name}.csv", key) for name in TABLES):
        activations, coders = concept_activations(run), study_coders(run)
        parts = []
        for concept, found in progress(activations.items(), "geometry of concepts", len(activations)):
            names = {name: f"parts/{name}_{concept}" for name in TABLES}
            if not all(run.is_fresh(f"tables/{part}.csv", key) for part in names.values()):
                clouds = concept_clouds(found, coders, run.device)
                for name, frame in concept_tables(clouds, run.study).items():
                    run.save_table(names[name], frame, key)
            parts.append({name: run.table(part) for name, part in names.items()})
        for name in TABLES:
            whole = [part[name] for part in parts if len(part[name])] or [parts[0][name]]
            run.cached_table(name, key, lambda whole=whole: pd.concat(whole, ignore_index=True))
    return {name: run.table(name) for name in TABLES}


# ---- one concept -------------------------------------------------------------------------------


def concept_tables(clouds: ConceptClouds, study: Study) -> dict[str, pd.DataFrame]:
    """Every table of the chapter for one concept."""
    import pandas as pd

    recipe, seeds = study.geometry, study.seeds
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    reference: dict[tuple[str, int], LocalRepresentations] = {}
    for representation in clouds.points:  # the residual stream comes first: the others are matched to it
        head = {"concept": clouds.concept}
        own_seeds = seeds if representation in MAPPED else seeds[: 2 if len(seeds) >= 5 else 1]
        for protocol, seed in [("direct", seeds[0]), *(("paper", seed) for seed in own_seeds)]:
            local = cluster_cloud(
                clouds, representation, protocol, min_cluster_size=recipe.min_cluster_size, seed=seed
            )  # fmt: skip
            base = reference.setdefault((protocol, seed), local)
            names = head | {"protocol": protocol, "representation": representation, "seed": seed}
            measured = cluster_row(
                clouds, representation, local, base, recipe.n_neighbors, recipe.min_cluster_size
            )  # fmt: skip
            rows["04_geometry"].append(names | measured)
            rows["04_merging"].append(names | cluster_merging_row(clouds, local.labels))
            if seed == seeds[0]:
                rows["04_local"] += _local_rows(clouds, representation, names, local, recipe.min_cluster_size)
            if protocol == "paper" and seed == seeds[0] and representation in MAPPED:
                rows["04_map"] += _map_rows(clouds, representation, local, seed)
        names = head | {"protocol": "words", "representation": representation, "seed": seeds[0]}
        if clouds.n_prompts < 4 or len(set(clouds.prompt_words)) < 2:
            reason = f"{clouds.n_prompts} prompts with an unmasked word: words cannot be compared"
            rows["04_geometry"].append(names | {"n_points": clouds.n_prompts, "reason": reason})
        else:
            _add_word_rows(rows, clouds, representation, names, recipe)
        rows["04_persistence"] += _persistence_rows(clouds, representation)
        if representation in RESAMPLED:
            rows["04_uncertainty"] += _left_out_rows(clouds, representation, recipe, rows["04_geometry"], seeds[0])
    if clouds.n_prompts >= 4 and len(set(clouds.prompt_words)) >= 2:
        rows["04_uncertainty"] += _pole_rows(clouds, recipe, seeds[0])
    empty = {
        "04_word_map": _WORD_MAP,
        "04_merged_words": _MERGED,
        "04_circles": _CIRCLES,
        "04_circle_points": _CIRCLE_POINTS,
        "04_local": _LOCAL,
    }
    return {name: pd.DataFrame(found, columns=None if found else empty.get(name)) for name, found in rows.items()}


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
        rows["04_word_map"] += _word_map_rows(clouds, representation, labels, names["seed"])
    circles, points = circle_rows(clouds, representation, n_resamples=recipe.bootstrap, seed=names["seed"])
    rows["04_circles"] += circles
    rows["04_circle_points"] += points


_MERGED = ("concept", "protocol", "representation", "seed", "cluster", "words", "n_words", "n_tokens")
_CIRCLES = (
    "concept", "cycle", "representation", "n_words", "period", "score", "low", "high", "p_value", "distance_score",
    "distance_p_value", "variance_share", "betti1", "betti1_plane", "loop_ratio", "reason",
)  # fmt: skip
_WORD_MAP = ("concept", "representation", "x", "y", "word", "template", "cluster")
_CIRCLE_POINTS = ("concept", "cycle", "representation", "word", "place", "x", "y")
_LOCAL = (
    "concept", "protocol", "representation", "seed", "cluster", "n_tokens", "intrinsic_dimension",
    "intrinsic_dimension_error", "participation_ratio", "effective_rank", "effective_rank_error",
    "commonest_token", "token_share", "reason",
)  # fmt: skip


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
        rows.append(names | {"cluster": cluster} | spectrum | {
            "intrinsic_dimension": dimension.estimate, "intrinsic_dimension_error": dimension.error,
            "commonest_token": str(texts[counts.argmax()]), "token_share": counts.max() / len(members),
            "reason": dimension.reason,
        })  # fmt: skip
    return rows


def _map_rows(
    clouds: ConceptClouds, representation: str, local: LocalRepresentations, seed: int
) -> list[dict[str, Any]]:
    plane = umap_embedding(clouds.distances(representation, "sphere"), n_components=2, seed=seed)
    return [
        {
            "concept": clouds.concept, "representation": representation, "x": float(plane[i, 0]),
            "y": float(plane[i, 1]), "token": clouds.tokens[i], "prompt": int(clouds.prompt_of[i]),
            "word": clouds.words[clouds.word_of[i]], "is_word": bool(clouds.is_word[i]),
            "cluster": int(local.labels[i]), "context": clouds.contexts[i],
        }
        for i in range(len(plane))
    ]  # fmt: skip


def _word_map_rows(clouds: ConceptClouds, representation: str, labels: np.ndarray, seed: int) -> list[dict[str, Any]]:
    centred, _ = centred_by_template(clouds.word_vectors[representation], clouds.templates)
    plane = umap_embedding(pairwise_distances(centred), n_components=2, seed=seed)
    return [
        {
            "concept": clouds.concept, "representation": representation, "x": float(x), "y": float(y),
            "word": clouds.words[word], "template": int(template), "cluster": int(cluster),
        }
        for (x, y), word, template, cluster in zip(plane, clouds.prompt_words, clouds.templates, labels, strict=True)
    ]  # fmt: skip


def _persistence_rows(clouds: ConceptClouds, representation: str) -> list[dict[str, Any]]:
    diagrams = persistence(None, 1, distances=clouds.distances(representation))
    scale = float(np.median(clouds.distances(representation)))
    return [
        {
            "concept": clouds.concept, "representation": representation, "degree": degree,
            "birth": birth / scale, "death": death / scale,
        }
        for degree, diagram in enumerate(diagrams) for birth, death in diagram if np.isfinite(death)
    ]  # fmt: skip


def _left_out_rows(
    clouds: ConceptClouds, representation: str, recipe: GeometryRecipe, known: list[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Error of each direct-protocol measure; free prompts get a fifth of the resamples, for clustering costs."""
    own = next(r for r in known if r["protocol"] == "direct" and r["representation"] == representation)
    resamples = resampled_rows(
        clouds, representation, min_cluster_size=recipe.min_cluster_size, n_neighbors=recipe.n_neighbors,
        n_resamples=max(10, recipe.bootstrap // 5), seed=seed,
    )  # fmt: skip
    head = {"concept": clouds.concept, "protocol": "direct", "representation": representation}
    return [
        head | {"measure": measure}
        | interval_row(own[measure], [row[measure] for row in resamples], clouds.templates, drawn=False)
        for measure in ("n_local", "intrinsic_dimension", "mst_weight_scale_free", "geodesic_scale_free")
    ]  # fmt: skip


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
