"""Chapter 5 of a run, after training: move the poles of every concept, decode, and see who notices.

Poles are the means of the latents of one concept word's tokens over its sentences. The training side
of the chapter is :mod:`saema_utils.stage5_training`; what follows from both is in
:mod:`saema_utils.stage5_effects`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .activations import ConceptActivations
from .artifacts import RunDirectory
from .beyond_scaling import dose_beyond_scaling
from .edits import ARMS, apply_edit, edit_direction
from .errors import InterventionError
from .files import digest, source_digest
from .intervention import dose_response, optimise_separability, optimum, separation_error_correlation
from .runtime import float64, progress
from .separation import check_labelled, cluster_means, distance_matrix
from .stage1_activations import concept_activations, concepts_key, language_model
from .stage2_sae import sae_key, study_sae

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


def label_words(activations: ConceptActivations) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, word indices and prompt indices of the tokens of a concept's words."""
    prompts = activations.word_mask.nonzero()[:, 0]
    return activations.residual[activations.word_mask], activations.prompt_words[prompts], prompts


def word_tokens(run: RunDirectory) -> dict[str, WordTokens]:
    """Encoded word tokens of every concept of the run."""
    from .coders import SaeCoder

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


def _key(run: RunDirectory, *more: object) -> str:
    sources = source_digest("stage5_intervention")
    return digest([concepts_key(run), sae_key(run), run.study.seed, run.study.n_seeds, sources, *more])


def _arms_and_seeds(run: RunDirectory) -> list[tuple[str, int]]:
    seeds = run.study.seeds[:RANDOM_SEEDS]
    return [(arm, seed) for arm in ARMS for seed in (seeds if arm in SEEDED else seeds[:1])]


def _each_concept(run: RunDirectory, name: str, key: str, compute: Callable[[WordTokens], pd.DataFrame], what: str):
    """One table from one part per concept; finished parts survive an interruption."""
    import pandas as pd

    def whole() -> pd.DataFrame:
        parts = []
        for concept, tokens in progress(list(word_tokens(run).items()), what):
            own = f"parts/{name.removeprefix('parts/')}_{concept}"
            part = run.cached_table(own, digest([key, concept]), lambda t=tokens: compute(t))
            part.insert(0, "concept", concept)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    return run.cached_table(name, key, whole)


def dose_response_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``05_dose_response``: every arm at every dose, dense and with the support kept.

    Columns: concept, seed, preserve_sparsity, and those of :func:`~saema_utils.intervention.dose_response`.
    ``ce_loss`` is known at the doses that :func:`language_model_table` splices (support not kept).
    """
    import pandas as pd

    def compute(tokens: WordTokens) -> pd.DataFrame:
        parts = []
        for arm, seed in _arms_and_seeds(run) if _is_usable(tokens) else []:
            for preserve in (False, True):
                part = dose_response(
                    tokens.latents, tokens.labels, tokens.decode, tokens.vectors, alphas=run.study.intervention.alphas,
                    arms=(arm,), preserve_sparsity=preserve, seed=seed,
                )  # fmt: skip
                parts.append(part.assign(seed=seed, preserve_sparsity=preserve))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"alpha": [float("nan")], "arm": [""]})

    key = _key(run, dataclasses.asdict(run.study.intervention)["alphas"])
    table = _each_concept(run, "parts/05_doses", key, compute, "doses")
    if table["arm"].fillna("").eq("").all():
        raise InterventionError(
            f"no concept of study {run.study.name!r} has tokens of two or more words left; allowed: at least one. "
            "Add prompts, or look at the masks in chapter 1."
        )
    losses = language_model_table(run)

    def merged() -> pd.DataFrame:
        known = losses[(losses["position"] == "concept") & ~losses["error_term"]]
        known = known.set_index(["concept", "arm", "alpha", "seed"])["cross_entropy"].to_dict()
        out = table[table["arm"].fillna("") != ""].astype({"seed": int, "preserve_sparsity": bool})
        keys = zip(out["concept"], out["arm"], out["alpha"], out["seed"], strict=True)
        spliced = pd.Series([known.get(k, float("nan")) for k in keys], index=out.index, dtype=float)
        out["ce_loss"] = spliced.where(~out["preserve_sparsity"])
        return out.reset_index(drop=True)

    return run.cached_table("05_dose_response", digest([key, _language_model_key(run)]), merged)


def _is_usable(tokens: WordTokens) -> bool:
    try:
        check_labelled(tokens.latents, tokens.labels)
    except InterventionError:
        return False
    return True


def optimum_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``05_optimum``: closed-form best dose of each arm with intervals over prompts.

    Columns: concept, arm, seed, preserve_sparsity, alpha_star (alpha_low, alpha_high), curvature, slope (both
    with bounds), gain, mse_at_zero, mse_at_optimum, exact, n_prompts, reason (why there is none).
    """
    import pandas as pd

    def compute(tokens: WordTokens) -> pd.DataFrame:
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

    return _each_concept(run, "05_optimum", _key(run), compute, "best doses")


