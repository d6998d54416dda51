"""The command line: ``saema run``, ``saema book``, ``saema studies``, ``saema doctor``.

Start-up stays light: everything heavy is imported inside the commands.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from saema_utils.errors import SaemaError, StudyError
from saema_utils.notebook import default_run_dir, parse_chapters, resolve_study
from saema_utils.runs.files import user_path
from saema_utils.study import DEFAULT_STUDY, STUDIES, Study
from saema_utils.sweeps.command import sweep_command

INTERRUPTED = 130  # what shells make of SIGINT
app = typer.Typer(
    help="What sparse coding does to the geometry of a language model's representations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def whole_number(text: str) -> int:
    """An option's value as a whole number; the refusal names it, which typer's own does not."""
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a whole number") from error


StudyOption = Annotated[str, typer.Option("--study", help="A registered study, or a study file (.json).")]
RunDirOption = Annotated[str, typer.Option("--run-dir", help="Where results go. Default: runs/<study>.")]


@app.command()
def run(
    study: StudyOption = DEFAULT_STUDY,
    chapters: Annotated[str, typer.Option(help="Which chapters, such as 3-5.")] = "1-7",
    run_dir: RunDirOption = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[
        int | None, typer.Option(parser=whole_number, metavar="NUMBER", help="First seed. Default: the study's own.")
    ] = None,
    prompts: Annotated[str, typer.Option(help="JSON file {concept: [prompt, ...]} to use instead.")] = "",
    model: Annotated[str, typer.Option(help="A checkpoint path or hub name instead of the study's.")] = "",
    layer: Annotated[
        int | None, typer.Option(parser=whole_number, metavar="NUMBER", help="Layer of the residual stream.")
    ] = None,
    sae: Annotated[str, typer.Option(help="A folder or RELEASE:ID instead of training one.")] = "",
    corpus: Annotated[str, typer.Option(help="A .txt file instead of the study's corpus.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Start over: empty the run directory first.")] = False,
) -> None:
    """Run the chapters of a study. What did not change is skipped; an interrupted run resumes."""
    from saema_utils import checks as preflight
    from saema_utils import runtime
    from saema_utils.runs import files
    from saema_utils.runs.directory import RunDirectory, forget

    wanted = parse_chapters(chapters)
    runtime.choose_device(device)
    chosen = customised(resolve_study(study, seed), prompts, model, layer, sae, corpus)
    preflight.check_study(chosen)
    target = user_path(run_dir) if run_dir else default_run_dir(chosen)
    if force:
        forget(target)
    directory = RunDirectory(target, chosen, device=device)
    from saema_utils.publishing.execution import run_notebooks

    study_file = directory.path / "study.json"
    files.write_json(study_file, chosen.as_dict())
    remarks = directory.remarks()
    with directory.locked(), _chapter_progress() as on_progress:
        results = run_notebooks(
            directory, wanted, on_progress=on_progress, device=device, study_argument=str(study_file)
        )
    for remark in directory.remarks()[len(remarks) :]:
        typer.echo(remark, err=True)
    for result in results:
        typer.echo(
            f"chapter {result.chapter}: " + ("unchanged, skipped" if result.skipped else f"{result.seconds:.0f} s")
        )
    typer.echo(f"Results: {directory.path}")


def customised(study: Study, prompts: str, model: str, layer: int | None, sae: str, corpus: str) -> Study:
    """A study with the user's own model, layer, SAE, prompts or corpus; named after what it changes."""
    changes: dict[str, Any] = {}
    if prompts:
        path = user_path(prompts)
        if not path.is_file():
            raise StudyError(f"prompts {prompts!r} is not a file. Pass a JSON file {{concept: [prompt, ...]}}.")
        changes["prompts_file"] = str(path.resolve())
    if model:
        changes["model"] = _absolute(model)
    if layer is not None:
        changes["layer"] = layer
    if sae:
        changes["sae.source"] = _absolute(sae)
    if corpus:
        path = user_path(corpus)
        if not path.is_file():
            raise StudyError(f"corpus {corpus!r} is not a file. Pass a .txt file.")
        changes["corpus.source"] = str(path.resolve())
    if not changes:
        return study
    changed = study.changed(**changes)
    if prompts:
        from saema_utils.text.concepts import build_prompts

        changed = changed.changed(concepts=tuple(build_prompts(changed)))
    return changed.changed(name=f"{study.name}-{changed.digest[:6]}")


def _absolute(source: str) -> str:
    """A folder by its whole path, so that the study can be run again from anywhere; other names as they are."""
    path = user_path(source)
    return str(path.resolve()) if path.is_dir() else source


