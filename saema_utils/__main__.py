"""The command line: ``saema run``, ``saema book``, ``saema studies``, ``saema sae``, ``saema doctor``.

Start-up stays light: everything heavy is imported inside the commands.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saema_utils.chapters import OF_A_RUN
from saema_utils.errors import SaemaError, StudyError, require
from saema_utils.notebook import default_run_dir, parse_chapters, resolve_study, runs_folder
from saema_utils.runs.files import user_path
from saema_utils.study import DEFAULT_STUDY, STUDIES, Study
from saema_utils.sweeps.command import sweep_command
from saema_utils.wording import in_prose

if TYPE_CHECKING:
    from saema_utils.runs.directory import RunDirectory

SCORECARD = 7  # the chapter that judges
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
    chapters: Annotated[str, typer.Option(help="Which chapters, such as 3-5.")] = f"{OF_A_RUN[0]}-{OF_A_RUN[-1]}",
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
    corpus: Annotated[str, typer.Option(help="A file of text instead of the study's corpus.")] = "",
    column: Annotated[str, typer.Option(help="Where its text stands, in a file of rows. Default: text.")] = "",
    jobs: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="NUMBER",
            help="Processes for tables and notebooks, on the CPU. 1: one by one. Default: one a core, if they fit.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start over: empty the run directory first.")] = False,
) -> None:
    """Run the chapters of a study. What did not change is skipped; an interrupted run resumes."""
    from saema_utils import checks as preflight
    from saema_utils import runtime
    from saema_utils.runs import files
    from saema_utils.runs.directory import RunDirectory, forget

    wanted = parse_chapters(chapters)
    require(jobs is None or jobs > 0, "--jobs", jobs, "1 or more", SaemaError)
    runtime.choose_device(device)
    chosen = customised(resolve_study(study, seed), prompts, model, layer, sae, corpus, column)
    preflight.check_study(chosen)
    said = preflight.remarks_on(chosen)
    for remark in said:
        typer.echo(remark, err=True)
    target = user_path(run_dir) if run_dir else default_run_dir(chosen)
    trial = preflight.try_study(chosen, None if force else target, device)
    if trial is not None:
        typer.echo(f"SAE {chosen.sae.source!r} {trial}", err=True)
    if force:
        forget(target)
    directory = RunDirectory(target, chosen, device=device)
    from saema_utils.publishing.execution import run_notebooks

    study_file = directory.path / "study.json"
    files.write_json(study_file, chosen.as_dict())
    remarks = directory.remarks()
    with directory.locked(), _chapter_progress() as on_progress:
        results = run_notebooks(
            directory,
            wanted,
            on_progress=on_progress,
            device=device,
            study_argument=str(study_file),
            jobs=jobs or runtime.processes(),
        )
    for remark in directory.remarks()[len(remarks) :]:
        if remark not in said:
            typer.echo(remark, err=True)
    for result in results:
        typer.echo(
            f"chapter {result.chapter}: " + ("unchanged, skipped" if result.skipped else f"{result.seconds:.0f} s")
        )
    for line in what_to_look_at(directory, judged=SCORECARD in wanted):
        typer.echo(line)


def what_to_look_at(directory: RunDirectory, judged: bool) -> Iterator[str]:
    """The answer in words and the verdicts, if the scorecard is of this very run; then where everything is."""
    if judged:
        from saema_utils.publishing.confirmation import read_card
        from saema_utils.publishing.readme import ANSWER, read_signs

        tables = directory.path / "tables"
        claims, signs = read_card(tables / "07_claims.csv"), read_signs(tables)
        for sentence, check in ANSWER:
            holds = {True: "so here", False: "not so here", None: "cannot be told here"}[check(claims, signs).holds]
            yield f"{sentence} ({holds})"
        counts = claims["holds_up"].value_counts()
        yield f"{len(claims)} claims: " + "; ".join(f"{count} {verdict}" for verdict, count in counts.items())
    yield f"Results: {directory.path} (tables, figures, executed notebooks)"
    yield f"Next: saema book --run-dir {shlex.quote(str(directory.path))}"


def customised(
    study: Study, prompts: str, model: str, layer: int | None, sae: str, corpus: str, column: str = ""
) -> Study:
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
            raise StudyError(f"corpus {corpus!r} is not a file. Pass a file of text.")
        changes["corpus.source"] = str(path.resolve())
    if column:
        changes["corpus.column"] = column
    if not changes:
        return study
    changed = study.changed(**changes)
    if prompts:
        from saema_utils.text.concepts import build_prompts

        changed = changed.changed(concepts=tuple(build_prompts(changed)))
    return changed.changed(name=f"{study.name}-{changed.digest[:6]}")


def _absolute(source: str) -> str:
    """A folder or file by its whole path, so that the study can be run again from anywhere; other names as they are."""
    path = user_path(source)
    return str(path.resolve()) if path.exists() else source


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
def build(
    study: Annotated[str, typer.Option(help="A registered study, or a study file. Default: that of the run.")] = "",
    run_dir: Annotated[str, typer.Option(help="A finished run. Default: the one that finished last.")] = "",
) -> None:
    """Build the book in HTML from a finished run; nothing is executed again."""
    from saema_utils.publishing.build import build_book, last_finished
    from saema_utils.runs.directory import RunDirectory

    if study:
        chosen = resolve_study(study)
        found = RunDirectory(user_path(run_dir) if run_dir else default_run_dir(chosen), chosen)
    elif run_dir:
        found = RunDirectory.at(user_path(run_dir))
    else:
        found = last_finished(runs_folder())
        typer.echo(f"Of {found.path}, the run that finished last (--run-dir names another).")
    index = build_book(found)
    typer.echo(f"Open {index}")


@app.command()
def studies(
    study: Annotated[str, typer.Argument(help="One study, or a study file, in full. Default: all, a row each.")] = "",
) -> None:
    """List the studies: model, layer, what they need, and how long they took here."""
    from rich.console import Console
    from rich.table import Table

    if study:
        for line in _in_full(resolve_study(study)):
            typer.echo(line)
        return
    listing = Table(box=None, pad_edge=False)
    for heading in ("study", "model", "layer", "needs", "time here"):
        listing.add_column(heading, no_wrap=True)
    for each in STUDIES.values():
        seconds = sum(_seconds_here(each).values())
        time = f"{seconds / 60:.0f} min" if seconds else "not run"
        model = each.model.removeprefix("embedded:").rpartition("/")[2]
        listing.add_row(each.name, model, str(each.layer), each.hardware, time)
    Console().print(listing)
    typer.echo("More about one of them: saema studies NAME")


def _seconds_here(study: Study) -> dict[str, float]:
    """What each chapter took in the study's own folder; nothing where it was not run, or its manifest is damaged."""
    from saema_utils.runs.directory import read_manifest

    try:
        chapters = read_manifest(default_run_dir(study)).get("chapters", {})
    except SaemaError:
        return {}
    return {name: facts.get("seconds", 0) for name, facts in chapters.items()}


