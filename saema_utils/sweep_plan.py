"""What a sweep will do: its tasks, what each needs and takes, and which are finished already."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .artifacts import RunDirectory
from .chapter import default_run_dir, resolve_study
from .errors import SweepError
from .files import PACKAGE_DIR, digest, file_digest, outside_digest, source_digest, user_path, write_json
from .schedule import Estimate, Record, Timed, estimate, read_records
from .study import Study
from .sweep_file import expand, read_sweep_file
from .sweep_tasks import PLAN_FILE, STAGES, Order, is_finished

NEEDS = {1: (), 2: (1,), 3: (2,), 4: (2,), 5: (2,), 6: (3, 4, 5)}
MANY_RUNS = 200


@dataclass(frozen=True)
class Task:
    """One chapter of one run, or what several runs share (see :class:`~.sweep_tasks.Order`)."""

    id: str
    kind: str
    chapter: int
    run: str
    needs: tuple[str, ...]
    key: str
    expected: Estimate
    finished: bool = False


@dataclass(frozen=True)
class Plan:
    """A checked sweep: its runs, what each changes, and its tasks in an order that respects ``needs``.

    ``threads`` is how many each task was given when the sweep was first started, 0 before.
    """

    name: str
    folder: Path
    runs: Mapping[str, Study]
    changes: Mapping[str, Mapping[str, Any]]
    chapters: tuple[int, ...]
    tasks: tuple[Task, ...]
    device: str = "auto"
    slurm: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    threads: int = 0

    @property
    def todo(self) -> tuple[Task, ...]:
        """Tasks that are not finished yet."""
        return tuple(task for task in self.tasks if not task.finished)

    def order(self, task: Task, threads: int = 0) -> Order:
        """What a worker is sent."""
        return Order(
            task.id, task.kind, task.chapter, self.runs[task.run].as_dict(), str(self.folder / task.run), task.key,
            self.code, self.device, threads,
        )  # fmt: skip

    def timed(self, unknown: float = 60.0) -> list[Timed]:
        """The unfinished tasks with their expected seconds, for :mod:`~.schedule`."""
        todo = {task.id for task in self.todo}

        def seconds(task: Task) -> float:
            return unknown if task.expected.seconds is None else task.expected.seconds

        return [Timed(t.id, seconds(t), tuple(n for n in t.needs if n in todo)) for t in self.todo]

    @property
    def memory_per_task(self) -> int | None:
        """Largest expected memory of an unfinished task, in bytes; None when no manifest tells."""
        known = [task.expected.memory for task in self.todo if task.expected.memory]
        return max(known, default=None)

    def write(self, threads: int = 0) -> Path:
        """Write ``sweep.json``: the runs of this folder, what each changes, and the threads of each task.

        Sums depend on how many threads add them up, so a sweep that resumes, when less is left to do and
        memory is measured instead of assumed, finds the number here.
        """
        path = self.folder / PLAN_FILE
        runs = {
            run: {"changes": dict(changes), "digest": self.runs[run].digest} for run, changes in self.changes.items()
        }
        facts = {"name": self.name, "chapters": list(self.chapters), "runs": runs}
        write_json(path, facts | {"threads": threads or self.threads})
        return path


# ---- its tasks -------------------------------------------------------------------------------------


def plan_sweep(
    path: str | Path,
    *,
    folder: str | Path = "",
    chapters: str = "",
    device: str = "",
    records: Sequence[Record] | None = None,
) -> Plan:
    """Read a sweep file and plan its tasks; nothing is run or written.

    Parameters
    ----------
    path
        The sweep file (YAML).
    folder
        Where the runs go, one folder each. Default: ``runs/<name of the file>``.
    chapters, device
        Instead of those in the file.
    records
        Measured chapters that estimates are made from. Default: those of all runs beside these.
    """
    from .chapter import parse_chapters

    file = read_sweep_file(path)
    wanted = with_earlier(parse_chapters(chapters or file.chapters))
    runs, changes = expand(file)
    runs_root = default_run_dir(resolve_study("smoke")).parent
    where = user_path(folder).resolve() if folder else runs_root / file.path.stem
    _check_folders(where, runs)
    records = read_records([where, where.parent, runs_root]) if records is None else records
    code = source_digest()
    tasks: list[Task] = []
    for run, study in runs.items():
        tasks.extend(_chapter_tasks(where, run, study, wanted, code, records))
    tasks = [*_shared_tasks(runs, tasks), *tasks]
    tasks = _with_shared_needs(runs, tasks)
    return Plan(
        file.path.stem, where, runs, changes, wanted, tuple(tasks), device or file.device, file.slurm, code,
        _threads_before(where),
    )  # fmt: skip


def _threads_before(where: Path) -> int:
    """Threads of each task when the sweep in this folder was started; 0 if it was not, or does not say."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        threads = json.loads((where / PLAN_FILE).read_text(encoding="utf-8")).get("threads", 0)
        return threads if isinstance(threads, int) and threads > 0 else 0
    return 0


