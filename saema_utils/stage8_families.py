"""Chapter 8 of a run: six families of autoencoder at one sparsity, through the measures of chapters 3 to 5."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts import RunDirectory
from .coders import SaeCoder
from .families import MatchedSae, small_recipe, train_to_l0
from .family_measures import concept_measures, mean_over_concepts
from .fidelity import measure_fidelity
from .files import digest, source_digest
from .runtime import progress
from .saes import DEFAULT_PENALTY, SAE_FILES, load_sae
from .stage1_activations import concept_activations, concepts_key, corpus_activations, corpus_key
from .study import ARCHITECTURES

if TYPE_CHECKING:
    import pandas as pd

FAMILY_TOKENS = 40_000
FAMILY_SEEDS = 2
MEASURED_BY = (
    "families", "family_measures", "stratification", "token_grams", "rank_verdicts", "concept_geometry", "geometry",
    "clouds", "dimension", "topology", "matching", "word_circles", "intervention", "edits", "separation", "fidelity",
)  # fmt: skip
NAMES = {
    "standard": "standard (L1)", "topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "gated": "gated",
    "matryoshka": "Matryoshka",
}  # fmt: skip


def family_seeds(run: RunDirectory) -> tuple[int, ...]:
    """Seeds of the families: two, or one where the study is too small for two to be trained."""
    return run.study.seeds[: FAMILY_SEEDS if run.study.corpus.tokens >= FAMILY_TOKENS else 1]


def families_key(run: RunDirectory) -> str:
    """Digest of everything the families are trained on and with."""
    recipes = [str(small_recipe(run.study.sae, name)) for name in ARCHITECTURES]
    modules = ("sae_training", "sparse_topk", "families", "coders", "topk_latents")
    return digest([corpus_key(run), recipes, source_digest(*modules)])


def training_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``08_training``: one row per family and seed, and the autoencoders themselves in ``families/``.

    Columns: architecture, seed, d_sae, penalty (coefficient kept; empty for families told k), trainings (how many the
    search took), l0_trained (on training tokens, before the threshold was moved), l0, explained_variance,
    cosine and dead_fraction on held-out tokens, l0_off (share by which the held-out L0 misses k), and the trials
    as JSON. Each finished family is kept, so that an interrupted run resumes.
    """
    import pandas as pd

    key = families_key(run)

    def compute() -> pd.DataFrame:
        tasks = [(name, seed) for name in ARCHITECTURES for seed in family_seeds(run)]
        rows, found = [], {}
        for name, seed in progress(tasks, "training families"):
            row = _trained(run, name, seed, found.get(name), key)
            found.setdefault(name, row["penalty"].iloc[0])
            rows.append(row)
        return pd.concat(rows, ignore_index=True)

    return run.cached_table("08_training", key, compute)


def folder_of(architecture: str, seed: int) -> str:
    """Where in the run a family is kept, in sae_lens's format."""
    return f"families/{architecture}-{seed}"


def _trained(run: RunDirectory, architecture: str, seed: int, start: float | None, key: str) -> pd.DataFrame:
    part, folder = f"parts/08_training_{architecture}_{seed}", folder_of(architecture, seed)
    files = [f"{folder}/{name}" for name in SAE_FILES]
    if all(run.is_fresh(name, key) for name in (*files, f"tables/{part}.csv")):
        return run.table(part)
    corpus, recipe = corpus_activations(run), small_recipe(run.study.sae, architecture)
    metadata = {"model_name": run.study.model, "hook_name": run.study.hook_name, "family": architecture}
    matched = train_to_l0(
        corpus.train[:FAMILY_TOKENS], corpus.heldout, recipe, seed, run.device, metadata=metadata, description="",
        start=None if start is None or math.isnan(start) else start, max_trials=4 if start is None else 2,
    )  # fmt: skip
    keep_sae(run, matched.trained.sae, folder, key)
    return run.cached_table(part, key, lambda: _facts(run, matched, architecture, seed))


def keep_sae(run: RunDirectory, sae: Any, folder: str, key: str) -> None:
    """Write an autoencoder into the run in sae_lens's format, hashed like every artifact."""
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".sae-") as temporary:
        sae.save_model(temporary)
        for name in SAE_FILES:
            source = Path(temporary) / name
            run.save_file(f"{folder}/{name}", lambda path, source=source: shutil.copyfile(source, path), key)