@contextlib.contextmanager
def _chapter_progress() -> Iterator[Callable[..., None]]:
    """A rich progress display fed by the notebooks, plain lines where output is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console, tasks = Console(stderr=True), {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:

        def on_progress(chapter: int, cell: int, n_cells: int, description: str, done: int, total: int) -> None:
            if chapter not in tasks:
                tasks[chapter] = display.add_task(f"chapter {chapter}", total=n_cells, note="")
                if not console.is_terminal:
                    typer.echo(f"chapter {chapter} ...", err=True)
            note = f"{description} {done}/{total}" if description and done < total else ""
            display.update(tasks[chapter], completed=cell, total=n_cells, note=note)

        yield on_progress


@app.command("book")
def build(study: StudyOption = DEFAULT_STUDY, run_dir: RunDirOption = "") -> None:
    """Build the book in HTML from a finished run; nothing is executed again."""
    from saema_utils.publishing.build import build_book
    from saema_utils.runs.directory import RunDirectory

    chosen = resolve_study(study)
    path = user_path(run_dir) if run_dir else default_run_dir(chosen)
    if run_dir and (path / "study.json").exists():
        chosen = resolve_study(str(path / "study.json"))
    index = build_book(RunDirectory(path, chosen))
    typer.echo(f"Open {index}")


@app.command()
def studies() -> None:
    """List the studies: model, layer, SAE, tokens, hardware, measured time."""
    from contextlib import suppress

    from rich.console import Console
    from rich.table import Table

    from saema_utils.runs import directory as manifest

    listing = Table(box=None, pad_edge=False)
    for heading in ("study", "model", "layer", "SAE", "tokens", "hardware", "time"):
        listing.add_column(heading, no_wrap=heading in ("study", "layer", "tokens"), overflow="fold")
    for study in STUDIES.values():
        chapters: dict[str, Any] = {}
        with suppress(SaemaError):  # a damaged manifest tells no time; the list is shown all the same
            chapters = manifest.read_manifest(default_run_dir(study)).get("chapters", {})
        seconds = sum(chapter.get("seconds", 0) for chapter in chapters.values())
        recipe = study.sae
        trained = f"trained: {recipe.architecture} {recipe.d_sae}, k {recipe.k}"
        listing.add_row(
            study.name,
            study.model,
            str(study.layer),
            trained if recipe.source == "train" else recipe.source,
            f"{study.corpus.tokens:,}",
            study.hardware,
            f"{seconds / 60:.1f} min" if seconds else "not run here",
        )
    Console().print(listing)


@app.command()
def doctor() -> None:
    """Say what this machine has, what is missing, and how to get it."""
    from saema_utils.checks import examine

    sound = True
    for finding in examine():
        sound &= finding.ok or finding.optional
        mark = "ok  " if finding.ok else ("note" if finding.optional else "MISS")
        typer.echo(f"{mark}  {finding.name}: {finding.found}" + ("" if finding.ok else f". {finding.remedy}"))
    raise typer.Exit(0 if sound else 1)


app.command("sweep")(sweep_command)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs, or of a sweep.")],
    out: Annotated[str, typer.Option(help="Where the table and figure go.")] = "runs/comparison",
) -> None:
    """Put finished runs side by side: one table and one figure."""
    from rich.console import Console
    from rich.table import Table

    from saema_utils.chapters.across_models.tables import compare_runs, save_comparison

    table = compare_runs(runs)
    # After what may be refused: importing the library of the figures writes a list of fonts.
    from saema_utils.chapters.across_models.figures import by_run, effects_by_run

    wide = by_run(table)
    listing = Table(box=None, pad_edge=False)
    for name in wide:
        listing.add_column(name, overflow="fold")
    for row in wide.itertuples(index=False):
        listing.add_row(*map(str, row))
    Console().print(listing)
    typer.echo("✓ supported, ✗ not supported, ? inconclusive")
    for path in save_comparison(table, effects_by_run(table), user_path(out).resolve(), "comparison"):
        typer.echo(str(path))


def main() -> None:
    """Entry point: errors raised on purpose become one line on standard error and exit code 2."""
    usage_error = typer.BadParameter.__mro__[2]  # click's ClickException, wherever typer keeps it
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer turns Ctrl-C into this without a word
            raise KeyboardInterrupt
        sys.exit(code)
    except SaemaError as error:
        _refuse(str(error))
    except usage_error as error:
        _refuse(f"{' '.join(error.format_message().split()).rstrip('.')}. 'saema --help' lists what is allowed.")
    except (KeyboardInterrupt, typer.Abort):
        print("saema: interrupted; finished parts are kept. Run the same command again to resume.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _refuse(message: str) -> None:
    print(f"saema: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
