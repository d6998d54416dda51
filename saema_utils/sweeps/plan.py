"""What a sweep file asks for, and what a sweep will do: its runs, their tasks, and which are finished already."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Len

from saema_utils.errors import StudyError, SweepError, require
from saema_utils.notebook import default_run_dir, parse_chapters, resolve_study
from saema_utils.plain import from_plain
from saema_utils.runs.directory import PLAN_FILE, RunDirectory
from saema_utils.runs.files import read_json, read_yaml, user_path, write_json
from saema_utils.runs.freshness import digest, outside_digest, source_digest
from saema_utils.study import STUDIES, Study
from saema_utils.sweeps.tasks import SHARED, Task, is_finished

PATH_FIELDS = ("model", "prompts_file", "corpus.source", "sae.source")
MOST_RUNS = 20_000


# ---- the file --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slurm:
    """The ``slurm`` part of a sweep file; dask-jobqueue checks what it makes of it."""

    queue: str | None = None
    account: str | None = None
    interface: str | None = None
    walltime: str = "04:00:00"
    memory: str = "8GiB"
    cores: Annotated[int, Ge(1)] = 4
    jobs: Annotated[int, Ge(1)] = 4
    gpus: Annotated[int, Interval(ge=0, le=1)] = 0
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.queue, self.account, self.interface, self.memory, *self.directives, *self.prologue):
            require("\n" not in (text or ""), "part of slurm", text, "a single line", SweepError)
        sound = re.fullmatch(r"(\d+-)?\d{1,3}:\d\d:\d\d", self.walltime) and self.seconds >= 600
        example = "at least ten minutes, such as '04:00:00' or '1-12:00:00'"
        require(sound, "slurm.walltime", self.walltime, example, SweepError)

    @property
    def seconds(self) -> int:
        """Seconds of the walltime."""
        days, _, clock = self.walltime.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class SweepFile:
    """A sweep file as it stands, each part of the right shape."""

    base: Annotated[tuple[str, ...], Len(1)]
    grid: Mapping[str, Annotated[list[Any], Len(1)]] = field(default_factory=dict)
    cases: tuple[Mapping[str, Any], ...] = ({},)
    chapters: str = "1-7"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    slurm: Slurm = field(default_factory=Slurm)


def read_sweep_file(path: str | Path) -> SweepFile:
    """Read and check the shape of a sweep file.

    Raises
    ------
    SweepError
        If it cannot be read, is not YAML, names a key twice or an unknown one, or a part has the wrong shape.
    """
    path = user_path(path)
    plain = read_yaml(path, "sweep file", SweepError)
    if isinstance(plain, dict):
        known = {f.name for f in fields(SweepFile)}
        plain = {name: value for name, value in plain.items() if value is not None or name not in known}
        plain |= {name: str(value) for name, value in plain.items() if name == "chapters"}
        plain |= {name: [value] for name, value in plain.items() if name == "base" and isinstance(value, str)}
    return from_plain(SweepFile, plain, path.name, SweepError)


# ---- its runs --------------------------------------------------------------------------------------


def expand(file: SweepFile, path: Path) -> tuple[dict[str, Study], dict[str, dict[str, Any]]]:
    """Every run of the grid by name, validated, and what each changes.

    Raises
    ------
    SweepError
        If two runs would be the same study, or there are too many.
    StudyError
        If a field does not exist or a value is not allowed; names the run's changes.
    """
    count = len(file.base) * max(1, len(file.cases)) * math.prod(map(len, file.grid.values()))
    if count > MOST_RUNS:
        raise SweepError(f"number of runs is {count}; allowed: at most {MOST_RUNS:,}. Split the grid.")
    runs: dict[str, Study] = {}
    changes: dict[str, dict[str, Any]] = {}
    seen: dict[str, str] = {}
    for base, case, *values in itertools.product(file.base, file.cases or ({},), *file.grid.values()):
        chosen = _chosen(path, case, dict(zip(file.grid, values, strict=True)))
        try:
            study = _changed(resolve_study(_located(path, base) if base.endswith(".json") else base), chosen)
        except StudyError as error:
            raise StudyError(f"{path.name}, run {base} with {chosen}: {error}") from error
        name = run_name(study.name, chosen)
        if name.lower() in {taken.lower() for taken in runs}:  # other values that look alike once they are made safe
            name = f"{name[:83]}_{digest(chosen)}"
        twin = seen.setdefault(study.changed(name="x").digest, name)
        if twin != name:
            raise SweepError(f"{path.name} asks twice for one study ({twin} and {name}). Remove a value from the grid.")
        runs[name] = study.changed(name=name)
        changes[name] = {**({"base": base} if len(file.base) > 1 else {}), **chosen}
    return runs, changes


def _chosen(path: Path, case: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    both = sorted(set(case) & set(values))
    if both:
        raise SweepError(f"{both[0]!r} stands in grid and in cases. Keep it in one of them.")
    if "name" in {**case, **values}:
        raise SweepError("'name' stands in grid or cases; allowed: any other field of a study. The sweep gives names.")
    return {name: _located(path, value) if name in PATH_FIELDS else value for name, value in {**case, **values}.items()}


def _located(path: Path, value: Any) -> Any:
    """Paths beside the sweep file become absolute: workers may stand in another folder."""
    beside = path.parent / value if isinstance(value, str) else None
    return str(beside.resolve()) if beside is not None and value and beside.exists() else value


def _changed(base: Study, chosen: Mapping[str, Any]) -> Study:
    study = base.changed(**chosen)
    if chosen.get("prompts_file") and "concepts" not in chosen:
        from saema_utils.text.concepts import build_prompts

        study = study.changed(concepts=tuple(build_prompts(study)))
    return study


def run_name(base: str, changes: Mapping[str, Any]) -> str:
    """A folder's name that says what the run changes, such as ``smoke_k-16_seed-1``.

    Only letters, digits, ``-``, ``_`` and ``.`` are used, so that a value can never point elsewhere.
    """
    parts = [base]
    for field_name, value in changes.items():
        text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = text.rsplit("/", 1)[-1] if field_name in PATH_FIELDS else text
        safe = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")
        parts.append(f"{field_name.rsplit('.', 1)[-1]}-{safe if 0 < len(safe) <= 24 else digest(value)[:8]}")
    name = "_".join(parts)
    return name if len(name) <= 100 else f"{name[:83]}_{digest(dict(changes))}"


# ---- its tasks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A checked sweep: its runs, what each changes, and its tasks in an order that respects ``needs``.

    ``threads`` is how many each task was given when the sweep was first started, 0 before.
    """

    name: str
    folder: Path
    runs: Mapping[str, Study]
    changes: Mapping[str, Mapping[str, Any]]
    tasks: tuple[Task, ...]
    device: str
    slurm: Slurm
    threads: int

    @property
    def todo(self) -> tuple[Task, ...]:
        """Tasks that are not finished yet."""
        return tuple(task for task in self.tasks if not task.finished)

    def write(self, threads: int) -> None:
        """Write ``sweep.json``: the runs of this folder, what each changes, and the threads of each task.

        Sums depend on how many threads add them up: a sweep that resumes, with less to do, finds the number here.
        """
        runs = {run: {"changes": dict(self.changes[run]), "digest": study.digest} for run, study in self.runs.items()}
        write_json(self.folder / PLAN_FILE, {"name": self.name, "runs": runs, "threads": threads or self.threads})


