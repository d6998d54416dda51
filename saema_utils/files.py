"""Bytes on disk: digests, atomic writes, JSON objects, and the folder shared by all runs."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError, SaemaError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE_DIR = Path(__file__).parent
UNFINISHED = ".unfinished-"
# Modules that decide where results lie and how they are shown, never what they are.
BESIDE_THE_RESULT = frozenset({
    "__init__", "address", "artifacts", "chapter", "errors", "files", "interactive", "manifest", "schedule", "study",
})  # fmt: skip


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of any JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(*modules: str) -> str:
    """Digest of the source that results of these modules depend on (of the whole package without arguments).

    Imports are followed, so that nobody has to list by hand what a stage calls; other stages are not, because
    their results enter through keys of their own.
    """
    names = modules_behind(*modules) if modules else sorted(path.stem for path in PACKAGE_DIR.glob("*.py"))
    return digest([(name, file_digest(PACKAGE_DIR / f"{name}.py")) for name in names])


@functools.cache
def modules_behind(*modules: str) -> tuple[str, ...]:
    """These modules and all that they import, directly or not, inside this package.

    Stages and the modules in :data:`BESIDE_THE_RESULT` are left out unless they are named.
    """
    found, waiting = set(modules), list(modules)
    while waiting:
        for name in _imports(waiting.pop()) - found - BESIDE_THE_RESULT:
            if not name.startswith("stage"):
                found.add(name)
                waiting.append(name)
    return tuple(sorted(found))


def _imports(module: str) -> set[str]:
    """Modules of this package that one of them imports anywhere, except for type checkers alone."""
    tree = ast.parse((PACKAGE_DIR / f"{module}.py").read_text(encoding="utf-8"))
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return {name for name in found if (PACKAGE_DIR / f"{name}.py").exists()}


def outside_digest(*sources: str) -> str:
    """Digest of the files that a study names: content of files, names, sizes and times in folders.

    A source that is no path of this machine (a hub name, an embedded model) adds nothing: its name is in the study.
    """
    found: list[Any] = []
    for source in sources:
        path = user_path(source)
        if source and path.is_file():
            found.append(file_digest(path))
        elif source and path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file())
            found.append([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in inside])
    return digest(found)


def user_path(text: str | Path) -> Path:
    """A path that a person typed, with ``~`` and ``~name`` filled in.

    Raises
    ------
    SaemaError
        If nobody of that name has a home folder here, or a symbolic link in it leads back to itself.
    """
    try:
        path = Path(text).expanduser()
        path.resolve()
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise SaemaError(f"path {str(text)!r} leads nowhere ({reason}). Correct it and run again.") from error
    return path


def cache_dir() -> Path:
    """Where things shared by all runs live (converted models, corpus activations)."""
    import platformdirs

    return Path(os.environ.get("SAEMA_CACHE") or platformdirs.user_cache_dir("saema"))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling that replaces ``path`` when the block succeeds and vanishes when it fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{UNFINISHED}{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise ArtifactError(cannot_write(path, error)) from error
    os.close(handle)
    temporary = Path(name)
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would keep results from everybody else
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> str:
    """What to tell a person whose disk is full or may not be written."""
    return (
        f"cannot write {path} ({error.strerror or error}); earlier files are whole. "
        "Free some space or choose another --run-dir, then run the same command again to resume."
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors to a path that exists, in place of what is there.

    safetensors makes a temporary file of its own, with an error and a mode of its own. In a folder that is
    known to be unfinished it leaves nothing behind when it is killed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    mode = path.stat().st_mode
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
        inside = Path(folder) / path.name
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, inside)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        inside.chmod(mode)
        os.replace(inside, path)


def sweep_up(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else is writing to."""
    for leftover in folder.rglob(f"{UNFINISHED}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, keys in order, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """A JSON object from a file (empty where there is none), or one line that says what is wrong with it."""
    try:
        if not path.exists():
            return {}
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not {what} ({error}). {remedy}") from error
    if not isinstance(plain, dict):
        raise ArtifactError(f"{path} is not {what} (it holds a {type(plain).__name__}). {remedy}")
    return plain
