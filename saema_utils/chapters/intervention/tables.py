"""Chapter 5 of a run, after training: move the poles of every concept, decode, and see who notices.

Poles are the means of the latents of one concept word's tokens over its sentences. The training side
of the chapter is :mod:`~saema_utils.chapters.intervention.training`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from saema_utils.chapters.activations.concepts import concept_activations, concept_tensors
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.intervention.training import (
    natural_variation_table,
    training_table,
)
from saema_utils.chapters.sae.coders import study_sae
from saema_utils.errors import InterventionError
from saema_utils.evidence.effects import coefficient_effects, effects
from saema_utils.intervention.doses import dose_beyond_scaling, dose_response, optimum, separation_error_correlation
from saema_utils.intervention.edits import ARMS, apply_edit, edit_direction
from saema_utils.intervention.search import optimise_separability
from saema_utils.intervention.separation import check_labelled, cluster_means, distance_matrix
from saema_utils.model.residual_stream import ConceptActivations, label_words
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, table
from saema_utils.runtime import float64, progress
from saema_utils.text.concepts import build_prompts

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import Tensor

RANDOM_SEEDS = 3  # draws of the two random arms
SEEDED = ("random_direction", "permuted_labels")
RADIUS = 0.5
RESTARTS = 2
SPLICED_DOSES = (-0.5, 0.5)
SEARCHES = (
    ("aedp", "raise"), ("aedp", "lower"), ("gromov_wasserstein", "raise"), ("gromov_wasserstein", "lower"),
    ("random", "raise"),
)  # fmt: skip
WORDS = (concept_tensors, study_sae)


@dataclass(frozen=True)
class WordTokens:
    """The tokens of one concept's words: vectors, latents, which word, and which prompt.

    ``decode`` restores each token's own normalisation, so that unedited latents decode exactly as the
    SAE's own reconstruction.
    """

    concept: str
    words: tuple[str, ...]
    vectors: Float[Tensor, "N D"]
    latents: Float[Tensor, "N F"]
    labels: Int[Tensor, " N"]
    prompts: Int[Tensor, " N"]
    decode: Callable[[Tensor], Tensor]


def word_tokens(run: RunDirectory) -> dict[str, WordTokens]:
    """Encoded word tokens of every concept of the run."""
    from saema_utils.saes.coders import SaeCoder

    coder, found = SaeCoder(study_sae(run)), {}
    for concept, activations in concept_activations(run).items():
        x, labels, prompts = label_words(activations)
        x = x.to(run.device)
        with torch.no_grad():
            latents = coder.encode(x)
        found[concept] = WordTokens(
            concept, activations.prompts.words, x, latents, labels.to(run.device), prompts,
            lambda z, x=x: coder.decode(z.to(x.dtype), like=x),
        )  # fmt: skip
    return found


def _arms_and_seeds(run: RunDirectory) -> list[tuple[str, int]]:
    seeds = run.study.seeds[:RANDOM_SEEDS]
    return [(arm, seed) for arm in ARMS for seed in (seeds if arm in SEEDED else seeds[:1])]


def _each_concept(
    run: RunDirectory, concepts: list[str], measure: Callable[[RunDirectory, WordTokens], pd.DataFrame], what: str
) -> Iterator[tuple[str, pd.DataFrame]]:
    found = {concept: tokens for concept, tokens in word_tokens(run).items() if concept in concepts}
    for concept, tokens in progress(list(found.items()), what):
        part = measure(run, tokens)
        part.insert(0, "concept", concept)
        yield concept, part


def _concepts(run: RunDirectory) -> list[str]:
    return list(build_prompts(run.study))


def _is_usable(tokens: WordTokens) -> bool:
    try:
        check_labelled(tokens.latents, tokens.labels)
    except InterventionError:
        return False
    return True


@parts("05_doses", of=_concepts, needs=WORDS)
def doses_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Every arm at every dose, concept by concept."""
    for concept, part in _each_concept(run, concepts, _doses, "doses"):
        yield concept, {"05_doses": part}


def _doses(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    parts = []
    for arm, seed in _arms_and_seeds(run) if _is_usable(tokens) else []:
        for preserve in (False, True):
            part = dose_response(
                tokens.latents, tokens.labels, tokens.decode, tokens.vectors, alphas=run.study.intervention.alphas,
                arms=(arm,), preserve_sparsity=preserve, seed=seed,
            )  # fmt: skip
            parts.append(part.assign(seed=seed, preserve_sparsity=preserve))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"alpha": [float("nan")], "arm": [""]})


