"""Results of a run made ahead of their notebooks, side by side, in worker processes of one thread each.

A notebook then finds its tables made. With one thread a process waits at no barrier for a core that something else
holds, and no result depends on how many processes work. When one of them fails or dies, what is left is left to the
notebooks, which make it themselves or say in their own cells why not.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from graphlib import TopologicalSorter
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import RESULTS, Parts, Result
from saema_utils.runtime import THREAD_VARIABLES, limit_threads, peak_memory
from saema_utils.study import Study

ONE_THREAD = dict.fromkeys(THREAD_VARIABLES, "1")


class Piece(NamedTuple):
    """What a worker makes at a time: a result, or one part of it."""

    result: Result
    part: str = ""


class Workers:
    """Pieces on their way to so many processes. Each is sent once all that it needs is made; of several those of the
    first chapter, whose notebook can then begin, and of these the one behind which most others wait.

    Attributes
    ----------
    seconds
        That the pieces of each chapter took so far, together.
    peak
        Largest size of one of the processes, in bytes.
    death
        Whether one died.
    """

    def __init__(self, run: RunDirectory, results: Iterable[Result], jobs: int, environment: Mapping[str, str]):
        pieces = {
            result: [Piece(result, part) for part in result.names(run)]
            if isinstance(result, Parts)
            else [Piece(result)]
            for result in results
        }
        behind = {result: result.behind() for result in pieces}
        self._behind_it = {
            result: sum(len(pieces[one]) for one in pieces if result in behind[one]) for result in pieces
        }
        self._graph: TopologicalSorter[Piece] = TopologicalSorter()
        for piece in itertools.chain.from_iterable(pieces.values()):
            needed = [other for need in piece.result.needs for other in pieces.get(need, ())]
            if isinstance(piece.result, Parts):
                needed += [Piece(piece.result, part) for part in piece.result.after(run, piece.part)]
            self._graph.add(piece, *needed)
        self._graph.prepare()
        self._open = set(itertools.chain.from_iterable(pieces.values()))
        self._ready: list[Piece] = []
        self._sent: set[Piece] = set()
        self._jobs, self._total, self._changed = jobs, len(self._open), threading.Condition()
        self._run = (str(run.path), run.study.as_dict(), str(run.device))
        self.seconds: Counter[int] = Counter()
        self.peak, self.death = 0, False
        held, self._lifeline = multiprocessing.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), _begin, (held, {**environment, **ONE_THREAD})
        )
        with self._changed:
            self._send()

    def wait(self, chapter: int, tell: Callable[[str, int, int], None]) -> None:
        """Return when a chapter's results are made, or left to its notebook.

        ``tell`` is called twice a second with what is being made, how many pieces are, and how many there are.
        """
        with self._changed:
            while any(piece.result.chapter == chapter for piece in self._open):
                names = dict.fromkeys(piece.result.name for piece in self._sent)
                tell(", ".join(names), self._total - len(self._open), self._total)
                self._changed.wait(0.5)

    def end(self) -> None:
        """End the processes, at work or not; what they have not finished is not recorded."""
        with self._changed:
            self._leave_the_rest()
        self._pool.shutdown(cancel_futures=True)

    def _send(self) -> None:
        self._ready += self._graph.get_ready()
        self._ready.sort(key=lambda p: (p.result.chapter, -self._behind_it[p.result], p.result.name))
        while self._ready and len(self._sent) < self._jobs:
            piece = self._ready.pop(0)
            made = self._pool.submit(_make, piece.result.module, piece.result.place, piece.part, *self._run)
            self._sent.add(piece)
            made.add_done_callback(lambda made, piece=piece: self._back(piece, made))

    def _back(self, piece: Piece, made: Future) -> None:
        with self._changed:
            if piece not in self._sent:
                return
            try:
                seconds, peak = made.result()
                self.seconds[piece.result.chapter] += seconds
                self.peak = max(self.peak, peak)
                self._sent.remove(piece)
                self._open.remove(piece)
                self._graph.done(piece)
                self._send()
            except BrokenProcessPool:
                self.death = True
                self._leave_the_rest()
            except Exception:  # whatever it is, the notebook meets it in its own cell, and says it there
                self._leave_the_rest()
            self._changed.notify_all()

    def _leave_the_rest(self) -> None:
        self._lifeline.close()
        for pieces in (self._open, self._ready, self._sent):
            pieces.clear()


@contextlib.contextmanager
def made_ahead(
    run: RunDirectory, results: Iterable[Result], jobs: int, environment: Mapping[str, str]
) -> Iterator[Workers | None]:
    """Worker processes that make what is missing of some results; None where nothing is.

    ``environment`` is what notebooks get, so that both see the same settings.
    """
    missing = missing_of(run, results)
    if not missing:
        yield None
        return
    workers = Workers(run, missing, jobs, environment)
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

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    os.environ.update(environment)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own would outlive a process that is ended
    limit_threads(1)


def _end_with(lifeline: Connection) -> None:
    wait([lifeline])  # nothing is ever sent: its other end was closed, or its process is gone
    os._exit(1)


def _make(module: str, place: str, part: str, path: str, study: Mapping[str, Any], device: str) -> tuple[float, int]:
    """Make one piece, where it is not made yet; returns its seconds, and the largest size of this process in bytes."""
    started = time.perf_counter()
    importlib.import_module(module)
    result, run = RESULTS[place], RunDirectory(path, Study.from_dict(study), device=device)
    if isinstance(result, Parts):
        result.make(run, [part])
    else:
        result(run)
    return time.perf_counter() - started, peak_memory()
