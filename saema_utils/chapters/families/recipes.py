"""How the autoencoders of chapter 9 are made comparable: their text, seeds, width and sparsity."""

from __future__ import annotations

import dataclasses

from saema_utils.chapters.sae.coders import sae_l0
from saema_utils.chapters.sae.facts import sae_facts
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import SaeRecipe

FAMILY_TOKENS = 40_000
SMALL_TOKENS = 5_000
FAMILY_SEEDS = 2
SEARCH_TRIALS = 4


def is_small(run: RunDirectory) -> bool:
    """Whether a study has too little text for families to be told apart: everything is then tried once and briefly."""
    return run.study.corpus.tokens < FAMILY_TOKENS


def family_seeds(run: RunDirectory) -> tuple[int, ...]:
    """Seeds of the families: two, or one where the study is too small for two to be trained."""
    return run.study.seeds[: 1 if is_small(run) else FAMILY_SEEDS]


def training_tokens(run: RunDirectory, enough: int = FAMILY_TOKENS) -> int:
    """How many of the study's tokens each autoencoder of this chapter is trained on, at most."""
    return SMALL_TOKENS if is_small(run) else enough


def search_trials(run: RunDirectory) -> int:
    """Most trainings that the search for a family's sparsity coefficient may take."""
    return SEARCH_TRIALS // 2 if is_small(run) else SEARCH_TRIALS


def comparable_recipe(run: RunDirectory) -> SaeRecipe:
    """The recipe that families and layers start from: as wide and as sparse as the study's autoencoder is.

    A published one is measured: its recipe in the study says nothing of how many latents fire.
    """
    recipe = run.study.sae
    if recipe.source == "train":
        return recipe
    d_sae = sae_facts(run).d_sae
    return dataclasses.replace(recipe, d_sae=d_sae, k=min(d_sae, max(1, round(sae_l0(run)))))
