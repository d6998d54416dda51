"""``saema sweep``: a grid of studies from one file, planned, carried out, and gathered into one table.

    base: smoke                              a registered study, a study file, or a list of them
    grid: {sae.k: [16, 32], seed: [0, 1]}    every combination of these
    cases: [{model: gpt2, layer: 11}]        optional: changes that belong together
    chapters: 1-5

Finished tasks are kept by the digest of all that they were made from: the same command resumes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saema_utils.errors import RunLockedError, SweepError
from saema_utils.runs.files import atomic_path
from saema_utils.sweeps.engine import (
    PATIENCE,
    Settled,
    existing_client,
    fit_this_machine,
    local_client,
    require_dask,
    run_on_dask,
    run_serially,
    slurm_client,
    slurm_job_script,
    visible_gpus,
)
from saema_utils.sweeps.plan import MANY_RUNS, Fit, Plan, makespan, plan_sweep

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

SHOWN_RUNS = 30


def sweep_command(
    sweep_file: Annotated[str, typer.Argument(help="YAML: base, grid, chapters (see the book's page on sweeps).")],
    out: Annotated[str, typer.Option(help="Where the runs go. Default: runs/<name of the file>.")] = "",
    chapters: Annotated[str, typer.Option(help="Instead of the file's; earlier ones they need are added.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps, instead of the file's.")] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes on this machine. Default: what fits.")] = 0,
    scheduler: Annotated[str, typer.Option(help="Address of a running Dask scheduler, tcp://host:8786.")] = "",
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit workers as the file's slurm part says.")] = False,
    serial: Annotated[bool, typer.Option("--serial", help="No Dask: one task after the other, here.")] = False,
    retries: Annotated[int, typer.Option(min=0, max=10, help="How often a failed task is tried again.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and how long; run nothing.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep a line of progress: done, running, failed, left.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help=f"Allow more than {MANY_RUNS} runs.")] = False,
) -> None:
    """Run a grid of studies on many workers. What is finished is skipped; an interrupted sweep resumes."""
    if sum(map(bool, (scheduler, slurm, serial))) > 1:
        raise SweepError("--scheduler, --slurm and --serial exclude each other. Give one.")
    if not serial:
        require_dask()
    plan = plan_sweep(sweep_file, folder=out, chapters=chapters, device=device)
    fit = fit_this_machine(plan, workers)
    if dry_run:
        _show_plan(plan, fit)
        if slurm:
            typer.echo(slurm_job_script(plan))
        return
    if len(plan.runs) > MANY_RUNS and not yes:
        raise SweepError(f"{len(plan.runs):,} runs are many; look at --dry-run, then pass --yes.")
    with _one_sweep_at_a_time(plan):
        started = time.perf_counter()
        settled = _carry_out(plan, fit, scheduler, slurm, serial, retries, watch)
        _finish(plan, settled, time.perf_counter() - started)
    if any(result.status in ("failed", "not run") for result in settled.values()):
        raise typer.Exit(1)


def _carry_out(
    plan: Plan, fit: Fit, scheduler: str, slurm: bool, serial: bool, retries: int, watch: bool
) -> Mapping[str, Settled]:
    report = _Report(plan, quiet=watch)
    if serial or not plan.todo:
        return run_serially(plan, fit.threads, report.settled, retries=retries)
    patience, hint = PATIENCE, f"Start one: dask worker {scheduler} --nthreads 1"
    if scheduler:
        opened, threads = existing_client(scheduler), 0
    elif slurm:  # jobs may wait for days in a queue
        opened, threads = slurm_client(plan), plan.slurm.get("cores", 4)
        patience, hint = math.inf, "'squeue' shows where SLURM's queue stands"
    else:
        hint = "This machine starts them again"
        opened, threads = local_client(fit, visible_gpus(plan.device)), fit.threads
        typer.echo(f"{fit.workers} worker processes, {fit.threads} threads each (limited by {fit.limited_by})")
    with opened as client:
        typer.echo(f"Dask dashboard: {client.dashboard_link}")
        with report.live() if watch else contextlib.nullcontext() as refresh:
            return run_on_dask(
                plan, client, threads=threads, retries=retries, on_settled=report.settled, watch=refresh,
                tell=typer.echo, patience=patience, hint=hint,
            )  # fmt: skip


@contextlib.contextmanager
def _one_sweep_at_a_time(plan: Plan) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(plan.folder / ".sweep.lock")
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunLockedError(f"another sweep is working in {plan.folder}. Wait for it, or pass --out.") from error
    except OSError as error:
        raise SweepError(f"cannot write to the folder {plan.folder} ({error.strerror}). Pass another --out.") from error
    try:
        yield
    finally:
        lock.release()


# ---- before ----------------------------------------------------------------------------------------


def describe(plan: Plan, fit: Fit) -> dict[str, Any]:
    """Numbers about a plan: tasks, finished ones, seconds of work, expected wall time, memory of a task.

    Sums are None when no manifest tells how long a task takes.
    """
    known = all(task.expected.seconds is not None for task in plan.todo)
    timed = plan.timed()
    return {
        "runs": len(plan.runs), "tasks": len(plan.tasks), "finished": len(plan.tasks) - len(plan.todo),
        "work_seconds": sum(task.seconds for task in timed) if known else None,
        "wall_seconds": makespan(timed, fit.workers) if known else None,
        "memory": plan.memory_per_task,
    }  # fmt: skip


def _show_plan(plan: Plan, fit: Fit) -> None:
    from rich.console import Console

    Console().print(plan_table(plan))
    facts = describe(plan, fit)
    if len(plan.runs) > SHOWN_RUNS:
        typer.echo(f"... and {len(plan.runs) - SHOWN_RUNS:,} more runs")
    typer.echo(
        f"{facts['runs']:,} runs, {facts['tasks']:,} tasks ({facts['finished']:,} finished already); "
        f"work {duration(facts['work_seconds'])}, on {fit.workers} workers about {duration(facts['wall_seconds'])}; "
        f"memory {_size(facts['memory'])} a task. Runs go to {plan.folder}"
    )


def plan_table(plan: Plan) -> Table:
    """One row a run: what it changes, its chapters, and what is expected of them."""
    from rich.table import Table

    listing = Table(box=None, pad_edge=False)
    for heading in ("run", "chapters", "finished", "time", "memory", "estimate"):
        listing.add_column(heading, overflow="fold")
    for run in list(plan.runs)[:SHOWN_RUNS]:
        tasks = [task for task in plan.tasks if task.run == run and task.kind == "chapter"]
        todo = [task for task in tasks if not task.finished]
        seconds = [task.expected.seconds for task in todo]
        memory = [task.expected.memory for task in todo if task.expected.memory]
        listing.add_row(
            run, " ".join(str(task.chapter) for task in tasks), str(len(tasks) - len(todo)),
            duration(None if None in seconds else sum(seconds)), _size(max(memory, default=None)),
            ", ".join(sorted({task.expected.basis for task in todo})) or "nothing to do",
        )  # fmt: skip
    return listing


def duration(seconds: float | None) -> str:
    """Seconds as a person says them; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


