"""One concept, several representations: the same tokens measured side by side.

Copies of one vector are dropped first, by the residual stream, so that every representation is
measured on the same tokens. Distances of a representation are computed once and handed to all measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saema_utils.distances import first_copies, pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.clouds import rms_radius_of
from saema_utils.geometry.clusters import LocalRepresentations, find_local_representations, standardise_to_sphere
from saema_utils.geometry.dimension import (
    IntrinsicDimension,
    intrinsic_dimension,
    local_dimensions,
    mean_dimension,
    spectrum_from_distances,
)
from saema_utils.geometry.matching import (
    ProcrustesTest,
    match_by_assignment,
    merging_scores,
    neighbour_purity,
    procrustes_test,
)
from saema_utils.geometry.pole_measures import (
    average_geodesic_distance,
    mean_distance,
    pole_distances,
    poles,
    scale_free_tree,
)
from saema_utils.geometry.topology import betti_numbers

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saema_utils.model.residual_stream import ConceptActivations
    from saema_utils.saes.coders import Coder

NAN = float("nan")
RANK_DRAWS = 20  # of members of a cluster, for its effective rank


@dataclass(frozen=True)
class ConceptClouds:
    """The distinct tokens of a concept in every representation, and what each token is.

    Attributes
    ----------
    points
        By representation: [N, F], dimensions that are zero for every token left out (no distance changes).
    word_vectors
        By representation: [P, F], mean over the word's tokens, one per prompt.
    tokens, prompt_of, template_of, word_of, is_word
        [N] each: the token's text, its prompt, that prompt's template and word, and whether it belongs to that word.
    prompt_words, templates
        [P] each: index of the prompt's word and of its template.
    n_copies
        Tokens left out because a token before them has the same vector.
    contexts
        [N]: the token's prompt with the token in brackets.
    """

    concept: str
    words: tuple[str, ...]
    points: Mapping[str, Float[Tensor, "N F"]]
    word_vectors: Mapping[str, Float[Tensor, "P F"]]
    tokens: Sequence[str]
    prompt_of: Int[np.ndarray, " N"]
    template_of: Int[np.ndarray, " N"]
    word_of: Int[np.ndarray, " N"]
    is_word: Bool[np.ndarray, " N"]
    prompt_words: Int[np.ndarray, " P"]
    templates: Int[np.ndarray, " P"]
    n_copies: int
    contexts: Sequence[str]
    _known: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def n_prompts(self) -> int:
        return len(self.prompt_words)

    def distances(self, representation: str, space: str = "data") -> Float[np.ndarray, "N N"]:
        """Distances between tokens, computed once: in the ``data``, or after the paper's ``sphere`` step."""
        key = (representation, space)
        if key not in self._known:
            x = self.points[representation]
            self._known[key] = pairwise_distances(standardise_to_sphere(x) if space == "sphere" else x)
        return self._known[key]


def concept_clouds(
    activations: ConceptActivations,
    coders: Mapping[str, Coder],
    device: Any = "cpu",
    reconstructed: Mapping[str, str] = MappingProxyType({"sae": "reconstruction"}),
) -> ConceptClouds:
    """Encode a concept's tokens by every coder; the SAE also gives its reconstruction.

    Representations come out in the order residual, sae, reconstruction, then the controls. ``reconstructed`` names the
    coders that give a reconstruction, and what it is called.

    Raises
    ------
    GeometryError
        If fewer than four distinct tokens are left.
    """
    x = activations.points().to(device)
    with torch.no_grad():
        full = {"residual": x}
        for name, coder in coders.items():
            full[name] = coder.encode(x)
            if name in reconstructed:
                full[reconstructed[name]] = coder.decode(full[name], like=x)
    kept = first_copies(pairwise_distances(x))
    if kept.sum() < 4:
        raise GeometryError(
            f"concept {activations.prompts.concept!r} has {int(kept.sum())} distinct tokens; allowed: 4."
        )
    prompt_of, position_of = activations.point_prompts.numpy(), activations.point_positions.numpy()
    is_word = activations.word_mask[activations.mask].numpy()
    with_word = np.unique(prompt_of[is_word])  # a word that is all sinks has no vector
    prompts = activations.prompts.prompts
    template_of = activations.prompt_templates.numpy()
    words, prompt_words = activations.prompts.words, activations.prompt_words.numpy()
    row_of = np.full(len(prompts), -1)
    row_of[with_word] = np.arange(len(with_word))
    full = {name: _firing(z) for name, z in full.items()}
    select = torch.as_tensor(kept, device=x.device)
    return ConceptClouds(
        concept=activations.prompts.concept,
        words=words,
        points={name: z[select] for name, z in full.items()},
        word_vectors={name: poles(z, np.where(is_word, row_of[prompt_of], -1)) for name, z in full.items()},
        tokens=[activations.token_strings[p][t] for p, t in zip(prompt_of[kept], position_of[kept], strict=True)],
        prompt_of=prompt_of[kept],
        template_of=template_of[prompt_of][kept],
        word_of=prompt_words[prompt_of][kept],
        is_word=is_word[kept],
        prompt_words=prompt_words[with_word],
        templates=template_of[with_word],
        n_copies=int((~kept).sum()),
        contexts=[
            in_brackets(activations.token_strings[p], t, prompts[p].text)
            for p, t in zip(prompt_of[kept], position_of[kept], strict=True)
        ],
    )


