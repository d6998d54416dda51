r"""Train a TopK autoencoder to keep concepts apart, and see what its reconstruction makes of it.

The loss of a step is sae_lens's own plus one term on labelled concept tokens of the same batch:

.. math:: L = L_{\mathrm{TopK}} - c \, V \, \bar s

with *V* the batch's total variance, *s* the separation of a concept's poles averaged over concepts,
and *c* the coefficient: one whole unit of separation is worth the share *c* of the variance. Everything
else (width, k, data and their order, steps, warm start) is equal between coefficients of one seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig

from saema_utils.errors import InterventionError, SaeError, unknown_name
from saema_utils.intervention.separation import cluster_means, mean_pole_distance, separation_scale_free
from saema_utils.runtime import generator, seed_everything
from saema_utils.saes.sparse_topk import SparseTopKTrainingSAE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from sae_lens import SAE
    from torch import Tensor

MEASURES = ("scale_free", "aedp")


@dataclass
class SeparableTopKConfig(TopKTrainingSAEConfig):
    """sae_lens's TopK training configuration with the separation term's two choices.

    Its inference configuration is the plain TopK one, so what is saved is a plain TopK autoencoder.
    """

    separation_coefficient: float = 0.0
    separation_measure: str = "scale_free"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separation_measure not in MEASURES:
            raise InterventionError(unknown_name("separation measure", self.separation_measure, MEASURES))
        if not abs(self.separation_coefficient) <= 100:
            raise InterventionError(
                f"separation coefficient is {self.separation_coefficient!r}; allowed: -100 to 100 "
                "(a share of the batch's variance; 0.1 is already strong)."
            )


class SeparableTopKTrainingSAE(SparseTopKTrainingSAE):
    """A TopK autoencoder whose training loss also rewards (or punishes) the separation of poles.

    ``concept_labels`` and ``concept_groups`` describe the last rows of the batch: the cluster of each
    and the concept that the cluster belongs to. Without them, or at coefficient 0, a step is stock.
    """

    cfg: SeparableTopKConfig

    def __init__(self, cfg: SeparableTopKConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        self.concept_labels: Tensor | None = None
        self.concept_groups: Tensor | None = None
        self._first_distances: dict[int, float] = {}

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output, x = super().training_forward_pass(step_input), step_input.sae_in
        if self._is_stock or self.takes_sparse_step(x):  # the sparse step has asked for more_losses already
            return output
        latents, _ = self.encode_with_hidden_pre(x[-len(self.concept_labels) :])
        term = self._term(x, latents.to_dense() if latents.is_sparse else latents)
        output.losses["separation_loss"] = term
        output.loss = output.loss + term
        return output

    def more_losses(self, x: Tensor, chosen: Tensor, indices: Tensor) -> dict[str, Tensor]:
        if self._is_stock:
            return {}
        n = len(self.concept_labels)
        return {"separation_loss": self._term(x, self.dense_latents(chosen[-n:], indices[-n:]))}

    @property
    def _is_stock(self) -> bool:
        return self.cfg.separation_coefficient == 0 or self.concept_labels is None

    def _term(self, x: Float[Tensor, "B D"], latents: Float[Tensor, "n F"]) -> Float[Tensor, ""]:
        variance = (x - x.mean(0)).square().sum(1).mean().detach()
        return -self.cfg.separation_coefficient * variance * self._separation(latents)

    def _separation(self, latents: Float[Tensor, "n F"]) -> Float[Tensor, ""]:
        values = []
        for group in self.concept_groups.unique():
            here = self.concept_groups == group
            if len(self.concept_labels[here].unique()) < 2:
                continue  # one word alone has nothing to be apart from
            if self.cfg.separation_measure == "scale_free":
                values.append(separation_scale_free(latents[here], self.concept_labels[here]))
            else:
                names, labels = self.concept_labels[here].unique(return_inverse=True)
                distance = mean_pole_distance(cluster_means(latents[here], labels, len(names)))
                # In units of its value when the concept first came by, so that coefficients compare.
                first = self._first_distances.setdefault(int(group), float(distance.detach()))
                values.append(distance / first)
        return torch.stack(values).mean() if values else latents.new_zeros(())


@dataclass(frozen=True)
class LabelledTokens:
    """Concept tokens: vectors ``[N, D]``, the cluster of each (unique over concepts), its concept."""

    vectors: Float[Tensor, "N D"]
    clusters: Int[Tensor, " N"]
    concepts: Int[Tensor, " N"]

    def of(self, concept: int) -> LabelledTokens:
        here = self.concepts == concept
        return LabelledTokens(self.vectors[here], self.clusters[here], self.concepts[here])


class Batches(Iterator):
    """Corpus batches with concept tokens as their last rows; the same sequence for one seed.

    Each step brings two whole concepts (all their labelled tokens, at most ``most_labelled`` each), so
    that poles are means over several contexts.
    """

    def __init__(
        self,
        sae: SeparableTopKTrainingSAE,
        corpus: Float[Tensor, "M D"],
        tokens: LabelledTokens | None,
        *,
        batch: int,
        seed: int,
        most_labelled: int = 64,
        concepts_per_step: int = 2,
    ):
        self.sae, self.corpus, self.tokens, self.batch = sae, corpus, tokens, batch
        self.most, self.per_step = most_labelled, concepts_per_step
        self.draws = generator(seed, "separability batches")
        self.names = [] if tokens is None else tokens.concepts.unique().tolist()

    def __next__(self) -> Float[Tensor, "B D"]:
        rows = torch.randint(len(self.corpus), (self.batch,), generator=self.draws)
        # The corpus may be mapped from disk while the weights, and the concept tokens, lie on the device.
        device = self.sae.W_dec.device
        parts = [self.corpus[rows].to(device).float()]
        if self.names:
            order = torch.randperm(len(self.names), generator=self.draws)[: self.per_step]
            chosen = []
            for i in order.tolist():
                members = (self.tokens.concepts == self.names[i]).nonzero()[:, 0]
                chosen.append(members[torch.randperm(len(members), generator=self.draws)[: self.most]])
            here = torch.cat(chosen)
            parts.append(self.tokens.vectors[here].to(device).float())
            self.sae.concept_labels = self.tokens.clusters[here].to(device)
            self.sae.concept_groups = self.tokens.concepts[here].to(device)
        return torch.cat(parts)


def activation_scale(corpus: Float[Tensor, "M D"], most: int = 4096) -> float:
    """The factor that gives activations the mean norm sqrt(D), as sae_lens's trainer uses it."""
    some = corpus[:most].float()
    return float(some.shape[1] ** 0.5 / some.norm(dim=1).mean())