# ---- meanwhile -------------------------------------------------------------------------------------


class _Report:
    """Says how a sweep goes: one line a finished task, or one line that is kept up to date."""

    def __init__(self, plan: Plan, quiet: bool = False):
        self.plan, self.quiet, self.started = plan, quiet, time.monotonic()

    def settled(self, result: Settled) -> None:
        """A line for a task that ran, or failed; nothing for one that was finished before."""
        if result.status in ("failed", "not run"):
            typer.echo(f"{result.status}: {result.task.id}: {result.error}", err=True)
        elif result.status == "done" and not self.quiet and result.outcome is not None:
            typer.echo(f"done: {result.task.id} ({duration(result.outcome.seconds)})")

    @contextlib.contextmanager
    def live(self) -> Iterator[Any]:
        """A function that keeps the line up to date; where output is not a terminal, a line every 10 s."""
        from rich.console import Console
        from rich.live import Live

        console, last = Console(stderr=True), 0.0
        with (
            Live(console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else contextlib.nullcontext() as live
        ):

            def refresh(settled: Mapping[str, Settled], running: set[str]) -> None:
                nonlocal last
                if time.monotonic() - last < (1.0 if live else 10.0):
                    return
                last = time.monotonic()
                line = self.line(settled, running)
                live.update(line, refresh=True) if live else typer.echo(line, err=True)

            yield refresh

    def line(self, settled: Mapping[str, Settled], running: set[str]) -> str:
        """Such as ``12 of 40 done, 2 running (smoke_k-16/3: noise ranks 4/9), 0 failed, about 3 min left``."""
        done = sum(result.status in ("done", "skipped") for result in settled.values())
        failed = sum(result.status in ("failed", "not run") for result in settled.values())
        steps = ", ".join(filter(None, (self._step(task) for task in self.plan.todo if task.id in running)))
        return (
            f"{done} of {len(self.plan.tasks)} done, {len(running)} running{f' ({steps})' if steps else ''}, "
            f"{failed} failed, {self._left(settled, len(running))}"
        )

    def _step(self, task: Any) -> str:
        """What a running task says of itself, if its folder can be seen from here."""
        file = self.plan.folder / task.run / f".{task.kind}-{task.chapter}.progress"
        with contextlib.suppress(OSError, ValueError):
            description, done, total = file.read_text().split("\t")
            return f"{task.id}: {description} {done}/{total}"
        return task.id

    def _left(self, settled: Mapping[str, Settled], running: int) -> str:
        """Expected seconds of what is left, on as many workers as run now, in units of how it went so far."""
        ran = [result for result in settled.values() if result.outcome is not None and not result.outcome.skipped]
        if not ran:
            return "time left unknown"
        expected = {task.id: task.seconds for task in self.plan.timed()}
        pace = sum(r.outcome.seconds for r in ran) / max(1e-9, sum(expected[r.task.id] for r in ran))
        left = [task for task in self.plan.timed() if task.id not in settled]
        known = {task.id for task in left}
        left = [type(task)(task.id, task.seconds * pace, tuple(n for n in task.needs if n in known)) for task in left]
        return f"about {duration(makespan(left, max(1, running)))} left"


# ---- after -----------------------------------------------------------------------------------------


def gather(plan: Plan) -> pd.DataFrame | None:
    """The comparison of all runs that finished a chapter with numbers, or None when none did yet."""
    from saema_utils.chapters.across_models.tables import compare_runs
    from saema_utils.errors import ArtifactError

    finished = [plan.folder / run for run in plan.runs if (plan.folder / run / "manifest.json").exists()]
    try:
        return compare_runs(finished, leave_out_damaged=True)
    except ArtifactError:
        return None


def task_table(settled: Mapping[str, Settled]) -> pd.DataFrame:
    """One row a task: status, seconds, peak memory (bytes), where it ran, its error."""
    import pandas as pd

    return pd.DataFrame(
        {
            "task": result.task.id, "run": result.task.run, "chapter": result.task.chapter, "status": result.status,
            "seconds": result.outcome.seconds if result.outcome else None,
            "peak_memory": result.outcome.peak_memory if result.outcome else None,
            "where": result.outcome.where if result.outcome else "", "error": result.error,
        }
        for result in settled.values()
    )  # fmt: skip


def _finish(plan: Plan, settled: Mapping[str, Settled], seconds: float) -> None:
    from saema_utils.chapters.across_models.figures import sweep_figure
    from saema_utils.chapters.across_models.tables import save_comparison

    with atomic_path(plan.folder / "sweep_tasks.csv") as path:
        task_table(settled).to_csv(path, index=False)
    counts = {
        status: sum(r.status == status for r in settled.values()) for status in ("done", "skipped", "failed", "not run")
    }
    typer.echo(", ".join(f"{count} {status}" for status, count in counts.items() if count) + f" in {duration(seconds)}")
    table = gather(plan)
    if table is not None:
        fields = list(dict.fromkeys(name for changes in plan.changes.values() for name in changes))
        for path in save_comparison(table, sweep_figure(table, fields), plan.folder, "sweep"):
            typer.echo(str(path))
    typer.echo(f"Compare with other runs: saema compare {plan.folder} RUN ...")