def in_brackets(strings: Sequence[str], position: int, text: str) -> str:
    """A prompt with one of its tokens in brackets; what stands before the text (BOS) is left out.

    >>> in_brackets(["<s>", "In", " May", "."], 2, "In May.")
    'In [May].'
    """
    before, token, after = "".join(strings[:position]), strings[position], "".join(strings[position + 1 :])
    before = before[max(0, (before + token + after).find(text)) :]
    space = token[: len(token) - len(token.lstrip())]
    return f"{before}{space}[{token.strip()}]{after}"


def _firing(z: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Without the dimensions that are zero for every token: most latents, for one concept."""
    alive = (z != 0).any(dim=0)
    return z[:, alive] if bool(alive.any()) else z[:, :1]


# ---- one row of 04_geometry --------------------------------------------------------------------


def cluster_cloud(
    clouds: ConceptClouds, representation: str, protocol: str, *, min_cluster_size: int, seed: int
) -> LocalRepresentations:
    """Local representations of one representation; too few tokens give none, with the reason."""
    x = clouds.points[representation]
    space = "sphere" if protocol == "paper" else "data"
    try:
        return find_local_representations(
            x,
            method=protocol,
            min_cluster_size=min_cluster_size,
            seed=seed,
            distances=clouds.distances(representation, space),
        )
    except GeometryError as error:
        return LocalRepresentations(np.full(len(x), -1), None, 0, 1.0, str(error))


def geometry_row(
    labels: Int[np.ndarray, " N"], distances: Float[np.ndarray, "N N"], n_neighbors: int
) -> dict[str, Any]:
    """Global measures of labelled points, from their distances and in their unit, scale-free ones apart."""
    k = len(np.unique(labels[labels >= 0]))
    lengths = ("aedp", "mst_weight", "mst_weight_scale_free", "average_geodesic_distance", "geodesic_scale_free")
    row: dict[str, Any] = dict.fromkeys(lengths, NAN) | {"reason": ""}
    if k < 2:
        row["reason"] = f"{k} local representations: distances between poles need two"
        return row
    between, unit = pole_distances(labels, distances), rms_radius_of(distances)
    if not unit > 0:
        row["reason"] = "all points are equal: there is no unit of length"
        return row
    row["aedp"], row["mst_weight_scale_free"] = mean_distance(between), scale_free_tree(between, unit)
    row["mst_weight"] = row["mst_weight_scale_free"] * (k - 1) * unit
    if len(labels) > n_neighbors:
        row["average_geodesic_distance"] = average_geodesic_distance(None, labels, n_neighbors, distances=distances)
        row["geodesic_scale_free"] = row["average_geodesic_distance"] / unit
    else:
        row["reason"] = f"{len(labels)} points for {n_neighbors} neighbours: no geodesic distance"
    return row


def cluster_row(
    clouds: ConceptClouds,
    representation: str,
    local: LocalRepresentations,
    reference: LocalRepresentations,
    n_neighbors: int,
    smallest: int = 10,
) -> dict[str, Any]:
    """One row of ``04_geometry`` for clusters, with poles matched to the residual stream's clusters.

    ``smallest`` is the size of the smallest cluster allowed: as many members of each give its effective rank.

    Clusters found in an embedding are measured there, as the paper does, except for the intrinsic
    dimension, which is measured in the data's own space (and in the embedding in its own column).
    """
    distances = clouds.distances(representation)
    paper = local.embedding is not None
    points = local.embedding if paper else clouds.points[representation]
    here = pairwise_distances(points) if paper else distances
    dimension = mean_dimension(local_dimensions(local.labels, distances))
    embedded = mean_dimension(local_dimensions(local.labels, here)).estimate if paper else NAN
    spectra = local_spectra(local.labels, distances, smallest)
    base = reference.embedding if reference.embedding is not None else clouds.points["residual"]
    rows_a, rows_b = match_by_assignment(reference.labels, local.labels)
    test = ProcrustesTest(NAN, NAN, NAN, len(rows_a))
    if test.n >= 3:
        test = procrustes_test(poles(base, reference.labels)[rows_a], poles(points, local.labels)[rows_b])
    row = geometry_row(local.labels, here, n_neighbors)
    few = f"{test.n} matched poles: Procrustes needs three" if test.n < 3 else ""
    return row | {
        "n_points": len(local.labels),
        "n_copies": clouds.n_copies,
        "n_local": local.n_local,
        "noise_fraction": local.noise_fraction,
        "betti0": int(betti_numbers(None, 0, distances=here)[0]),
        **_dimensions(dimension, distances),
        "effective_rank": weighted_mean([s["effective_rank"] for s in spectra], [s["n_tokens"] for s in spectra]),
        "effective_rank_error": pooled_error(spectra),
        "intrinsic_dimension_embedding": embedded,
        "space": "embedding" if paper else "data",
        **_procrustes(test),
        "reason": _joined(local.reason, row["reason"], dimension.reason if local.n_local else "", few),
    }


def _dimensions(dimension: IntrinsicDimension, distances: Float[np.ndarray, "N N"]) -> dict[str, float]:
    """Intrinsic dimension of local representations beside that of the whole cloud."""
    cloud = intrinsic_dimension(None, distances=distances)
    return {
        "intrinsic_dimension": dimension.estimate,
        "intrinsic_dimension_error": dimension.error,
        "intrinsic_dimension_cloud": cloud.estimate,
        "intrinsic_dimension_cloud_error": cloud.error,
    }


def _procrustes(test: ProcrustesTest) -> dict[str, float]:
    names = ("procrustes_disparity", "procrustes_chance", "procrustes_p", "n_matched")
    return dict(zip(names, (test.disparity, test.chance, test.p_value, test.n), strict=True))


def _joined(*reasons: str) -> str:
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason))


def local_spectra(
    labels: Int[np.ndarray, " N"], distances: Float[np.ndarray, "N N"], size: int = 10
) -> list[dict[str, float]]:
    """Size, participation ratio and effective rank of each cluster's covariance, in ascending order of label.

    The ranks are those of ``size`` random members, averaged over draws (``_error``: standard deviation over draws):
    n points span n - 1 dimensions at most, so that a whole cluster's rank says first of all how large it is, and
    representations whose clusters differ in size could not be compared. NaN for a cluster of fewer members or of
    equal points.
    """
    rng, found = np.random.default_rng(0), []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        participation = effective = np.array([NAN])
        if len(members) >= size:
            chosen = random_members(members, size, RANK_DRAWS, rng)
            participation, effective = _two_ranks(distances[chosen[:, :, None], chosen[:, None, :]])
        row = {"n_tokens": len(members), "participation_ratio": float(participation.mean())}
        found.append(row | {"effective_rank": float(effective.mean()), "effective_rank_error": float(effective.std())})
    return found


def random_members(
    members: Int[np.ndarray, " n"], size: int, n_draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "R size"]:
    """``n_draws`` times ``size`` different members; once where that is all of them."""
    draws = np.argsort(rng.random((1 if len(members) == size else n_draws, len(members))))[:, :size]
    return members[draws]


def shares_of_components(distances: Float[np.ndarray, "R n n"]) -> Float[np.ndarray, "R n"]:
    """Shares of variance of the components of many small clouds, descending, from distances; NaN for equal points."""
    spectra = np.stack([spectrum_from_distances(d) for d in distances])
    totals = spectra.sum(axis=1, keepdims=True)
    return np.divide(spectra, totals, out=np.full_like(spectra, NAN), where=totals > 0)


def effective_ranks(shares: Float[np.ndarray, "R n"]) -> Float[np.ndarray, " R"]:
    """Exponential of the entropy of each cloud's shares of variance; NaN for equal points."""
    entropy = -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1.0)), 0.0 * shares).sum(axis=1)
    return np.exp(entropy)


