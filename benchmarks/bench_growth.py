"""How time and peak memory grow with tokens, latents, noise levels and concepts, over a decade each.

Memory counts the input too. ``benchmarks.table`` reads the largest problem that fits 24 GiB off these laws.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.bench_stratification import concept_clouds, encoders_of, three_modes
from benchmarks.measure import POSITIONS, QUICK, compare, topk_latents
from saema_utils.stratification.noise import sweep_clouds
from saema_utils.stratification.token_cloud import TokenCloud

# Four sizes over a decade. Multiples of the positions, where they are tokens: up to so many that the matrix of their
# prompts, square in tokens, outweighs what is linear.
WIDTH = 256 if QUICK else 1024
AXES: dict[str, tuple[int, ...]] = {
    "tokens": (105, 224, 490, 1050) if QUICK else (2100, 4480, 9800, 21_000),
    "latents": (512, 1024, 2560, 5120) if QUICK else (10_000, 22_000, 46_000, 100_000),
    "noise levels": (1, 2, 5, 10),
    "concepts": (1, 2, 5, 10),
}
FIXED = {
    "tokens": f"spectrum and ranks, {WIDTH:,} latents, {POSITIONS} tokens a prompt",
    "latents": "spectrum and ranks, 420 tokens",
    "noise levels": "noise sweep, one concept, one seed",
    "concepts": "noise sweep, one level, one seed",
}


def problem(axis: str, size: int) -> tuple[Callable[[], object], int]:
    """The work at one size, and the bytes of its input."""
    if axis in ("tokens", "latents"):
        latents = topk_latents(WIDTH, size) if axis == "tokens" else topk_latents(size)
        cloud = TokenCloud.of(latents, torch.ones(latents.shape[0], POSITIONS, dtype=torch.bool))
        return lambda: three_modes(latents, cloud), latents.nbytes
    clouds = concept_clouds("cpu", size if axis == "concepts" else 1)
    levels = [0.1 * (i + 1) for i in range(size if axis == "noise levels" else 1)]
    chosen = {name: encoders_of("cpu")[name] for name in ("residual", "sae")}

    def call() -> object:
        return sweep_clouds(clouds, chosen, noise_levels=levels, seeds=(0,))

    return call, sum(cloud.points.nbytes for cloud in clouds)


@pytest.mark.parametrize(("axis", "size"), [(axis, size) for axis, sizes in AXES.items() for size in sizes])
def test_growth(benchmark, axis, size):
    call, given = problem(axis, size)
    slow = axis == "tokens" and size > 5000
    compare(
        benchmark,
        f"growth with {axis}: {FIXED[axis]}, {size}",
        "ours",
        call,
        warmup=int(not slow),
        axis=axis,
        size=size,
        fixed=FIXED[axis],
        input_bytes=given,
    )