def with_earlier(chapters: Sequence[int]) -> tuple[int, ...]:
    """The chapters and all that they need."""
    found: set[int] = set()
    waiting = list(chapters)
    while waiting:
        chapter = waiting.pop()
        if chapter not in STAGES:
            raise SweepError(f"chapter {chapter} cannot be swept; allowed: {min(STAGES)} to {max(STAGES)}.")
        if chapter not in found:
            found.add(chapter)
            waiting.extend(NEEDS[chapter])
    return tuple(sorted(found))


def _check_folders(where: Path, runs: Mapping[str, Study]) -> None:
    for run, study in runs.items():
        if (where / run / "manifest.json").exists():
            try:
                known = json.loads((where / run / "manifest.json").read_text(encoding="utf-8"))["study_digest"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise SweepError(
                    f"{where / run} holds no readable manifest ({error}). Move it away or pass --out."
                ) from error
            if known != study.digest:
                raise SweepError(f"{where / run} holds another study (digest {known}). Move it away or pass --out.")


def _chapter_tasks(
    where: Path, run: str, study: Study, chapters: Sequence[int], code: str, records: Sequence[Record]
) -> list[Task]:
    keys: dict[int, str] = {}
    tasks = []
    inputs = [study.digest, code, _data_files(), outside_digest(*study.outside)]
    directory = RunDirectory(where / run, study) if (where / run / "manifest.json").exists() else None
    for chapter in chapters:
        keys[chapter] = digest([chapter, *inputs, [keys[needed] for needed in NEEDS[chapter]]])
        finished = directory is not None and is_finished(directory, chapter, keys[chapter])
        needs = tuple(f"{run}/{needed}" for needed in NEEDS[chapter])
        expected = estimate(study, chapter, records)
        tasks.append(Task(f"{run}/{chapter}", "chapter", chapter, run, needs, keys[chapter], expected, finished))
    return tasks


def _data_files() -> list[str]:
    return [file_digest(path) for path in sorted([*PACKAGE_DIR.glob("*.yaml"), *PACKAGE_DIR.glob("*.json")])]


def _shared_by(study: Study) -> dict[str, str]:
    """What of a study others may share: equal digests mean equal work."""
    return {
        "model": digest(study.model)[:8],
        "corpus": digest([study.model, study.layer, asdict(study.corpus), study.seed])[:8],
    }


def _shared_tasks(runs: Mapping[str, Study], tasks: Sequence[Task]) -> list[Task]:
    """One task for each model, and one for each corpus that several unfinished runs capture alike."""
    users: dict[str, list[str]] = {}
    for task in tasks:
        if task.chapter == 1 and not task.finished:
            for kind, value in _shared_by(runs[task.run]).items():
                users.setdefault(f"{kind}:{value}", []).append(task.run)
    first = {task.run: task.expected for task in tasks if task.chapter == 1}
    found = []
    for name in sorted(users, key=lambda name: not name.startswith("model")):
        kind, _, value = name.partition(":")
        run = users[name][0]
        if kind == "model":
            found.append(Task(name, kind, 0, run, (), value, Estimate(30.0, first[run].memory, "assumed")))
        elif len(users[name]) > 1:
            # Capturing the corpus is nearly all of chapter 1.
            found.append(Task(name, kind, 0, run, (f"model:{_shared_by(runs[run])['model']}",), value, first[run]))
    return found


def _with_shared_needs(runs: Mapping[str, Study], tasks: Sequence[Task]) -> list[Task]:
    ids = {task.id for task in tasks}
    result = []
    for task in tasks:
        if task.kind == "chapter" and task.chapter == 1 and not task.finished:
            shared = [f"{kind}:{value}" for kind, value in _shared_by(runs[task.run]).items()]
            needs = tuple(name for name in shared if name in ids)
            has_corpus = any(name.startswith("corpus:") for name in needs)
            expected = Estimate(
                task.expected.seconds and task.expected.seconds * 0.2, task.expected.memory, task.expected.basis
            )
            task = Task(**{**task.__dict__, "needs": needs, "expected": expected if has_corpus else task.expected})
        result.append(task)
    return result
