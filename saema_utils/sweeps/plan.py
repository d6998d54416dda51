"""What a sweep will do: its tasks, what each needs and takes, and which are finished already."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saema_utils.errors import StudyError, SweepError, unknown_name
from saema_utils.notebook import default_run_dir, resolve_study
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.files import user_path, write_json
from saema_utils.runs.freshness import PACKAGE_DIR, digest, file_digest, outside_digest, source_digest
from saema_utils.study import Study
from saema_utils.sweeps.tasks import PLAN_FILE, STAGES, Order, is_finished

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
    from saema_utils.notebook import parse_chapters

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


SWEEP_KEYS = ("base", "grid", "cases", "chapters", "device", "slurm")
PATH_FIELDS = ("model", "prompts_file", "corpus.source", "sae.source")
MOST_RUNS = 20_000
MOST_VALUES = 1_000_000
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 120


@dataclass(frozen=True)
class SweepFile:
    """A sweep file as it stands, each part of the right shape."""

    path: Path
    base: tuple[str, ...]
    grid: Mapping[str, Sequence[Any]]
    cases: tuple[Mapping[str, Any], ...]
    chapters: str
    device: str
    slurm: Mapping[str, Any]


def read_sweep_file(path: str | Path) -> SweepFile:
    """Read and check the shape of a sweep file.

    Raises
    ------
    SweepError
        If it cannot be read, is not YAML, names a key twice or an unknown one, or a part has the wrong shape.
    """
    path = user_path(path)
    plain = _load_yaml(path)
    _require(
        isinstance(plain, dict),
        f"sweep file {path}",
        type(plain).__name__,
        "a mapping such as {base: smoke, grid: ...}",
    )
    for key in plain:
        if key not in SWEEP_KEYS:
            raise SweepError(unknown_name(f"part of {path.name}", key, SWEEP_KEYS))
    base = plain.get("base")
    base = [base] if isinstance(base, str) else base
    _require(_is_list_of(base, str), "base", plain.get("base"), "a study's name, a study file, or a list of them")
    grid = plain.get("grid") or {}
    _require(
        isinstance(grid, dict) and all(isinstance(k, str) for k in grid), "grid", grid, "a mapping of study fields"
    )
    for name, values in grid.items():
        _require(isinstance(values, list) and len(values) > 0, f"grid.{name}", values, "a list, such as [0, 1]")
    cases = plain.get("cases") or [{}]
    _require(
        _is_list_of(cases, dict) and all(isinstance(k, str) for case in cases for k in case),
        "cases", cases, "a list of mappings of study fields",
    )  # fmt: skip
    slurm = plain.get("slurm") or {}
    _require(
        isinstance(slurm, dict) and all(isinstance(k, str) for k in slurm),
        "slurm",
        slurm,
        "a mapping such as {queue: gpu, walltime: '04:00:00'}",
    )
    device = plain.get("device", "auto")
    _require(device in ("auto", "cpu", "cuda", "mps"), "device", device, "auto, cpu, cuda or mps")
    return SweepFile(path, tuple(base), grid, tuple(cases), str(plain.get("chapters", "1-6")), device, slurm)


def _load_yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and a key given twice is an error instead of the last one winning."""

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, str) and key in seen:
                    raise SweepError(f"{path.name} gives {key!r} twice. Keep one.")
                seen.add(key if isinstance(key, str) else id(key_node))
            return super().construct_mapping(node, deep)

    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # a SafeLoader: no objects are built
    except OSError as error:
        raise SweepError(f"cannot read sweep file {path} ({error.strerror}). Check the path and run again.") from error
    except SweepError:
        raise
    except Exception as error:  # beside YAMLError, a wrong tag raises whatever its constructor does
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}" if mark else type(error).__name__
        reason = " ".join(str(problem or error).split())[:200]
        raise SweepError(f"sweep file {path} is not YAML ({where}: {reason}). Correct it.") from error
    # Aliases let a short file hold a value that fills the memory when it is copied or shown, or holds itself.
    parts, count = [plain], 0
    while parts:
        part, count = parts.pop(), count + 1
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        _require(count <= MOST_VALUES, f"sweep file {path.name}", "one of a million values", "fewer; check its aliases")
    return plain


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, kind) for item in value)


def _require(condition: bool, what: str, value: object, allowed: str) -> None:
    if not condition:
        raise SweepError(f"{what} is {_shown.repr(value)}; allowed: {allowed}.")


# ---- its runs --------------------------------------------------------------------------------------


def expand(file: SweepFile) -> tuple[dict[str, Study], dict[str, dict[str, Any]]]:
    """Every run of the grid by name, validated, and what each changes.

    Raises
    ------
    SweepError
        If two runs would be the same study, or there are too many.
    StudyError
        If a field does not exist or a value is not allowed; names the run's changes.
    """
    count = len(file.base) * len(file.cases)
    for values in file.grid.values():
        count *= len(values)
    _require(count <= MOST_RUNS, "number of runs", count, f"at most {MOST_RUNS:,}; split the grid")
    runs: dict[str, Study] = {}
    changes: dict[str, dict[str, Any]] = {}
    seen: dict[str, str] = {}
    for base, case, values in itertools.product(file.base, file.cases, itertools.product(*file.grid.values())):
        chosen = _chosen(file, case, dict(zip(file.grid, values, strict=True)))
        try:
            study = _changed(resolve_study(_located(file, base) if base.endswith(".json") else base), chosen)
        except StudyError as error:
            raise StudyError(f"{file.path.name}, run {base} with {chosen}: {error}") from error
        name = _unique(run_name(study.name, chosen), runs)
        twin = seen.setdefault(study.changed(name="x").digest, name)
        if twin != name:
            raise SweepError(
                f"{file.path.name} asks twice for one study ({twin} and {name}). Remove a value from the grid."
            )
        runs[name] = study.changed(name=name)
        changes[name] = {**({"base": base} if len(file.base) > 1 else {}), **chosen}
    return runs, changes


def _chosen(file: SweepFile, case: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    both = set(case) & set(values)
    if both:
        raise SweepError(f"{sorted(both)[0]!r} stands in grid and in cases. Keep it in one of them.")
    chosen = {**case, **values}
    _require("name" not in chosen, "grid", sorted(chosen), "any field of a study but its name, which the sweep gives")
    return {name: _located(file, value) if name in PATH_FIELDS else value for name, value in chosen.items()}


def _located(file: SweepFile, value: Any) -> Any:
    """Paths beside the sweep file become absolute: workers may stand in another folder."""
    beside = file.path.parent / value if isinstance(value, str) else None
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


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    """Names that differ only by case, or whose values look alike once made safe, get a number."""
    lowered = {other.lower() for other in taken}
    numbered = (name if n == 1 else f"{name}_{n}" for n in itertools.count(1))
    return next(candidate for candidate in numbered if candidate.lower() not in lowered)