def _facts(run: RunDirectory, matched: MatchedSae, architecture: str, seed: int) -> pd.DataFrame:
    import pandas as pd

    sae, k = matched.trained.sae, small_recipe(run.study.sae, architecture).k
    found = measure_fidelity(SaeCoder(sae), corpus_activations(run).heldout.to(run.device))
    return pd.DataFrame(
        [
            {
                "architecture": architecture, "seed": seed, "d_sae": sae.cfg.d_sae, "k": k, "penalty": matched.penalty,
                "trainings": len(matched.trials), "l0_trained": matched.l0_trained, "l0": found.l0,
                "l0_off": found.l0 / k - 1, "explained_variance": found.explained_variance, "cosine": found.cosine,
                "dead_fraction": found.dead_fraction,
                "trials": json.dumps([[round(p, 5), round(l0, 2)] for p, l0 in matched.trials if p == p]),
            }
        ]
    )  # fmt: skip


def family_coders(run: RunDirectory) -> dict[str, SaeCoder]:
    """Every trained family by ``architecture-seed``, on the run's device."""
    table = training_table(run)
    names = [f"{row.architecture}-{row.seed}" for row in table.itertuples()]
    return {name: SaeCoder(load_sae(run.path / "families" / name, run.device), name) for name in names}


def family_measures(run: RunDirectory) -> pd.DataFrame:
    """The table ``08_measures``: headline measures per concept, for the residual stream and every family and seed.

    Columns of :func:`saema_utils.family_measures.concept_measures`, and architecture and seed.
    """
    import pandas as pd

    key = digest(
        [families_key(run), concepts_key(run), run.study.geometry.min_cluster_size, source_digest(*MEASURED_BY)]
    )

    def compute() -> pd.DataFrame:
        coders, parts = family_coders(run), []
        for concept, activations in progress(concept_activations(run).items(), "measuring families"):
            parts.append(
                run.cached_table(
                    f"parts/08_measures_{concept}", key,
                    lambda found=activations: concept_measures(
                        found, coders, min_cluster_size=run.study.geometry.min_cluster_size, seed=run.study.seed,
                        device=run.device,
                    ),
                )
            )  # fmt: skip
        table = pd.concat(parts, ignore_index=True)
        split = table["representation"].str.rsplit("-", n=1)
        table["architecture"], table["seed"] = split.str[0], pd.to_numeric(split.str[1]).fillna(run.study.seed)
        return table.astype({"seed": int})

    return run.cached_table("08_measures", key, compute)


def families_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``08_families``: one row per family and seed, with the residual stream first.

    Fidelity on held-out tokens (columns of ``08_training``) and, averaged over concepts, the measures of
    ``08_measures``.
    """
    training, measures = training_table(run), family_measures(run)
    key = digest([run.entry(f"tables/{name}.csv")["sha256"] for name in ("08_training", "08_measures")])

    def compute() -> pd.DataFrame:
        means = mean_over_concepts(measures, ["architecture", "seed"])
        return means.merge(training.drop(columns="trials"), on=["architecture", "seed"], how="left")

    return run.cached_table("08_families", key, compute)


def spread_table(families: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """For each measure: how far families lie apart, and how far two seeds of one family do.

    ``between`` is the standard deviation over families of their means, ``within`` the root mean square deviation of
    seeds from their family's mean (with n - 1); ``ratio`` is NaN with one seed.
    """
    import pandas as pd

    alone = families[families["architecture"] != "residual"]
    rows = []
    for column in columns:
        groups = alone.groupby("architecture")[column]
        between = float(groups.mean().std(ddof=1))
        degrees = int((groups.count() - 1).clip(lower=0).sum())
        square = float((alone[column] - groups.transform("mean")).pow(2).sum())
        within = math.sqrt(square / degrees) if degrees else math.nan
        rows.append(
            {"measure": column, "between": between, "within": within, "ratio": between / within if within else math.nan}
        )
    return pd.DataFrame(rows)


def penalties_needed() -> tuple[str, ...]:
    """Families whose sparsity is searched, not set."""
    return tuple(DEFAULT_PENALTY)
