"""What one task of a sweep does: one chapter of one study, in the process that it was sent to.

Tasks call the functions that the notebooks call, without a notebook around them: a kernel a chapter
would import torch again every time. A task is safe to repeat, alone or beside a stale copy of itself:
it holds a lock, finds finished parts in its run directory, and finished runs by their key.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saema_utils.errors import ArtifactError, SaemaError, SweepError
from saema_utils.runs.directory import PLAN_FILE, RunDirectory, chapter_of
from saema_utils.runs.files import UNFINISHED, write_json
from saema_utils.runs.freshness import source_digest
from saema_utils.runtime import PROGRESS_FILE, peak_memory
from saema_utils.study import Study

# Every table that a chapter makes about the model; rulers and toy worlds, which say nothing of it, are left to the
# notebooks. tests/notebooks/test_smoke_run.py holds the two equal.
STAGES: dict[int, tuple[str, ...]] = {
    1: (
        "stage1_activations:concept_activations", "stage1_activations:norm_table", "stage1_activations:variance_table",
        "stage1_activations:word_maps", "stage1_activations:corpus_activations",
    ),
    2: (
        "stage2_sae:study_sae", "stage2_sae:sae_evaluation", "stage2_sae:latent_density", "stage2_sae:sparsity_curve",
        "stage2_sae:concept_latents",
    ),
    3: (
        "stage3_stratification:noise_rank_table", "stage3_stratification:stratification_verdicts",
        "stage3_stratification:control_verdicts", "stage3_stratification:distinct_contexts",
        "stage3_stratification:tolerance_sweep", "stage3_stratification:on_manifold",
        "stage3_stratification:manifold_verdicts", "stage3_stratification:drift", "stage3_stratification:where",
        "stage3_stratification:sinks",
    ),
    4: ("stage4_geometry:geometry_table", "stage4_geometry:comparison_table"),
    5: ("stage5_effects:all_tables",),
    6: ("stage6_scorecard:scorecard", "stage6_scorecard:record_numbers"),
}  # fmt: skip
PATIENCE = 10.0  # seconds that a task waits for somebody who has the run to himself
_ONE_AT_A_TIME = threading.Lock()  # stages seed global generators: a worker with several threads still runs one


@dataclass(frozen=True)
class Order:
    """What is sent to a worker. Plain data, so that any engine can carry it.

    ``kind`` is ``chapter``, or what several studies share: ``model`` (converted or downloaded) and
    ``corpus`` (its activations). ``key`` digests everything that the results depend on.
    """

    id: str
    kind: str
    chapter: int
    study: Mapping[str, Any]
    run_dir: str
    key: str
    code: str
    device: str = "auto"
    threads: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a task went. Results themselves stay in the run directory."""

    id: str
    seconds: float
    peak_memory: int
    skipped: bool
    where: str
    device: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def carry_out(order: Order, *_finished_before: Any) -> Outcome:
    """Run one task; further arguments only express what had to be finished before.

    Raises
    ------
    SweepError
        One line with the reason, such as a ``saema run`` at work in the folder. The traceback of a chapter that
        failed goes to ``<run>/logs/<task>.txt``.
    """
    with _ONE_AT_A_TIME:
        if source_digest() != order.code:
            raise SweepError(
                f"worker {_where()} has another version of saema_utils than the sweep. Install the same one there, "
                "start the workers again and rerun."
            )
        if not (Path(order.run_dir).parent / PLAN_FILE).exists():
            raise SweepError(
                f"worker {_where()} does not see {Path(order.run_dir).parent}. Put the runs on a file system that all "
                "workers share (--out), and rerun."
            )
        run = RunDirectory(order.run_dir, Study.from_dict(order.study), device=order.device)
        with _task_lock(run, order), beside_other_tasks(run):
            if order.kind == "chapter" and is_finished(run, order.chapter, order.key):
                return Outcome(order.id, 0.0, 0, True, _where())
            try:
                return _run_stages(run, order)
            except Exception as error:
                log = _log_path(run, order)
                with log.open("a", encoding="utf-8") as file:
                    traceback.print_exc(file=file)
                reason = " ".join(str(error).split()) or "no message"
                name = "" if isinstance(error, SaemaError) else f"{type(error).__name__}: "
                raise SweepError(f"{name}{reason[:600]} (traceback: {log})") from None


