"""Train a sparse autoencoder on cached activations, with sae_lens's own classes and trainer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saema_utils.errors import ActivationError, SaeError, unknown_name
from saema_utils.runtime import WITHOUT_FLOAT64, generator, progress_bar
from saema_utils.saes.fidelity import explained_variance
from saema_utils.study import ARCHITECTURES, SaeRecipe

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from sae_lens import SAE
    from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
    from sae_lens.training.sae_trainer import SAETrainer
    from torch import Tensor

HISTORY_ROWS = 30
HISTORY_TOKENS = 1024
NORMALISED = "expected_average_only_in"  # all activations by one factor, as sae_lens calls it
# Sparsity penalties that reach an L0 near 32 on activations of unit mean square (see train_sae);
# TopK families take k itself.
DEFAULT_PENALTY = {"standard": 3.0, "gated": 5.0, "jumprelu": 0.5}


@dataclass(frozen=True)
class TrainedSae:
    """A trained autoencoder and how it got there.

    Attributes
    ----------
    sae
        sae_lens's inference class, float32, in the units of the activations it was trained on, its
        decoder rows of unit norm: a latent's value is the length of what it adds.
    history
        One row per evaluation: ``step``, ``tokens``, ``learning_rate``, ``train_mse``, and, on a fixed held-out
        sample, ``mse`` (per dimension), ``explained_variance``, ``l0``; ``dead`` counts latents that did
        not fire for an epoch.
    """

    sae: SAE
    history: pd.DataFrame


@torch.enable_grad()
def train_sae(
    train: Float[Tensor, "N D"],
    heldout: Float[Tensor, "M D"],
    recipe: SaeRecipe,
    seed: int = 0,
    device: str | torch.device = "cpu",
    *,
    penalty: float | None = None,
    metadata: dict[str, Any] | None = None,
    description: str = "training the SAE",
) -> TrainedSae:
    r"""Train a sparse autoencoder on cached activations with sae_lens's trainer.

    It minimises :math:`\lVert x - \hat x \rVert^2` (plus the family's penalty) with Adam, in
    ``recipe.epochs`` shuffled passes over ``train``. Activations are multiplied by one number so that
    their mean norm is :math:`\sqrt D` (:data:`NORMALISED`) and the number is folded
    into the weights at the end, so the result reads and writes the model's own units. Per-token
    normalisation is not used: it removes the norm, which is part of what is studied, and sae_lens's loss
    that revives dead latents refuses it.

    Parameters
    ----------
    train, heldout
        Any float type; a memory-mapped tensor is read one batch at a time.
    recipe
        ``architecture`` is one of standard, topk, batchtopk, jumprelu, gated, matryoshka.
    penalty
        Sparsity coefficient of standard, gated and jumprelu; the other families keep k latents.
    metadata
        Recorded in the SAE's configuration (``model_name``, ``hook_name``, ...).

    Raises
    ------
    ActivationError
        If there are no activations, or some are not finite.
    SaeError
        If training diverges.

    References
    ----------
    Gao et al., Scaling and evaluating sparse autoencoders, 2024 (TopK, loss of dead latents).
    """
    import pandas as pd

    wanted = device = torch.device(device)
    if device.type in WITHOUT_FLOAT64 and recipe.architecture in ("batchtopk", "matryoshka"):
        device = torch.device("cpu")  # sae_lens keeps their threshold in float64
    mean, mean_norm = _check_activations(train, heldout)
    scale = math.sqrt(train.shape[1]) / mean_norm
    batch = min(recipe.batch, len(train))
    per_epoch = len(train) // batch
    steps = recipe.epochs * per_epoch
    sae = _newborn(recipe, mean, scale, steps, seed, device, penalty)
    sample = heldout[_spread(len(heldout), HISTORY_TOKENS)].to(device, torch.float32)
    every, unit = max(1, steps // HISTORY_ROWS), scale**2 * train.shape[1]
    rows = []
    schedule = {
        "lr": recipe.learning_rate,
        "lr_end": recipe.learning_rate / 10,
        "lr_decay_steps": steps // 3,
        "dead_feature_window": max(4, min(1000, per_epoch)),
        "feature_sampling_window": max(1, per_epoch),
    }
    batches = _shuffled_batches(train, batch, seed)
    with progress_bar(steps, description) as advance:
        for trainer, output in training_steps(sae, batches, scale=scale, steps=steps, batch=batch, **schedule):
            step = trainer.n_training_steps
            if step == 1 or step % every == 0 or step == steps:
                rows.append(_history_row(trainer, sample, scale, output.losses["mse_loss"].item() / unit))
            advance(1)
    trainer.set_final_sae_metadata()
    for name, value in (metadata or {}).items():
        sae.cfg.metadata[name] = value
    return TrainedSae(_finished(sae, scale).to(wanted), pd.DataFrame(rows))


def untrained_sae(
    train: Float[Tensor, "N D"], recipe: SaeRecipe, seed: int = 0, device: torch.device | str = "cpu"
) -> SAE:
    """What :func:`train_sae` starts from, finished without a step: what an architecture gives before it learned.

    A TopK autoencoder of the recipe's width and k, whatever family the recipe names: the others' sparsity is learned.
    """
    mean, mean_norm = _check_activations(train, train)
    scale = math.sqrt(train.shape[1]) / mean_norm
    plain = dataclasses.replace(recipe, architecture="topk")
    return _finished(_newborn(plain, mean, scale, 1, seed, torch.device("cpu"), None), scale).to(device)


def _newborn(
    recipe: SaeRecipe, mean: Tensor, scale: float, steps: int, seed: int, device: torch.device, penalty: float | None
) -> TrainingSAE:
    """Random weights by the seed; a bias at the mean of the data, so that no latent has to spend itself on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "sae-weights").initial_seed())
        sae = _training_sae(recipe, len(mean), steps, device, penalty)
    sae.b_dec.data.copy_(mean.to(sae.b_dec) * scale)
    return sae


