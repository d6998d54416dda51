"""Chapter 9 of a run: six families of autoencoder at one sparsity, through the measures of chapters 3 to 5; and every
claim over several autoencoders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pandas as pd
import torch

from saema_utils.chapters.activations.concepts import concept_activations, concept_tensors, concepts_of
from saema_utils.chapters.activations.corpus import corpus_activations
from saema_utils.chapters.families.measures import COLUMNS, concept_measures, mean_over_concepts
from saema_utils.chapters.families.recipes import (
    comparable_recipe,
    family_seeds,
    is_small,
    search_trials,
    training_tokens,
)
from saema_utils.chapters.families.replicates import judged_claims, replicate_effects, rules
from saema_utils.chapters.sae.coders import control_tensors, keep_sae
from saema_utils.evidence.replication import mixture as mixture  # handed on to the chapter
from saema_utils.evidence.replication import replication
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, table
from saema_utils.runtime import progress
from saema_utils.saes.coders import RandomDictionary, SaeCoder
from saema_utils.saes.families import MatchedSae, small_recipe, train_to_l0
from saema_utils.saes.fidelity import measure_fidelity
from saema_utils.saes.loading import load_sae
from saema_utils.study import ARCHITECTURES, SaeRecipe

FAMILY_NAMES = {
    "standard": "standard (L1)",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "gated": "gated",
    "matryoshka": "Matryoshka",
}
VARIANCE_PARTS = {"concept": "concept", "layer": "layer", "sae": "autoencoder", "rest": "rest"}
"""What the variance of an effect is divided among, and what pages call it."""
TRAINING_COLUMNS = {
    "architecture": "the family; residual for the residual stream",
    "d_sae": "latents of the autoencoder",
    "k": "active latents a token that were asked for",
    "penalty": "sparsity coefficient kept; empty for families that are told k",
    "trainings": "trainings that the search for it took",
    "l0_trained": "active latents on training tokens, before the threshold was moved",
    "l0_off": "share by which the held-out L0 misses k",
}


@table(
    "09_ruler",
    ruler=True,
    choices=lambda run: [run.study.seed, is_small(run), search_trials(run)],
    columns={
        "family": "the family; a random dictionary of the same width is chance",
        "L0": "mean number of active latents on training tokens",
        "recovery": "mean over true directions of the largest cosine with a decoder row",
    },
)
def ruler_of_families(run: RunDirectory) -> pd.DataFrame:
    """Families trained where the truth is known, and how much of it each decoder holds.

    Tokens are sparse sums of forty unit directions in sixteen dimensions, with a little noise.
    """
    epochs, trials = (2 if is_small(run) else 6), search_trials(run)
    draws = torch.Generator().manual_seed(run.study.seed)
    truth = torch.nn.functional.normalize(torch.randn(40, 16, generator=draws), dim=1)
    amounts = torch.rand(2400, 40, generator=draws) * (torch.rand(2400, 40, generator=draws) < 0.08)
    tokens = 5 * amounts @ truth + 0.1 * torch.randn(2400, 16, generator=draws)

    def recovery(rows: torch.Tensor) -> float:
        return float((torch.nn.functional.normalize(rows.cpu(), dim=1) @ truth.T).max(0).values.mean())

    width, k = 48, 3
    chance = recovery(RandomDictionary(16, width, k).dictionary())
    rows = [{"family": "random dictionary", "L0": float(k), "recovery": chance}]
    for name, title in FAMILY_NAMES.items():
        recipe = SaeRecipe(architecture=name, d_sae=width, k=k, epochs=epochs, batch=64, learning_rate=3e-3)
        made = train_to_l0(tokens[:2000], tokens[2000:], recipe, run.study.seed, max_trials=trials, description="")
        rows.append({"family": title, "L0": made.l0, "recovery": recovery(made.trained.sae.W_dec.detach())})
    return pd.DataFrame(rows)


def folder_of(architecture: str, seed: int) -> str:
    """Where in the run a family is kept, in sae_lens's format."""
    return f"families/{architecture}-{seed}"


def _families(run: RunDirectory) -> list[str]:
    return [f"{name}-{seed}" for name in ARCHITECTURES for seed in family_seeds(run)]


def _first_seed(run: RunDirectory, family: str) -> list[str]:
    """The family of the first seed, from which those of others start."""
    first = f"{family.rpartition('-')[0]}-{family_seeds(run)[0]}"
    return [first] if first != family else []