def _run_stages(run: RunDirectory, order: Order) -> Outcome:
    log = _log_path(run, order)
    log.parent.mkdir(parents=True, exist_ok=True)
    if not (run.path / "study.json").exists():  # so that the run's notebooks can be executed later
        write_json(run.path / "study.json", run.study.as_dict())
    started = time.perf_counter()
    with _quiet(log, run.path / f".{order.kind}-{order.chapter}.progress"), _PeakMemory() as memory:
        _limit_threads(order.threads)
        if order.kind == "model":
            from saema_utils.model.loading import model_folder

            model_folder(run.study.model)
        elif order.kind == "corpus":
            _call("stage1_activations:corpus_activations", run)
        else:
            for stage in STAGES[order.chapter]:
                _call(stage, run)
        gc.collect()
    seconds = round(time.perf_counter() - started, 3)
    device = str(run.device)
    if order.kind == "chapter":
        made = [name for name in run.manifest()["artifacts"] if chapter_of(name) == order.chapter]
        run.record_task(
            f"chapter-{order.chapter}", key=order.key, seconds=seconds, peak_memory=memory.bytes, device=device,
            where=_where(), threads=order.threads, artifacts=sorted(made),
        )  # fmt: skip
    return Outcome(order.id, seconds, memory.bytes, False, _where(), device)


def is_finished(run: RunDirectory, chapter: int, key: str) -> bool:
    """Whether a chapter was finished from exactly these inputs and all that it made is still whole."""
    record = run.manifest().get("tasks", {}).get(f"chapter-{chapter}", {})
    if record.get("key") != key:
        return False
    try:
        for artifact in record["artifacts"]:
            run.check(artifact, chapter)
    except ArtifactError:
        return False
    return True


def _call(stage: str, run: RunDirectory) -> None:
    module, _, function = stage.partition(":")
    getattr(importlib.import_module(f".{module}", __package__), function)(run)


def _where() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _log_path(run: RunDirectory, order: Order) -> Path:
    return run.path / "logs" / f"{order.kind}-{order.chapter}.txt"


@contextlib.contextmanager
def _task_lock(run: RunDirectory, order: Order) -> Iterator[None]:
    """One copy of a task at a time: a scheduler that lost sight of a worker sends its task out again."""
    from filelock import FileLock

    with FileLock(run.path / f".{order.kind}-{order.chapter}.lock"):
        yield


@contextlib.contextmanager
def beside_other_tasks(run: RunDirectory) -> Iterator[None]:
    """Hold a run together with other tasks, so that nobody can have it alone meanwhile.

    The lock is that of :meth:`RunDirectory.locked`, shared: ``saema run`` would take the files that tasks are
    writing for leftovers, and the other way round. Who finds nobody else here removes what a killed worker left.
    """
    try:
        import fcntl
    except ImportError:  # Windows knows no shared locks: the sweep's own must do
        yield
        return
    end = time.monotonic() + PATIENCE
    with (run.path / ".run.lock").open("a") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for leftover in list(run.path.glob(f"*/**/{UNFINISHED}*")):  # beside the manifest others may write
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise SweepError(
                        f"{run.path} is in use by another process, such as saema run. Wait for it, then run the same "
                        "sweep again."
                    ) from error
                time.sleep(0.1)
        yield  # closing the file lets go of the lock


@contextlib.contextmanager
def _quiet(log: Path, progress: Path) -> Iterator[None]:
    """Printed lines go to the log, progress to a file that ``--watch`` reads."""
    before = os.environ.get(PROGRESS_FILE)
    os.environ[PROGRESS_FILE] = str(progress)
    try:
        with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            yield
    finally:
        progress.unlink(missing_ok=True)
        os.environ.pop(PROGRESS_FILE) if before is None else os.environ.__setitem__(PROGRESS_FILE, before)


def _limit_threads(threads: int) -> None:
    """Sums depend on how many threads add them up: the sweep fixes the number (0 leaves it)."""
    if threads:
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(threads)
        threadpool_limits(threads)


class _PeakMemory:
    """Largest resident size while a block runs; a worker runs many tasks, so the mark is reset where Linux allows."""

    bytes = 0

    def __enter__(self) -> _PeakMemory:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = peak_memory()
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            self.bytes = int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
