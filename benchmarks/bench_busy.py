"""A machine that does other things: the same work beside one process that never rests, waits asleep or spinning.

Our side imports the package first, which makes threads that wait for one another sleep; the plain side is torch as it
comes. Without a neighbour the two sides say what sleeping costs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measure import QUICK, compare, sides

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 20 if QUICK else 200  # of products and sums, as a step of training has them
WORK = f"""
import torch
torch.manual_seed(0)
x, w = torch.randn(256, 576), torch.randn(576, 2304)
for _ in range({ROUNDS}):
    y = torch.relu(x @ w)
    w = w - 1e-6 * (x.T @ y) / len(x)
print(float(w.square().mean()))
"""


@contextlib.contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """One process that uses a core the whole time, or nobody."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@sides
@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "busy"])
def test_beside_a_busy_process(benchmark, busy, side):
    first = "import saema_utils\n" if side == "ours" else ""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}

    def work() -> float:
        command = [sys.executable, "-c", first + WORK]
        return float(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True).stdout)

    with neighbour(busy):
        compare(
            benchmark,
            f"products and sums, {'beside a busy process' if busy else 'machine quiet'}",
            side,
            work,
            memory=False,
            warmup=0,
            numbers=lambda found: [found],
            note="plain: torch as it comes, whose waiting threads spin",
        )
