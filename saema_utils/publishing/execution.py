"""Run the notebooks of a study through papermill.

A notebook counts as done only by its stamp in the manifest: a digest of the study, this package,
the pinned requirements, and the notebook together with all earlier ones.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from saema_utils.chapters import SUBJECTS, declared_results
from saema_utils.errors import ArtifactError, BookError, one_line, unknown_name
from saema_utils.interactive import PUBLISHING
from saema_utils.publishing import address
from saema_utils.runs.directory import RunDirectory, now, read_manifest
from saema_utils.runs.files import atomic_path, cache_dir, can_write, write_json
from saema_utils.runs.freshness import PACKAGE_DIR, digest, file_digest, outside_digest, source_digest
from saema_utils.runs.workers import ONE_THREAD, made_ahead
from saema_utils.runtime import PROGRESS_FILE, cores
from saema_utils.study import is_registered

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from saema_utils.runs.tables import Result

CELL_TIMEOUT = 4 * 3600


def find_root() -> Path:
    """The folder that holds ``notebooks/`` and ``_toc.yml``: at or above the working folder, or the checkout.

    Raises
    ------
    BookError
        If there is none, as when only the package is installed.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE_DIR.parent):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise BookError(
        f"no notebooks/ and _toc.yml at or above {here}. "
        f"Clone {address.repository_url() if address.is_set() else 'the book'} and run from there."
    )


