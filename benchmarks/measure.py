"""What every benchmark shares: sides, turns, devices, peak memory, and numbers that must agree.

A benchmark is one piece of work done twice, by the package (``ours``) and as one would write it first
(``plain``). Sides are measured in turns, so that both meet the same weather; the table joins the rounds
of all turns. ``SAEMA_BENCH_QUICK=1`` takes small sizes, for trying the benchmarks themselves.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from saema_utils.runtime import generator

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

QUICK = os.environ.get("SAEMA_BENCH_QUICK", "") not in ("", "0")
DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
PROMPTS, POSITIONS, K = 60, 7, 32
_FOUND: dict[str, dict[str, np.ndarray]] = {}

# The topmost decorator of a test varies fastest: with ``sides`` above ``turns`` the two sides alternate.
sides = pytest.mark.parametrize("side", ["ours", "plain"])
turns = pytest.mark.parametrize("turn", [0, 1, 2])
devices = pytest.mark.parametrize("device", DEVICES)


def compare(
    benchmark: BenchmarkFixture,
    work: str,
    side: str,
    call: Callable[[], Any],
    *,
    rounds: int = 5,
    warmup: int = 1,
    device: str = "cpu",
    numbers: Callable[[Any], Any] | None = None,
    rtol: float = 1e-5,
    memory: bool = True,
    turn: int | None = None,
    **facts: Any,
) -> Any:
    """Time one side of a piece of work, note its peak memory, and hold its numbers against the other side's.

    Parameters
    ----------
    numbers
        From what ``call`` returns to the numbers that both sides must share (see :func:`agree`).
    memory
        Whether to run once more for the peak memory.
    turn
        Which turn this is, where the sides take turns: two rounds each, and memory weighed at the first only.
    facts
        Kept beside the times: ``scale`` (what the time is multiplied by in the table), ``tokens`` (gives
        tokens a second), ``note``, ``aim``, and what else the table may want.
    """
    benchmark.group = f"{work} @ {device}"
    if turn is not None:
        rounds, memory = 2, memory and turn == 0

    def work_through() -> Any:
        result = call()
        if device != "cpu":
            getattr(torch, device).synchronize()
        return result

    result = benchmark.pedantic(work_through, rounds=1 if QUICK else rounds, warmup_rounds=warmup)
    benchmark.extra_info.update(work=work, side=side, device=device, **facts)
    if numbers is not None:
        agree(benchmark.group, side, numbers(result), rtol)
    if memory:
        del result
        benchmark.extra_info["memory"] = peak_bytes(work_through, device)
        return None
    return result


def agree(group: str, side: str, numbers: Any, rtol: float) -> None:
    """Fail if the two sides of a group have found different numbers.

    Entries of a tensor may differ by ``rtol`` of the largest; numbers in a list each by ``rtol`` of themselves.
    """
    is_tensor = isinstance(numbers, torch.Tensor)
    known = _FOUND.setdefault(group, {})
    known[side] = np.asarray(numbers, dtype=float)
    for other, found in known.items():
        near = rtol * float(np.abs(found).max()) if is_tensor else 0.0
        np.testing.assert_allclose(known[side], found, rtol=0 if is_tensor else rtol, atol=near, err_msg=other)


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """By how much a call raises the resident memory at its highest; None where the system does not count it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory that earlier calls gave back would hide this one's
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def topk_rows(n_latents: int, tokens: int, seed: int = 0, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices [tokens, k] of active latents; some latents are common, as in a trained SAE."""
    draw = generator(seed, "bench")
    weight = 1 / (1 + torch.arange(n_latents, dtype=torch.float32))
    parts: Sequence[torch.Tensor] = [
        torch.multinomial(weight.expand(min(256, tokens - start), -1), k, generator=draw)
        for start in range(0, tokens, 256)
    ]
    return torch.rand(tokens, k, generator=draw), torch.cat(list(parts))


def topk_latents(n_latents: int, tokens: int = PROMPTS * POSITIONS, seed: int = 0) -> torch.Tensor:
    """Latents [prompts, positions, F] of which K are positive per token."""
    values, where = topk_rows(n_latents, tokens, seed)
    return torch.zeros(tokens, n_latents).scatter_(1, where, values).view(-1, POSITIONS, n_latents)
