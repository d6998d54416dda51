"""The engines a sweep runs on: this process, or Dask on this machine, on a cluster that runs, or in SLURM jobs."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from saema_utils.errors import SweepError, one_line
from saema_utils.runtime import MEMORY_OF_A_PROCESS, THREAD_VARIABLES, cores, visible_gpus
from saema_utils.sweeps.tasks import Outcome, Task, carry_out, reason_of

if TYPE_CHECKING:
    from distributed import Client, Future

    from saema_utils.sweeps.plan import Plan

INSTALL = 'pip install "saema_utils[sweep]"'
PATIENCE = 600  # seconds without a first worker after which a sweep gives up
# A worker keeps memory that its libraries do not give back: pausing or spilling would stall it for good.
DASK_SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.comm.timeouts.connect": "10s",
}
KILLED = (
    "the worker died each time it ran this, most often for lack of memory. Give fewer workers (--workers) or a smaller "
    "study."
)


End = tuple[Task, Outcome]


def run_serially(plan: Plan, threads: int = 1, retries: int = 0, work: Callable = carry_out) -> Iterator[End]:
    """Every unfinished task in this process, one after the other; a failed one stops only what needs it."""
    lost: set[str] = set()
    for task in plan.todo:
        outcome = _blocked(task, lost)
        for _ in range(0 if outcome else 1 + retries):
            try:
                outcome = work(task, threads)
                break
            except Exception as error:
                outcome = Outcome("failed", error=reason_of(error))
        if outcome.error:
            lost.add(task.id)
        yield task, outcome


def run_on_dask(
    plan: Plan, client: Client, threads: int = 1, retries: int = 1, work: Callable = carry_out
) -> Iterator[End]:
    """Every unfinished task on a Dask cluster, in the order in which they end.

    Dask places tasks, those with the longest chain behind them first, moves those of a dead worker to another, and
    retries those that raise. A task whose worker died four times is given up.

    Raises
    ------
    SweepError
        If the scheduler is lost. Finished tasks are kept; the same sweep resumes.
    """
    from distributed import CancelledError, KilledWorker, as_completed

    session = os.urandom(4).hex()  # two sweeps on one scheduler never mistake each other's tasks
    address = client.scheduler.address
    futures: dict[str, Future] = {}
    for task in plan.todo:
        before = [futures[needed] for needed in task.needs if needed in futures]
        how = {"key": f"saema-{session}-{task.id}", "retries": retries, "priority": -task.chapter, "pure": False}
        futures[task.id] = client.submit(work, task, threads, *before, **how)
    tasks = {futures[task.id].key: task for task in plan.todo}
    for future in as_completed(futures.values()):
        task = tasks[future.key]
        lost = {needed for needed in task.needs if needed in futures and futures[needed].status != "finished"}
        try:
            yield task, future.result()
        except KilledWorker:
            yield task, _blocked(task, lost) or Outcome("failed", error=KILLED)
        except CancelledError as error:
            raise SweepError(
                f"the scheduler at {address} is gone; finished tasks are kept. "
                "Start it again and run the same command to resume."
            ) from error
        except Exception as error:
            yield task, _blocked(task, lost) or Outcome("failed", error=reason_of(error))


def _blocked(task: Task, lost: set[str]) -> Outcome | None:
    """The verdict on a task one of whose needs did not come about."""
    causes = [needed for needed in task.needs if needed in lost]
    return Outcome("not run", error=f"needs {causes[0]}, which did not finish") if causes else None


# ---- clusters --------------------------------------------------------------------------------------


def fit_workers(
    n_tasks: int, cores: int, memory: int, gpus: int = 0, workers: int = 0, threads: int = 0
) -> tuple[int, int]:
    """Processes, and threads of each, that fill a machine without overfilling its memory (bytes).

    One worker a GPU where there are GPUs; else one a core, fewer if tasks of the embedded model would not fit
    together. Never more than tasks. ``workers`` and ``threads`` other than 0 are kept.

    >>> fit_workers(100, cores=16, memory=20 * 2**30)
    (8, 2)
    """
    room = gpus or min(cores // max(1, threads), memory // MEMORY_OF_A_PROCESS)
    chosen = workers or max(1, min(room, n_tasks))
    return chosen, threads or max(1, cores // chosen)


def fit_this_machine(plan: Plan, workers: int = 0) -> tuple[int, int]:
    """Processes and threads for this machine; threads as when the sweep was started, unless ``workers`` is given."""
    import psutil

    n_tasks = len(plan.todo if plan.threads else plan.tasks)
    memory, gpus = psutil.virtual_memory().available, len(visible_gpus(plan.device))
    return fit_workers(n_tasks, cores(), memory, gpus, workers, 0 if workers else plan.threads)


@contextlib.contextmanager
def local_client(workers: int, threads: int, gpus: list[str]) -> Iterator[Client]:
    """A Dask cluster on this machine, reachable from it alone: so many processes, one GPU each if there are any."""
    import psutil
    from distributed import Client, LocalCluster, WorkerPlugin

    class OneGpuEach(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[worker.name % len(gpus)]

    options = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:8787",
        "memory_limit": int(0.9 * psutil.virtual_memory().total / workers),
        "env": dict.fromkeys(THREAD_VARIABLES, threads),
        "silence_logs": logging.CRITICAL,
    }
    with _settings(), LocalCluster(**options) as cluster, Client(cluster) as client:
        if gpus:
            client.register_plugin(OneGpuEach())
        yield client


@contextlib.contextmanager
def existing_client(address: str, patience: float = PATIENCE) -> Iterator[Client]:
    """A client of a running Dask scheduler, once it has a first worker, and that one can import this package."""
    from distributed import Client

    if not re.fullmatch(r"(tcp|tls|ws|wss)://\S+:\d+", address):
        raise SweepError(f"scheduler is {address!r}; allowed: an address such as tcp://host:8786.")
    with _settings(), contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(Client(address, timeout="10s"))
            client.wait_for_workers(1, timeout=patience)
            # Without the package a task would kill its worker, and then the next.
            client.run(__import__, __package__, workers=list(client.nthreads())[:1])
        except (OSError, ValueError, ImportError) as error:
            raise SweepError(
                f"no Dask scheduler at {address} with a worker that has saema_utils ({reason_of(error)}). Start 'dask "
                f"scheduler', and 'dask worker {address} --nthreads 1' where it is installed, then run again."
            ) from error
        yield client


@contextlib.contextmanager
def slurm_client(plan: Plan) -> Iterator[Client]:
    """Dask workers in SLURM jobs, as many as there is work for, at most ``slurm.jobs``."""
    from distributed import Client

    if shutil.which("sbatch") is None:
        raise SweepError(
            "sbatch is not on this machine. Run on the cluster's login node, or use --dry-run for the script."
        )
    with slurm_cluster(plan) as cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=plan.slurm.jobs)
        with Client(cluster) as client:
            yield client


@contextlib.contextmanager
def slurm_cluster(plan: Plan) -> Iterator[Any]:
    """dask-jobqueue's cluster, nothing submitted yet: one worker a job, all its cores threads of its mathematics."""
    from dask_jobqueue import SLURMCluster

    given = plan.slurm
    values = dict.fromkeys(THREAD_VARIABLES, str(given.cores))
    values |= {f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}": "False" for name in ("TARGET", "SPILL", "PAUSE")}
    values |= {name: os.environ[name] for name in ("SAEMA_CACHE", "HF_HOME") if name in os.environ}
    options = {name: getattr(given, name) for name in ("queue", "account", "interface", "walltime", "memory")} | {
        "cores": 1,
        "processes": 1,
        "job_cpu": given.cores,
        "job_name": f"saema-{plan.name}"[:60],
        "log_directory": str(plan.folder / "logs"),
        "job_extra_directives": [*(["--gres=gpu:1"] if given.gpus else []), *given.directives],
        "job_script_prologue": [*given.prologue, *(f"export {k}={shlex.quote(v)}" for k, v in values.items())],
        # Workers leave before SLURM ends their job, so that a task is moved, not killed.
        "worker_extra_args": ["--lifetime", f"{given.seconds - 300}s", "--lifetime-stagger", "60s"],
        "silence_logs": "critical",
    }
    with _settings():
        try:
            cluster = SLURMCluster(**options)
        except (ValueError, TypeError) as error:
            raise SweepError(f"slurm is refused by dask-jobqueue: {one_line(error)}. Change the sweep file.") from error
        with cluster:
            yield cluster


def require_dask() -> None:
    """Refuse in one line where Dask is not installed."""
    try:
        import dask_jobqueue, distributed  # noqa: E401, F401, I001
    except ImportError as error:
        raise SweepError(f"a sweep runs on Dask, which is not installed ({error}). Run: {INSTALL}") from error


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Dask as a sweep needs it, and silent: it logs every lost connection, which the sweep says in its own line."""
    import dask

    with dask.config.set(DASK_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