def _two_ranks(distances: Float[np.ndarray, "R n n"]) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Participation ratio and effective rank of many small clouds at once, from their distances; NaN for equal points.

    The definitions of :mod:`~saema_utils.stratification.spectra`, on a batch.
    """
    shares = shares_of_components(distances)
    return 1 / (shares**2).sum(axis=1), effective_ranks(shares)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of the finite values; NaN when there is none."""
    v, w = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    known = np.isfinite(v)
    return float(np.average(v[known], weights=w[known])) if known.any() else NAN


def pooled_error(spectra: Sequence[Mapping[str, float]]) -> float:
    """Standard deviation over draws of the mean effective rank, weighted by tokens; NaN when there is none."""
    known = [s for s in spectra if np.isfinite(s["effective_rank_error"])]
    weights = np.array([s["n_tokens"] for s in known], dtype=float)
    errors = np.array([s["effective_rank_error"] for s in known])
    return float(np.sqrt(((weights * errors) ** 2).sum()) / weights.sum()) if known else NAN


def word_row(clouds: ConceptClouds, representation: str, n_neighbors: int) -> dict[str, Any]:
    """The same row with the words themselves as local representations: no clustering, same K everywhere."""
    x, labels = clouds.word_vectors[representation], clouds.prompt_words
    distances = pairwise_distances(x)
    row = geometry_row(labels, distances, n_neighbors)
    centres = poles(x, labels)
    dimension = mean_dimension(local_dimensions(labels, distances))
    test = procrustes_test(poles(clouds.word_vectors["residual"], labels), centres)
    return row | {
        "effective_rank": NAN,
        "effective_rank_error": NAN,
        "n_points": len(x),
        "n_copies": 0,
        "n_local": len(centres),
        "noise_fraction": 0.0,
        "betti0": int(betti_numbers(centres, 0)[0]),
        **_dimensions(dimension, distances),
        "intrinsic_dimension_embedding": NAN,
        "space": "data",
        **_procrustes(test),
        "reason": _joined(row["reason"], dimension.reason, "Procrustes needs three words" if test.n < 3 else ""),
    }