def fresh(d_in: int, d_sae: int, k: int, *, seed: int, device: str = "cpu", **choices: Any) -> SeparableTopKTrainingSAE:
    """An untrained autoencoder; its weights depend on the seed alone, not on the device."""
    seed_everything(seed)
    cfg = SeparableTopKConfig(
        d_in=d_in, d_sae=d_sae, k=k, device="cpu", normalize_activations="expected_average_only_in", **choices
    )
    sae = SeparableTopKTrainingSAE(cfg)
    return sae.to(device)


def can_continue(sae: SAE) -> bool:
    """Whether :func:`warm_start` takes this autoencoder."""
    return sae.cfg.architecture() == "topk" and sae.cfg.normalize_activations in ("none", "expected_average_only_in")


def warm_start(sae: SAE, scale: float, *, k: int | None = None, **choices: Any) -> SeparableTopKTrainingSAE:
    """Continue from a trained TopK autoencoder, its weights moved to activations multiplied by ``scale``.

    Before any step it reconstructs exactly what ``sae`` does (at the same ``k``).

    Raises
    ------
    SaeError
        If ``sae`` is not a TopK autoencoder without run-time normalisation.
    """
    cfg = sae.cfg
    if not can_continue(sae):
        raise SaeError(
            f"a warm start needs a TopK SAE without run-time normalisation; this one is {cfg.architecture()!r} with "
            f"{cfg.normalize_activations!r}. Start fresh instead."
        )
    new = SeparableTopKTrainingSAE(
        SeparableTopKConfig(
            d_in=cfg.d_in,
            d_sae=cfg.d_sae,
            k=k or cfg.k,
            device=str(sae.W_dec.device),
            apply_b_dec_to_input=cfg.apply_b_dec_to_input,
            rescale_acts_by_decoder_norm=cfg.rescale_acts_by_decoder_norm,
            normalize_activations="expected_average_only_in",
            **choices,
        )
    )
    # TopK is positively homogeneous: scaling inputs and biases scales latents and outputs alike.
    with torch.no_grad():
        new.W_enc.copy_(sae.W_enc)
        new.W_dec.copy_(sae.W_dec)
        new.b_enc.copy_(sae.b_enc * scale)
        new.b_dec.copy_(sae.b_dec * scale)
    return new


def train_separable(
    sae: SeparableTopKTrainingSAE,
    corpus: Float[Tensor, "M D"],
    tokens: LabelledTokens | None,
    *,
    scale: float,
    steps: int,
    batch: int = 384,
    learning_rate: float = 3e-4,
    seed: int = 0,
    checkpoints: tuple[int, ...] = (),
    watch: Any = None,
) -> SAE:
    """Train with sae_lens's ``SAETrainer`` and return the plain TopK autoencoder for inference.

    Parameters
    ----------
    sae
        From :func:`warm_start` or :func:`fresh`; it is changed in place.
    corpus, tokens
        Activations in the model's own scale; ``tokens`` (concept tokens) ride along in every batch.
    scale
        From :func:`activation_scale`; taken out of the weights again at the end.
    checkpoints, watch
        ``watch(step, plain_sae)`` is called after each of these steps.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    batches = Batches(sae, corpus, tokens, batch=batch, seed=seed)
    config = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        device=str(sae.W_dec.device),
        lr=learning_rate,
        lr_end=learning_rate,
        lr_warm_up_steps=max(1, steps // 20),
        dead_feature_window=1000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, batches)
    trainer.activation_scaler.scaling_factor = scale
    for group in trainer.optimizer.param_groups:
        group.update(fused=True, foreach=False)  # the same Adam in one pass over the weights
    for step in range(1, steps + 1):
        trainer.step(next(batches))
        trainer.n_training_steps += 1
        if step in checkpoints and watch is not None:
            watch(step, as_plain(sae, scale))
    return as_plain(sae, scale)


@torch.no_grad()
def as_plain(sae: SeparableTopKTrainingSAE, scale: float = 1.0) -> SAE:
    """The plain inference ``TopKSAE`` of sae_lens, in the model's own scale; ``sae`` is left alone.

    Uses sae_lens's own step for saving, so that it equals what ``SAE.load_from_disk`` reads back.
    """
    from sae_lens import SAE

    state = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    plain = SAE.from_dict({**sae.cfg.get_inference_sae_cfg_dict(), "normalize_activations": "none"})
    plain.load_state_dict(state)
    plain.b_enc /= scale
    plain.b_dec /= scale
    return plain.to(sae.W_dec.device).eval().requires_grad_(False)
