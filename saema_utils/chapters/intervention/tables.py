"""Chapter 5 of a run, after training: move the poles of every concept, decode, and see who notices.

Poles are the means of the latents of one concept word's tokens over its sentences. The training side
of the chapter is :mod:`~saema_utils.chapters.intervention.training`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saema_utils.chapters.activations.concepts import concept_activations, concept_tensors, concepts_of
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.intervention.training import natural_variation_table, separability_training_table
from saema_utils.chapters.sae.coders import study_sae
from saema_utils.errors import InterventionError
from saema_utils.evidence.effects import coefficient_effects, effects
from saema_utils.geometry.circles import cycle_of
from saema_utils.intervention.doses import dose_beyond_scaling, dose_response, optimum, separation_error_correlation
from saema_utils.intervention.edits import ARMS, apply_edit, edit_direction
from saema_utils.intervention.search import optimise_separability
from saema_utils.intervention.separation import check_labelled, cluster_means, distance_matrix
from saema_utils.model.residual_stream import ConceptActivations, label_words
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import Result, parts, table
from saema_utils.runtime import float64, progress
from saema_utils.saes.coders import Coder, SaeCoder
from saema_utils.study import Study

RANDOM_SEEDS = 3  # draws of the two random arms
SEEDED = ("random_direction", "permuted_labels")
RADIUS = 0.5
RESTARTS = 2
SPLICED_DOSES = (-0.5, 0.5)
SEARCHES = (*itertools.product(("aedp", "gromov_wasserstein"), ("raise", "lower")), ("random", "raise"))

# What tables of one chapter share is said once; ``chapters.columns`` says what more chapters share.
EDITED = {
    "arm": "how latents are moved: poles, or a control (random_direction, permuted_labels, global_scaling)",
    "alpha": "the dose: poles stand at 1 + alpha times their distance",
    "preserve_sparsity": "whether latents that are off stay off, and none is pushed through zero",
    "aedp": "average distance of poles, in units of the latents",
    "separation_scale_free": "share of the latents' scatter that lies between poles, 0 to 1",
    "mse": "mean squared error a dimension of the reconstruction",
}


@dataclass(frozen=True)
class WordTokens:
    """The tokens of one concept's words: vectors, latents, which word, and which prompt.

    ``decode`` restores each token's own normalisation, so that unedited latents decode exactly as the
    SAE's own reconstruction.
    """

    activations: ConceptActivations
    vectors: Float[Tensor, "N D"]
    latents: Float[Tensor, "N F"]
    labels: Int[Tensor, " N"]
    prompts: Int[Tensor, " N"]
    decode: Callable[[Tensor], Tensor]

    @property
    def given(self) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor], Tensor]:
        """What a dose or a search is given: latents, which word, the decoder, and what it should decode to."""
        return self.latents, self.labels, self.decode, self.vectors

    @property
    def is_usable(self) -> bool:
        """Whether two words or more have tokens left: one pole has nothing to be apart from."""
        try:
            check_labelled(self.latents, self.labels)
        except InterventionError:
            return False
        return True


def encoded_words(activations: ConceptActivations, coder: Coder) -> WordTokens:
    """The word tokens of a concept, encoded on the coder's device."""
    x, labels, prompts = label_words(activations)
    x = x.to(coder.dictionary().device)
    with torch.no_grad():
        latents = coder.encode(x)

    def decode(z: Tensor) -> Tensor:
        return coder.decode(z.to(x.dtype), like=x)

    return WordTokens(activations, x, latents, labels.to(x.device), prompts, decode)


def word_tokens(run: RunDirectory) -> dict[str, WordTokens]:
    """Encoded word tokens of every concept of the run."""
    coder = SaeCoder(study_sae(run))
    return {concept: encoded_words(found, coder) for concept, found in concept_activations(run).items()}


def example_concept(run: RunDirectory) -> tuple[str, WordTokens]:
    """The months, or else the first concept that can be edited.

    Raises
    ------
    InterventionError
        If no concept of the study has tokens of two words left.
    """
    usable = {concept: tokens for concept, tokens in word_tokens(run).items() if tokens.is_usable}
    if not usable:
        raise InterventionError(
            f"no concept of study {run.study.name!r} has tokens of two or more words left; allowed: at least one. "
            "Add prompts, or look at the masks in chapter 1."
        )
    concept = "months" if "months" in usable else next(iter(usable))
    return concept, usable[concept]


# ---- a concept at a time -------------------------------------------------------------------------

Measure = Callable[[RunDirectory, WordTokens], pd.DataFrame]


