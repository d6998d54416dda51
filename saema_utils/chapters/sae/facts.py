"""What the autoencoder of a run is, told without loading it."""

from __future__ import annotations

from saema_utils.runs.directory import RunDirectory
from saema_utils.saes.facts import SaeFacts, read_facts


def sae_facts(run: RunDirectory) -> SaeFacts:
    """Facts of the run's autoencoder: of the recipe when it is trained here, else of the one that was loaded.

    A published autoencoder is what its own file says; the recipe, which would have trained one, is all there is
    until chapter 2 has fetched it.
    """
    recipe = run.study.sae
    if recipe.source == "train" or run.entry("sae/cfg.json") is None:
        return SaeFacts(recipe.architecture, recipe.d_sae, recipe.k)
    return read_facts(run.check("sae/cfg.json").parent)
