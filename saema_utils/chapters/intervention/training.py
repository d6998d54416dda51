"""Chapter 5 of a run, during training: autoencoders trained to separate concepts, against equals that were not.

Each seed has an autoencoder of its own: a plain run from fresh weights, which is watched, and which the runs that
separate continue. These see the same batches; only the coefficient differs. A quarter of each concept's words, and
a third of the sentences of the other words, are kept out of training. What trains them brings all of sae_lens along,
and is imported where a run begins: chapters that only read the tables need it not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from saema_utils.chapters.activations.concepts import (
    authors_activations,
    authors_tensors,
    concept_activations,
    concept_tensors,
)
from saema_utils.chapters.activations.corpus import corpus_activations
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.intervention.measures import MEASURED, Split, Texts, measure_choices, measure_trained
from saema_utils.chapters.sae.coders import study_sae
from saema_utils.intervention.separation import LabelledTokens
from saema_utils.model.residual_stream import label_words
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import parts, table
from saema_utils.runtime import progress
from saema_utils.study import Study

if TYPE_CHECKING:
    from sae_lens import SAE

    from saema_utils.intervention.training import SeparableTopKTrainingSAE

AUTOENCODERS = 6  # units of the experiment, in a study of ENOUGH seeds; smaller studies have one a seed
ENOUGH = 5
REVERSED = 2  # of them are also improved by other means
BATCH = 384
FRESH_BATCH = 768  # a step costs nearly the same: most of it is spent on the weights, not on the tokens
CHECKPOINTS = (1 / 4, 1 / 2, 3 / 4, 1)  # of a fresh run; before, it explains too little to be called an autoencoder
WARM_RATE = 0.3  # of the study's learning rate, for fine-tuning
HELD_OUT_WORD = 4  # every fourth word
HELD_OUT_SHARE = 1 / 3  # of the sentences of each remaining word
TRAINED_ON = (concept_tensors, authors_tensors, corpus_activations, study_sae)


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


def authors_words(run: RunDirectory) -> tuple[Tensor, Tensor]:
    """Word tokens of the authors' prompts, and the concept that each belongs to; none where they have no concept."""
    found = [label_words(activations)[0] for activations in authors_activations(run).values()]
    vectors = torch.cat(found) if found else corpus_activations(run).train[:0].float()
    numbers = torch.tensor([number for number, own in enumerate(found) for _ in own], dtype=torch.long)
    return vectors.to(run.device), numbers.to(run.device)


# ---- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Everything that the runs of one chapter share. Sizes are those of the study's SAE.

    ``warm`` says whether runs with concept tokens continue their seed's plain run, for ``finetune_steps``; else they
    take ``fresh_steps`` from fresh weights, as plain runs do.
    """

    d_sae: int
    k: int
    corpus: Tensor
    heldout: Tensor
    split: Split
    texts: Texts
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
        """How long a run from the common start of its seed is."""
        return self.finetune_steps if self.warm else self.fresh_steps

    def fresh(self, seed: int, **choices: Any) -> SeparableTopKTrainingSAE:
        from saema_utils.intervention.training import fresh

        sizes = {"d_sae": self.d_sae, "k": self.k, "device": str(self.heldout.device)}
        return fresh(self.corpus.shape[1], seed=seed, **sizes | choices)

    def train_plain(self, seed: int, watch: Callable[[int, SAE], None] | None = None, **choices: Any):
        """A run that nobody separates, watched at :data:`CHECKPOINTS`; as it is in training, to be continued."""
        sae = self.fresh(seed, **choices)
        marks = tuple(sorted({max(1, round(share * self.fresh_steps)) for share in CHECKPOINTS}))
        self._train(sae, None, seed, warm=False, checkpoints=marks, watch=watch)
        return sae

    def train(self, start: SeparableTopKTrainingSAE, seed: int, **choices: Any) -> SAE:
        """A run with concept tokens in every batch; ``start`` is the plain run of its seed, and is left alone."""
        from saema_utils.intervention.training import continued

        sae = continued(start, **choices) if self.warm else self.fresh(seed, **choices)
        return self._train(sae, self.split.train, seed, warm=self.warm)

    def _train(
        self, sae: SeparableTopKTrainingSAE, tokens: LabelledTokens | None, seed: int, *, warm: bool, **watched: Any
    ) -> SAE:
        from saema_utils.intervention.training import train_separable

        return train_separable(
            sae,
            self.corpus,
            tokens,
            scale=self.scale,
            seed=seed,
            steps=self.finetune_steps if warm else self.fresh_steps,
            learning_rate=self.learning_rate * (WARM_RATE if warm else 1.0),
            batch=min(BATCH if warm else FRESH_BATCH, len(self.corpus)),
            **watched,
        )

    def plain(self, sae: SeparableTopKTrainingSAE) -> SAE:
        """One in training, for inference on the model's own activations."""
        from saema_utils.intervention.training import as_plain

        return as_plain(sae, self.scale)

    def measure(self, plain: SAE) -> dict[str, float]:
        """What it is worth, on what training did not see."""
        return measure_trained(plain, self.heldout, self.split)

    def measure_choices(self, plain: SAE) -> pd.DataFrame:
        """How well it reconstructs, in every way of asking."""
        return measure_choices(plain, self.texts)


