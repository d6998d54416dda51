"""The engines a sweep runs on: this process, or Dask on this machine or a running cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pkgutil
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from saema_utils.errors import SweepError, unknown_name
from saema_utils.sweeps.plan import UNKNOWN_MEMORY, Fit, Plan, Task, fit_workers, remaining_path
from saema_utils.sweeps.tasks import Outcome, carry_out

if TYPE_CHECKING:
    from distributed import Client

INSTALL = 'pip install "saema_utils[sweep]"'
GRACE = 20.0  # seconds without a scheduler after which it counts as lost
PATIENCE = 600.0  # seconds without any worker after which a sweep gives up
LOOK = 10.0  # seconds between two looks at whether there are workers
POLL = 0.25
KILLED = (
    "the worker died each time it ran this, most often for lack of memory. Give fewer workers (--workers) or a smaller "
    "study."
)


# A worker keeps memory that its libraries do not give back: pausing or spilling would stall it for good.
DASK_SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.comm.timeouts.connect": "10s",
}


@dataclass(frozen=True)
class Settled:
    """A task that needs no more attention: ``done``, ``skipped`` (was finished), ``failed`` or ``not run``."""

    task: Task
    status: str
    outcome: Outcome | None = None
    error: str = ""


OnSettled = Callable[[Settled], None]
Watcher = Callable[[Mapping[str, Settled], set[str]], None]
Work = Callable[..., Outcome]


def require_dask() -> None:
    """Refuse in one line when Dask is not installed."""
    try:
        import dask
        import distributed

        assert dask
        assert distributed
    except ImportError as error:
        raise SweepError(f"a sweep runs on Dask, which is not installed ({error}). Run: {INSTALL}") from error


# ---- this process ----------------------------------------------------------------------------------


def run_serially(
    plan: Plan,
    threads: int = 1,
    on_settled: OnSettled = lambda settled: None,
    work: Work = carry_out,
    retries: int = 0,
) -> dict[str, Settled]:
    """Every unfinished task in this process, one after the other; a failed one stops only what needs it."""
    settled = _begin(plan, threads, on_settled)
    for task in plan.todo:
        result = _blocked(task, settled)
        for _ in range(0 if result else 1 + retries):
            try:
                outcome = work(plan.order(task, threads))
                result = Settled(task, "skipped" if outcome.skipped else "done", outcome)
                break
            except Exception as error:
                result = Settled(task, "failed", error=_one_line(error))
        settled[task.id] = result
        on_settled(result)
    return settled


def _begin(plan: Plan, threads: int, on_settled: OnSettled) -> dict[str, Settled]:
    plan.write(threads if plan.todo else 0)
    settled = {task.id: Settled(task, "skipped") for task in plan.tasks if task.finished}
    for result in settled.values():
        on_settled(result)
    return settled


def _blocked(task: Task, settled: Mapping[str, Settled]) -> Settled | None:
    """The verdict on a task one of whose needs did not come about."""
    for needed in task.needs:
        if needed in settled and settled[needed].status in ("failed", "not run"):
            return Settled(task, "not run", error=f"needs {needed}, which did not finish")
    return None


# ---- Dask ------------------------------------------------------------------------------------------


def run_on_dask(
    plan: Plan,
    client: Client,
    *,
    threads: int = 1,
    retries: int = 1,
    on_settled: OnSettled = lambda settled: None,
    watch: Watcher | None = None,
    work: Work = carry_out,
    tell: Callable[[str], None] = print,
    patience: float = PATIENCE,
    hint: str = "Start one",
) -> dict[str, Settled]:
    """Send every unfinished task to a Dask cluster and wait until each is settled.

    Dask places tasks, moves those of a dead worker to another, and retries those that raise. A task
    whose worker died four times is given up: it most likely needs more memory than a worker has. While no
    worker is there at all, ``tell`` says so, once, with the ``hint``.

    Raises
    ------
    SweepError
        If the scheduler is lost, or had no worker for ``patience`` seconds. Finished tasks are kept; the same
        sweep resumes.
    """
    settled = _begin(plan, threads, on_settled)
    alive = _Alive(client, tell, patience, hint)
    _require_package(client, alive, plan, settled)
    futures = _submit(plan, client, threads, retries, work)
    while len(settled) < len(plan.tasks):
        alive.check(futures.values(), plan, settled)
        for task in plan.todo:  # in an order in which needs come first, so that causes are told before effects
            if task.id not in settled and all(n in settled for n in task.needs if n in futures):
                result = _blocked(task, settled) or _result(task, futures[task.id])
                if result is not None:
                    settled[task.id] = result
                    on_settled(result)
        if watch is not None:
            watch(settled, _running(client, futures))
        time.sleep(POLL)
    return settled


class _Alive:
    """Tells a scheduler that is gone, or has no workers, from one that is only slow to answer."""

    def __init__(self, client: Client, tell: Callable[[str], None], patience: float, hint: str):
        self.client, self.since, self.tell, self.patience, self.hint = client, None, tell, patience, hint
        self.looked = self.worked = time.monotonic()
        self.told = False
        self.address = getattr(client.scheduler, "address", "its address")  # forgotten by Dask once it is gone

    def check(self, futures: Iterable[Any], plan: Plan, settled: Mapping[str, Settled]) -> None:
        """Raise SweepError once the scheduler has been away, or without workers, for too long."""
        if self.client.status == "running" and not any(f.status in ("cancelled", "lost") for f in futures):
            self.since = None
            self._look_for_workers()
            return
        self.since = self.since or time.monotonic()
        if self.client.status == "closed" or time.monotonic() - self.since > GRACE:
            raise SweepError(_lost(self.address, plan, settled))

    def _look_for_workers(self) -> None:
        """Now and then: a task without a worker waits, and nobody would know what for."""
        now = time.monotonic()
        if now - self.looked < LOOK:
            return
        self.looked = now
        try:
            has_workers = bool(self.client.nthreads())
        except OSError:  # lost in this moment: the next check sees it
            return
        if has_workers:
            self.worked, self.told = now, False
        elif now - self.worked > self.patience:
            raise SweepError(
                f"the scheduler at {self.address} had no worker for {now - self.worked:.0f} s; finished tasks are "
                f"kept. {self.hint}, then run the same command to resume."
            )
        elif not self.told:
            self.told = True
            end = "" if math.isinf(self.patience) else f", at most {self.patience:.0f} s"
            self.tell(f"waiting for a worker{end}: the scheduler at {self.address} has none. {self.hint}")


def _require_package(client: Client, alive: _Alive, plan: Plan, settled: Mapping[str, Settled]) -> None:
    """Ask the first worker whether it can import this package: without it, tasks would kill their workers."""
    if not plan.todo:
        return
    probe = client.submit(pkgutil.resolve_name, f"{__package__}.sweep_tasks:PLAN_FILE", pure=False)
    while probe.status not in ("finished", "error"):
        alive.check([probe], plan, settled)
        time.sleep(POLL)
    if probe.status == "error":
        raise SweepError(
            f"the workers cannot import {__package__} ({_one_line(probe.exception())}). "
            "Install the same version on the same Python there, start them again and rerun."
        )


def _submit(plan: Plan, client: Client, threads: int, retries: int, work: Work) -> dict[str, Any]:
    """Futures by task. Long chains first: they decide when the sweep ends."""
    path = remaining_path(plan.timed())
    session = os.urandom(4).hex()  # two sweeps on one scheduler never mistake each other's tasks
    futures: dict[str, Any] = {}
    for task in plan.todo:
        before = [futures[needed] for needed in task.needs if needed in futures]
        futures[task.id] = client.submit(
            work, plan.order(task, threads), *before, key=f"saema-{session}-{task.id}", retries=retries,
            priority=path[task.id], pure=False,
        )  # fmt: skip
    return futures


def _result(task: Task, future: Any) -> Settled | None:
    if future.status == "finished":
        outcome = future.result()
        return Settled(task, "skipped" if outcome.skipped else "done", outcome)
    if future.status == "error":
        error = future.exception()
        if type(error).__name__ == "KilledWorker":
            return Settled(task, "failed", error=KILLED)
        return Settled(task, "failed", error=_one_line(error))
    return None


def _running(client: Client, futures: Mapping[str, Any]) -> set[str]:
    """Tasks that some worker has in hand."""
    names = {future.key: name for name, future in futures.items()}
    with contextlib.suppress(Exception):  # asking is a courtesy: a scheduler too busy to answer breaks nothing
        return {names[keys[0]] for keys in client.processing().values() if keys and keys[0] in names}
    return set()


def _lost(address: str, plan: Plan, settled: Mapping[str, Settled]) -> str:
    done = sum(result.status in ("done", "skipped") for result in settled.values())
    return (
        f"the scheduler at {address} is gone; {done} of {len(plan.tasks)} tasks are finished and kept. "
        "Start it again and run the same command to resume."
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, SweepError) else f"{type(error).__name__}: {text[:600]}"


# ---- clusters --------------------------------------------------------------------------------------


def visible_gpus(device: str = "auto") -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; none when ``device`` is the CPU."""
    if device not in ("auto", "cuda"):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(number) for number, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]


