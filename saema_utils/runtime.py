"""Where and how work runs: device, precision, seeds, memory-bounded batches, progress.

The one place that knows about hardware. Nothing else in the package names a device.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from saema_utils.errors import DeviceError, unknown_name

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda", "mps")
PROGRESS_FILE = "SAEMA_PROGRESS_FILE"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WITHOUT_FLOAT64 = frozenset({"mps"})
MEMORY_OF_A_PROCESS = 5 * 2**30 // 2  # 2.0 GiB were measured on the embedded model
_SHARE_OF_FREE_MEMORY = 0.25


def choose_device(name: str = "auto") -> torch.device:
    """The device to run on: ``auto`` prefers CUDA, then MPS, then the CPU.

    Raises
    ------
    DeviceError
        If the name is unknown or this machine has no such device.
    """
    import torch

    kind, _, index = str(name).partition(":")
    if kind not in DEVICES or (index and not index.isdigit()):
        raise DeviceError(unknown_name("device", name, DEVICES))
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return torch.device(next(candidate for candidate in ("cuda", "mps", "cpu") if has[candidate]))
    if not has[kind]:
        present = ", ".join(k for k, ok in has.items() if ok)
        raise DeviceError(f"device {name!r} is not present; this machine has: {present}. Use --device auto.")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} is not present; CUDA devices are 0 to {torch.cuda.device_count() - 1}.")
    return torch.device(name)


def visible_gpus(device: str = "auto") -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; none when ``device`` is the CPU."""
    import torch

    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [name.strip() for name in named.split(",")][:count]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes() -> int:
    """Processes that fill the cores without overfilling the free memory: at least one."""
    import psutil

    return max(1, min(cores(), psutil.virtual_memory().available // MEMORY_OF_A_PROCESS))


def limit_threads(threads: int) -> None:
    """Let mathematics use so many threads (0 leaves them): sums depend on how many add them up."""
    if threads:
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(threads)
        threadpool_limits(threads)


def on_one_thread(work: Callable[..., T], *job: Any) -> T:
    """Call ``work`` with one thread for mathematics, and leave the threads as they were."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return work(*job)
    finally:
        torch.set_num_threads(before)


def in_processes(work: Callable[..., T], jobs: Sequence[tuple], description: str, device: torch.device) -> Iterator[T]:
    """Results of independent jobs, in their order, from as many processes as mathematics may use threads.

    Every job has one thread, also where there is one process (this one) or the data are on an accelerator, which
    processes cannot share: results do not depend on how many work.
    """
    import joblib
    import torch

    workers = min(len(jobs), torch.get_num_threads()) if device.type == "cpu" else 1
    if workers < 2:
        results = (on_one_thread(work, *job) for job in jobs)
    else:
        # loky replaces a worker whose memory grew, and says so; no job is lost, and a page has no warnings.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
        results = parallel(joblib.delayed(on_one_thread)(work, *job) for job in jobs)
    yield from progress(results, description, len(jobs))


def choose_dtype(device: torch.device, n_parameters: int) -> torch.dtype:
    """Float32, except for models above a billion parameters on CUDA, which get bfloat16."""
    import torch

    return torch.bfloat16 if device.type == "cuda" and n_parameters > 1_000_000_000 else torch.float32


def float64(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float64: on its own device, or on the CPU where the device has no float64 (Apple's)."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, for libraries that take no generator."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (UMAP and others read the global state)
    torch.manual_seed(seed)


def generator(seed: int, stream: str = "") -> torch.Generator:
    """A CPU generator for one named stream of one seed.

    Draw on the CPU and move: the numbers are then the same on every device. Two streams of one
    seed are independent (the name is hashed into the seed).
    """
    import hashlib

    import torch

    mixed = hashlib.sha256(f"{seed}:{stream}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(mixed[:8], "little") >> 1)


def give_back_memory() -> None:
    """Return what nobody holds any more to the machine and its accelerator, for the processes that come next."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def batch_size(bytes_per_item: int, device: torch.device, largest: int = 4096) -> int:
    """Items that fit a quarter of the free memory: at least 1, at most ``largest``."""
    return int(max(1, min(largest, _SHARE_OF_FREE_MEMORY * free_memory(device) // max(1, bytes_per_item))))


def run_in_batches(work: Callable[[int, int], None], n_items: int, size: int, description: str = "") -> None:
    """Call ``work(start, stop)`` over consecutive slices of ``range(n_items)``.

    When the device runs out of memory the slice is retried at half the size, down to one item;
    if a single item does not fit, DeviceError says so. ``work`` must be safe to repeat on a slice.
    """
    import torch

    start = 0
    with progress_bar(n_items, description) as advance:
        while start < n_items:
            stop = min(start + size, n_items)
            try:
                work(start, stop)
            except (torch.OutOfMemoryError, MemoryError) as error:
                if stop - start == 1:
                    raise DeviceError(
                        "one item alone does not fit in memory; use shorter prompts, a smaller model or --device cpu."
                    ) from error
                size = max(1, (stop - start) // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            advance(stop - start)
            start = stop


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep libraries' progress bars, warnings and log lines off the page while a model loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns while it is imported
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
        from transformers.utils import logging as ours

    verbosity, bars, hub_bars = ours.get_verbosity(), ours.is_progress_bar_enabled(), not are_progress_bars_disabled()
    ours.set_verbosity_error()
    ours.disable_progress_bar()
    disable_progress_bars()
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        ours.set_verbosity(verbosity)
        if bars:
            ours.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


_busy_with: list[tuple[Any, str]] = []  # the line of an open notebook, with what each task says in it, innermost last


def _in_a_kernel() -> bool:
    """Whether this is a notebook that somebody may be looking at: its kernel was not started by ``saema run``."""
    ipython = sys.modules.get("IPython")
    return PROGRESS_FILE not in os.environ and hasattr(ipython and ipython.get_ipython(), "kernel")


@contextlib.contextmanager
def a_line(text: str) -> Iterator[Callable[[str], None]]:
    """Say what an open notebook is busy with, in a line that is gone afterwards; elsewhere nothing.

    Yields what changes the line. What is done within it uses the same line. It is no stream, so that nothing of it
    stays in a notebook that is saved.
    """
    if not _in_a_kernel():
        yield lambda text: None
        return
    from IPython.display import display

    if _busy_with:
        line = _busy_with[-1][0]
        line.update({"text/plain": text}, raw=True)
    else:
        line = display({"text/plain": text}, raw=True, display_id=True)
    _busy_with.append((line, text))

    def tell(text: str) -> None:
        _busy_with[-1] = (line, text)
        line.update({"text/plain": text}, raw=True)

    try:
        yield tell
    finally:
        _busy_with.pop()
        line.update({"text/plain": _busy_with[-1][1] if _busy_with else ""}, raw=True)


@contextlib.contextmanager
def progress_bar(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """A progress bar as a context: call what it yields with the number of finished items.

    On a terminal it is a bar on standard error. Under ``saema run`` it is written to the file that
    the parent process shows, and the page stays silent: pages carry results, not bars. In a notebook
    that somebody has open it is a line that goes when the work is done.
    """
    target = os.environ.get(PROGRESS_FILE)
    if not description:
        yield lambda n: None
    elif target:
        done, last = 0, 0.0

        def advance(n: int) -> None:
            nonlocal done, last
            done += n
            now = time.monotonic()
            if now - last > 0.2 or done >= total:
                last = now
                Path(target).write_text(f"{description}\t{done}\t{total}")

        yield advance
    elif _in_a_kernel():
        with a_line(f"{description} ...") as tell:
            done, last = 0, time.monotonic()

            def advance(n: int) -> None:
                nonlocal done, last
                done += n
                now = time.monotonic()
                if now - last > 1:
                    last = now
                    tell(f"{description}: {done:,} of {total:,}")

            yield advance
    else:
        from tqdm import tqdm

        interactive = sys.stderr.isatty() or "google.colab" in sys.modules
        with tqdm(total=total, desc=description, disable=not interactive, leave=False) as bar:
            yield bar.update


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar (see :func:`progress_bar`)."""
    total = len(items) if total is None and hasattr(items, "__len__") else (total or 0)
    with progress_bar(total, description) as advance:
        for item in items:
            yield item
            advance(1)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
