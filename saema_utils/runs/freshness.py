"""Whether a result is still what its sources would give: digests of choices, files, and code behind a module."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from saema_utils.runs.files import user_path

PACKAGE = "saema_utils"
PACKAGE_DIR = Path(__file__).parents[1]
# A module that imports this one declares results of its own, with keys of their own.
STAGES_IMPORT = f"{PACKAGE}.runs.tables"
# Modules and folders that decide where results lie and how they are shown, never what they are.
BESIDE_THE_RESULT = ("errors", "figures", "interactive", "notebook", "runs", "study")


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of any JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_once(path: Path) -> str:
    """SHA-256 of a file, taken again in this process only when its size or time has changed."""
    status = path.stat()
    return _digest_once(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _digest_once(path: str, size: int, mtime_ns: int) -> str:
    return file_digest(Path(path))


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


def package_modules() -> tuple[str, ...]:
    """Every module of the package by its full name."""
    return tuple(sorted(_name_of(path) for path in PACKAGE_DIR.rglob("*.py")))


def source_digest(*modules: str) -> str:
    """Digest of the source that results of these modules depend on; without arguments, of the package and its data.

    Imports are followed, so that nobody has to list by hand what a stage calls; other stages are not, because
    their results enter through keys of their own.
    """
    names = modules_behind(*modules) if modules else package_modules()
    data = () if modules else sorted([*PACKAGE_DIR.rglob("*.yaml"), *PACKAGE_DIR.rglob("*.json")])
    return digest([*((name, file_digest(_path_of(name))) for name in names), *map(file_digest, data)])


@functools.cache
def modules_behind(*modules: str) -> tuple[str, ...]:
    """These modules and all that they import, directly or not and at any depth, inside this package.

    Stages (modules that declare tables, see :data:`STAGES_IMPORT`) and what stands beside the result
    (:data:`BESIDE_THE_RESULT`) are left out unless they are named.
    """
    found, waiting = set(modules), list(modules)
    while waiting:
        for name in imports(waiting.pop()) - found:
            if not _is_beside(name) and not is_stage(name):
                found.add(name)
                waiting.append(name)
    return tuple(sorted(found))


def is_stage(module: str) -> bool:
    """Whether a module declares results of its own; a folder's face declares none."""
    return STAGES_IMPORT in imports(module) and _path_of(module).name != "__init__.py"


def _is_beside(module: str) -> bool:
    inside = module.removeprefix(PACKAGE).lstrip(".").split(".")[0]
    return inside in BESIDE_THE_RESULT or _path_of(module).name == "__init__.py"


def _path_of(module: str) -> Path:
    path = PACKAGE_DIR.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE_DIR).with_suffix("").parts
    return ".".join([PACKAGE, *(part for part in parts if part != "__init__")])


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Modules of this package that one of them imports anywhere, except for type checkers alone."""
    path = _path_of(module)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return frozenset(name for name in found if name.split(".")[0] == PACKAGE and _path_of(name).exists())
