"""Chapter 3 of a run: how noise moves the rank of every representation, and what that is worth as evidence."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import pandas as pd

from saema_utils.chapters.activations.concepts import concept_activations, concept_tensors, concepts_of
from saema_utils.chapters.sae.coders import control_tensors, study_coders
from saema_utils.evidence.rank import (
    EVERY_CONCEPT,
    ONE_RMS,
    TOLERANCES,
    controls_table,
    stratification_table,
    tolerance_table,
)
from saema_utils.model.residual_stream import find_sinks
from saema_utils.rulers.strata import false_alarm_and_sensitivity, rank_recovery
from saema_utils.rulers.strata import tucker_tensor as tucker_tensor
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, table
from saema_utils.stratification.anatomy import (
    covariance_root,
    only_distinct,
    shuffle_latents,
    subspace_drift,
    where_rank_moves,
)
from saema_utils.stratification.grams import cloud_grams, eigenvalues
from saema_utils.stratification.movement import DISTINCT
from saema_utils.stratification.noise import Encode, sweep_clouds
from saema_utils.stratification.spectra import MODES, measure_spectrum, ranks_at
from saema_utils.stratification.token_cloud import TokenCloud

ANATOMY = ("residual", "sae", "random_dictionary")
ANATOMY_SEEDS = 2
MEASURED = (concept_tensors, control_tensors)
PLACE_RMS = 0.1
"""Where on the tensor the rank moves is shown at the level nearest to this share of the RMS."""


TESTED = {
    "rank_clean": "rank without noise",
    "rank_min": "smallest rank over noise levels and seeds",
    "rank_max": "largest rank over noise levels and seeds",
    "effective_rank_clean": "effective rank without noise",
    "effective_rank_max": "largest effective rank over noise levels and seeds",
    "first_noise": "lowest noise level at which most seeds' rank is another, in activation units; empty: never",
    "first_noise_rms": "the same over the stream's RMS",
    "moved": "largest share of seeds whose rank is another at one noise level",
    "n_seeds": "noise seeds",
    "called": "what the paper's test calls it: stratified where most seeds' rank changes at some level, else smooth",
}
COMPARED = {
    "statistic": "excursion (how far the effective rank moves) or onset (how soon)",
    "control": "what the SAE is compared with",
    "difference": "the SAE's statistic minus the control's",
    "p": "p-value of the difference",
    "p_holm": "the same, adjusted for the tests of the table",
}


def few_levels(run: RunDirectory, reach: float = math.inf) -> tuple[float, ...]:
    """Noise zero and up to four other levels, in the study's unit, spread evenly over its own, the largest included.

    Of those up to the first one that is at least ``reach``.
    """
    first, *rest = run.study.noise_levels
    below = sum(level < reach for level in rest)
    rest = rest[: below + 1]
    step = -(-len(rest) // 4)
    return (first, *rest[::-1][::step][::-1])


def token_clouds(run: RunDirectory) -> list[TokenCloud]:
    """Unmasked tokens of every concept with their places in the tensor, on the run's device."""
    found = concept_activations(run)
    return [TokenCloud.of(a.residual.to(run.device), a.mask, concept) for concept, a in found.items()]


def representations(run: RunDirectory) -> dict[str, Encode]:
    """``residual`` (itself) and the study's coders, by name."""
    return {"residual": lambda x: x, **{name: coder.encode for name, coder in study_coders(run).items()}}


