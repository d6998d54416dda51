"""How long work takes: estimates from the manifests of earlier runs, and schedules simulated from them.

Pure bookkeeping: nothing here runs a task or knows about Dask.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import SweepError
from .study import Study

GIBIBYTE = 2**30
UNKNOWN_MEMORY = 5 * GIBIBYTE // 2  # given to a task when no manifest tells: 2.0 were measured on the embedded model
FIXED_SECONDS = 10.0  # of a task, whatever its size: imports and loading the model
TASKS = "tasks"


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes that one task is expected to take; ``basis`` says where the numbers come from.

    Without a manifest to learn from both are None and the basis is ``unknown``.
    """

    seconds: float | None
    memory: int | None
    basis: str


@dataclass(frozen=True)
class Record:
    """What a manifest says about one chapter that ran."""

    study: Study
    chapter: int
    seconds: float
    memory: int


def read_records(folders: Iterable[Path]) -> list[Record]:
    """Times and memory of every chapter that any run under ``folders`` finished.

    Manifests that cannot be read are passed over: an estimate is not worth an error.
    """
    found = []
    for manifest in sorted(
        {path for folder in folders for depth in ("*", "*/*") for path in folder.glob(f"{depth}/manifest.json")}
    ):
        try:
            plain = json.loads(manifest.read_text(encoding="utf-8"))
            study = Study.from_dict(plain["study"])
            for chapter in range(1, 10):
                record = _measured(plain, chapter)
                if record is not None:
                    found.append(Record(study, chapter, *record))
        except Exception:
            continue
    return found


def _measured(manifest: Mapping[str, Any], chapter: int) -> tuple[float, int] | None:
    task = manifest.get(TASKS, {}).get(f"chapter-{chapter}")
    if task is not None:
        return float(task["seconds"]), int(task["peak_memory"])
    for name, record in manifest.get("chapters", {}).items():
        if name.startswith(f"{chapter:02d}_"):
            # A notebook that found its tables made already was fast: what making them took stands beside them.
            made = sum(
                float(artifact.get("seconds", 0))
                for path, artifact in manifest.get("artifacts", {}).items()
                if Path(path).name.startswith(f"{chapter:02d}_") and "parts/" not in path
            )
            return max(float(record["seconds"]), made), int(record["peak_memory"])
    return None


def amount_of_work(study: Study, chapter: int) -> float:
    """How a chapter's time grows with the study's sizes, in arbitrary units (used only for ratios)."""
    corpus, sae, dose = study.corpus, study.sae, study.intervention
    tokens = corpus.tokens + corpus.heldout_tokens
    sentences = len(study.concepts) * study.templates
    if chapter == 1:
        return tokens + 300 * sentences
    if chapter == 2:
        return tokens * (1 + (sae.epochs * sae.d_sae / 1000 if sae.source == "train" else 0))
    if chapter == 3:
        return sentences * len(study.noise_levels) * study.n_seeds
    if chapter == 4:
        return sentences * (50 + study.geometry.bootstrap)
    if chapter == 5:
        training = (len(dose.coefficients) * dose.finetune_steps + dose.fresh_steps) * sae.d_sae / 1000
        return study.n_seeds * (len(study.concepts) * len(dose.alphas) + training)
    return 1.0


def estimate(study: Study, chapter: int, records: Sequence[Record]) -> Estimate:
    """What one chapter of a study will take, from the most similar chapter that was measured.

    The same study's own record is taken as it is; else the record of the same model whose amount of
    work is nearest, scaled by the ratio of the amounts but for a fixed share (memory is not scaled below
    what was measured).
    """
    candidates = [r for r in records if r.chapter == chapter]
    for record in candidates:
        if record.study.changed(name="x").digest == study.changed(name="x").digest:
            return Estimate(record.seconds, record.memory, "measured")
    candidates = [r for r in candidates if r.study.model == study.model]
    if not candidates:
        return Estimate(None, None, "unknown")
    wanted = amount_of_work(study, chapter)
    nearest = min(candidates, key=lambda r: abs(math.log(wanted / amount_of_work(r.study, chapter))))
    ratio = wanted / amount_of_work(nearest.study, chapter)
    fixed = min(FIXED_SECONDS, nearest.seconds)
    seconds = fixed + (nearest.seconds - fixed) * ratio
    return Estimate(seconds, int(nearest.memory * max(1.0, ratio**0.5)), f"scaled from {nearest.study.name}")


@dataclass(frozen=True)
class Timed:
    """A task to be scheduled: what it takes and which tasks must be finished before it starts."""

    id: str
    seconds: float
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """When and where a simulated task ran."""

    id: str
    worker: int
    start: float
    end: float


