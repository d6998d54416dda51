"""Results of a run, and the pages that show them, made side by side in worker processes of one thread each.

A notebook finds its tables made. With one thread a process waits at no barrier for a core that something else holds,
and no result depends on how many processes work. When one of them fails or dies, what is left is left to the notebooks,
one after the other: they make it themselves or say in their own cells why not.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing.connection import Connection, wait
from typing import Any

from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import RESULTS, Parts, Result
from saema_utils.runtime import THREAD_VARIABLES, limit_threads, peak_memory
from saema_utils.study import Study

ONE_THREAD = dict.fromkeys(THREAD_VARIABLES, "1")


@dataclass(eq=False)
class Piece:
    """What a worker makes at a time: a result, one part of it, or a page.

    ``behind_it`` says how many others wait for it; ``came_to`` is what a page gave back or raised.
    """

    chapter: int
    name: str
    work: Callable[..., Any]
    given: tuple
    behind_it: int = 0
    came_to: Any = None


class Workers:
    """Pieces on their way to so many processes. Each is sent once all that it needs is made; of several those of the
    first chapter, and of these the one behind which most others wait. A page needs all results up to its chapter, and
    lets those of the next go first: else, in the end, the last ones would be made with nothing left to do beside them.

    Attributes
    ----------
    seconds
        That the pieces of each chapter took so far, together, its page apart.
    peak
        Largest size of one of the processes, in bytes.
    death
        Whether one died.
    """

    def __init__(
        self,
        run: RunDirectory,
        results: Iterable[Result],
        jobs: int,
        environment: Mapping[str, str],
        pages: Mapping[int, tuple[Callable[..., Any], tuple]],
    ):
        where = (str(run.path), run.study.as_dict(), str(run.device))
        parts = {result: result.names(run) if isinstance(result, Parts) else [""] for result in results}
        pieces = {
            (result, part): Piece(result.chapter, result.name, _make, (result.module, result.place, part, *where))
            for result in parts
            for part in parts[result]
        }
        behind = {result: result.behind() for result in parts}
        self._graph: TopologicalSorter[Piece] = TopologicalSorter()
        for (result, part), piece in pieces.items():
            piece.behind_it = sum(len(parts[other]) for other in parts if result in behind[other])
            needed = [pieces[need, one] for need in result.needs for one in parts.get(need, ())]
            if isinstance(result, Parts):
                needed += [pieces[result, other] for other in result.after(run, part)]
            self._graph.add(piece, *needed)
        self._pages = {chapter: Piece(chapter, f"notebook {chapter}", *page) for chapter, page in pages.items()}
        for page in self._pages.values():
            self._graph.add(page, *(piece for piece in pieces.values() if piece.chapter <= page.chapter))
        self._graph.prepare()
        self._open = {*pieces.values(), *self._pages.values()}
        self._ready: list[Piece] = []
        self._sent: set[Piece] = set()
        self._jobs, self._total, self._changed = jobs, len(self._open), threading.Condition()
        self.seconds: Counter[int] = Counter()
        self.peak, self.death = 0, False
        held, self._lifeline = multiprocessing.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), _begin, (held, {**environment, **ONE_THREAD})
        )
        with self._changed:
            self._send()

    def wait(self, chapter: int, tell: Callable[[str, int, int], None]) -> Any:
        """Return once a chapter's results and page are made: what the page came to, or None where it is left to do.

        ``tell`` is called twice a second with what is being made, how many pieces are, and how many there are. What
        the page raised is raised here.
        """
        with self._changed:
            while any(piece.chapter == chapter for piece in self._open):
                names = dict.fromkeys(piece.name for piece in self._sent)
                tell(", ".join(names), self._total - len(self._open), self._total)
                self._changed.wait(0.5)
            page = self._pages.get(chapter)
        if page and isinstance(page.came_to, Exception):
            raise page.came_to
        return page and page.came_to

    def end(self) -> None:
        """End the processes, at work or not; what they have not finished is not recorded."""
        with self._changed:
            self._leave_the_rest()
        self._pool.shutdown(cancel_futures=True)

    def _send(self) -> None:
        self._ready += self._graph.get_ready()
        self._ready.sort(key=lambda piece: (piece.chapter + (piece.work is not _make), -piece.behind_it, piece.name))
        while self._ready and len(self._sent) < self._jobs:
            piece = self._ready.pop(0)
            made = self._pool.submit(_timed, piece.work, piece.given)
            self._sent.add(piece)
            made.add_done_callback(lambda made, piece=piece: self._back(piece, made))

    def _back(self, piece: Piece, made: Future) -> None:
        with self._changed:
            if piece not in self._sent:
                return
            try:
                piece.came_to, seconds, peak = made.result()
                if piece.came_to is None:  # a page tells its own
                    self.seconds[piece.chapter] += seconds
                self.peak = max(self.peak, peak)
                self._sent.remove(piece)
                self._open.remove(piece)
                self._graph.done(piece)
                self._send()
            except BrokenProcessPool:
                self.death = True
                self._leave_the_rest()
            except Exception as error:  # a table's: its notebook meets it in its own cell, and says it there
                piece.came_to = error
                self._leave_the_rest()
            self._changed.notify_all()

    def _leave_the_rest(self) -> None:
        self._lifeline.close()
        for pieces in (self._open, self._ready, self._sent):
            pieces.clear()


@contextlib.contextmanager
def made_ahead(
    run: RunDirectory,
    results: Iterable[Result],
    jobs: int,
    environment: Mapping[str, str],
    pages: Mapping[int, tuple[Callable[..., Any], tuple]] | None = None,
) -> Iterator[Workers | None]:
    """Worker processes that make what is missing of some results, and pages by chapter; None where one would be idle.

    ``environment`` is what notebooks get, so that both see the same settings. A page is given as what makes it from a
    chapter's results, and what that is called with.
    """
    missing = missing_of(run, results)
    if not missing and len(pages or {}) < 2:
        yield None
        return
    workers = Workers(run, missing, jobs, environment, pages or {})
    try:
        yield workers
    finally:
        workers.end()


def missing_of(run: RunDirectory, results: Iterable[Result]) -> set[Result]:
    """Those of these results that are not made yet, and what they need of the others."""
    given = set(results)
    missing = {result for result in given if not result.is_made(run)}
    return missing | {need for result in missing for need in result.behind() & given}


def _begin(lifeline: Connection, environment: Mapping[str, str]) -> None:
    """In a new process: one thread, nothing on the screen, and no longer than the process that began it."""
    from tqdm import tqdm

    os.setpgid(0, 0)  # Ctrl-C reaches every process of a group: the one that began these ends them itself
    os.environ.update(environment)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own would outlive a process that is ended
    limit_threads(1)


def _end_with(lifeline: Connection) -> None:
    import psutil

    wait([lifeline])  # nothing is ever sent: its other end was closed, or its process is gone
    for kernel in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            kernel.kill()
    os._exit(1)


def _timed(work: Callable[..., Any], given: tuple) -> tuple[Any, float, int]:
    """What a piece comes to, its seconds, and the largest size of this process in bytes."""
    started = time.perf_counter()
    came_to = work(*given)
    return came_to, time.perf_counter() - started, peak_memory()


def _make(module: str, place: str, part: str, path: str, study: Mapping[str, Any], device: str) -> None:
    """Make one result or part, where it is not made yet."""
    importlib.import_module(module)
    result, run = RESULTS[place], RunDirectory(path, Study.from_dict(study), device=device)
    if isinstance(result, Parts):
        result.make(run, [part])
    else:
        result(run)