@parts("05_optimum", of=_concepts, needs=WORDS)
def optima_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Closed-form best doses, concept by concept."""
    for concept, part in _each_concept(run, concepts, _optima, "best doses"):
        yield concept, {"05_optimum": part}


def _optima(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    rows = []
    for arm, seed in _arms_and_seeds(run):
        for preserve in (False, True):
            row = {"arm": arm, "seed": seed, "preserve_sparsity": preserve, "reason": ""}
            try:
                found = optimum(
                    tokens.latents, tokens.labels, tokens.decode, tokens.vectors, arm=arm, prompts=tokens.prompts,
                    preserve_sparsity=preserve, seed=seed,
                )  # fmt: skip
                facts = dataclasses.asdict(found)
                named = {"alpha": "alpha_star", "low": "alpha_low", "high": "alpha_high"}
                row |= {named.get(name, name): value for name, value in facts.items()}
            except InterventionError as error:
                row["reason"] = str(error)
            rows.append(row)
    return pd.DataFrame(rows)


@table("05_optimum", needs=(optima_of_concepts,), columns={})
def optimum_table(run: RunDirectory) -> pd.DataFrame:
    """Closed-form best dose of each arm with intervals over prompts."""
    return optima_of_concepts(run)


@parts("05_beyond_scaling", of=_concepts, needs=WORDS)
def joint_doses_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Best doses with a common scaling fitted beside, concept by concept."""
    for concept, part in _each_concept(run, concepts, _joint_doses, "joint doses"):
        yield concept, {"05_beyond_scaling": part}


