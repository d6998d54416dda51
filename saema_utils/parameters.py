"""The source notebook of a chapter, and the one cell of it whose values a run replaces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BookError, unknown_name

if TYPE_CHECKING:
    from nbformat import NotebookNode


def read_notebook(path: Path) -> NotebookNode:
    """A notebook of format 4, or BookError: nbformat raises whatever its parts do."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise BookError(f"{path} is not a notebook ({type(error).__name__}: {reason}). Restore it.") from error
    return notebook


def parameter_names(notebook: NotebookNode, name: str) -> list[str]:
    """Names that a notebook's one ``parameters`` cell assigns, which must be literals."""
    import ast

    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BookError(
            f"{name} has {len(cells)} cells tagged 'parameters'; allowed: exactly one. Tag the first code cell."
        )
    try:
        statements = ast.parse(cells[0].source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BookError(
            f"{name} has a parameters cell that is not Python ({' '.join(str(error).split())}). Correct it."
        ) from error
    names = []
    for statement in statements:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise BookError(f"{name} has {ast.unparse(statement)!r} among its parameters; allowed: name = literal.")
        try:
            ast.literal_eval(statement.value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            # papermill injects after this cell, so a value derived here would go stale.
            raise BookError(
                f"{name} derives {ast.unparse(statement)!r} in its parameters cell; allowed: a literal."
            ) from error
        names.append(statement.targets[0].id)
    return names


def check_parameters(notebook: NotebookNode, name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the notebook does not declare: papermill would only warn."""
    known = parameter_names(notebook, name)
    for parameter in parameters:
        if parameter not in known:
            raise BookError(unknown_name(f"parameter of {name}", parameter, known))