def remaining_path(tasks: Sequence[Timed]) -> dict[str, float]:
    """For each task, the longest chain of seconds from its start to the end of the sweep.

    The largest of them is the critical path: no number of workers finishes sooner.

    Raises
    ------
    SweepError
        If a task needs one that is not there, or tasks wait for each other in a circle.
    """
    known = {task.id: task for task in tasks}
    followers: dict[str, list[str]] = {task.id: [] for task in tasks}
    waiting = {task.id: len(task.needs) for task in tasks}
    for task in tasks:
        for needed in task.needs:
            if needed not in known:
                raise SweepError(f"task {task.id!r} needs {needed!r}, which is not part of the sweep. Add it.")
            followers[needed].append(task.id)
    order = [name for name, count in waiting.items() if count == 0]
    for name in order:  # grows while it is walked: Kahn's topological order
        for follower in followers[name]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                order.append(follower)
    if len(order) < len(tasks):
        circle = sorted(name for name, count in waiting.items() if count > 0)
        raise SweepError(f"tasks {', '.join(circle[:4])} wait for each other. Remove one of the dependencies.")
    path: dict[str, float] = {}
    for name in reversed(order):
        path[name] = known[name].seconds + max((path[f] for f in followers[name]), default=0.0)
    return path


def simulate_schedule(tasks: Sequence[Timed], workers: int, *, startup: float = 0.0) -> list[Span]:
    """The schedule of a work-conserving scheduler: a free worker takes the ready task with the longest path.

    Parameters
    ----------
    tasks
        With the seconds each takes; order breaks ties.
    workers
        How many run at once.
    startup
        Seconds that a worker loses before its first task (imports, loading the model).

    Returns
    -------
    One span a task, by start. The makespan ``max(end)`` is at most
    ``total / n + (1 - 1/n) * critical path`` when ``startup`` is 0 (Graham, SIAM J. Appl. Math. 17, 1969).
    """
    if workers < 1:
        raise SweepError(f"workers is {workers}; allowed: at least 1. Give --workers a positive number.")
    path = remaining_path(tasks)
    rank = {task.id: number for number, task in enumerate(tasks)}
    known = {task.id: task for task in tasks}
    waiting = {task.id: set(task.needs) for task in tasks}
    ready = [(-path[t.id], rank[t.id], t.id) for t in tasks if not t.needs]
    heapq.heapify(ready)
    free, fresh, running, spans, now = list(range(workers)), set(range(workers)), [], [], 0.0
    while ready or running:
        while ready and free:
            worker = min(free, key=lambda w: (w in fresh, w))  # a worker that is warm already goes first
            free.remove(worker)
            _, _, name = heapq.heappop(ready)
            begin = now + (startup if worker in fresh else 0.0)
            fresh.discard(worker)
            spans.append(Span(name, worker, begin, begin + known[name].seconds))
            heapq.heappush(running, (spans[-1].end, rank[name], worker, name))
        now, _, worker, finished = heapq.heappop(running)
        free.append(worker)
        for name, missing in waiting.items():
            if finished in missing:
                missing.discard(finished)
                if not missing:
                    heapq.heappush(ready, (-path[name], rank[name], name))
    return sorted(spans, key=lambda span: (span.start, span.worker))


def makespan(tasks: Sequence[Timed], workers: int, *, startup: float = 0.0) -> float:
    """Seconds from the first start to the last end of the simulated schedule."""
    return max((span.end for span in simulate_schedule(tasks, workers, startup=startup)), default=0.0)


@dataclass(frozen=True)
class Fit:
    """How many worker processes, and with how many threads each."""

    workers: int
    threads: int
    limited_by: str


def fit_workers(
    n_tasks: int, cores: int, memory: int, memory_per_task: int, gpus: int = 0, workers: int = 0, threads: int = 0
) -> Fit:
    """Processes and threads that fill a machine without overfilling its memory.

    One worker a GPU where there are GPUs; else one a core, fewer if their tasks would not fit four
    fifths of the free memory together or there are fewer tasks. ``workers`` and ``threads`` other than 0 are kept.

    >>> fit_workers(100, cores=16, memory=64 * 2**30, memory_per_task=8 * 2**30)
    Fit(workers=6, threads=2, limited_by='memory')
    """
    room = int(0.8 * memory // max(1, memory_per_task))
    limits = {"GPUs": gpus} if gpus else {"cores": cores // max(1, threads), "memory": room}
    limits["tasks"] = max(1, n_tasks)
    reason = min(limits, key=lambda name: limits[name])
    chosen = workers or max(1, limits[reason])
    return Fit(chosen, threads or max(1, cores // chosen), "--workers" if workers else reason)