@parts(
    "03_noise_rank",
    of=concepts_of,
    needs=MEASURED,
    columns={f"rank@{rtol:g}": f"eigenvalues above {rtol:g} of the largest" for rtol in TOLERANCES},
)
def ranks_by_concept(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Everything that one pass over noise gives: every representation, all tokens or distinct ones, every tolerance."""
    clouds = [cloud for cloud in token_clouds(run) if cloud.concept in concepts]
    encoders = representations(run)
    derived = {"shuffled": ("sae", functools.partial(shuffle_latents, seed=run.study.seed))}
    derived |= {name + DISTINCT: (name, only_distinct) for name in ANATOMY if name in encoders}
    # A few concepts at a time: one encoding serves them all, and what is finished is kept.
    for start in range(0, len(clouds), 3):
        group = clouds[start : start + 3]
        measured = sweep_clouds(
            group,
            encoders,
            noise_levels=run.study.noise_levels,
            noise_unit=run.study.noise_unit,
            seeds=run.study.seeds,
            derived=derived,
            measure=ranks_at(TOLERANCES),
            description=f"noise {start + 1}-{start + len(group)} of {len(clouds)} concepts",
        )
        for concept, part in measured.groupby("concept", sort=False):
            yield concept, {"03_noise_rank": part}


def _ranks(run: RunDirectory, distinct: bool = False) -> pd.DataFrame:
    """The ranks of all tokens, or of one token for each distinct context."""
    ranks = ranks_by_concept(run)
    ranks = ranks[ranks["representation"].str.endswith(DISTINCT) == distinct]
    return ranks.assign(representation=ranks["representation"].str.removesuffix(DISTINCT))


@table("03_noise_rank", needs=(ranks_by_concept,))
def noise_rank_table(run: RunDirectory) -> pd.DataFrame:
    """Ranks of every concept, representation, mode, noise level and seed.

    Representations: residual, sae, pca (as many components as reconstruct like the SAE), random_dictionary
    (as wide and as sparse as the SAE), shuffled (the SAE's latents with features permuted token by token).
    """
    return _ranks(run).filter(regex="^(?!rank@)")


@table("03_distinct", needs=(ranks_by_concept,))
def ranks_of_distinct_contexts(run: RunDirectory) -> pd.DataFrame:
    """Ranks of ``03_noise_rank`` with one token for each distinct context."""
    return _ranks(run, distinct=True).filter(regex="^(?!rank@)")


@table(
    "03_tolerance",
    needs=(ranks_by_concept,),
    columns=TESTED | {"rtol": "share of the largest eigenvalue below which an eigenvalue counts as zero"},
)
def ranks_by_tolerance(run: RunDirectory) -> pd.DataFrame:
    """The verdict of each concept, representation and mode at each tolerance."""
    return tolerance_table(_ranks(run))


@table("03_stratification", needs=(noise_rank_table,), columns=TESTED)
def rank_test_table(run: RunDirectory) -> pd.DataFrame:
    """The paper's rank test: how far each rank moves, the first noise level that changes it, and the verdict."""
    return stratification_table(noise_rank_table(run))


@table("03_controls", needs=(noise_rank_table,), columns=COMPARED)
def control_verdicts(run: RunDirectory) -> pd.DataFrame:
    """Whether the SAE's rank moves more, or sooner, than its controls' do, with intervals."""
    return controls_table(noise_rank_table(run), seed=run.study.seed)


@table(
    "03_on_manifold",
    needs=(noise_rank_table, *MEASURED),
    columns={"kind": "noise alike in all directions (isotropic), or shaped by the activations' covariance"},
)
def ranks_by_noise_kind(run: RunDirectory) -> pd.DataFrame:
    """Isotropic noise against noise shaped by the activations' covariance.

    Equal norm token by token; feature mode; every representation; four levels up to the first of one RMS or more,
    because that is how far an excursion is taken and where it is found. Two seeds: excursions differ
    between concepts ten times as much as between seeds.
    """
    clouds, same, seeds = token_clouds(run), noise_rank_table(run), run.study.seeds[:ANATOMY_SEEDS]
    unit = run.study.noise_unit
    levels = few_levels(run, ONE_RMS * (1 if unit == "rms" else max(cloud.rms for cloud in clouds)))
    shuffled = {"shuffled": ("sae", functools.partial(shuffle_latents, seed=run.study.seed))}
    shaped = [
        sweep_clouds(
            [cloud],
            representations(run),
            noise_levels=levels,
            noise_unit=unit,
            seeds=seeds,
            modes=(2,),
            derived=shuffled,
            noise_shape=covariance_root(cloud.points),
        )
        for cloud in clouds
    ]
    measured = "noise_rms" if unit == "rms" else "noise"
    same = same[(same["mode"] == 2) & same[measured].isin(levels) & same["seed"].isin(seeds)]
    return pd.concat(
        [same.assign(kind="isotropic"), *(part.assign(kind="on_manifold") for part in shaped)], ignore_index=True
    )


@table(
    "03_manifold_controls",
    needs=(ranks_by_noise_kind,),
    columns=COMPARED
    | {"kind": "kind of noise", "largest_noise_rms": "largest level up to one RMS, over the stream's RMS"},
)
def verdicts_by_noise_kind(run: RunDirectory) -> pd.DataFrame:
    """The test against controls for each kind of noise, over all concepts.

    Under noise shaped like the activations the residual keeps the shape of its covariance by construction,
    so that the random dictionary is the control that counts.
    """
    judged = []
    for kind, part in ranks_by_noise_kind(run).groupby("kind", sort=False):
        found = controls_table(part, seed=run.study.seed)
        largest = float(part["noise_rms"][part["noise_rms"] <= ONE_RMS + 1e-9].max())
        judged.append(found[found["concept"] == EVERY_CONCEPT].assign(kind=kind, largest_noise_rms=largest))
    return pd.concat(judged, ignore_index=True)


@table(
    "03_subspace_drift",
    needs=MEASURED,
    columns={
        "angle_mean": "mean principal angle to the leading subspace without noise, degrees",
        "angle_max": "largest of these angles, degrees",
        "support_kept": "Jaccard overlap of a token's active latents with those without noise",
        "new_share": "share of the variance on latents that are silent at every token without noise",
    },
)
def subspace_drift_table(run: RunDirectory) -> pd.DataFrame:
    """How far noise turns each mode's leading subspace, and which latents stay active."""
    names = representations(run)
    return subspace_drift(
        token_clouds(run),
        {name: names[name] for name in ANATOMY},
        noise_levels=few_levels(run),
        noise_unit=run.study.noise_unit,
        seeds=run.study.seeds[:ANATOMY_SEEDS],
        description="subspace drift",
    )


@table(
    "03_where",
    needs=MEASURED,
    columns={
        "axis": "whether the rank is that of one prompt or of one position",
        "index": "number of the prompt or position",
        "n_tokens": "tokens there",
        "n_distinct": "distinct contexts among them",
        "rank_clean": "feature-mode rank of their latents without noise",
        "rank_noisy": "the same with noise",
        "rank_gain": "rank with noise minus rank without",
        "effective_rank_clean": "effective rank without noise",
        "effective_rank_noisy": "effective rank with noise",
    },
)
def rank_gain_by_place(run: RunDirectory) -> pd.DataFrame:
    """Which prompts and positions gain rank, at the noise level nearest to a tenth of the RMS."""
    clouds, names = token_clouds(run), representations(run)
    unit = run.study.noise_unit
    levels = [level for level in run.study.noise_levels if level > 0]
    level = min(levels, key=lambda s: abs(clouds[0].noise_size(s, unit).rms - PLACE_RMS))
    chosen = {name: names[name] for name in ANATOMY}
    return where_rank_moves(clouds, chosen, level=level, noise_unit=unit, seed=run.study.seed)


@table(
    "03_sinks",
    needs=MEASURED,
    columns={
        "mode_name": "name of the mode",
        "kept": "masked as usual, with one sink let in, or with all sinks let in",
        "sink_norm": "norm of the largest masked token",
        "typical_norm": "median norm of the unmasked tokens",
    },
)
def ranks_with_sinks(run: RunDirectory) -> pd.DataFrame:
    """Ranks without noise when one attention sink, or every sink, is left in the tensor; no rows without a sink."""
    encoders = {name: f for name, f in representations(run).items() if name in ("residual", "sae")}
    columns = ["concept", "representation", "mode", "mode_name", "kept", "rank", "effective_rank"]
    rows = []
    for concept, found in concept_activations(run).items():
        norms = found.residual.norm(dim=-1)
        hidden = ~found.mask & (norms > 0)
        if not hidden.any():
            continue
        typical = norms[found.mask].median()
        one = found.mask.clone()
        one.view(-1)[norms.masked_fill(~hidden, 0).argmax()] = True
        all_of_them = found.mask | find_sinks(norms, hidden, typical=found.mask)[0]
        for kept, mask in (("masked", found.mask), ("one sink", one), ("all sinks", all_of_them)):
            cloud = TokenCloud.of(found.residual.to(run.device), mask, concept)
            for name, encode in encoders.items():
                grams = cloud_grams(encode(cloud.points), cloud, range(len(MODES)))
                spectra = eigenvalues([gram for gram, _, _ in grams.values()], [f for _, f, _ in grams.values()])
                for (mode, (_, _, length)), spectrum in zip(grams.items(), spectra, strict=True):
                    ranks = measure_spectrum(spectrum[:length])
                    sizes = (float(norms[hidden].max()), float(typical))
                    rows.append(
                        (concept, name, mode, MODES[mode], kept, ranks["rank"], ranks["effective_rank"], *sizes)
                    )
    return pd.DataFrame(rows, columns=[*columns, "sink_norm", "typical_norm"])


@table(
    "03_laboratory",
    ruler=True,
    choices=lambda run: None,  # the same in every study
    columns={
        "test": "which rule decides",
        "world": "kind of world",
        "truth": "what noise does to it by construction",
        "n": "worlds drawn",
        "flagged": "share of them that the rule calls stratified",
        "more": "share in which the rank moves more than the controls'",
        "sooner": "share in which it moves sooner",
        "error": "share in which the rule is wrong",
        "kind": "false alarm or missed effect",
    },
)
def error_rates(run: RunDirectory, n_seeds: int = 200) -> pd.DataFrame:
    """False alarms and sensitivity of the verdicts on worlds whose answer is known."""
    return false_alarm_and_sensitivity(n_seeds)


@table(
    "03_recovery",
    ruler=True,
    choices=lambda run: None,  # the same in every study
    columns={
        "shape": "shape of the tensor",
        "dtype": "its number format",
        "noise": "noise added to it",
        "true_ranks": "multilinear ranks that it was made with",
        "found_ranks": "ranks measured",
        "recovered": "whether they agree",
    },
)
def recovered_ranks(run: RunDirectory) -> pd.DataFrame:
    """Tensors of prescribed multilinear ranks, and the ranks that were measured."""
    return rank_recovery()