def _finished(sae: TrainingSAE, scale: float) -> SAE:
    """The plain autoencoder that reads activations in the model's own units."""
    sae.fold_activation_norm_scaling_factor(scale)
    plain = plain_sae(sae)
    if plain.cfg.architecture() != "topk":  # TopK's are folded by sae_lens already
        plain.fold_W_dec_norm()
    return plain


def training_steps(
    sae: TrainingSAE, batches: Iterator[Tensor], *, scale: float, steps: int, batch: int, **schedule: Any
) -> Iterator[tuple[SAETrainer, TrainStepOutput]]:
    """Steps of sae_lens's trainer, one after the other: the trainer and what the step gave.

    Parameters
    ----------
    batches
        Activations in the model's own units; they are multiplied by ``scale``.
    schedule
        Further fields of sae_lens's ``SAETrainerConfig``, ``lr`` among them. The first twentieth of the steps warms up.
    """
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        device=str(sae.W_dec.device),
        lr_warm_up_steps=max(1, steps // 20),
        **schedule,
    )
    trainer = SAETrainer(config, sae, batches)
    trainer.activation_scaler.scaling_factor = scale
    for group in trainer.optimizer.param_groups:
        group.update(fused=True, foreach=False)  # the same Adam in one pass over the weights
    for _ in range(steps):
        trainer.maybe_reset_sparsity()
        output = trainer.step(next(batches).to(torch.float32))
        trainer.n_training_steps += 1
        yield trainer, output


@torch.no_grad()
def plain_sae(trained: TrainingSAE) -> SAE:
    """The inference class of a training class, with its weights as they are; ``trained`` is left alone.

    Uses sae_lens's own step for saving, so that it equals what ``SAE.load_from_disk`` reads back.
    """
    from sae_lens import SAE

    weights = {name: value.detach().clone() for name, value in trained.state_dict().items()}
    trained.process_state_dict_for_saving_inference(weights)
    with torch.random.fork_rng(devices=[]):  # the weights it is born with are drawn, then replaced
        sae = SAE.from_dict({**trained.cfg.get_inference_sae_cfg_dict(), "normalize_activations": "none"})
    sae.load_state_dict(weights)
    return sae.to(trained.W_dec.device).eval().requires_grad_(False)