# ---- merging -----------------------------------------------------------------------------------


def centred_by_template(
    vectors: Float[Tensor, "P F"], templates: Int[np.ndarray, " P"]
) -> tuple[Float[Tensor, "P F"], bool]:
    """Subtract from each prompt's vector the mean over the words in the same sentence.

    What is left is the word, not the sentence around it. Where a template holds one prompt only (a
    file of free prompts) nothing is subtracted, and False says so. A template of which no vector is left (its words
    are sinks at some layers) does not count.
    """
    _, inverse, counts = np.unique(templates, return_inverse=True, return_counts=True)
    if counts.min(initial=2) < 2 or not len(counts):
        return vectors, False
    means = poles(vectors, templates)
    return vectors - means[torch.as_tensor(inverse, device=means.device)], True


def cut_into(distances: Float[np.ndarray, "P P"], k: int) -> Int[np.ndarray, " P"]:
    """Ward's clustering cut into ``k`` clusters: merging without a smallest cluster size."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distances, checks=False), "ward")
    return fcluster(tree, k, criterion="maxclust").astype(np.int64) - 1


def word_merging_row(clouds: ConceptClouds, representation: str) -> tuple[dict[str, Any], Int[np.ndarray, " P"]]:
    """Merging of words when the number of clusters is known: as many as there are words.

    Also the share of prompts whose nearest prompt with another sentence has the same word.
    """
    x, centred = centred_by_template(clouds.word_vectors[representation], clouds.templates)
    distances = pairwise_distances(x)
    labels = cut_into(distances, len(np.unique(clouds.prompt_words)))
    purity, chance = neighbour_purity(distances, clouds.prompt_words, np.arange(len(distances)))
    row = asdict(merging_scores(labels, clouds.prompt_words)) | {
        "purity": purity,
        "purity_chance": chance,
        "ami_token": NAN,
    }
    row["reason"] = _joined(row["reason"], "" if centred else "no shared templates: not centred")
    return row, labels


def cluster_merging_row(clouds: ConceptClouds, labels: Int[np.ndarray, " N"]) -> dict[str, Any]:
    """Clusters against words over the words' own tokens, and against the tokens' text over all tokens."""
    row = asdict(merging_scores(labels[clouds.is_word], clouds.word_of[clouds.is_word]))
    texts = np.unique(np.asarray(clouds.tokens, dtype=object).astype(str), return_inverse=True)[1]
    return row | {"purity": NAN, "purity_chance": NAN, "ami_token": merging_scores(labels, texts).ami}