def sizes_of(run: RunDirectory) -> tuple[int, int]:
    """Width of the study's SAE, and its active latents a token (of the recipe where its family has no k)."""
    cfg = study_sae(run).cfg
    return cfg.d_sae, getattr(cfg, "k", run.study.sae.k)


def bench(run: RunDirectory) -> Bench:
    """Load what the runs share."""
    from saema_utils.intervention.training import activation_scale

    corpus, recipe = corpus_activations(run), run.study.intervention
    heldout, split = corpus.heldout[: recipe.judged_tokens].to(run.device).float(), split_tokens(run)
    sequences = corpus.heldout_mask.nonzero()[: len(heldout), 0].to(run.device)
    return Bench(
        *sizes_of(run),
        corpus.train,
        heldout,
        split,
        {"running text": (heldout, sequences), **split.texts, "the authors' words": authors_words(run)},
        activation_scale(corpus.train),
        recipe.finetune_steps,
        recipe.fresh_steps,
        run.study.sae.learning_rate,
        recipe.start == "warm",
    )


# ---- a seed at a time --------------------------------------------------------------------------


def seeds_of(study: Study) -> tuple[int, ...]:
    """Seeds of the autoencoders: six in a study of five seeds or more, else the study's own."""
    return tuple(range(study.seed, study.seed + AUTOENCODERS)) if study.n_seeds >= ENOUGH else study.seeds