def _in_full(study: Study) -> Iterator[str]:
    recipe, seconds = study.sae, _seconds_here(study)
    trained = f"trained here: {recipe.architecture}, {recipe.d_sae:,} latents, k {recipe.k}"
    yield f"study: {study.name}"
    yield from [study.title] if study.title else []
    yield f"model: {study.model}"
    yield f"layer: {study.layer}"
    yield f"SAE: {trained if recipe.source == 'train' else recipe.source}"
    yield f"text: {study.corpus.source}, {study.corpus.tokens:,} tokens"
    yield f"prompts: {study.prompts_file or f'{study.templates} sentences a word'}"
    yield f"concepts: {', '.join(study.concepts)}"
    yield f"seeds: {', '.join(map(str, study.seeds))}"
    yield f"needs: {study.hardware}"
    yield f"time here: {f'{sum(seconds.values()) / 60:.0f} min' if seconds else 'not run'}"
    yield from (f"  {name}: {taken:.0f} s" for name, taken in sorted(seconds.items()))


@app.command()
def sae(
    path: Annotated[str, typer.Argument(help="A folder of any library listed in the book, or RELEASE:ID of sae_lens.")],
    model: Annotated[str, typer.Option(help="Model to try it on. Default: the one it names, if that is here.")] = "",
    layer: Annotated[
        int | None, typer.Option(parser=whole_number, metavar="NUMBER", help="Layer. Default: the one it names.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Say what an autoencoder is, where it belongs, and how well it reconstructs here."""
    from saema_utils.checks import describe_sae

    for line in describe_sae(path, model, layer, device):
        typer.echo(line)


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
    from rich.columns import Columns
    from rich.console import Console
    from rich.table import Table

    from saema_utils.chapters.across_models.tables import compare_runs, save_comparison

    table = compare_runs(runs)
    # After what may be refused: importing the library of the figures writes a list of fonts.
    from saema_utils.chapters.across_models.figures import LEGEND, by_run, effects_by_run

    wide = by_run(table)
    listing = Table(box=None, pad_edge=False)
    for name in wide:
        listing.add_column(name, overflow="fold")
    for row in wide.itertuples(index=False):
        listing.add_row(*(in_prose(str(value)) for value in row))
    Console().print(listing, "", Columns(LEGEND.values(), padding=(0, 3)), sep="\n")
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