def beyond_scaling_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``05_beyond_scaling``: best doses of the arms when a common scaling of all latents is fitted beside.

    Columns: concept, arm, seed, alpha (low, high), scaling, gain (beyond the best scaling), gain_scaling, n_prompts.
    """
    import pandas as pd

    def compute(tokens: WordTokens) -> pd.DataFrame:
        rows = []
        for arm, seed in _arms_and_seeds(run):
            if arm != "global_scaling" and _is_usable(tokens):
                found = dose_beyond_scaling(
                    tokens.latents, tokens.labels, tokens.decode, tokens.vectors, arm=arm, prompts=tokens.prompts,
                    seed=seed,
                )  # fmt: skip
                rows.append({"arm": arm, "seed": seed, **dataclasses.asdict(found)})
        return pd.DataFrame(rows or [{"arm": ""}])

    table = _each_concept(run, "05_beyond_scaling", _key(run), compute, "joint doses")
    return table[table["arm"].fillna("") != ""].reset_index(drop=True)


def correlation_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``05_correlation``: the paper's statistic over all doses, and over parts of the same curve."""
    doses = dose_response_table(run)
    return run.cached_table(
        "05_correlation", digest([_key(run), digest(doses.to_csv())]), lambda: separation_error_correlation(doses)
    )


def optimised_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``05_optimised``: gradient searches that raise or lower a measure within one size of edit.

    ``gromov_wasserstein``/``lower`` pulls the shape of the poles towards that of the dense residual's poles;
    ``raise`` pushes it away from its own shape before the edit. ``random`` is the control of equal size.
    """
    import pandas as pd

    def compute(tokens: WordTokens) -> pd.DataFrame:
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

    key = _key(run, run.study.intervention.optimise_steps, RADIUS, RESTARTS)
    table = _each_concept(run, "05_optimised", key, compute, "gradient searches")
    return table[table["search"].fillna("") != ""].reset_index(drop=True)


# ---- the language model ------------------------------------------------------------------------


def _language_model_key(run: RunDirectory) -> str:
    return _key(run, run.study.intervention.spliced_prompts, SPLICED_DOSES, RANDOM_SEEDS)


def language_model_table(run: RunDirectory) -> pd.DataFrame:
    """The table ``05_language_model``: edited reconstructions spliced in at the words of each concept.

    One row per arm, dose, ``error_term`` (whether the SAE's own error is added back, so that only the
    edit is felt) and ``position`` (``concept``: predictions made at the word; ``after``: later in the sentence):
    cross_entropy, ce_change from the clean run, kl (all nats per token), tokens.
    """
    activations = concept_activations(run)

    def compute(tokens: WordTokens) -> pd.DataFrame:
        return _spliced(run, tokens, activations[tokens.concept])

    table = _each_concept(run, "05_language_model", _language_model_key(run), compute, "splicing edits")
    table = table[table["arm"].fillna("") != ""].reset_index(drop=True)
    return table.astype({"error_term": bool, "seed": int}) if len(table) else table


@torch.no_grad()
def _spliced(run: RunDirectory, tokens: WordTokens, activations: ConceptActivations) -> pd.DataFrame:
    import pandas as pd

    from .splice import CLEAN, spliced_losses

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
