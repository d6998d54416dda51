"""The headline measures of chapters 3 to 5, for any set of representations of one concept.

Defined where their chapters define them; here they are only lined up, so that families of autoencoders
and layers of a model can be compared in one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from saema_utils.errors import InterventionError
from saema_utils.evidence.rank import movement
from saema_utils.geometry.circles import circle_rows
from saema_utils.geometry.concept import cluster_cloud, concept_clouds, word_merging_row
from saema_utils.geometry.dimension import local_dimensions, mean_dimension
from saema_utils.intervention.doses import dose_beyond_scaling, optimum
from saema_utils.model.residual_stream import ConceptActivations
from saema_utils.saes.coders import Coder
from saema_utils.stratification.noise import sweep_clouds
from saema_utils.stratification.token_cloud import TokenCloud

NAN = float("nan")
RESIDUAL = "residual"
NOISE_RMS = (0.0, 0.5, 1.0)
RESAMPLES = 200
MEASURES = {
    "excursion": "rank excursion under noise",
    "merging": "agreement of clusters with words",
    "intrinsic_dimension": "intrinsic dimension",
    "circularity": "cyclic order of words",
    "alpha_star": "best dose of separation",
}
"""The headline measures and what to call them; units are none throughout."""
STREAM_MEASURES = ("excursion", "merging", "intrinsic_dimension", "circularity")  # those that the residual stream has
DOSES = ("alpha_star", "gain", "alpha_beyond", "gain_beyond", "gain_scaling")
COLUMNS = {
    "excursion": "largest absolute log ratio of the effective rank under noise (half and one RMS) to that without",
    "merging": "adjusted mutual information of clusters with words",
    "intrinsic_dimension": "TwoNN dimension within local representations",
    "n_local": "how many local representations there are",
    "circularity": "cyclic order of words that form a cycle: 1 is perfect",
    "circularity_p": "its permutation p-value",
    "alpha_star": "best dose of moving the words' poles apart",
    "gain": "share of the squared error that this dose removes",
    "alpha_beyond": "best dose once all latents may be scaled as well",
    "gain_beyond": "share of the squared error that it removes on top of scaling",
    "gain_scaling": "share of the squared error that scaling alone removes",
}
"""What the columns of :func:`concept_measures` mean."""


def concept_measures(
    activations: ConceptActivations,
    coders: Mapping[str, Coder],
    *,
    min_cluster_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """One row per representation: the residual stream first, then each coder by its name.

    Returns
    -------
    Columns concept, representation and those of :data:`COLUMNS`, as chapters 3 (``excursion``), 4 and 5 (doses) define
    them. NaN where there is none: an order of words that form no cycle, a dose of the residual stream, which has
    nothing to decode. An autoencoder that returns its latents too small gains from anything that enlarges them.
    """
    ranks = _excursions(activations, coders, seed, device)
    clouds = concept_clouds(activations, coders, device)
    rows = []
    for name in (RESIDUAL, *coders):
        row: dict[str, Any] = {"concept": activations.prompts.concept, "representation": name}
        row["excursion"] = ranks[name]
        row["merging"] = word_merging_row(clouds, name)[0]["ami"]
        local = cluster_cloud(clouds, name, "direct", min_cluster_size=min_cluster_size, seed=seed)
        dimension = mean_dimension(local_dimensions(local.labels, clouds.distances(name)))
        row |= {"intrinsic_dimension": dimension.estimate, "n_local": local.n_local}
        circle = (circle_rows(clouds, name, n_resamples=0, seed=seed)[0] or [{"score": NAN, "p_value": NAN}])[0]
        row |= {"circularity": circle["score"], "circularity_p": circle["p_value"]}
        rows.append(row | _best_dose(activations, coders.get(name), seed, device))
    return pd.DataFrame(rows)


def _excursions(
    activations: ConceptActivations, coders: Mapping[str, Coder], seed: int, device: torch.device | str
) -> dict[str, float]:
    cloud = TokenCloud.of(activations.residual.to(device), activations.mask, activations.prompts.concept)
    encoders = {RESIDUAL: lambda x: x, **{name: coder.encode for name, coder in coders.items()}}
    levels = [share * cloud.rms for share in NOISE_RMS]
    table = sweep_clouds([cloud], encoders, noise_levels=levels, seeds=[seed], modes=(2,))
    return movement(table).set_index("representation")["excursion"].to_dict()


@torch.no_grad()
def _best_dose(
    activations: ConceptActivations, coder: Coder | None, seed: int, device: torch.device | str
) -> dict[str, float]:
    if coder is None:
        return dict.fromkeys(DOSES, NAN)
    prompts = activations.word_mask.nonzero()[:, 0]
    x = activations.residual[activations.word_mask].to(device)
    labels, z = activations.prompt_words[prompts].to(device), coder.encode(x)
    options: dict[str, Any] = {"prompts": prompts, "seed": seed, "n_resamples": RESAMPLES}
    try:
        found, beyond = (
            fit(z, labels, lambda z: coder.decode(z.to(x.dtype), like=x), x, **options)
            for fit in (optimum, dose_beyond_scaling)
        )
    except InterventionError:  # one word only: there is nothing to move apart
        return dict.fromkeys(DOSES, NAN)
    return dict(zip(DOSES, (found.alpha, found.gain, beyond.alpha, beyond.gain, beyond.gain_scaling), strict=True))


def mean_over_concepts(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean of every measure over concepts, missing values left out, with how many concepts there were."""
    names = list(dict.fromkeys([*MEASURES, "n_local", *DOSES]))
    return (
        table.groupby(by, sort=False)
        .agg(**{name: (name, "mean") for name in names}, concepts=("concept", "nunique"))
        .reset_index()
    )