def fit_this_machine(plan: Plan, workers: int = 0) -> Fit:
    """Processes and threads for this machine's cores, memory and GPUs; threads as when the sweep was started.

    ``workers`` other than 0 is kept, and counts the threads anew.
    """
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fit = fit_workers(
        len(plan.tasks), cores, psutil.virtual_memory().available, plan.memory_per_task or UNKNOWN_MEMORY,
        len(visible_gpus(plan.device)), workers, 0 if workers else plan.threads,
    )  # fmt: skip
    left = max(1, len(plan.todo))
    return fit if workers or fit.workers <= left else replace(fit, workers=left, limited_by="tasks")


@contextlib.contextmanager
def local_client(fit: Fit, gpus: list[str]) -> Iterator[Client]:
    """A Dask cluster on this machine, reachable from it alone: ``fit.workers`` processes, one GPU each if any."""
    import dask
    import psutil
    from distributed import Client, Nanny, Scheduler, SpecCluster

    shared = {name: fit.threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    workers = {}
    for number in range(fit.workers):
        own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        memory = int(0.9 * psutil.virtual_memory().total / fit.workers)
        options = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": memory, "env": {**shared, **own}}
        options["silence_logs"] = logging.CRITICAL
        workers[number] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:8787"}}
    with (
        dask.config.set(DASK_SETTINGS),
        calm(),
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def existing_client(address: str) -> Iterator[Client]:
    """A client of a running Dask scheduler."""
    import dask
    from distributed import Client

    if not re.fullmatch(r"(tcp|tls|ws|wss)://\S+:\d+", address):
        raise SweepError(f"scheduler is {address!r}; allowed: an address such as tcp://host:8786.")
    with dask.config.set(DASK_SETTINGS), calm():
        try:
            client = Client(address, timeout="10s")
        except (OSError, ValueError) as error:
            raise SweepError(
                f"no Dask scheduler answers at {address}. Start one with 'dask scheduler' and workers with "
                f"'dask worker {address} --nthreads 1', then run the same command again."
            ) from error
        with client:
            yield client


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Dask logs every lost connection and warns of a busy dashboard port; the sweep says it in its own line."""
    import warnings

    names = (
        "distributed",
        "distributed.client",
        "distributed.core",
        "distributed.comm",
        "distributed.nanny",
        "tornado.application",
    )
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


SLURM_KEYS = ("queue", "account", "walltime", "cores", "memory", "jobs", "gpus", "directives", "prologue", "interface")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def slurm_options(plan: Plan) -> dict[str, Any]:
    """Options of ``dask_jobqueue.SLURMCluster`` from the sweep file's ``slurm`` part, checked against the plan.

    Raises
    ------
    SweepError
        If a key is unknown, a value has the wrong shape, or a task is not expected to fit a job.
    """
    given = plan.slurm
    for key in given:
        if key not in SLURM_KEYS:
            raise SweepError(unknown_name("part of slurm", key, SLURM_KEYS))
    cores, jobs, gpus = given.get("cores", 4), given.get("jobs", 4), given.get("gpus", 0)
    for name, value in {"cores": cores, "jobs": jobs}.items():
        _require(isinstance(value, int) and value >= 1, f"slurm.{name}", value, "a whole number of at least 1")
    _require(isinstance(gpus, int) and gpus in (0, 1), "slurm.gpus", gpus, "0 or 1: one GPU a worker")
    walltime, memory = given.get("walltime", "04:00:00"), given.get("memory", "8GiB")
    _require(
        isinstance(walltime, str),
        "slurm.walltime",
        walltime,
        "quoted text such as '04:00:00' (YAML reads 4:00:00 as a number)",
    )
    seconds = _seconds(walltime)
    lists = {name: given.get(name, []) for name in ("directives", "prologue")}
    for name, lines in lists.items():
        _require(
            isinstance(lines, list) and all(isinstance(v, str) and "\n" not in v for v in lines),
            f"slurm.{name}",
            lines,
            "a list of single lines",
        )
    for name in ("queue", "account", "interface"):
        value = given.get(name, "x")
        _require(isinstance(value, str) and re.fullmatch(r"[\w.:,@-]+", value), f"slurm.{name}", value, "a name")
    longest = max((t.expected.seconds for t in plan.todo if t.expected.seconds), default=0.0)
    _require(
        longest + 600 < seconds,
        "slurm.walltime",
        walltime,
        f"more than the longest task takes (about {longest / 60:.0f} min) and 10 min",
    )
    size = _bytes(memory)
    needed = plan.memory_per_task or 0
    _require(
        needed <= size, "slurm.memory", memory, f"at least what one task is expected to take ({needed / 2**30:.1f} GiB)"
    )
    return {
        "queue": given.get("queue"), "account": given.get("account"), "interface": given.get("interface"),
        "walltime": walltime, "cores": 1, "processes": 1, "job_cpu": cores, "memory": memory,
        "job_name": f"saema-{plan.name}"[:60], "log_directory": str(plan.folder / "logs"),
        "job_extra_directives": [*(["--gres=gpu:1"] if gpus else []), *lists["directives"]],
        "job_script_prologue": [*lists["prologue"], *_exports(cores)],
        # Workers leave before SLURM ends their job, so that a task is moved, not killed.
        "worker_extra_args": ["--lifetime", f"{seconds - 300}s", "--lifetime-stagger", "60s"],
    }  # fmt: skip


def _exports(cores: int) -> list[str]:
    """Environment of a job: its threads, no pausing for memory, and the caches that the sweep was started with."""
    import shlex

    values = {name: str(cores) for name in THREAD_VARIABLES}
    values |= {f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}": "False" for name in ("TARGET", "SPILL", "PAUSE")}
    values |= {name: os.environ[name] for name in ("SAEMA_CACHE", "HF_HOME") if name in os.environ}
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


def slurm_job_script(plan: Plan) -> str:
    """The script that each job of the sweep would run; nothing is submitted."""
    with _slurm_cluster(plan) as cluster:
        return cluster.job_script()


@contextlib.contextmanager
def slurm_client(plan: Plan) -> Iterator[Client]:
    """Dask workers in SLURM jobs, as many as there is work for, at most ``slurm.jobs``."""
    from distributed import Client

    if shutil.which("sbatch") is None:
        raise SweepError(
            "sbatch is not on this machine. Run on the cluster's login node, or use --dry-run for the script."
        )
    with _slurm_cluster(plan) as cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=plan.slurm.get("jobs", 4))
        with Client(cluster) as client:
            yield client


@contextlib.contextmanager
def _slurm_cluster(plan: Plan) -> Iterator[Any]:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise SweepError(f"--slurm needs dask-jobqueue, which is not installed. Run: {INSTALL}") from error
    import dask

    options = slurm_options(plan)
    with dask.config.set(DASK_SETTINGS), calm(), SLURMCluster(**options, silence_logs="critical") as cluster:
        yield cluster


def _seconds(walltime: str) -> int:
    """Seconds of a SLURM time: ``minutes``, ``HH:MM:SS`` or ``D-HH:MM:SS``."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d\d):(\d\d)", walltime)
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    _require(walltime.isdigit(), "slurm.walltime", walltime, "HH:MM:SS, D-HH:MM:SS or minutes")
    return int(walltime) * 60


def _bytes(memory: Any) -> int:
    from dask.utils import parse_bytes

    _require(
        isinstance(memory, str) and re.fullmatch(r"\d+(\.\d+)? ?[kKMGT]i?B", memory),
        "slurm.memory",
        memory,
        "such as 8GiB",
    )
    return parse_bytes(memory)


def _require(condition: Any, what: str, value: object, allowed: str) -> None:
    if not condition:
        raise SweepError(f"{what} is {value!r}; allowed: {allowed}. Change the sweep file.")
