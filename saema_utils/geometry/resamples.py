"""How sure is a measure of one concept? Measured again on fewer of its sentences, or on others.

The prompts are words crossed with templates, and what varies is the template: it carries most of a word vector's
variance, and another author would have written others, of which every word would stand in each. So where templates
are shared, one is left out at a time, for all words together: a jackknife over templates, with Student's quantile for
their few. Prompts drawn one by one, as if each were a sentence of its own, would give intervals several times too
narrow. They are drawn so only where each has its own template (a reader's file of free prompts): with
replacement where a measure is made of means, as the poles of words are; without where it is made of nearest
neighbours, for a prompt drawn twice would put copies at distance zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.distances import pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.clouds import rms_radius_of
from saema_utils.geometry.clusters import find_local_representations
from saema_utils.geometry.concept import ConceptClouds, geometry_row
from saema_utils.geometry.dimension import local_dimensions, mean_dimension
from saema_utils.geometry.pole_measures import mean_distance, pole_distances, scale_free_tree
from saema_utils.statistics import errors_to_bound, jackknife_error

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

NAN = float("nan")
DROPPED_SHARE = 0.2  # of the prompts, in each resample without replacement


def shared_templates(templates: Int[np.ndarray, " P"]) -> bool:
    """Whether templates are sentences that words share, two prompts or more to each on average."""
    return 2 * len(np.unique(templates)) <= len(templates)


def drawn_prompts(words: Int[np.ndarray, " P"], n_resamples: int, seed: int) -> Iterator[Int[np.ndarray, " P"]]:
    """Indices of prompts drawn with replacement among the prompts of each word, so that no word is lost.

    For prompts that are independent given their word: not for templates that words share.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(words == word) for word in np.unique(words)]
    for _ in range(n_resamples):
        yield np.concatenate([rng.choice(own, len(own)) for own in members])


def dropped(n_prompts: int) -> int:
    """How many prompts each resample without replacement leaves out."""
    return max(1, round(DROPPED_SHARE * n_prompts))


def dropped_prompts(n_prompts: int, n_resamples: int, seed: int) -> Iterator[Bool[np.ndarray, " P"]]:
    """Boolean rows of prompts to keep, each without a random fifth of them."""
    rng = np.random.default_rng(seed)
    for _ in range(n_resamples):
        keep = np.ones(n_prompts, dtype=bool)
        keep[rng.choice(n_prompts, dropped(n_prompts), replace=False)] = False
        yield keep


def interval_row(own: float, resampled: Sequence[float], templates: Int[np.ndarray, " P"], drawn: bool) -> dict:
    """Columns method, unit, estimate, error, low, high and n_resamples from a measure and its resamples.

    ``drawn`` says how prompts were resampled that share no templates: with replacement, or by leaving some out.
    """
    known = [value for value in resampled if np.isfinite(value)]
    n = reach = len(templates)
    if shared_templates(templates):
        error = jackknife_error(known, len(np.unique(templates)))
        method, unit, reach = "one left out", "template", len(known)
    elif drawn:
        error = float(np.std(known)) if len(known) > 2 else NAN
        method, unit = "drawn with replacement", "prompt"
    else:
        error = jackknife_error(known, n, dropped(n))
        method, unit = "a fifth left out", "prompt"
    half = errors_to_bound(reach) * error
    return {
        "method": method,
        "unit": unit,
        "estimate": own,
        "error": error,
        "low": own - half,
        "high": own + half,
        "n_resamples": len(known),
    }


def pole_rows(
    clouds: ConceptClouds, representations: Sequence[str], n_resamples: int, seed: int
) -> dict[str, list[dict[str, float]]]:
    """Scale-free tree and mean distance of the words' poles, by representation, one row a resample.

    Each template left out in turn, or ``n_resamples`` draws of prompts that share none. Every representation meets
    the same resamples, so that differences between them are paired. The first row of each is the measure on the
    prompts as they are.
    """
    words, templates = clouds.prompt_words, clouds.templates
    distances = {name: pairwise_distances(clouds.word_vectors[name]) for name in representations}
    if shared_templates(templates):
        draws = [np.flatnonzero(templates != left_out) for left_out in np.unique(templates)]
    else:
        draws = list(drawn_prompts(words, n_resamples, seed))
    draws = [np.arange(clouds.n_prompts), *(draw for draw in draws if len(draw))]
    return {
        name: [_pole_measures(words[draw], d[np.ix_(draw, draw)]) for draw in draws] for name, d in distances.items()
    }


def _pole_measures(words: Int[np.ndarray, " P"], distances: np.ndarray) -> dict[str, float]:
    between, unit = pole_distances(words, distances), rms_radius_of(distances)
    known = len(between) >= 2 and unit > 0
    return {
        "mst_weight_scale_free": scale_free_tree(between, unit),
        "aedp_scale_free": mean_distance(between) / unit if known else NAN,
    }


def resampled_rows(
    clouds: ConceptClouds, representation: str, *, min_cluster_size: int, n_neighbors: int, n_resamples: int, seed: int
) -> list[dict[str, float]]:
    """Direct-protocol measures without each template, or without a fifth of free prompts, clusters found anew.

    Without a random part of the prompts every cluster shrinks, and the smallest one allowed shrinks too, or clusters
    of about that size would all vanish. Without a template the clusters of other templates keep their size.
    """
    d, smallest = clouds.distances(representation), min_cluster_size
    if shared_templates(clouds.templates):
        kept = [clouds.template_of != left_out for left_out in np.unique(clouds.template_of)]
    else:
        smallest = max(2, round((1 - DROPPED_SHARE) * min_cluster_size))
        n_prompts = int(clouds.prompt_of.max()) + 1
        kept = [keep[clouds.prompt_of] for keep in dropped_prompts(n_prompts, n_resamples, seed)]
    rows = []
    for keep in kept:
        sub = d[np.ix_(keep, keep)]
        try:
            local = find_local_representations(None, method="direct", min_cluster_size=smallest, distances=sub)
        except GeometryError:
            continue
        row = geometry_row(local.labels, sub, n_neighbors)
        row |= {
            "n_local": local.n_local,
            "intrinsic_dimension": mean_dimension(local_dimensions(local.labels, sub)).estimate,
        }
        rows.append(row)
    return rows