def _check_activations(train: Tensor, heldout: Tensor) -> tuple[Tensor, float]:
    """Mean vector and mean norm of the training activations, read in slices; refuses what cannot be learned."""
    for name, values in (("training", train), ("held-out", heldout)):
        if values.ndim != 2 or len(values) == 0:
            raise ActivationError(
                f"{name} activations have shape {tuple(values.shape)}; allowed: [tokens, d_model] with at least one "
                "token. Capture more text."
            )
    if train.shape[1] != heldout.shape[1]:
        raise ActivationError(
            f"training activations have {train.shape[1]} dimensions, held-out ones {heldout.shape[1]}; "
            "both must come from the same layer of the same model."
        )
    total, norms = torch.zeros(train.shape[1], dtype=torch.float64), 0.0
    for part in train.split(16_384):
        values = part.to(torch.float32)
        total += values.sum(0, dtype=torch.float64).cpu()
        norms += float(values.norm(dim=-1).sum(dtype=torch.float64))
    if not math.isfinite(norms) or not bool(torch.isfinite(heldout).all()):
        raise ActivationError(
            "the activations hold NaN or infinity, which would spoil every weight. "
            "Capture them again, in float32 if the model overflows in half precision."
        )
    if norms == 0:
        raise ActivationError("all training activations are zero; check the layer and the mask.")
    return total / len(train), norms / len(train)


def _training_sae(recipe: SaeRecipe, d_in: int, steps: int, device: torch.device, penalty: float | None) -> TrainingSAE:
    """sae_lens's training class of a family, set up for a run of so many steps."""
    import sae_lens

    from saema_utils.saes.sparse_topk import SparseTopKTrainingSAE

    common = {"d_in": d_in, "d_sae": recipe.d_sae, "device": str(device)}
    common["normalize_activations"] = NORMALISED
    coefficient = DEFAULT_PENALTY.get(recipe.architecture) if penalty is None else penalty
    warm_up = max(1, steps // 5)
    # The stored threshold of the batch families is a running mean; a short run needs a faster one.
    batch = {"k": float(recipe.k), "topk_threshold_lr": min(0.5, max(0.01, 20 / steps))}
    warm = {"l1_coefficient": coefficient, "l1_warm_up_steps": warm_up}
    match recipe.architecture:
        case "topk":
            return SparseTopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(k=recipe.k, **common))
        case "batchtopk":
            return sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**batch, **common))
        case "matryoshka":
            widths = sorted({max(recipe.k, recipe.d_sae // part) for part in (16, 4, 1)})
            config = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(matryoshka_widths=widths, **batch, **common)
            return sae_lens.MatryoshkaBatchTopKTrainingSAE(config)
        case "standard":
            return sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(**warm, **common))
        case "gated":
            return sae_lens.GatedTrainingSAE(sae_lens.GatedTrainingSAEConfig(**warm, **common))
        case "jumprelu":
            # On activations of unit mean square sae_lens's default bandwidth lets the penalty reach almost no
            # latent in a short run; this wide one, also passed to the encoder, does.
            wide = {"jumprelu_init_threshold": 0.1, "jumprelu_bandwidth": 2.0, "jumprelu_ste_to_input": True}
            warm = {"l0_coefficient": coefficient, "l0_warm_up_steps": warm_up}
            return sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(**warm, **wide, **common))
    raise SaeError(unknown_name("SAE architecture", recipe.architecture, ARCHITECTURES))


def _shuffled_batches(train: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches, each epoch in its own order; the tail that fills no batch waits for another epoch."""
    shuffle = generator(seed, "sae-batches")
    while True:
        order = torch.randperm(len(train), generator=shuffle)
        for start in range(0, len(train) - batch + 1, batch):
            yield train[order[start : start + batch]]


def _spread(n: int, most: int) -> Tensor:
    """At most ``most`` indices spread evenly over ``range(n)``."""
    return torch.linspace(0, n - 1, min(n, most)).round().long()


@torch.no_grad()
def _history_row(trainer: Any, sample: Tensor, scale: float, train_mse: float) -> dict[str, float]:
    if not math.isfinite(train_mse):
        raise SaeError(
            f"training diverged at step {trainer.n_training_steps} (the loss is {train_mse}). "
            "Lower sae.learning_rate and run again."
        )
    sae = trainer.sae.eval()
    latents = sae.encode(sample * scale)
    x_hat = sae.decode(latents) / scale
    return {
        "step": trainer.n_training_steps,
        "tokens": trainer.n_training_samples,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "train_mse": train_mse,
        "mse": float((x_hat - sample).square().mean()),
        "explained_variance": explained_variance(sample, x_hat),
        "l0": float((latents != 0).sum() / len(sample)),
        "dead": int(trainer.dead_neurons.sum()),
    }
