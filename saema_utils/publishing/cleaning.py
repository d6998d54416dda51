"""Turn an executed notebook into one that may be published: the same bytes for the same results.

Two executions of one notebook differ in times, paths, memory addresses and the chunks in which a
stream arrived. Those are removed. What must not be published at all (errors, warnings, progress
bars, widgets, paths of this machine) is refused, with the cell that shows it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import TERMINAL_CODE, BookError, one_line
from saema_utils.runs.freshness import PACKAGE_DIR

if TYPE_CHECKING:
    from nbformat import NotebookNode

CELL_METADATA = ("tags", "mystnb", "cellView", "jupyter")
INJECTED = "injected-parameters"
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}")
PROGRESS_BAR = re.compile(r"\d+%\|[^|\n]*\|\s*\d+/\d+|\d+(\.\d+)?\s?(it/s|s/it)\b")


def clean_notebook(notebook: NotebookNode, *, build_paths: Iterable[str | Path] | None = None) -> NotebookNode:
    """A copy of an executed notebook, fit to be published.

    Cells that papermill injected are dropped, metadata is cut to tags, figure options and what folds a cell, execution
    counts run from 1, neighbouring pieces of printed text are joined, and memory addresses go.

    Parameters
    ----------
    notebook
        Executed, nbformat 4.
    build_paths
        Folders of this machine that no page may mention; by default the home, working and
        temporary folders.

    Raises
    ------
    BookError
        If a cell shows an error, standard error, a progress bar, a widget or one of ``build_paths``.
    """
    import copy

    import nbformat

    forbidden = _folders(default_build_paths() if build_paths is None else build_paths)
    cleaned = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    cleaned.nbformat_minor = 5
    count = 0
    for number, source in enumerate(notebook.cells, start=1):
        if INJECTED in source.metadata.get("tags", []):
            continue
        cell = copy.deepcopy(source)
        cell.metadata = nbformat.from_dict({k: v for k, v in source.metadata.items() if k in CELL_METADATA})
        where = f"cell {number} ({cell.get('id', 'no id')})"
        _refuse_paths(cell.source, forbidden, where)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [_clean_output(output, count, forbidden, where) for output in _joined(cell.outputs)]
        cleaned.cells.append(cell)
    return cleaned


def default_build_paths() -> list[Path]:
    """Folders of this machine that a published page must not mention."""
    return [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), PACKAGE_DIR.parent]


def _folders(paths: Iterable[str | Path]) -> list[str]:
    """Each folder with a closing separator, so that ``/root`` does not forbid the word ``/rootless``."""
    whole = {str(Path(path).expanduser().resolve()) for path in paths}
    return sorted(f"{path}{os.sep}" for path in whole if path != os.sep)


def _refuse_paths(text: str, forbidden: list[str], where: str) -> None:
    for folder in forbidden:
        if folder in text:
            raise BookError(f"{where} mentions {folder!r}, a path of this machine. Show a path relative to the run.")


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs with neighbouring pieces of one stream joined: how text was cut is a matter of timing.

    nbclient's own would move text across figures and hide progress bars; that of myst_nb comes too late for two
    executions to be compared.
    """
    joined: list[Any] = []
    for output in outputs:
        before = joined[-1] if joined else None
        if before and output.output_type == "stream" and before.output_type == "stream" and before.name == output.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def _clean_output(output: Any, count: int, forbidden: list[str], where: str) -> Any:
    if output.output_type == "error":
        raise BookError(f"{where} ends in {output.ename}: {one_line(output.evalue)}. Correct it and run again.")
    if output.output_type == "stream":
        if output.name == "stderr" and output.text.strip():
            raise BookError(f"{where} writes to standard error: {one_line(output.text)!r}. Silence or fix its cause.")
        output.text = _clean_text(output.text, forbidden, where)
        return output
    output.metadata = {k: v for k, v in output.get("metadata", {}).items() if k != "papermill"}
    if output.output_type == "execute_result":
        output.execution_count = count
    for mime, value in output.data.items():
        if "widget" in mime:
            raise BookError(f"{where} shows a widget, which needs a network to be drawn. Show a figure or text.")
        if mime == "application/vnd.plotly.v1+json":
            raise BookError(f"{where} shows a bare plotly figure. Return saema_utils.interactive.interactive(...).")
        if isinstance(value, str) and (mime.startswith("text/") or mime.endswith("+xml")):
            output.data[mime] = _clean_text(value, forbidden, where)
    return output


def _clean_text(text: str, forbidden: list[str], where: str) -> str:
    if "\r" in text.replace("\r\n", "\n") or PROGRESS_BAR.search(text):
        raise BookError(f"{where} prints a progress bar. Use saema_utils.runtime.progress, which pages do not show.")
    _refuse_paths(text, forbidden, where)
    return ADDRESS.sub("", TERMINAL_CODE.sub("", text))