def chapter_notebooks(root: Path) -> dict[int, Path]:
    """Source notebooks by chapter number, from ``notebooks/NN_name.ipynb`` under ``root``."""
    found: dict[int, Path] = {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        number = int(path.name[:2])
        if number in found:
            raise BookError(f"chapter {number} has two notebooks, {found[number].name} and {path.name}. Remove one.")
        found[number] = path
    return found


def chapter_stamp(run: RunDirectory, root: Path, chapter: int) -> str:
    """Digest of everything a chapter's outputs depend on."""
    sources = chapter_notebooks(root)
    pins = [root / name for name in ("requirements.txt", "constraints.txt")]
    return digest(
        {
            "study": run.study.digest,
            "package": source_digest(),
            "pins": [file_digest(path) for path in pins if path.exists()],
            "notebooks": [(path.name, file_digest(path)) for n, path in sources.items() if n <= chapter],
            "outside": outside_digest(*run.study.outside),
            "neighbours": _tables_beside(run, chapter),
        }
    )


def _tables_beside(run: RunDirectory, chapter: int) -> dict[str, dict[str, str]]:
    """Hashes of the tables of other runs, for the chapters that show them: of runs beside it, and of sweeps too."""
    subject = SUBJECTS.get(chapter)
    if subject not in ("scorecard", "across_models"):
        return {}
    found = {}
    for path in run.neighbours(sweeps=subject == "across_models"):
        with contextlib.suppress(ArtifactError):  # the chapter itself names a run that cannot be read
            artifacts = read_manifest(path).get("artifacts", {})
            found[str(path)] = {name: made["sha256"] for name, made in artifacts.items() if name.startswith("tables/")}
    return found


def is_done(run: RunDirectory, root: Path, chapter: int) -> bool:
    """Whether a chapter was executed from exactly these sources and its files are still whole."""
    name = chapter_notebooks(root)[chapter].stem
    record = run.manifest().get("chapters", {}).get(name, {})
    executed = run.path / "notebooks" / f"{name}.ipynb"
    if record.get("stamp") != chapter_stamp(run, root, chapter) or not executed.exists():
        return False
    return file_digest(executed) == record.get("sha256") and run.is_whole(chapter)


def run_notebooks(
    run: RunDirectory,
    chapters: Iterable[int],
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
    device: str = "auto",
    study_argument: str | None = None,
    root: Path | None = None,
    cell_timeout: int = CELL_TIMEOUT,
    jobs: int = 1,
) -> list[ChapterResult]:
    """Execute chapters in order, each into ``<run>/notebooks/``; what did not change is skipped.

    With several ``jobs`` that many processes of one thread make tables and notebooks side by side, each when what it
    needs is made, and the seconds of a chapter are those by which it ended after the one before it.

    Parameters
    ----------
    run
        Where results go, and the study.
    chapters
        Chapter numbers. They are run in ascending order, each once.
    force
        Execute also what is up to date.
    on_progress
        Called with chapter, cell, number of cells, and what the cell is doing: description, done, total.
    device
        Passed on to the notebooks: ``auto``, ``cpu``, ``cuda``, ``mps``.
    study_argument
        What the notebooks open: a study's name or a study file. By default the run's own study.
    root
        Folder that holds ``notebooks/``; found when not given.
    cell_timeout
        Seconds after which a single cell counts as hung.
    jobs
        Processes on the CPU; with 1, or on an accelerator, notebooks run one after the other, make their own tables,
        and have all threads.

    Raises
    ------
    BookError
        When a chapter does not exist, or fails: one line with chapter, cell and error. What it had
        shown until then is kept beside the good copy as ``<name>.failed.ipynb``.
    """
    root = root or find_root()
    sources = chapter_notebooks(root)
    wanted = sorted(set(chapters))
    for chapter in wanted:
        if chapter not in sources:
            raise BookError(unknown_name("chapter", chapter, map(str, sources), f"They live in {root / 'notebooks'}."))
    parameters = {
        "study": study_argument or _study_argument(run),
        "run_dir": str(run.path),
        "device": device,
        "seed": run.study.seed,
    }
    report = on_progress or (lambda *_: None)
    results = []
    with run.locked(), contextlib.ExitStack() as stack:
        done = {chapter for chapter in sources if not (force and chapter in wanted) and is_done(run, root, chapter)}
        several = jobs > 1 and run.device.type == "cpu" and not done.issuperset(wanted)
        ahead = _results_of(set(wanted) - done, done) if several else []
        settings = {**KERNEL_ENVIRONMENT, PROGRESS_FILE: os.devnull}
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="saema-", ignore_cleanup_errors=True))
        environment = ONE_THREAD if several else {}
        given = {
            chapter: (Path(scratch), run.path / "notebooks", chapter, sources[chapter], parameters, cell_timeout)
            for chapter in wanted
        }
        pages = [chapter for chapter in wanted if several and chapter not in done]
        stamps = {chapter: chapter_stamp(run, root, chapter) for chapter in pages}
        executions = {chapter: (execute, (*given[chapter], environment)) for chapter in pages}
        workers = stack.enter_context(made_ahead(run, ahead, jobs, settings, executions))
        for chapter in wanted:
            source = sources[chapter]
            # Asked again: what a chapter compares with may have changed since.
            if chapter in done and is_done(run, root, chapter):
                record = run.manifest()["chapters"][source.stem]
                path = run.path / "notebooks" / source.name
                results.append(
                    ChapterResult(
                        chapter,
                        source.stem,
                        path,
                        record["seconds"],
                        record["work"],
                        record["peak_memory"],
                        skipped=True,
                    )
                )
                continue
            started, result = time.perf_counter(), None
            if workers:
                n_cells = len(read_notebook(source).cells)
                result = workers.wait(chapter, functools.partial(report, chapter, 0, n_cells))
            if result:
                stamp = stamps[chapter]
                report(chapter, n_cells, n_cells, "", 0, 0)
            else:
                stamp = chapter_stamp(run, root, chapter)
                result = execute(*given[chapter], environment, report)
            if workers:
                work, peak = result.work + workers.seconds[chapter], max(result.peak_memory, workers.peak)
                result = replace(result, seconds=time.perf_counter() - started, work=work, peak_memory=peak)
            # What a chapter takes is what it took when its tables had to be made: later executions find them.
            before = run.manifest().get("chapters", {}).get(source.stem, {})
            run.record_chapter(
                source.stem,
                stamp=stamp,
                sha256=file_digest(result.path),
                seconds=max(round(result.seconds, 1), before.get("seconds", 0)),
                work=max(round(result.work, 1), before.get("work", 0)),
                peak_memory=max(result.peak_memory, before.get("peak_memory", 0)),
                device=str(run.device),
                hardware=describe_hardware(run.device),
                finished=now(),
            )
            results.append(result)
    if workers and workers.death:
        run.remark(
            "A worker process died, most often for lack of memory; notebooks made what was left. Next time: --jobs 1."
        )
    return results


def _results_of(chapters: set[int], done: set[int]) -> list[Result]:
    """What may be made ahead of these notebooks: all that it needs is made with them, or was with earlier ones.

    A comparison of runs takes them as they stand when its notebook is executed.
    """
    there = chapters | done
    return [
        result
        for result in declared_results().values()
        if result.chapter in chapters
        and SUBJECTS[result.chapter] != "across_models"
        and all(need.chapter in there for need in result.behind())
    ]


def _study_argument(run: RunDirectory) -> str:
    """The name of a registered study, or a study file written into the run for any other."""
    if is_registered(run.study):
        return run.study.name
    path = run.path / "study.json"
    write_json(path, run.study.as_dict())
    return str(path)


