"""A TopK training step with sparse products beside sae_lens's own step: same weights, same data.

Beside them stands the encoder product alone, which no exact TopK step can do without: the floor. The
package's trainer also runs sae_lens's Adam in one pass over the weights, and so does its side here.
"""

from __future__ import annotations

import math

import pytest
import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from benchmarks.measure import QUICK, compare, devices, sides, turns
from saema_utils.runtime import generator
from saema_utils.saes.fidelity import explained_variance
from saema_utils.saes.sparse_topk import SparseTopKTrainingSAE

SIZES = {  # d_in, d_sae, k, tokens per step
    "default study": (64, 512, 8, 128) if QUICK else (576, 4608, 32, 2048),
    "smoke study": (64, 256, 8, 64) if QUICK else (576, 1152, 32, 1024),
    "densest allowed, 1 in 16": (64, 512, 32, 128) if QUICK else (576, 4608, 288, 2048),
}
KINDS = {"plain": TopKTrainingSAE, "ours": SparseTopKTrainingSAE}
STEPS = 4 if QUICK else 40


def tokens(n: int, d_in: int, seed: int = 0) -> torch.Tensor:
    """Sums of few of many directions, of unit mean square: activations without a language model."""
    random = generator(seed, "bench-tokens")
    directions = torch.nn.functional.normalize(torch.randn(4 * d_in, d_in, generator=random), dim=-1)
    parts = [
        torch.rand(len(rows), 20, generator=random)[:, :, None].mul(directions[rows]).sum(1)
        for rows in torch.randint(0, 4 * d_in, (n, 20), generator=random).split(2048)
    ]
    x = torch.cat(parts)
    return x * math.sqrt(d_in) / x.norm(dim=-1).mean()


def trainer(side: str, size: tuple[int, int, int, int], device: str = "cpu") -> SAETrainer:
    """sae_lens's trainer with its own SAE, or with ours and the fused Adam; the same weights to start from."""
    d_in, d_sae, k, batch = size
    torch.manual_seed(0)
    sae = KINDS[side](TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, device=device))
    config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=batch,
        lr=3e-3,
        lr_end=3e-4,
        device=device,
        logger=LoggingConfig(log_to_wandb=False),
    )
    made = SAETrainer(config, sae, iter([]))
    for group in made.optimizer.param_groups if side == "ours" else ():
        group.update(fused=True, foreach=False)
    return made


def one_step(made: SAETrainer, x: torch.Tensor) -> torch.Tensor:
    """The loss before this step, which tells of all the steps before it."""
    loss = made.step(x).loss.detach()
    made.n_training_steps += 1
    return loss


@sides
@turns
@devices
@pytest.mark.parametrize("name", SIZES)
def test_training_step(benchmark, name, side, turn, device):
    size = SIZES[name]
    made, x = trainer(side, size, device), tokens(size[3], size[0]).to(device)
    compare(
        benchmark,
        f"SAE training step, {name}",
        side,
        lambda: one_step(made, x),
        turn=turn,
        device=device,
        numbers=lambda loss: [float(loss)],
        rtol=1e-3,
        tokens=size[3],
        **({"aim": 2.5} if name == "default study" else {}),
    )


def test_floor(benchmark):
    d_in, d_sae, _, batch = SIZES["default study"]
    x, weights, bias = tokens(batch, d_in), torch.randn(d_in, d_sae), torch.zeros(d_sae)
    compare(
        benchmark,
        "SAE training step, default study: encoder product alone",
        "ours",
        lambda: torch.addmm(bias, x, weights),
        memory=False,
        tokens=batch,
        note="the floor of any exact TopK step",
    )


@sides
def test_training(benchmark, side):
    """The same steps on the same data end at the same held-out explained variance."""
    size = SIZES["smoke study"]
    x, heldout = tokens(17 * size[3], size[0]).split([16 * size[3], size[3]])
    made: list[SAETrainer] = []

    def train() -> float:
        made[:] = [trainer(side, size)]
        for step in range(STEPS):
            start = step % 16 * size[3]
            one_step(made[0], x[start : start + size[3]])
        with torch.no_grad():
            return explained_variance(heldout, made[0].sae(heldout))

    found = compare(
        benchmark,
        f"SAE training, {STEPS} steps of the smoke study",
        side,
        train,
        warmup=0,
        memory=False,
        numbers=lambda variance: variance,
        rtol=0.01,
        tokens=STEPS * size[3],
    )
    benchmark.extra_info["note"] = f"held-out explained variance {found:.4f} ({side})"