@parts("09_training", of=_families, needs=(corpus_activations, control_tensors), after=_first_seed)
def trained_families(run: RunDirectory, families: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """The autoencoders themselves, kept in ``families/`` as they are finished."""
    corpus, key = corpus_activations(run), trained_families.key(run)
    for family in progress(families, "training families"):
        architecture, _, seed = family.rpartition("-")
        # Other seeds start where the first one's search for a penalty ended.
        before = [trained_families.part(run, first)["penalty"].iloc[0] for first in _first_seed(run, family)]
        matched = train_to_l0(
            corpus.train[: training_tokens(run)],
            corpus.heldout,
            small_recipe(comparable_recipe(run), architecture),
            int(seed),
            run.device,
            metadata={"model_name": run.study.model, "hook_name": run.study.hook_name, "family": architecture},
            description="",
            start=next((penalty for penalty in before if not math.isnan(penalty)), None),
            max_trials=2 if before else search_trials(run),
        )
        keep_sae(run, folder_of(architecture, int(seed)), key, lambda: matched.trained.sae)  # noqa: B023
        yield family, {"09_training": _facts(run, matched, architecture, int(seed))}


family_training = trained_families.whole(
    "09_training",
    "How each family and seed was trained to the sparsity of the study's autoencoder, and how well it reconstructs.",
    {**TRAINING_COLUMNS, "trials": "every penalty tried with its L0, as JSON"},
)


def _facts(run: RunDirectory, matched: MatchedSae, architecture: str, seed: int) -> pd.DataFrame:
    sae, k = matched.trained.sae, small_recipe(comparable_recipe(run), architecture).k
    found = measure_fidelity(SaeCoder(sae), corpus_activations(run).heldout.to(run.device))
    tried = [[round(penalty, 5), round(l0, 2)] for penalty, l0 in matched.trials if penalty == penalty]
    row = {"architecture": architecture, "seed": seed, "d_sae": sae.cfg.d_sae, "k": k, "penalty": matched.penalty}
    row |= {"trainings": len(matched.trials), "l0_trained": matched.l0_trained}
    row |= {"l0": found.l0, "l0_off": found.l0 / k - 1, "explained_variance": found.explained_variance}
    row |= {"cosine": found.cosine, "dead_fraction": found.dead_fraction}
    return pd.DataFrame([row | {"trials": json.dumps(tried)}])


def family_coders(run: RunDirectory) -> dict[str, SaeCoder]:
    """Every trained family by ``architecture-seed``, on the run's device."""
    trained_families(run)
    return {name: SaeCoder(load_sae(run.path / "families" / name, run.device), name) for name in _families(run)}


@parts("09_measures", of=concepts_of, needs=(trained_families, concept_tensors))
def measures_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Headline measures of every family, concept by concept."""
    coders, activations = family_coders(run), concept_activations(run)
    for concept in progress(concepts, "measuring families"):
        measured = concept_measures(
            activations[concept],
            coders,
            min_cluster_size=run.study.geometry.min_cluster_size,
            seed=run.study.seed,
            device=run.device,
        )
        yield concept, {"09_measures": measured}


@table(
    "09_measures", needs=(measures_of_concepts,), columns={**COLUMNS, "architecture": TRAINING_COLUMNS["architecture"]}
)
def family_measures(run: RunDirectory) -> pd.DataFrame:
    """Headline measures per concept, for the residual stream and every family and seed."""
    found = measures_of_concepts(run)
    split = found["representation"].str.rsplit("-", n=1)
    found["architecture"], found["seed"] = split.str[0], pd.to_numeric(split.str[1]).fillna(run.study.seed)
    return found.astype({"seed": int})


@table(
    "09_families",
    needs=(family_training, family_measures),
    columns={name: means for name, means in {**COLUMNS, **TRAINING_COLUMNS}.items() if name != "circularity_p"}
    | {"concepts": "concepts averaged over"},
)
def families_table(run: RunDirectory) -> pd.DataFrame:
    """One row per family and seed, the residual stream first: fidelity, and the measures averaged over concepts."""
    means = mean_over_concepts(family_measures(run), ["architecture", "seed"])
    return means.merge(family_training(run).drop(columns="trials"), on=["architecture", "seed"], how="left")


@table(
    "09_replication",
    needs=(replicate_effects,),
    choices=rules,
    columns={
        "claim": "its id",
        "contrast": "itself, or its lead over a control that learned nothing",
        "estimate": "mean effect, in the unit of the claim's measure",
        "new_low": "lower end of the 95 % interval for a new concept in a new autoencoder",
        "new_high": "upper end of it",
        "minimum_n": "fewest concepts with which the rule may speak",
        "saes": "autoencoders with a value",
        "layers": "layers that they were trained at",
        "median": "over autoencoders: mean over concepts of the median over all analyses, in margins",
        "joint_p": "p of that median, if the signs of whole concepts are flipped",
        "share_concept": "share of the variance that lies between concepts",
        "share_layer": "between layers",
        "share_sae": "between autoencoders of one layer",
        "share_rest": "in neither: a concept in one autoencoder",
        "seeds": "two standard deviations between autoencoders of one layer, of their mean effect",
        "holds_up": "what the rule decides by the interval for a new concept in a new autoencoder",
        "holds_up_mean": "what it decides by the interval of the mean",
    },
)
def replication_table(run: RunDirectory) -> pd.DataFrame:
    """Every claim over all autoencoders and layers: the mean, and what to expect of the next one."""
    return replication(replicate_effects(run), judged_claims())