def plan_sweep(path: str | Path, *, folder: str | Path = "", chapters: str = "", device: str = "") -> Plan:
    """Read a sweep file and plan its tasks; nothing is run or written.

    Parameters
    ----------
    path
        The sweep file (YAML).
    folder
        Where the runs go, one folder each. Default: ``runs/<name of the file>``.
    chapters, device
        Instead of those in the file.
    """
    path = user_path(path)
    file = read_sweep_file(path)
    runs, changes = expand(file, path)
    asked, name, device = parse_chapters(chapters or file.chapters), path.stem, device or file.device
    where = user_path(folder).resolve() if folder else default_run_dir(STUDIES["smoke"]).parent / name
    begun = [run for run in runs if (where / run / "manifest.json").exists()]
    existing = {run: RunDirectory(where / run, runs[run]) for run in begun}
    plan = read_json(where / PLAN_FILE, "the plan of a sweep", "Delete it and run again.", must_exist=False)
    threads = plan.get("threads", 0)
    code, needs = source_digest(), chapter_needs(asked)
    shared: dict[str, Task] = {}
    tasks: list[Task] = []
    for run, study in runs.items():
        key = digest([study.digest, code, outside_digest(*study.outside)])
        sent = (key, str(where / run), study.as_dict(), code, device)
        corpus = f"corpus:{digest([study.model, study.layer, sent[2]['corpus'], study.seed])[:8]}"
        for chapter, earlier in needs.items():
            finished = run in existing and is_finished(existing[run], chapter, key)
            before = tuple(f"{run}/{needed}" for needed in earlier)
            if not before and not finished:  # runs of one model, layer, text and seed wait for the first to read it
                before = (corpus,)
                shared.setdefault(corpus, Task(corpus, run, SHARED, (), *sent))
            tasks.append(Task(f"{run}/{chapter}", run, chapter, before, *sent, finished))
    return Plan(name, where, runs, changes, (*shared.values(), *tasks), device, file.slurm, threads)


def chapter_needs(asked: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """The chapters asked for and all that they need, in order: for each, those that its results are made from.

    >>> chapter_needs([4])
    {1: (), 2: (1,), 4: (1, 2)}
    """
    from saema_utils.chapters import declared_results

    needs: dict[int, set[int]] = {}
    for result in declared_results().values():
        # What comes after the first chapter and needs no other result compares runs: no task of one of them.
        if not result.is_ruler and (result.needs or result.chapter == 1):
            made_from = {need.chapter for need in result.behind()} - {result.chapter}
            needs[result.chapter] = needs.get(result.chapter, set()) | made_from
    waiting = list(asked)
    for chapter in waiting:  # grows while it is walked
        if chapter not in needs:
            raise SweepError(f"chapter {chapter} cannot be swept; allowed: {', '.join(map(str, sorted(needs)))}.")
        waiting += needs[chapter] - set(waiting)
    return {chapter: tuple(sorted(needs[chapter])) for chapter in sorted(set(waiting))}
