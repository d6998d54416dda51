"""Bytes on disk: digests, atomic writes, JSON objects, and the folder shared by all runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ArtifactError

PACKAGE_DIR = Path(__file__).parent
UNFINISHED = ".unfinished-"


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of any JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(*modules: str) -> str:
    """Digest of the source of modules of this package (all of it without arguments)."""
    names = sorted(modules) or sorted(path.stem for path in PACKAGE_DIR.glob("*.py"))
    return digest([(name, file_digest(PACKAGE_DIR / f"{name}.py")) for name in names])


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
