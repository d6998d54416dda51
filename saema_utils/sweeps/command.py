"""``saema sweep``: a grid of studies from one file, planned, carried out, and gathered into one table.

    base: smoke                              a registered study, a study file, or a list of them
    grid: {sae.k: [16, 32], seed: [0, 1]}    every combination of these
    cases: [{model: gpt2, layer: 11}]        optional: changes that belong together
    chapters: 1-7

Finished tasks are kept by the digest of all that they were made from: the same command resumes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from saema_utils.errors import ArtifactError, SaemaError, SweepError
from saema_utils.runs.files import atomic_path
from saema_utils.runs.freshness import digest

if TYPE_CHECKING:
    from saema_utils.sweeps.engine import End
    from saema_utils.sweeps.plan import Plan

MANY_RUNS, SHOWN_RUNS = 200, 30


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run; run nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help=f"Allow more than {MANY_RUNS} runs.")] = False,
) -> None:
    """Run a grid of studies on many workers. What is finished is skipped; an interrupted sweep resumes."""
    from saema_utils.runtime import visible_gpus
    from saema_utils.sweeps import engine
    from saema_utils.sweeps.plan import plan_sweep

    if sum(map(bool, (scheduler, slurm, serial))) > 1:
        raise SweepError("--scheduler, --slurm and --serial exclude each other. Give one.")
    if not serial:
        engine.require_dask()
    plan = plan_sweep(sweep_file, folder=out, chapters=chapters, device=device)
    _say_what_cannot_work(plan)
    workers, threads = engine.fit_this_machine(plan, workers)
    if dry_run:
        _show(plan, workers, threads)
        if slurm:
            with engine.slurm_cluster(plan) as cluster:
                typer.echo(cluster.job_script())
        return
    if len(plan.runs) > MANY_RUNS and not yes:
        raise SweepError(f"{len(plan.runs):,} runs are many; look at --dry-run, then pass --yes.")
    if scheduler or slurm:
        threads = plan.slurm.cores if slurm else 0  # else as the workers were started
    plan.write(threads)
    started = time.perf_counter()
    if serial or not plan.todo:
        settled = _reported(plan, engine.run_serially(plan, threads, retries))
    else:
        if scheduler:
            opened = engine.existing_client(scheduler)
            typer.echo(f"waiting for a worker of {scheduler}, at most {engine.PATIENCE} s")
        elif slurm:
            opened = engine.slurm_client(plan)
        else:
            opened = engine.local_client(workers, threads, visible_gpus(plan.device))
        with opened as client:
            typer.echo(f"Dask dashboard: {client.dashboard_link}")
            settled = _reported(plan, engine.run_on_dask(plan, client, threads, retries))
    counts = Counter(outcome.status for _, outcome in settled)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    typer.echo(f"{said} in {time.perf_counter() - started:.0f} s")
    _gather(plan, settled)
    if counts["failed"]:
        raise typer.Exit(1)


def _say_what_cannot_work(plan: Plan) -> None:
    """A line for each run whose study is refused before any work; the others run all the same.

    What studies have in common is looked at once.
    """
    from saema_utils.checks import check_study

    said: dict[str, str] = {}
    for run, study in plan.runs.items():
        prompts = (study.concepts, study.templates, study.prompts_file)
        key = digest([study.model, study.layer, study.sae.source, study.as_dict()["corpus"], prompts])
        if key not in said:
            said[key] = ""
            try:
                check_study(study)
            except SaemaError as error:
                said[key] = str(error)
        if said[key]:
            typer.echo(f"{run} cannot work: {said[key]}", err=True)


def _show(plan: Plan, workers: int, threads: int) -> None:
    for run in list(plan.runs)[:SHOWN_RUNS]:
        tasks = [task for task in plan.tasks if task.run == run and task.chapter]
        left = " ".join(str(task.chapter) for task in tasks if not task.finished)
        typer.echo(f"{run}: {f'chapters {left} to do' if left else 'finished'}")
    if len(plan.runs) > SHOWN_RUNS:
        typer.echo(f"... and {len(plan.runs) - SHOWN_RUNS:,} more runs")
    typer.echo(
        f"{len(plan.runs):,} runs, {len(plan.tasks):,} tasks ({len(plan.tasks) - len(plan.todo):,} finished already); "
        f"on this machine {workers} at a time, threads of each: {threads}. Runs go to {plan.folder}"
    )


def _reported(plan: Plan, ends: Iterable[End]) -> list[End]:
    """How every task went, each told in a line as it ends, above a bar where there is a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from saema_utils.sweeps.tasks import Outcome

    settled = [(task, Outcome("skipped")) for task in plan.tasks if task.finished]
    console = Console(file=sys.stderr)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("tasks", total=len(plan.tasks), completed=len(settled))
        for task, outcome in ends:
            settled.append((task, outcome))
            bar.advance(line)
            if outcome.error:
                typer.echo(f"{outcome.status}: {task.title}: {outcome.error}", err=True)
            elif outcome.status == "done":
                typer.echo(f"done: {task.title} ({outcome.seconds:.0f} s)")
    return settled


def _gather(plan: Plan, settled: list[End]) -> None:
    """Write what each task took, and the comparison of all runs that finished a chapter with numbers."""
    import pandas as pd

    from saema_utils.chapters.across_models.figures import sweep_figure
    from saema_utils.chapters.across_models.tables import compare_runs, save_comparison

    rows = [{"task": t.id, "run": t.run, "chapter": t.chapter, **asdict(outcome)} for t, outcome in settled]
    with atomic_path(plan.folder / "sweep_tasks.csv") as path:
        pd.DataFrame(rows).to_csv(path, index=False)
    finished = [plan.folder / run for run in plan.runs if (plan.folder / run / "manifest.json").exists()]
    try:
        table = compare_runs(finished, leave_out_damaged=True)
    except ArtifactError:  # none has finished such a chapter yet
        return
    fields = list(dict.fromkeys(name for changes in plan.changes.values() for name in changes))
    for path in save_comparison(table, sweep_figure(table, fields), plan.folder, "sweep"):
        typer.echo(str(path))
    typer.echo(f"Compare with other runs: saema compare {plan.folder} RUN ...")
