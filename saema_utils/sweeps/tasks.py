"""What one task of a sweep does: one chapter of one study, in the process that it was sent to.

Tasks call the results that the notebooks call, without a notebook around them: a kernel a chapter would import
torch again every time. A task is safe to repeat, alone or beside a stale copy of itself: it holds a lock, finds
finished parts in its run directory, and finished chapters by their key.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saema_utils.chapters import SUBJECTS
from saema_utils.errors import SaemaError, SweepError, one_line
from saema_utils.runs.directory import PLAN_FILE, RunDirectory
from saema_utils.runs.files import write_json
from saema_utils.runs.freshness import source_digest
from saema_utils.runtime import limit_threads, peak_memory
from saema_utils.study import Study

SHARED = 0  # stands for a chapter: what several runs find in the cache
SCORECARD = next(number for number, subject in SUBJECTS.items() if subject == "scorecard")
_ONE_AT_A_TIME = threading.Lock()  # chapters seed global generators: a worker with several threads still runs one


@dataclass(frozen=True)
class Task:
    """One chapter of one run, or what several runs share (``chapter`` is :data:`SHARED`).

    Plain data, so that any engine can carry it. ``needs`` names the tasks that have to be finished before; ``key``
    digests everything that the results depend on; ``code`` is the package that planned it.
    """

    id: str
    run: str
    chapter: int
    needs: tuple[str, ...]
    key: str
    folder: str
    study: Mapping[str, Any]
    code: str
    device: str = "auto"
    finished: bool = False

    @property
    def title(self) -> str:
        """What it is, for a line that a person reads."""
        return f"{f'chapter {self.chapter}' if self.chapter else 'corpus'} of {self.run}"


@dataclass(frozen=True)
class Outcome:
    """How a task went: ``done``, ``skipped`` (was finished), ``failed`` or ``not run``. Results stay in the run.

    ``peak_memory`` is in bytes, of the process ``where`` the task ran, so far.
    """

    status: str
    seconds: float | None = None
    peak_memory: int | None = None
    where: str = ""
    error: str = ""


def make_chapter(run: RunDirectory, chapter: int) -> None:
    """Make what a task makes, where it is not made yet: the results of a chapter that say something of the model.

    Rulers are left to the notebooks, and parts to the tables that need them. ``chapter`` may be :data:`SHARED`.
    """
    from saema_utils.chapters import declared_results
    from saema_utils.runs.tables import Parts

    for result in declared_results().values():
        belongs = result.place.startswith("cache/") if chapter == SHARED else result.chapter == chapter
        if belongs and not result.is_ruler and not isinstance(result, Parts):
            result(run)
    if chapter == SCORECARD:
        from saema_utils.chapters.scorecard.tables import record_numbers

        record_numbers(run)


def is_finished(run: RunDirectory, chapter: int, key: str) -> bool:
    """Whether a chapter was finished from exactly these inputs and all that it made is still whole."""
    return run.manifest().get("tasks", {}).get(f"chapter-{chapter}", {}).get("key") == key and run.is_whole(chapter)


def carry_out(task: Task, threads: int = 0, *_finished_before: Any) -> Outcome:
    """Run one task with so many threads (0 leaves them); further arguments only say what had to be finished before.

    Raises
    ------
    SaemaError
        One line with the reason, such as a ``saema run`` at work in the folder. The traceback of a chapter that
        failed goes to ``<run>/logs/<task>.txt``.
    """
    from filelock import FileLock

    where = f"{socket.gethostname()}:{os.getpid()}"
    if source_digest() != task.code:
        raise SweepError(
            f"worker {where} has another version of saema_utils than the sweep. Install the same one there, "
            "start the workers again and rerun."
        )
    path = Path(task.folder)
    if not (path.parent / PLAN_FILE).exists():
        raise SweepError(
            f"worker {where} does not see {path.parent}. Put the runs on a file system that all workers share (--out), "
            "and rerun."
        )
    run = RunDirectory(path, Study.from_dict(task.study), device=task.device)
    name = "corpus" if task.chapter == SHARED else f"chapter-{task.chapter}"
    # One copy of a task at a time: a scheduler that lost sight of a worker sends its task out again.
    with _ONE_AT_A_TIME, run.shared(), FileLock(path / f".{name}.lock"):
        if task.chapter != SHARED and is_finished(run, task.chapter, task.key):
            return Outcome("skipped", where=where)
        log, started = path / "logs" / f"{name}.txt", time.perf_counter()
        write_json(path / "study.json", run.study.as_dict())  # so that the run's notebooks can be executed later
        log.parent.mkdir(exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            try:  # progress bars, which are for terminals, see that a file is none
                with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                    limit_threads(threads)
                    make_chapter(run, task.chapter)
            except Exception as error:
                traceback.print_exc(file=file)
                raise SweepError(f"{reason_of(error)} (traceback: {log})") from None
        outcome = Outcome("done", round(time.perf_counter() - started, 3), peak_memory(), where)
        if task.chapter != SHARED:
            run.record_task(name, key=task.key, threads=threads, seconds=outcome.seconds, where=where)
        return outcome


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line; the error's type is named unless it is one of ours."""
    return str(error) if isinstance(error, SaemaError) else f"{type(error).__name__}: {one_line(error, 600)}"
