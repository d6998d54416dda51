"""Sweeps on a SLURM cluster: dask-jobqueue's jobs, with options that are checked before one is submitted."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .errors import SweepError, unknown_name
from .sweep_engine import DASK_SETTINGS, INSTALL, calm
from .sweep_plan import Plan

if TYPE_CHECKING:
    from distributed import Client

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
