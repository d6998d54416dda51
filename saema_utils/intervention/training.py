r"""Train a TopK autoencoder to keep concepts apart, and see what its reconstruction makes of it.

The loss of a step is sae_lens's own plus one term on labelled concept tokens of the same batch:

.. math:: L = L_{\mathrm{TopK}} - c \, V \, \bar s

with *V* the batch's total variance, *s* the separation of a concept's poles averaged over concepts,
and *c* the coefficient: one whole unit of separation is worth the share *c* of the variance. Everything
else (width, k, data and their order, steps, start) is equal between coefficients of one seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig

from saema_utils.errors import InterventionError, unknown_name
from saema_utils.intervention.separation import LabelledTokens, cluster_means, mean_pole_distance, separation_scale_free
from saema_utils.runtime import generator, seed_everything
from saema_utils.saes.sparse_topk import SparseTopKTrainingSAE
from saema_utils.saes.training import NORMALISED, plain_sae, training_steps

if TYPE_CHECKING:
    from jaxtyping import Float
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


def labelled_batches(
    sae: SeparableTopKTrainingSAE,
    corpus: Float[Tensor, "M D"],
    tokens: LabelledTokens | None,
    *,
    batch: int,
    seed: int,
    most: int = 64,
    concepts_per_step: int = 2,
) -> Iterator[Float[Tensor, "B D"]]:
    """Corpus batches with concept tokens as their last rows, of which ``sae`` is told; the same sequence for one seed.

    Each step brings two whole concepts (all their labelled tokens, at most ``most`` each), so that poles are means
    over several contexts.
    """
    draws = generator(seed, "separability batches")
    names = [] if tokens is None else tokens.concepts.unique().tolist()
    # The corpus may be mapped from disk while the weights, and the concept tokens, lie on the device.
    device = sae.W_dec.device
    while True:
        rows = torch.randint(len(corpus), (batch,), generator=draws)
        parts = [corpus[rows].to(device).float()]
        if names:
            chosen = []
            for i in torch.randperm(len(names), generator=draws)[:concepts_per_step].tolist():
                members = (tokens.concepts == names[i]).nonzero()[:, 0]
                chosen.append(members[torch.randperm(len(members), generator=draws)[:most]])
            here = torch.cat(chosen)
            parts.append(tokens.vectors[here].to(device).float())
            sae.concept_labels, sae.concept_groups = tokens.clusters[here].to(device), tokens.concepts[here].to(device)
        yield torch.cat(parts)


def activation_scale(corpus: Float[Tensor, "M D"], most: int = 4096) -> float:
    """The factor that gives activations the mean norm sqrt(D), as sae_lens's trainer uses it."""
    some = corpus[:most].float()
    return float(some.shape[1] ** 0.5 / some.norm(dim=1).mean())


def fresh(d_in: int, d_sae: int, k: int, *, seed: int, device: str = "cpu", **choices: Any) -> SeparableTopKTrainingSAE:
    """An untrained autoencoder; its weights depend on the seed alone, not on the device."""
    seed_everything(seed)
    cfg = SeparableTopKConfig(d_in=d_in, d_sae=d_sae, k=k, device="cpu", normalize_activations=NORMALISED, **choices)
    return SeparableTopKTrainingSAE(cfg).to(device)


def continued(start: SeparableTopKTrainingSAE, **choices: Any) -> SeparableTopKTrainingSAE:
    """A copy of an autoencoder in training with other choices (``k``, the separation term's); ``start`` is left alone.

    Before any step it reconstructs exactly what ``start`` does (at the same ``k``).
    """
    new = SeparableTopKTrainingSAE(dataclasses.replace(start.cfg, **choices))
    new.load_state_dict(start.state_dict())
    return new.to(start.W_dec.device)


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
    watch: Callable[[int, SAE], None] | None = None,
) -> SAE:
    """Train with sae_lens's ``SAETrainer`` and return the plain TopK autoencoder for inference.

    Parameters
    ----------
    sae
        From :func:`fresh` or :func:`continued`; it is changed in place, and can be continued again.
    corpus, tokens
        Activations in the model's own scale; ``tokens`` (concept tokens) ride along in every batch.
    scale
        From :func:`activation_scale`; taken out of the weights again at the end.
    checkpoints, watch
        ``watch(step, plain_sae)`` is called after each of these steps.
    """
    batches = labelled_batches(sae, corpus, tokens, batch=batch, seed=seed)
    schedule = {"lr": learning_rate, "lr_end": learning_rate}
    for trainer, _ in training_steps(sae, batches, scale=scale, steps=steps, batch=batch, **schedule):
        if trainer.n_training_steps in checkpoints and watch is not None:
            watch(trainer.n_training_steps, as_plain(sae, scale))
    return as_plain(sae, scale)


@torch.no_grad()
def as_plain(sae: SeparableTopKTrainingSAE, scale: float = 1.0) -> SAE:
    """:func:`~saema_utils.saes.training.plain_sae` in the model's own scale."""
    plain = plain_sae(sae)
    plain.b_enc /= scale
    plain.b_dec /= scale
    return plain
