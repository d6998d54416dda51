"""Chapter 5 of a run, during training: autoencoders trained to separate concepts, against equals that were not.

All runs of one seed see the same batches from the same start; only the coefficient differs. A quarter
of each concept's words, and a third of the sentences of the other words, are kept out of training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from saema_utils.chapters.activations.concepts import concept_activations, concept_tensors
from saema_utils.chapters.activations.corpus import corpus_activations
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.intervention.measures import MEASURED, Split, measure_trained
from saema_utils.chapters.sae.coders import study_sae
from saema_utils.intervention.training import (
    LabelledTokens,
    SeparableTopKTrainingSAE,
    activation_scale,
    as_plain,
    can_continue,
    fresh,
    train_separable,
    warm_start,
)
from saema_utils.model.residual_stream import label_words
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, table
from saema_utils.runtime import progress

if TYPE_CHECKING:
    from sae_lens import SAE

TRAINED_SEEDS = 3
BATCH = 384
FRESH_BATCH = 768  # a step costs nearly the same: most of it is spent on the weights, not on the tokens
CHECKPOINTS = (1 / 4, 1 / 2, 3 / 4, 1)  # of a fresh run; before, it explains too little to be called an autoencoder
WARM_RATE = 0.3  # of the study's learning rate, for fine-tuning
HELD_OUT_WORD = 4  # every fourth word
HELD_OUT_SHARE = 1 / 3  # of the sentences of each remaining word
TRAINED_ON = (concept_tensors, corpus_activations, study_sae)


def split_tokens(run: RunDirectory) -> Split:
    """Word tokens of all concepts, split by word and by sentence; no word and no sentence stands on both sides."""
    parts, first = [], 0
    for number, activations in enumerate(concept_activations(run).values()):
        vectors, words, prompts = label_words(activations)
        n_words = len(activations.prompts.words)
        place = torch.zeros(len(activations.prompts.prompts), dtype=torch.long)
        for word in range(n_words):
            own = (activations.prompt_words == word).nonzero()[:, 0]
            held = max(1, int(len(own) * HELD_OUT_SHARE)) if len(own) > 1 else 0
            place[own[len(own) - held :]] = 2
        # With two or three words, holding one out would leave a concept without two poles to train on.
        if n_words >= HELD_OUT_WORD:
            place[activations.prompt_words % HELD_OUT_WORD == HELD_OUT_WORD - 1] = 1
        parts.append((vectors, words + first, torch.full_like(words, number), place[prompts]))
        first += n_words
    *tokens, place = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Split(*(LabelledTokens(*(x[place == which].to(run.device) for x in tokens)) for which in range(3)))


# ---- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Everything that the runs of one chapter share.

    ``origin`` is the study's SAE; ``warm`` says whether runs continue it. Runs that start from fresh
    weights, here or for comparison, take ``fresh_steps``.
    """

    origin: SAE
    corpus: Tensor
    heldout: Tensor
    split: Split
    scale: float
    finetune_steps: int
    fresh_steps: int
    learning_rate: float
    warm: bool

    @property
    def start(self) -> str:
        return "warm" if self.warm else "fresh"

    @property
    def steps(self) -> int:
        """How long a run from the common start is."""
        return self.finetune_steps if self.warm else self.fresh_steps

    def begin(self, *, seed: int, k: int | None = None, **choices: Any) -> SeparableTopKTrainingSAE:
        """The common start: the study's own SAE, or fresh weights of its size."""
        if self.warm:
            return warm_start(self.origin, self.scale, k=k, **choices)
        return self.fresh(seed=seed, k=k, **choices)

    def fresh(self, *, seed: int, k: int | None = None, d_sae: int | None = None, **choices: Any):
        cfg, device = self.origin.cfg, str(self.origin.W_dec.device)
        return fresh(cfg.d_in, d_sae or cfg.d_sae, k or getattr(cfg, "k", 32), seed=seed, device=device, **choices)

    def train(self, sae: SeparableTopKTrainingSAE, tokens: LabelledTokens | None, seed: int, **options: Any) -> SAE:
        """Train a run from the common start, or (without ``tokens``) one from fresh weights that nobody separates."""
        continued = self.warm and tokens is not None
        usual = {
            "steps": self.finetune_steps if continued else self.fresh_steps,
            "learning_rate": self.learning_rate * (WARM_RATE if continued else 1.0),
            "batch": min(BATCH if continued else FRESH_BATCH, len(self.corpus)),
        }
        return train_separable(sae, self.corpus, tokens, scale=self.scale, seed=seed, **usual | options)

    def measure(self, plain: SAE) -> dict[str, float]:
        """What it is worth, on what training did not see."""
        return measure_trained(plain, self.heldout, self.split)


