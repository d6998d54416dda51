"""Bytes on disk: digests, atomic writes, JSON objects, and the folder shared by all runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import ArtifactError, SaemaError, one_line
from saema_utils.lettering import letter

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

UNFINISHED = ".unfinished-"
MOST_VALUES = 1_000_000  # of a YAML file
PNG_DPI = 160  # dots an inch of figures


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
        raise SaemaError(f"path {str(text)!r} leads nowhere ({one_line(error)}). Correct it and run again.") from error
    return path


def name_of(source: str) -> str:
    """What pages call a model, a text or an autoencoder that a study names: of a path the last part.

    >>> name_of("/data/models/mine"), name_of("org/model"), name_of("train")
    ('mine', 'org/model', 'train')
    """
    path = user_path(source)
    return path.name if path.is_absolute() or path.exists() else source


def cache_dir() -> Path:
    """Where things shared by all runs live (converted models, corpus activations).

    That is ``SAEMA_CACHE``, or else the user's cache; where that cannot be written, a folder beside temporary files.
    """
    import platformdirs

    named, usual = os.environ.get("SAEMA_CACHE"), Path(platformdirs.user_cache_dir("saema"))
    if named or can_write(usual):
        return Path(named or usual)
    # A user may have no name, and others may write beside temporary files: what they put there is not ours to read.
    own = Path(tempfile.gettempdir()) / f"saema-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise ArtifactError(f"{usual} cannot be written and {own} is somebody else's. Set SAEMA_CACHE to a folder.")
    return own


def can_write(folder: Path) -> bool:
    """Whether files can be made in a folder that is there, or that would be made."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return existing.is_dir() and os.access(existing, os.W_OK)


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
    share(temporary)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def share(path: Path) -> None:
    """Let those read a file or folder whom the user lets read new ones: tempfile keeps its own to their maker."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


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


def write_figure(path: Path, figure: Figure, name: str) -> None:
    """Write a figure as PNG or SVG, as the path ends; its ids come from ``name``, so that two runs give equal bytes."""
    import matplotlib

    letter(figure)
    fixed = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"metadata": {"Software": None}, "dpi": PNG_DPI}
    with matplotlib.rc_context({"svg.hashsalt": name, "savefig.bbox": "tight"}):
        figure.savefig(path, **fixed)


def clear_unfinished(folder: Path) -> None:
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


def read_json(
    path: Path, what: str, remedy: str, error: type[SaemaError] = ArtifactError, must_exist: bool = True
) -> dict[str, Any]:
    """A JSON object from a file, or one line that says what is wrong with it; empty where there need not be any."""
    try:
        if not must_exist and not path.exists():
            return {}
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as refused:
        why = getattr(refused, "strerror", None) or f"not JSON: {one_line(refused)}"
        raise error(f"{path} cannot be read as {what} ({why}). {remedy}") from refused
    if not isinstance(plain, dict):
        raise error(f"{path} cannot be read as {what} (it holds a {type(plain).__name__}). {remedy}")
    return plain


def read_yaml(path: Path, what: str, error: type[SaemaError]) -> Any:
    """What a YAML file holds, as plain data; ``error`` where it cannot be read, or gives a key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and a key given twice is an error instead of the last one winning."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for key, count in keys.most_common(1):
                if count > 1:
                    raise error(f"{path.name} gives {key!r} twice. Keep one.")
            return super().construct_mapping(node, deep)

    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # a SafeLoader: no objects are built
    except OSError as refused:
        raise error(f"cannot read {what} {path} ({refused.strerror or refused}). Check the path.") from refused
    except SaemaError:
        raise
    except Exception as refused:  # beside YAMLError, a wrong tag raises whatever its constructor does
        mark, problem = getattr(refused, "problem_mark", None), getattr(refused, "problem", None)
        where = f"line {mark.line + 1}" if mark else type(refused).__name__
        raise error(f"{what} {path} is not YAML ({where}: {one_line(problem or refused)}). Correct it.") from refused
    # Aliases let a short file hold a value that fills the memory when it is copied or shown, or holds itself.
    parts = [plain]
    for part in parts:  # grows while it is walked
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if len(parts) > MOST_VALUES:
            raise error(f"{path.name} holds over a million values; allowed: fewer. Check its aliases.")
    return plain