def _joint_doses(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    rows = []
    for arm, seed in _arms_and_seeds(run):
        if arm != "global_scaling" and _is_usable(tokens):
            found = dose_beyond_scaling(
                tokens.latents, tokens.labels, tokens.decode, tokens.vectors, arm=arm, prompts=tokens.prompts,
                seed=seed,
            )  # fmt: skip
            rows.append({"arm": arm, "seed": seed, **dataclasses.asdict(found)})
    return pd.DataFrame(rows or [{"arm": ""}])


@table("05_beyond_scaling", needs=(joint_doses_of_concepts,), columns={})
def beyond_scaling_table(run: RunDirectory) -> pd.DataFrame:
    """Best doses of the arms when a common scaling of all latents is fitted beside."""
    return _without_empty(joint_doses_of_concepts(run), "arm")


def _without_empty(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Without the rows that stand for a concept in which nothing could be measured."""
    return table[table[column].fillna("") != ""].reset_index(drop=True)


@parts("05_optimised", of=_concepts, needs=WORDS)
def searches_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Gradient searches, concept by concept."""
    for concept, part in _each_concept(run, concepts, _searches, "gradient searches"):
        yield concept, {"05_optimised": part}


def _searches(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    if not _is_usable(tokens):
        return pd.DataFrame({"search": [""]})
    _, labels, k = check_labelled(tokens.latents, tokens.labels)
    vectors = float64(tokens.vectors)
    shape = distance_matrix(cluster_means(vectors, labels.to(vectors.device), k), relative=True)
    parts = []
    for objective, direction in SEARCHES:
        towards = shape if (objective, direction) == ("gromov_wasserstein", "lower") else None
        found = optimise_separability(
            tokens.latents, tokens.labels, tokens.decode, tokens.vectors, objective=objective, direction=direction,
            radius=RADIUS, steps=run.study.intervention.optimise_steps, restarts=RESTARTS, reference=towards,
            seed=run.study.seed,
        )  # fmt: skip
        named = found.history.rename(columns={"objective": "value"})
        parts.append(named.assign(search=objective, direction=direction, seed=run.study.seed))
    return pd.concat(parts, ignore_index=True)


@table("05_optimised", needs=(searches_of_concepts,), columns={})
def optimised_table(run: RunDirectory) -> pd.DataFrame:
    """Gradient searches that raise or lower a measure within one size of edit.

    ``gromov_wasserstein``/``lower`` pulls the shape of the poles towards that of the dense residual's poles;
    ``raise`` pushes it away from its own shape before the edit. ``random`` is the control of equal size.
    """
    return _without_empty(searches_of_concepts(run), "search")


# ---- the language model ------------------------------------------------------------------------


@parts("05_language_model", of=_concepts, needs=WORDS)
def splices_of_concepts(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Edited reconstructions spliced into the model, concept by concept."""
    activations = concept_activations(run)

    def measure(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
        return _spliced(run, tokens, activations[tokens.concept])

    for concept, part in _each_concept(run, concepts, measure, "splicing edits"):
        yield concept, {"05_language_model": part}


@torch.no_grad()
def _spliced(run: RunDirectory, tokens: WordTokens, activations: ConceptActivations) -> pd.DataFrame:
    import pandas as pd

    from saema_utils.model.splice import CLEAN, spliced_losses

    if not _is_usable(tokens):
        return pd.DataFrame({"arm": [""]})
    z, x, mask = tokens.latents, tokens.vectors, activations.word_mask
    base, edits = tokens.decode(z), {("unedited", 0.0, False): tokens.decode(z)}
    for arm in ARMS:
        direction = edit_direction(z, tokens.labels, arm, seed=run.study.seed)
        for alpha in SPLICED_DOSES:
            edited = tokens.decode(apply_edit(z, direction, alpha))
            edits[arm, alpha, False] = edited
            edits[arm, alpha, True] = x + (edited - base)
    n_spliced = min(len(mask), run.study.intervention.spliced_prompts, run.study.templates)
    chosen = torch.linspace(0, len(mask) - 1, n_spliced).round().long().unique()
    replace = {}
    for name, vectors in edits.items():
        whole = activations.residual.clone()
        whole[mask] = vectors.cpu().to(whole)
        replace["|".join(map(str, name))] = whole[chosen]
    lengths = torch.tensor([len(strings) for strings in activations.token_strings])
    real = torch.arange(mask.shape[1])[None] < lengths[:, None]
    last_word = torch.where(mask, torch.arange(mask.shape[1]), -1).amax(1, keepdim=True)
    after = real & (torch.arange(mask.shape[1])[None] > last_word) & (last_word >= 0)
    losses = spliced_losses(
        language_model(run), activations.tokens[chosen], run.study.hook_name, replace, where=mask[chosen],
        predicted=real[chosen],
    )  # fmt: skip
    rows = []
    for position, where in (("concept", mask[chosen]), ("after", after[chosen])):
        clean = losses[CLEAN].mean(where)[0]
        count = int((where & torch.isfinite(losses[CLEAN].cross_entropy)).sum())
        for arm, alpha, error_term in edits:
            cross_entropy, kl = losses[f"{arm}|{alpha}|{error_term}"].mean(where)
            rows.append(
                {
                    "arm": arm, "alpha": alpha, "seed": run.study.seed, "error_term": error_term, "position": position,
                    "cross_entropy": cross_entropy, "ce_change": cross_entropy - clean, "kl": kl, "tokens": count,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@table("05_language_model", needs=(splices_of_concepts,), columns={})
def language_model_table(run: RunDirectory) -> pd.DataFrame:
    """Edited reconstructions spliced in at the words of each concept, and what the language model makes of them.

    One row per arm, dose, ``error_term`` (whether the SAE's own error is added back, so that only the
    edit is felt) and ``position`` (``concept``: predictions made at the word; ``after``: later in the sentence).
    """
    table = _without_empty(splices_of_concepts(run), "arm")
    return table.astype({"error_term": bool, "seed": int}) if len(table) else table


@table(
    "05_dose_response",
    needs=(doses_of_concepts, language_model_table),
    columns={},
)
def dose_response_table(run: RunDirectory) -> pd.DataFrame:
    """Every arm at every dose, dense and with the support kept.

    ``ce_loss`` is known at the doses that :func:`language_model_table` splices (support not kept).
    """
    import pandas as pd

    table = doses_of_concepts(run)
    if table["arm"].fillna("").eq("").all():
        raise InterventionError(
            f"no concept of study {run.study.name!r} has tokens of two or more words left; allowed: at least one. "
            "Add prompts, or look at the masks in chapter 1."
        )
    losses = language_model_table(run)
    known = losses[(losses["position"] == "concept") & ~losses["error_term"]]
    known = known.set_index(["concept", "arm", "alpha", "seed"])["cross_entropy"].to_dict()
    out = table[table["arm"].fillna("") != ""].astype({"seed": int, "preserve_sparsity": bool})
    keys = zip(out["concept"], out["arm"], out["alpha"], out["seed"], strict=True)
    spliced = pd.Series([known.get(k, float("nan")) for k in keys], index=out.index, dtype=float)
    out["ce_loss"] = spliced.where(~out["preserve_sparsity"])
    return out.reset_index(drop=True)


@table("05_correlation", needs=(dose_response_table,), columns={})
def correlation_table(run: RunDirectory) -> pd.DataFrame:
    """The paper's statistic over all doses, and over parts of the same curve."""
    return separation_error_correlation(dose_response_table(run))


@table(
    "05_effects",
    needs=(
        dose_response_table,
        optimum_table,
        language_model_table,
        training_table,
        natural_variation_table,
        beyond_scaling_table,
    ),
    columns={},
)
def effects_table(run: RunDirectory) -> pd.DataFrame:
    """Every effect beside its control, with an interval and a verdict (see :mod:`~saema_utils.evidence.effects`)."""
    return effects(*(part(run) for part in effects_table.needs))


@table("05_coefficient_effects", needs=(training_table,), columns={})
def coefficient_effects_table(run: RunDirectory) -> pd.DataFrame:
    """What each coefficient of the separation term changes against coefficient 0, paired by seed."""
    return coefficient_effects(training_table(run))