def describe_hardware(device: Any) -> str:
    """The machine in a few words, such as ``2 CPU cores (x86_64)`` or the name of the GPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    count = cores()
    kind = "Apple GPU" if device.type == "mps" else f"{count} CPU core{'s' if count != 1 else ''}"
    return f"{kind} ({platform.machine()})"


OnProgress = Callable[[int, int, int, str, int, int], None]
KERNEL_ENVIRONMENT = {
    PUBLISHING: "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "JUPYTER_PLATFORM_DIRS": "1",
    "PYTHONSTARTUP": "",
}


@dataclass(frozen=True)
class ChapterResult:
    """How one chapter went: its executed notebook, and what it took.

    ``seconds`` passed until it was done after the chapter before it, while ``work`` seconds were spent on it, by its
    notebook and by all workers together. ``peak_memory``, in bytes, is that of the largest process.
    """

    chapter: int
    name: str
    path: Path
    seconds: float
    work: float
    peak_memory: int
    skipped: bool


def execute(
    scratch: Path,
    folder: Path,
    chapter: int,
    source: Path,
    parameters: Mapping[str, Any],
    timeout: int,
    environment: Mapping[str, str],
    report: OnProgress = lambda *_: None,
) -> ChapterResult:
    """Run one notebook from a fresh kernel; its executed copy appears in ``folder`` only when it succeeded.

    What it needs meanwhile lies in ``scratch``, which whoever calls it clears away.

    Raises
    ------
    BookError
        If a cell fails, hangs for ``timeout`` seconds, or takes its kernel down: one line with chapter, cell and
        cause. What it had shown until then is kept as ``<name>.failed.ipynb``.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    check_parameters(source, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    finished, failed = folder / source.name, folder / f"{source.stem}.failed.ipynb"
    settings = scratch / source.stem
    settings.mkdir(exist_ok=True)
    watch = _Watch(chapter, read_notebook(source), scratch / f"{source.stem}.progress", report)
    started = time.perf_counter()
    try:
        with (
            watch,
            _without_library_logs(),
            # Kernels inherit it; papermill takes no environment for them.
            mock.patch.dict(
                os.environ,
                {**KERNEL_ENVIRONMENT, **environment},
                IPYTHONDIR=str(settings),
                MPLCONFIGDIR=str(_fonts_seen(settings)),
                PYTHONPATH=import_path(),
                **{PROGRESS_FILE: str(watch.file)},
            ),
        ):
            # Papermill itself would write the whole notebook, figures and all, twice a cell, and takes braces in a
            # path for its own: it gets the notebook, not the file.
            done = papermill.execute_notebook(
                read_notebook(source),
                None,
                parameters=dict(parameters),
                kernel_name="python3",
                kernel_manager_class=_own_kernel(),
                progress_bar=False,
                start_timeout=180,
                execution_timeout=timeout,
                on_notebook_start=watch.notebook_started,
                on_cell_start=watch.cell_started,
                extra_arguments=["--log-level=CRITICAL"],
            )
    except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        _write_notebook(watch.notebook, failed)
        raise BookError(
            f"chapter {chapter} ({source.stem}), cell {watch.cell} ({watch.cell_id}): {_reason(error, timeout)} "
            f"| What it had shown: {failed}. Correct the cause and run the same command again."
        ) from error
    except RuntimeError as error:  # jupyter_client's word for a kernel that does not answer
        raise BookError(
            f"the kernel of chapter {chapter} did not start ({error}). Run the same command again."
        ) from error
    _write_notebook(done, finished)
    failed.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return ChapterResult(chapter, source.stem, finished, seconds, seconds, watch.peak, skipped=False)


def _reason(error: Exception, timeout: int) -> str:
    """The last line of a traceback, flattened; a person reads this one line first."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    if isinstance(error, DeadKernelError):
        return "its Python process died, most often for lack of memory. Close other programs or use a smaller study."
    if isinstance(error, CellTimeoutError):
        return f"it ran longer than {timeout} s."
    return f"{error.ename}: {one_line(error.evalue, 600)}"


def _own_kernel() -> type:
    """Starts this very interpreter, whatever kernels Jupyter's paths hold."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return OwnKernel


def _fonts_seen(otherwise: Path) -> Path:
    """Where matplotlib keeps its list of fonts: apart from the settings that a user has made for it."""
    folder = cache_dir() / "matplotlib"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if can_write(folder) else otherwise


def import_path() -> str:
    """Kernels import the very package that runs them, also from a checkout that is not installed."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, [str(PACKAGE_DIR.parent), given]))


@contextlib.contextmanager
def _without_library_logs() -> Iterator[None]:
    """Keep log lines about a kernel's death off the screen: what matters of it is raised, and said in one line."""
    from nbclient.exceptions import DeadKernelError

    class NotADeadKernel(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return not (record.exc_info and isinstance(record.exc_info[1], DeadKernelError))

    papermill, asyncio = logging.getLogger("papermill"), logging.getLogger("asyncio")
    if not any(type(known).__name__ == NotADeadKernel.__name__ for known in asyncio.filters):
        asyncio.addFilter(NotADeadKernel())  # stays: after Ctrl-C the last cell's task is collected when it pleases
    before, papermill.disabled = papermill.disabled, True
    try:
        yield
    finally:
        papermill.disabled = before


class _Watch:
    """Watches a running kernel from a thread: its progress file and its peak memory."""

    def __init__(self, chapter: int, notebook: NotebookNode, file: Path, report: OnProgress):
        self.chapter, self.file, self.report = chapter, file, report
        self.notebook = notebook
        self.numbers = {cell.get("id"): number for number, cell in enumerate(notebook.cells, start=1)}
        self.n_cells = len(notebook.cells)
        self.cell, self.cell_id, self.peak = 0, "start", 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self.report(self.chapter, 0, self.n_cells, "", 0, 0)
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.file.unlink(missing_ok=True)
        if kind is None:
            self.report(self.chapter, self.n_cells, self.n_cells, "", 0, 0)

    def notebook_started(self, notebook: NotebookNode) -> None:
        self.notebook = notebook

    def cell_started(self, cell: NotebookNode, cell_index: int) -> None:
        if cell.cell_type != "code":
            return
        self.cell = self.numbers.get(cell.get("id"), self.cell)
        self.cell_id = cell.get("id") if cell.get("id") in self.numbers else "parameters"
        self.file.unlink(missing_ok=True)
        self.report(self.chapter, self.cell, self.n_cells, "", 0, 0)

    def _run(self) -> None:
        last = ""
        while not self._stop.wait(0.25):
            self.peak = max(self.peak, _peak_of_kernel())
            line = ""
            with contextlib.suppress(OSError):  # not there before the first step, gone when a cell ends
                line = self.file.read_text()
            description, _, counts = line.partition("\t")
            done, _, total = counts.partition("\t")
            # A line that is being written is read as incomplete: wait for the next look.
            if line != last and done.isdigit() and total.isdigit():
                last = line
                self.report(self.chapter, self.cell, self.n_cells, description, int(done), int(total))


def _peak_of_kernel() -> int:
    """Largest resident size so far, in bytes, of the kernel that this process started."""
    import psutil

    peak = 0
    with contextlib.suppress(psutil.Error, OSError):
        for child in psutil.Process().children():
            if any("ipykernel" in part for part in child.cmdline()):
                status = Path(f"/proc/{child.pid}/status")  # Linux keeps the exact peak
                high = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
                peak = max(peak, int(high[1]) * 1024 if high else child.memory_info().rss)
    return peak


def _write_notebook(notebook: NotebookNode, path: Path) -> None:
    import nbformat

    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


def read_notebook(path: Path) -> NotebookNode:
    """A notebook of format 4, or BookError: nbformat raises whatever its parts do."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:
        raise BookError(f"{path} is not a notebook ({type(error).__name__}: {one_line(error)}). Restore it.") from error
    return notebook


def parameter_names(path: Path) -> list[str]:
    """Names that a notebook's one ``parameters`` cell assigns, which must be literals."""
    import ast

    import papermill

    notebook = read_notebook(path)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise BookError(
            f"{path.stem} has {len(tagged)} cells tagged 'parameters'; allowed: exactly one. Tag the first code cell."
        )
    try:
        found = papermill.inspect_notebook(notebook)  # of a path it would take braces for its own
    except Exception as error:  # papermill raises whatever its parts do
        raise BookError(
            f"{path} tells no parameters ({type(error).__name__}: {one_line(error)}). Restore it."
        ) from error
    for name, facts in found.items():
        try:
            ast.literal_eval(facts["default"])
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            # papermill injects after this cell, so a value derived here would go stale.
            raise BookError(
                f"{path.stem} derives '{name} = {facts['default']}' in its parameters cell; allowed: a literal."
            ) from error
    return list(found)


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that a notebook does not declare: papermill would only warn."""
    known = parameter_names(path)
    for parameter in parameters:
        if parameter not in known:
            raise BookError(unknown_name(f"parameter of {path.stem}", parameter, known))