def bench(run: RunDirectory) -> Bench:
    """Load what the runs share. A study whose SAE is not TopK starts from fresh weights, whatever it asks for."""
    corpus, sae = corpus_activations(run), study_sae(run)
    heldout = corpus.heldout[: run.study.intervention.judged_tokens].to(run.device).float()
    recipe = run.study.intervention
    return Bench(
        sae,
        corpus.train,
        heldout,
        split_tokens(run),
        activation_scale(corpus.train),
        recipe.finetune_steps,
        recipe.fresh_steps,
        run.study.sae.learning_rate,
        recipe.start == "warm" and can_continue(sae),
    )


def _seeds(run: RunDirectory) -> list[str]:
    return [str(seed) for seed in run.study.seeds[:TRAINED_SEEDS]]


@parts("05_separability_training", of=_seeds, needs=TRAINED_ON)
def training_of_seeds(run: RunDirectory, seeds: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Autoencoders trained with each coefficient of the separation term. One seed a part."""
    shared = bench(run)
    for seed in progress(seeds, "separability-trained SAEs"):
        yield seed, {training_of_seeds.name: _all_coefficients(run, shared, int(seed))}


separability_training_table = training_of_seeds.whole(
    "05_separability_training",
    """Autoencoders trained with each coefficient of the separation term, paired by seed.

    ``ce_recovered`` (0: as bad as zeros at the layer, 1: as good as the clean model) is taken on a few held-out
    sequences.
    """,
    {
        **MEASURED,
        "coefficient": "weight of the separation term in the loss: the share of variance that a unit of it is worth",
        "start": "warm (the study's own SAE) or fresh (random weights)",
        "steps": "training steps from there",
        "ce_recovered": "share of the cross-entropy lost with zeros at the layer that its reconstructions win back",
    },
)


def _all_coefficients(run: RunDirectory, shared: Bench, seed: int) -> pd.DataFrame:
    rows, spliced = [], {}
    corpus = corpus_activations(run)
    count = run.study.intervention.spliced_sequences
    sequences, mask = corpus.heldout_tokens[:count], corpus.heldout_mask[:count]
    vectors = corpus.heldout[: int(mask.sum())].to(run.device).float()

    def trained(coefficient: float) -> tuple[dict[str, float], Tensor]:
        """A function, so that one autoencoder is gone before the next is trained."""
        sae = shared.begin(seed=seed, separation_coefficient=coefficient)
        plain = shared.train(sae, shared.split.train, seed)
        whole = torch.zeros(*mask.shape, vectors.shape[1])
        with torch.no_grad():
            whole[mask] = plain.decode(plain.encode(vectors)).cpu()
        return shared.measure(plain), whole

    for coefficient in progress(run.study.intervention.coefficients, f"coefficients, seed {seed}"):
        facts, spliced[str(coefficient)] = trained(coefficient)
        named = {"coefficient": coefficient, "seed": seed, "start": shared.start, "steps": shared.steps}
        rows.append({**named, **facts})
    table = pd.DataFrame(rows)
    table["ce_recovered"] = _recovered(run, sequences, mask, spliced)
    return table


def _recovered(run: RunDirectory, tokens: Tensor, mask: Tensor, spliced: dict[str, Tensor]) -> list[float]:
    from saema_utils.model.splice import spliced_losses

    replace = {**spliced, "zero": torch.zeros_like(next(iter(spliced.values())))}
    losses = spliced_losses(language_model(run), tokens, run.study.hook_name, replace, where=mask)
    means = {name: found.mean(mask)[0] for name, found in losses.items()}
    return [(means["zero"] - means[name]) / (means["zero"] - means["clean"]) for name in spliced]


@table(
    "05_gaming",
    needs=(separability_training_table, *TRAINED_ON),
    columns={
        **MEASURED,
        "autoencoder": "what was done to it",
        "start": "where trainings begin: warm (the study's own SAE) or fresh (random weights)",
    },
)
def gaming_table(run: RunDirectory) -> pd.DataFrame:
    """What AEDP rewards that is not separation.

    One row per autoencoder: ``before`` is the study's own, or, where runs start from fresh weights (column
    ``start``), the one trained on neither, since an untrained one is no yardstick; the same with latents
    doubled and decoder rows halved (no reconstruction changes); and, from the common start, trained at the
    largest coefficient on AEDP, on the scale-free measure, and on neither.
    """
    coefficient, seed = max(run.study.intervention.coefficients), run.study.seed
    trained = separability_training_table(run)
    shared = bench(run)
    aedp = {"separation_coefficient": coefficient, "separation_measure": "aedp"}

    def before() -> SAE:
        begun = shared.begin(seed=seed)
        return as_plain(begun, shared.scale) if shared.warm else shared.train(begun, shared.split.train, seed)

    # One at a time: in training, an autoencoder already takes five times its own size.
    makers = {
        "before": before,
        "latents doubled, decoder halved": lambda: _doubled(before()),
        "trained on AEDP": lambda: shared.train(shared.begin(seed=seed, **aedp), shared.split.train, seed),
    }
    rows = [{"autoencoder": name, "start": shared.start, **shared.measure(make())} for name, make in makers.items()]
    paired = trained[trained["seed"] == seed].set_index("coefficient")
    for level, name in ((coefficient, "trained on scale-free separation"), (0.0, "trained on neither")):
        rows.append({"autoencoder": name, **{c: paired.loc[level, c] for c in rows[0] if c in paired}})
    return pd.DataFrame(rows)


@torch.no_grad()
def _doubled(plain: SAE) -> SAE:
    """The same autoencoder in other units: every latent twice as large, every decoder row half as long."""
    other = copy.deepcopy(plain)
    if other.cfg.rescale_acts_by_decoder_norm:
        other.fold_W_dec_norm()
        other.cfg.rescale_acts_by_decoder_norm = False
    other.W_enc *= 2
    other.b_enc *= 2
    other.W_dec /= 2
    return other


@table("05_natural_variation", needs=TRAINED_ON, columns={**MEASURED, "step": "training step of the checkpoint"})
def natural_variation_table(run: RunDirectory) -> pd.DataFrame:
    """Checkpoints of plain TopK runs from fresh weights, no separation term, from a quarter of the run on."""
    shared, rows = bench(run), []
    marks = sorted({max(1, round(share * shared.fresh_steps)) for share in CHECKPOINTS})
    for seed in progress(run.study.seeds, "fresh SAEs"):

        def watch(step: int, plain: SAE, seed: int = seed) -> None:
            rows.append({"seed": seed, "step": step, **shared.measure(plain)})

        shared.train(shared.fresh(seed=seed), None, seed, checkpoints=tuple(marks), watch=watch)
    return pd.DataFrame(rows)


@parts("05_reversed", of=lambda run: _seeds(run)[:2], needs=TRAINED_ON)
def reversed_of_seeds(run: RunDirectory, seeds: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """The trainings of ``05_reversed_cause`` that no other table of the chapter holds. One seed a part."""
    shared = bench(run)
    cfg, k = shared.origin.cfg, getattr(shared.origin.cfg, "k", 32)
    jobs = [("k", level) for level in sorted({max(1, k // 2), min(cfg.d_sae, 2 * k)} - {k})]
    jobs += [("width", level) for level in sorted({max(k, cfg.d_sae // 4), max(k, cfg.d_sae // 2)})]

    def measured(change: str, level: int, seed: int) -> dict[str, float]:
        """A function, so that one autoencoder is gone before the next is trained."""
        if change == "k":
            plain = shared.train(shared.begin(seed=seed, k=level), shared.split.train, seed)
        else:
            plain = shared.train(shared.fresh(seed=seed, d_sae=level), None, seed)
        return shared.measure(plain)

    for name in seeds:
        seed, rows = int(name), []
        for change, level in progress(jobs, f"reversed cause, seed {seed}"):
            rows.append({"change": change, "level": level, "seed": seed, **measured(change, level, seed)})
        yield name, {"05_reversed": pd.DataFrame(rows)}


@table(
    "05_reversed_cause",
    needs=(reversed_of_seeds, separability_training_table, natural_variation_table, study_sae),
    columns={
        **MEASURED,
        "change": "k: the start fine-tuned with more or fewer active latents; width: fresh weights of another width; "
        "steps: fresh weights trained longer",
        "level": "the number of active latents, of latents, or of steps",
    },
)
def reversed_cause_table(run: RunDirectory) -> pd.DataFrame:
    """Reconstruction improved by other means, and what separation does."""
    # Runs that other tables of the chapter already hold are taken from there.
    table, trained = reversed_of_seeds(run), separability_training_table(run)
    usual = trained[(trained["coefficient"] == 0) & trained["seed"].isin(table["seed"])]
    usual = usual.assign(change="k", level=getattr(study_sae(run).cfg, "k", 32))
    natural = natural_variation_table(run)
    steps = natural.rename(columns={"step": "level"}).assign(change="steps")
    full = natural[natural["step"] == natural["step"].max()].rename(columns={"step": "level"})
    full = full.assign(change="width", level=study_sae(run).cfg.d_sae)
    return pd.concat([table, usual[table.columns], full[full["seed"].isin(table["seed"])], steps], ignore_index=True)