@parts("05_trained", of=lambda run: [str(seed) for seed in seeds_of(run.study)], needs=TRAINED_ON)
def trained_by_seed(run: RunDirectory, seeds: list[str]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """All that begins with the plain run of a seed, which is so made once and need not be stored. One seed a part."""
    shared, chosen = bench(run), seeds_of(run.study)
    for name in progress(seeds, "autoencoders with starts of their own"):
        seed = int(name)
        start, natural = _plain_run(shared, seed)
        trained, choices = _all_coefficients(run, shared, start, seed)
        found = {"05_separability_training": trained, "05_training_choices": choices, "05_natural_variation": natural}
        none = natural.iloc[:0]
        found["05_gaming"] = _gamed(run, shared, start, natural, trained) if seed in chosen[:1] else none
        found["05_reversed"] = _improved(shared, start, seed) if seed in chosen[:REVERSED] else none
        yield name, found


def _plain_run(shared: Bench, seed: int) -> tuple[SeparableTopKTrainingSAE, pd.DataFrame]:
    rows = []

    def watch(step: int, plain: SAE) -> None:
        rows.append({"seed": seed, "step": step, **shared.measure(plain)})

    return shared.train_plain(seed, watch), pd.DataFrame(rows)


def _all_coefficients(
    run: RunDirectory, shared: Bench, start: SeparableTopKTrainingSAE, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, asked, spliced = [], [], {}
    corpus = corpus_activations(run)
    count = run.study.intervention.spliced_sequences
    sequences, mask = corpus.heldout_tokens[:count], corpus.heldout_mask[:count]
    vectors = corpus.heldout[: int(mask.sum())].to(run.device).float()

    def trained(coefficient: float) -> tuple[dict[str, float], pd.DataFrame, Tensor]:
        """A function, so that one autoencoder is gone before the next is trained."""
        plain = shared.train(start, seed, separation_coefficient=coefficient)
        whole = torch.zeros(*mask.shape, vectors.shape[1])
        with torch.no_grad():
            whole[mask] = plain.decode(plain.encode(vectors)).cpu()
        return shared.measure(plain), shared.measure_choices(plain), whole

    for coefficient in progress(run.study.intervention.coefficients, f"coefficients, seed {seed}"):
        facts, choices, spliced[str(coefficient)] = trained(coefficient)
        named = {"coefficient": coefficient, "seed": seed, "start": shared.start, "steps": shared.steps}
        rows.append({**named, **facts})
        asked.append(choices.assign(coefficient=coefficient, seed=seed))
    table = pd.DataFrame(rows)
    table["ce_recovered"] = _recovered(run, sequences, mask, spliced)
    return table, pd.concat(asked, ignore_index=True)


def _recovered(run: RunDirectory, tokens: Tensor, mask: Tensor, spliced: dict[str, Tensor]) -> list[float]:
    from saema_utils.model.splice import spliced_losses

    replace = {**spliced, "zero": torch.zeros_like(next(iter(spliced.values())))}
    losses = spliced_losses(language_model(run), tokens, run.study.hook_name, replace, where=mask)
    means = {name: found.mean(mask)[0] for name, found in losses.items()}
    return [(means["zero"] - means[name]) / (means["zero"] - means["clean"]) for name in spliced]


def _gamed(
    run: RunDirectory, shared: Bench, start: SeparableTopKTrainingSAE, natural: pd.DataFrame, trained: pd.DataFrame
) -> pd.DataFrame:
    coefficient, seed = max(run.study.intervention.coefficients), int(natural["seed"].iloc[0])
    aedp = {"separation_coefficient": coefficient, "separation_measure": "aedp"}
    by_coefficient = trained.set_index("coefficient")
    # One at a time: in training, an autoencoder already takes five times its own size.
    made = {
        "before": natural.iloc[-1],
        "latents doubled, decoder halved": shared.measure(_doubled(shared.plain(start))),
        "trained on AEDP": shared.measure(shared.train(start, seed, **aedp)),
        "trained on scale-free separation": by_coefficient.loc[coefficient],
        "trained on neither": by_coefficient.loc[0.0],
    }
    measures = [name for name in natural if name not in ("seed", "step")]
    rows = [
        {"autoencoder": name, "start": shared.start, **{m: facts[m] for m in measures}} for name, facts in made.items()
    ]
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


def _improved(shared: Bench, start: SeparableTopKTrainingSAE, seed: int) -> pd.DataFrame:
    """Other numbers of active latents, and other widths. What the seed's other tables hold is not made again."""
    k, d_sae = shared.k, shared.d_sae
    jobs = [("k", level) for level in sorted({max(1, k // 2), min(d_sae, 2 * k)} - {k})]
    jobs += [("width", level) for level in sorted({max(k, d_sae // 4), max(k, d_sae // 2)})]

    def measured(change: str, level: int) -> dict[str, float]:
        """A function, so that one autoencoder is gone before the next is trained."""
        if change == "k":
            return shared.measure(shared.train(start, seed, k=level))
        return shared.measure(shared.plain(shared.train_plain(seed, d_sae=level)))

    rows = []
    for change, level in progress(jobs, f"reversed cause, seed {seed}"):
        rows.append({"change": change, "level": level, "seed": seed, **measured(change, level)})
    return pd.DataFrame(rows)


# ---- all seeds together ------------------------------------------------------------------------

separability_training_table = trained_by_seed.whole(
    "05_separability_training",
    """Autoencoders trained with each coefficient of the separation term, each seed from a start of its own.

    ``ce_recovered`` (0: as bad as zeros at the layer, 1: as good as the clean model) is taken on a few held-out
    sequences.
    """,
    {
        **MEASURED,
        "coefficient": "weight of the separation term in the loss: the share of variance that a unit of it is worth",
        "start": "warm (the seed's own plain autoencoder) or fresh (the seed's random weights)",
        "steps": "training steps from there",
        "ce_recovered": "share of the cross-entropy lost with zeros at the layer that its reconstructions win back",
    },
)

training_choices_table = trained_by_seed.whole(
    "05_training_choices",
    "What the same autoencoders reconstruct, and how well, in every way of asking.",
    {
        "coefficient": "weight of the separation term in the loss",
        "on": "what is reconstructed: held-out running text, or word tokens (trained, of unseen words, in unseen "
        "sentences, in the authors' prompts)",
        "measure": "explained_variance or cosine",
        "value": "its value",
        "weight": "whether every squared length counts alike (tokens), or every token (relative)",
        "scaling": "whether a common scaling is fitted beside (joint) or not (alone); the cosine has none",
        "pooled": "all tokens about one mean, or each concept or text about its own and then averaged (by group)",
    },
)

natural_variation_table = trained_by_seed.whole(
    "05_natural_variation",
    "Checkpoints of plain TopK runs from fresh weights, no separation term, from a quarter of the run on.",
    {**MEASURED, "step": "training step of the checkpoint"},
)

gaming_table = trained_by_seed.whole(
    "05_gaming",
    """What AEDP rewards that is not separation.

    One row per autoencoder: ``before`` is the plain one of the first seed; the same with latents doubled and decoder
    rows halved (no reconstruction changes); and, from the seed's start, trained at the largest coefficient on AEDP, on
    the scale-free measure, and on neither.
    """,
    {
        **MEASURED,
        "autoencoder": "what was done to it",
        "start": "where trainings begin: warm (the plain autoencoder before) or fresh (random weights)",
    },
)


@table(
    "05_reversed_cause",
    needs=(trained_by_seed, separability_training_table, natural_variation_table, study_sae),
    columns={
        **MEASURED,
        "change": "k: trained from the seed's start with more or fewer active latents; width: fresh weights of another "
        "width; steps: fresh weights trained longer",
        "level": "the number of active latents, of latents, or of steps",
    },
)
def reversed_cause_table(run: RunDirectory) -> pd.DataFrame:
    """Reconstruction improved by other means, and what separation does."""
    # Runs that other tables of the chapter already hold are taken from there.
    found, trained = trained_by_seed(run, "05_reversed"), separability_training_table(run)
    both, (d_sae, k) = found["seed"].unique(), sizes_of(run)
    usual = trained[(trained["coefficient"] == 0) & trained["seed"].isin(both)].assign(change="k", level=k)
    steps = natural_variation_table(run).rename(columns={"step": "level"}).assign(change="steps")
    full = steps[(steps["level"] == steps["level"].max()) & steps["seed"].isin(both)]
    full = full.assign(change="width", level=d_sae)
    return pd.concat([found, usual[found.columns], full, steps], ignore_index=True)
