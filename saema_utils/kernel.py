"""Execute one notebook in a kernel of its own, and watch it: which cell, how far, how much memory."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError, BookError
from .files import PACKAGE_DIR, cannot_write
from .interactive import PUBLISHING
from .parameters import check_parameters, read_notebook
from .runtime import PROGRESS_FILE

if TYPE_CHECKING:
    from nbformat import NotebookNode

OnProgress = Callable[[int, int, int, str, int, int], None]
SECONDS_BETWEEN_SAVES = 10
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
    "JUPYTER_PREFER_ENV_PATH": "1",
    "JUPYTER_PLATFORM_DIRS": "1",
}


@dataclass(frozen=True)
class ChapterResult:
    """How one chapter went: its executed notebook, and what it took (``peak_memory`` in bytes)."""

    chapter: int
    name: str
    path: Path
    seconds: float
    peak_memory: int
    skipped: bool


def execute(
    folder: Path, chapter: int, source: Path, parameters: Mapping[str, Any], report: OnProgress, timeout: int
) -> ChapterResult:
    """Run one notebook from a fresh kernel; its executed copy appears in ``folder`` only when it succeeded.

    Raises
    ------
    BookError
        If a cell fails, hangs for ``timeout`` seconds, or takes its kernel down: one line with chapter, cell and
        cause. What it had shown until then is kept as ``<name>.failed.ipynb``.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    notebook = read_notebook(source)
    check_parameters(notebook, source.stem, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    working, finished = folder / f".{source.stem}.running.ipynb", folder / source.name
    failed = folder / f"{source.stem}.failed.ipynb"
    watch = _Watch(chapter, notebook, folder / f".{source.stem}.progress", report)
    started = time.perf_counter()
    try:
        with (
            watch,
            _without_library_logs(),
            _environment({**KERNEL_ENVIRONMENT, PROGRESS_FILE: str(watch.file), "PYTHONPATH": _import_path()}),
        ):
            papermill.execute_notebook(
                source, working, parameters=dict(parameters), engine_name=_register_engine(), kernel_name="python3",
                cwd=Path.cwd(), progress_bar=False, log_output=False, start_timeout=180,
                execution_timeout=timeout, on_cell=watch.cell_started, extra_arguments=["--log-level=CRITICAL"],
            )  # fmt: skip
        os.replace(working, finished)
    except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        if working.exists():
            os.replace(working, failed)
        raise BookError(
            f"chapter {chapter} ({source.stem}), cell {watch.cell} ({watch.cell_id}): {_reason(error, timeout)} "
            f"| What it had shown: {failed}. Correct the cause and run the same command again."
        ) from error
    except OSError as error:
        raise ArtifactError(cannot_write(working, error)) from error
    except RuntimeError as error:  # jupyter_client's word for a kernel that does not answer
        raise BookError(
            f"the kernel of chapter {chapter} did not start ({error}). Run the same command again."
        ) from error
    finally:
        working.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    return ChapterResult(chapter, source.stem, finished, time.perf_counter() - started, watch.peak, skipped=False)


def _reason(error: Exception, timeout: int) -> str:
    """The last line of a traceback, flattened; a person reads this one line first."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    if isinstance(error, DeadKernelError):
        return "its Python process died, most often for lack of memory. Close other programs or use a smaller study."
    if isinstance(error, CellTimeoutError):
        return f"it ran longer than {timeout} s."
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error.evalue)).split())
    return f"{error.ename}: {text if len(text) <= 600 else text[:597] + '...'}"


def _import_path() -> str:
    """Kernels import the very package that runs them, also from a checkout that is not installed."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, [str(PACKAGE_DIR.parent), given]))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the kernels that start inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


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


def _register_engine() -> str:
    """A papermill engine that says which cell starts, and saves now and then; returns its name.

    Papermill's own writes the whole notebook, figures and all, twice a cell.
    """
    from papermill.engines import NBClientEngine, papermill_engines

    class Watched(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, on_cell=None, **options):
            start, save = nb_man.cell_start, nb_man.save
            saved = time.monotonic()

            def save_now_and_then(**more):
                nonlocal saved
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    save(**more)
                    saved = time.monotonic()

            def cell_start(cell, cell_index=None, **more):
                if on_cell is not None and cell.cell_type == "code":
                    on_cell(cell)
                return start(cell, cell_index, **more)

            nb_man.cell_start, nb_man.save = cell_start, save_now_and_then
            try:
                return super().execute_managed_notebook(nb_man, kernel_name, **options)
            finally:
                save()

    papermill_engines.register("saema", Watched)
    return "saema"


class _Watch:
    """Watches a running kernel from a thread: its progress file and its peak memory."""

    def __init__(self, chapter: int, notebook: NotebookNode, file: Path, report: OnProgress):
        self.chapter, self.file, self.report = chapter, file, report
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

    def cell_started(self, cell: Any) -> None:
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