def _of_concepts(name: str, columns: Mapping[str, str] | None = None) -> Callable[[Measure], Result]:
    """Declare what a measure finds in each concept, kept concept by concept, so that a cut run resumes.

    With ``columns`` a table of all concepts together. Where there is nothing to measure, the measure gives no rows.
    """

    def declare(measure: Measure) -> Result:
        def made(run: RunDirectory, concepts: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
            tokens = word_tokens(run)
            for concept in progress(concepts, name.removeprefix("05_").replace("_", " ")):
                part = measure(run, tokens[concept])
                part.insert(0, "concept", concept)
                yield concept, {name: part}

        made.__doc__ = measure.__doc__
        by_concept = parts(name, of=concepts_of, needs=(concept_tensors, study_sae))(made)
        return by_concept.whole(name, made.__doc__, columns) if columns else by_concept

    return declare


def _arms_and_seeds(run: RunDirectory) -> list[tuple[str, int]]:
    seeds = run.study.seeds[:RANDOM_SEEDS]
    return [(arm, seed) for arm in ARMS for seed in (seeds if arm in SEEDED else seeds[:1])]


@_of_concepts("05_doses")
def doses_of_concepts(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    """Every arm at every dose, with all latents free and with the support kept."""
    if not tokens.is_usable:
        return pd.DataFrame()
    found = []
    for arm, seed in _arms_and_seeds(run):
        for preserve in (False, True):
            choices, alphas = {"seed": seed, "preserve_sparsity": preserve}, run.study.intervention.alphas
            found.append(dose_response(*tokens.given, alphas=alphas, arms=(arm,), **choices).assign(**choices))
    return pd.concat(found, ignore_index=True)


@_of_concepts(
    "05_optimum",
    EDITED
    | {
        "alpha_star": "dose of least error",
        "alpha_low": "lower end of its 95 % interval over prompts",
        "alpha_high": "upper end of its 95 % interval over prompts",
        "curvature": "second derivative of the error by the dose",
        "curvature_low": "lower end of its 95 % interval",
        "curvature_high": "upper end of its 95 % interval",
        "slope": "derivative of the error by the dose at no edit, over the error there",
        "slope_low": "lower end of its 95 % interval",
        "slope_high": "upper end of its 95 % interval",
        "gain": "share of the unedited error that the best dose removes",
        "mse_at_zero": "mean squared error a dimension without edit",
        "mse_at_optimum": "mean squared error a dimension at the best dose",
        "exact": "whether no latent is stopped at zero on the way to the best dose",
        "n_prompts": "prompts that the intervals draw from",
    },
)
def optimum_table(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    """Best dose of each arm from the closed form, with intervals over prompts."""
    named = {"alpha": "alpha_star", "low": "alpha_low", "high": "alpha_high"}
    rows = []
    for arm, seed in _arms_and_seeds(run):
        for preserve in (False, True):
            choices = {"arm": arm, "seed": seed, "preserve_sparsity": preserve}
            facts = {"reason": ""}
            try:
                found = dataclasses.asdict(optimum(*tokens.given, prompts=tokens.prompts, **choices))
                facts |= {named.get(name, name): value for name, value in found.items()}
            except InterventionError as error:
                facts["reason"] = str(error)
            rows.append(choices | facts)
    return pd.DataFrame(rows)


@_of_concepts(
    "05_planes",
    EDITED
    | {
        "place": "the word's place in the cycle; -1 outside of it, or where the words form none",
        "period": "places in the whole cycle; 0 where the words form none",
        "x": "first coordinate of the word's pole in the principal plane of the poles, from their centre",
        "y": "second coordinate in that plane",
        "step_x": "what a dose of one adds to x, in every arm from the centre of the poles where they then stand",
        "step_y": "the same of y",
    },
)
def planes_table(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    """Poles in the plane where they differ most, and where each arm moves them there: exactly linear in the dose."""
    return planes_of(tokens, run.study.seed) if tokens.is_usable else pd.DataFrame()


def planes_of(tokens: WordTokens, seed: int) -> pd.DataFrame:
    """Rows of ``05_planes`` for the words of one concept: one an arm and a word."""
    latents, labels, k = check_labelled(float64(tokens.latents), tokens.labels)
    words = [tokens.activations.prompts.words[i] for i in tokens.labels.unique().tolist()]
    cycle = cycle_of(words)
    _, places, period = cycle or ("", -1, 0)
    facts = {"seed": seed, "word": words, "place": places, "period": period}
    steps = [cluster_means(edit_direction(latents, labels, arm, seed=seed), labels, k) for arm in ARMS]
    (x, y), *moved = (places.T for places in in_plane(cluster_means(latents, labels, k), *steps))
    found = [
        pd.DataFrame({"arm": arm, **facts, "x": x, "y": y, "step_x": step_x, "step_y": step_y})
        for arm, (step_x, step_y) in zip(ARMS, moved, strict=True)
    ]
    return pd.concat(found, ignore_index=True)


def in_plane(poles: Float[Tensor, "K F"], *others: Float[Tensor, "K F"]) -> list[Float[np.ndarray, "K 2"]]:
    """Poles, and vectors that may be added to them, each from its centre in the plane where the poles differ most."""
    centred = [vectors - vectors.mean(0) for vectors in (poles, *others)]
    _, sizes, axes = torch.linalg.svd(centred[0], full_matrices=False)
    # Two poles stand on a line, and any axis across it would do.
    axes = axes[:2] * (sizes[:2] > 1e-9 * sizes[0])[:, None]
    seen = [(vectors @ axes.T).cpu().numpy() for vectors in centred]
    # The sign of an axis is arbitrary: the pole farthest out stands on its positive side.
    signs = np.where(seen[0][np.abs(seen[0]).argmax(0), [0, 1]] < 0, -1, 1)
    return [places * signs for places in seen]


@_of_concepts(
    "05_beyond_scaling",
    EDITED
    | {
        "alpha": "best dose of the arm, a common scaling allowed for",
        "scaling": "best dose of that scaling beside it",
        "gain": "share of the unedited error that the arm removes beyond the best scaling alone",
        "gain_scaling": "share of the unedited error that scaling alone removes",
        "n_prompts": "prompts that the interval draws from",
    },
)
def beyond_scaling_table(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    """Best doses of the arms when a common scaling of all latents is fitted beside."""
    rows = []
    for arm, seed in _arms_and_seeds(run) if tokens.is_usable else []:
        if arm != "global_scaling":
            found = dose_beyond_scaling(*tokens.given, arm=arm, prompts=tokens.prompts, seed=seed)
            rows.append({"arm": arm, "seed": seed, **dataclasses.asdict(found)})
    return pd.DataFrame(rows)


@_of_concepts(
    "05_optimised",
    EDITED
    | {
        "restart": "number of the start",
        "step": "gradient step",
        "value": "what the search raises or lowers (0 for the random control)",
        "gromov_wasserstein": "distance of the poles' shape from the one it is compared with",
        "edit_norm": "size of the edit, in units of the poles' mean distance from their centre",
        "search": "what is raised or lowered: aedp, gromov_wasserstein, or random (the control)",
        "direction": "raise or lower",
    },
)
def optimised_table(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    """Gradient searches that raise or lower a measure within one size of edit.

    ``gromov_wasserstein``/``lower`` pulls the shape of the poles towards that of the dense residual's poles;
    ``raise`` pushes it away from its own shape before the edit. ``random`` is the control of equal size.
    """
    return searches_of(tokens, run.study) if tokens.is_usable else pd.DataFrame()


def searches_of(tokens: WordTokens, study: Study, searches: Sequence[tuple[str, str]] = SEARCHES) -> pd.DataFrame:
    """The courses of some searches (what, and raise or lower) through the latents of a concept's words."""
    _, labels, k = check_labelled(tokens.latents, tokens.labels)
    vectors = float64(tokens.vectors)
    shape = distance_matrix(cluster_means(vectors, labels.to(vectors.device), k), relative=True)
    found = []
    for objective, direction in searches:
        search = optimise_separability(
            *tokens.given,
            objective=objective,
            direction=direction,
            radius=RADIUS,
            steps=study.intervention.optimise_steps,
            restarts=RESTARTS,
            reference=shape if (objective, direction) == ("gromov_wasserstein", "lower") else None,
            seed=study.seed,
        )
        history = search.history.rename(columns={"objective": "value"})
        found.append(history.assign(search=objective, direction=direction, seed=study.seed))
    return pd.concat(found, ignore_index=True)


@_of_concepts(
    "05_language_model",
    EDITED
    | {
        "error_term": "whether the SAE's own error is added back, so that only the edit is felt",
        "position": "where predictions are made: concept (at the word) or after (later in the sentence)",
        "cross_entropy": "next-token cross-entropy, nats a token",
        "ce_change": "its difference from the untouched model, nats a token",
        "kl": "divergence of the predictions from the untouched model's, nats a token",
        "tokens": "predictions averaged over",
    },
)
@torch.no_grad()
def language_model_table(run: RunDirectory, tokens: WordTokens) -> pd.DataFrame:
    """Edited reconstructions spliced in at the words of each concept, and what the language model makes of them.

    One row per arm, dose, ``error_term`` (whether the SAE's own error is added back, so that only the
    edit is felt) and ``position`` (``concept``: predictions made at the word; ``after``: later in the sentence).
    """

    from saema_utils.model.splice import CLEAN, spliced_losses

    if not tokens.is_usable:
        return pd.DataFrame()
    z, x, activations = tokens.latents, tokens.vectors, tokens.activations
    mask = activations.word_mask
    base = tokens.decode(z)
    edits = {("unedited", 0.0, False): base}
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
    places = torch.arange(mask.shape[1])[None]
    real = places < lengths[:, None]
    last_word = torch.where(mask, places, -1).amax(1, keepdim=True)
    after = real & (places > last_word) & (last_word >= 0)
    losses = spliced_losses(
        language_model(run),
        activations.tokens[chosen],
        run.study.hook_name,
        replace,
        where=mask[chosen],
        predicted=real[chosen],
    )
    rows = []
    for position, where in (("concept", mask[chosen]), ("after", after[chosen])):
        clean = losses[CLEAN].mean(where)[0]
        count = int((where & torch.isfinite(losses[CLEAN].cross_entropy)).sum())
        for arm, alpha, error_term in edits:
            cross_entropy, kl = losses[f"{arm}|{alpha}|{error_term}"].mean(where)
            choices = {"arm": arm, "alpha": alpha, "seed": run.study.seed, "error_term": error_term}
            felt = {"cross_entropy": cross_entropy, "ce_change": cross_entropy - clean, "kl": kl, "tokens": count}
            rows.append({**choices, "position": position, **felt})
    return pd.DataFrame(rows)


# ---- all concepts together -----------------------------------------------------------------------


@table(
    "05_dose_response",
    needs=(doses_of_concepts, language_model_table),
    columns=EDITED
    | {
        "fvu": "share of the tokens' variance that the reconstruction leaves unexplained",
        "ce_loss": "next-token cross-entropy at the word, nats a token, where edits were spliced in",
    },
)
def dose_response_table(run: RunDirectory) -> pd.DataFrame:
    """Every arm at every dose, with all latents free and with the support kept.

    ``ce_loss`` is known at the doses that :func:`language_model_table` splices (support not kept).
    """
    doses = doses_of_concepts(run)
    if doses.empty:
        example_concept(run)  # refuses, and says what to do
    losses = language_model_table(run)
    known = losses[(losses["position"] == "concept") & ~losses["error_term"]]
    known = known.set_index(["concept", "arm", "alpha", "seed"])["cross_entropy"].to_dict()
    keys = zip(doses["concept"], doses["arm"], doses["alpha"], doses["seed"], strict=True)
    spliced = pd.Series([known.get(k, float("nan")) for k in keys], index=doses.index, dtype=float)
    return doses.assign(ce_loss=spliced.where(~doses["preserve_sparsity"]))


@table(
    "05_correlation",
    needs=(dose_response_table,),
    columns=EDITED
    | {
        "range": "which doses",
        "n": "doses",
        "r": "Pearson correlation of the poles' average distance with the error over these doses",
        "r_scale_free": "the same with the scale-free separation; empty where that does not move",
    },
)
def correlation_table(run: RunDirectory) -> pd.DataFrame:
    """The paper's statistic over all doses, and over parts of the same curve."""
    return separation_error_correlation(dose_response_table(run))


TESTED = {
    "d": "Cohen's d of the paired differences",
    "p": "p-value of the test behind the interval",
    "p_holm": "p-value adjusted for all rows of the table (Holm)",
}


@table(
    "05_effects",
    needs=(
        dose_response_table,
        optimum_table,
        language_model_table,
        separability_training_table,
        natural_variation_table,
        beyond_scaling_table,
    ),
    columns=TESTED
    | {
        "effect": "what is compared",
        "control": "with what",
        "claimed": "sign that the causal claim predicts",
        "verdict": "what the interval decides of the claim: which side of zero it lies on; no margin is set here",
        "survives": "whether that also stands after the adjustment",
    },
)
def effects_table(run: RunDirectory) -> pd.DataFrame:
    """Every effect beside its control, with an interval and a verdict."""
    return effects(*(part(run) for part in effects_table.needs))


@table(
    "05_coefficient_effects",
    needs=(separability_training_table,),
    columns=TESTED
    | {
        "coefficient": "weight of the separation term in the loss, compared with weight 0",
        "measure": "what changes: a column of 05_separability_training",
        "n": "seeds",
    },
)
def coefficient_effects_table(run: RunDirectory) -> pd.DataFrame:
    """What each coefficient of the separation term changes against coefficient 0, paired by seed."""
    return coefficient_effects(separability_training_table(run))
