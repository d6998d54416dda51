"""Devices, seeds, batches and progress."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saema_utils import runtime
from saema_utils.errors import DeviceError


def test_auto_finds_a_device_that_works():
    assert torch.ones(2, device=runtime.choose_device("auto")).sum() == 2


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x", "CPU", "cuda:-1"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(DeviceError, match="Allowed"):
        runtime.choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_an_absent_device_names_those_present():
    with pytest.raises(DeviceError, match="this machine has: cpu"):
        runtime.choose_device("cuda")


def test_streams_repeat_and_differ():
    def draw(seed, stream):
        return torch.randn(4, generator=runtime.generator(seed, stream))

    assert torch.equal(draw(0, "noise"), draw(0, "noise"))
    assert not torch.equal(draw(0, "noise"), draw(0, "labels"))
    assert not torch.equal(draw(0, "noise"), draw(1, "noise"))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_cover_everything_once(size):
    seen = []
    runtime.run_in_batches(lambda start, stop: seen.extend(range(start, stop)), 10, size)
    assert seen == list(range(10))


def test_a_full_memory_halves_the_batch():
    sizes, seen = [], []

    def work(start, stop):
        sizes.append(stop - start)
        if stop - start > 2:
            raise torch.OutOfMemoryError("full")
        seen.extend(range(start, stop))

    runtime.run_in_batches(work, 9, 8)
    assert seen == list(range(9))
    assert sizes[:3] == [8, 4, 2]


def test_one_item_that_does_not_fit_is_an_error():
    def work(start, stop):
        raise MemoryError

    with pytest.raises(DeviceError, match="one item"):
        runtime.run_in_batches(work, 4, 4)


def test_batch_size_is_bounded():
    device = torch.device("cpu")
    assert runtime.batch_size(10**18, device) == 1
    assert runtime.batch_size(1, device, largest=17) == 17


def test_progress_goes_to_the_parent_when_asked(tmp_path, monkeypatch):
    target = tmp_path / "progress"
    monkeypatch.setenv(runtime.PROGRESS_FILE, str(target))
    assert list(runtime.progress([1, 2, 3], "counting")) == [1, 2, 3]
    assert target.read_text() == "counting\t3\t3"


def test_progress_is_silent_where_nobody_watches(monkeypatch, capsys):
    monkeypatch.delenv(runtime.PROGRESS_FILE, raising=False)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert list(runtime.progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_peak_memory_is_plausible():
    assert 10**7 < runtime.peak_memory() < 10**12


def test_dtype_follows_size_and_device():
    assert runtime.choose_dtype(torch.device("cpu"), 10**10) is torch.float32
    assert runtime.choose_dtype(torch.device("cuda"), 10**10) is torch.bfloat16
    assert runtime.choose_dtype(torch.device("cuda"), 10**8) is torch.float32


def _threads_and_square(x):
    return torch.get_num_threads(), x * x


@pytest.mark.parametrize("threads", [1, 2])
def test_jobs_come_back_in_order_and_each_had_one_thread(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = list(runtime.in_processes(_threads_and_square, [(n,) for n in range(5)], "", torch.device("cpu")))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found == [(1, n * n) for n in range(5)]


LEAKS = """
import time
import numpy as np
kept = []
def grow(n):
    kept.append(np.ones(20_000_000))
    time.sleep(0.6)
    return n
"""
RUN = """
import leaks, torch
from saema_utils.runtime import in_processes
print(list(in_processes(leaks.grow, [(n,) for n in range(10)], "", torch.device("cpu"))))
"""


def test_a_worker_that_is_replaced_since_it_grew_loses_no_job_and_is_not_heard_of(tmp_path):
    (tmp_path / "leaks.py").write_text(LEAKS)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(runtime.__file__).parents[1])]),
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split("\n")[0] == str(list(range(10)))
    assert "worker stopped" not in done.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_somebody_chose(given, expected):
    """Read when torch is loaded, so importing the package must come first, and must not load torch."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    code = "import os, sys, saema_utils; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, "False"]
