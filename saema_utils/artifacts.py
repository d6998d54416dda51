"""The artifacts of a run: written atomically, hashed, checked when read, reused when nothing changed. ::

    runs/<study>/manifest.json          what was made, from what, when, with which versions
                 tables/*.csv           figures/*.{svg,png}   tensors/*.safetensors
                 sae/                   notebooks/            numbers.json

Every artifact has a *key*: a digest of all that it was made from (study choices, source code of the
modules involved, keys of earlier artifacts). A file is reused only when its key and its hash agree.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError, MissingInputError, RunLockedError, SaemaError
from .files import UNFINISHED, atomic_path, cannot_write, file_digest, read_json, source_digest, write_json
from .study import Study

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

FORMAT_VERSION = 1
LOCK_HELD = "SAEMA_RUN_LOCK_HELD"
VERSIONED = ("torch", "transformer-lens", "sae-lens", "transformers", "numpy", "scipy", "scikit-learn", "umap-learn")
SAE_WEIGHTS = "sae/sae_weights.safetensors"
FIRST_CHAPTER_WITH_SAE = 2
# By model source, filled in by models.model_digest, on which every key of a measured artifact depends.
MODEL_DIGESTS: dict[str, str] = {}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run directory, checked for the shape that is relied on (empty before the first write).

    Raises
    ------
    ArtifactError
        If it cannot be read, has another format, or a part of it is not what a run writes.
    """
    path, remedy = path / "manifest.json", "Move the directory away or choose another --run-dir."
    manifest = read_json(path, "a readable manifest", remedy)
    if manifest and manifest.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format {manifest.get('format_version')!r}; this version reads {FORMAT_VERSION}. "
            "Choose another --run-dir."
        )
    for part, needed in (("artifacts", {"sha256": str, "key": str}), ("chapters", {}), ("tasks", {})):
        entries = manifest.get(part, {})
        sound = isinstance(entries, dict) and all(
            isinstance(entry, dict)
            and all(isinstance(entry.get(name), kind) for name, kind in needed.items())
            and isinstance(entry.get("seconds", 0), int | float)
            for entry in entries.values()
        )
        if not sound:
            raise ArtifactError(f"{path} is not a readable manifest (its {part!r} are malformed). {remedy}")
    return manifest


class RunDirectory:
    """The directory of one run of one study.

    Parameters
    ----------
    path
        Created if it does not exist.
    study
        The study that runs here. A directory that already belongs to another study is refused.
    device
        Where heavy work of this run happens (``auto``, ``cpu``, ``cuda``, ``mps``).
    """

    def __init__(self, path: str | Path, study: Study, device: str = "auto"):
        self.path = Path(path).expanduser().resolve()
        self.study = study
        self._device = device
        manifest = self.manifest()
        known = manifest.get("study_digest")
        if known is not None and known != study.digest:
            raise ArtifactError(
                f"{self.path} belongs to study {_name_of(manifest)} with other choices "
                f"(digest {known}, this one has {study.digest}). Choose another --run-dir or pass --force."
            )
        if known is None:
            self._update_manifest(lambda m: m.update(_birth_certificate(study)))

    @classmethod
    def at(cls, path: Path) -> RunDirectory:
        """The run in a folder, with the study that its manifest records.

        Raises
        ------
        ArtifactError
            If the folder holds no manifest of a study that can be read.
        """
        from .study import Study

        try:
            return cls(path, Study.from_dict(read_manifest(path)["study"]))
        except (KeyError, SaemaError) as error:
            raise ArtifactError(
                f"{path} holds no readable manifest ({error}). Leave it out or run it again."
            ) from error

    def neighbours(self, *, sweeps: bool = False) -> list[Path]:
        """Folders of the runs beside this one; with ``sweeps`` also those of sweeps beside it."""
        places = ("*", "*/*") if sweeps else ("*",)
        found = sorted(path.parent for place in places for path in self.path.parent.glob(f"{place}/manifest.json"))
        return [path for path in found if path != self.path]

    @property
    def device(self) -> torch.device:
        from .runtime import choose_device

        return choose_device(self._device)

    # ---- manifest ------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands on disk (empty before the first write)."""
        return read_manifest(self.path)

    def _update_manifest(self, change: Callable[[dict[str, Any]], None]) -> None:
        from filelock import FileLock

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".manifest.lock")
            with lock:
                manifest = self.manifest()
                change(manifest)
                write_json(self.path / "manifest.json", manifest)
        except OSError as error:
            raise ArtifactError(cannot_write(self.path / "manifest.json", error)) from error

    def record_chapter(self, chapter: str, **facts: Any) -> None:
        """Note how a chapter ran: seconds, peak memory, device, its stamp."""
        self._update_manifest(lambda m: m.setdefault("chapters", {}).update({chapter: facts}))

    def record_task(self, task: str, **facts: Any) -> None:
        """Note how a task of a sweep ran: its key, seconds, peak memory, device, what it made."""
        self._update_manifest(lambda m: m.setdefault("tasks", {}).update({task: facts}))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process and its children; a second process gets RunLockedError.

        Half-written files that a killed process left behind are removed: nobody else can be writing them.
        """
        from filelock import FileLock, Timeout

        token = str(self.path)
        if os.environ.get(LOCK_HELD) == token:
            yield
            return
        lock = FileLock(self.path / ".run.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunLockedError(
                f"{self.path} is in use by another process. Wait for it, or choose another --run-dir."
            ) from error
        os.environ[LOCK_HELD] = token
        try:
            for leftover in self.path.rglob(f"{UNFINISHED}*"):
                leftover.unlink(missing_ok=True)
            yield
        finally:
            del os.environ[LOCK_HELD]
            lock.release()

    # ---- artifacts -----------------------------------------------------------------------------

    def _write(self, relative: str, write: Callable[[Path], None], key: str, **facts: Any) -> Path:
        path = self.path / relative
        with atomic_path(path) as temporary:
            write(temporary)
            entry = {
                "sha256": file_digest(temporary), "bytes": temporary.stat().st_size, "key": key,
                "study_digest": self.study.digest, "code": source_digest(), "version": _version(),
                "model": MODEL_DIGESTS.get(self.study.model), "written": _now(), **facts,
            }  # fmt: skip

        def note(manifest: dict[str, Any]) -> None:
            known = manifest.setdefault("artifacts", {})
            if path.name[:2].isdigit() and int(path.name[:2]) >= FIRST_CHAPTER_WITH_SAE:
                entry["sae"] = known.get(SAE_WEIGHTS, {}).get("sha256")
            known[relative] = entry

        self._update_manifest(note)
        return path

    def entry(self, relative: str) -> dict[str, Any] | None:
        """What the manifest says of an artifact, or None."""
        return self.manifest().get("artifacts", {}).get(relative)

    def check(self, relative: str, chapter: int | None = None) -> Path:
        """Path of an artifact after checking it against its hash.

        Raises
        ------
        MissingInputError
            If it was never made; names the chapter that makes it and the command.
        ArtifactError
            If its bytes are not those that were written.
        """
        entry, path = self.entry(relative), self.path / relative
        if entry is None or not path.is_file():
            first = chapter or (int(path.name[:2]) if path.name[:2].isdigit() else 1)
            raise MissingInputError(
                f"{relative} of study {self.study.name!r} is missing. "
                f"Run: saema run --study {self.study.name} --chapters 1-{first}"
            )
        try:
            found = file_digest(path)
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be read ({error.strerror or error}). Delete it and run again."
            ) from error
        if found != entry["sha256"]:
            raise ArtifactError(f"{path} is damaged (its hash is not the recorded one). Delete it and run again.")
        return path

    def is_fresh(self, relative: str, key: str) -> bool:
        """Whether an artifact exists, is whole, and was made from what ``key`` digests."""
        entry = self.entry(relative)
        if entry is None or entry["key"] != key:
            return False
        try:
            self.check(relative)
        except ArtifactError as error:
            print(f"{error} It is made anew.")
            return False
        return True

    def _cached(self, relative: str, key: str, load: Callable, compute: Callable, save: Callable) -> Any:
        if self.is_fresh(relative, key):
            return load()
        started = time.perf_counter()
        value = compute()
        save(value, round(time.perf_counter() - started, 3))
        return load()

    def save_table(self, name: str, table: pd.DataFrame, key: str = "", **facts: Any) -> Path:
        """Write ``tables/<name>.csv``."""
        return self._write(f"tables/{name}.csv", lambda p: table.to_csv(p, index=False), key, **facts)

    def table(self, name: str) -> pd.DataFrame:
        """Read ``tables/<name>.csv``, checked."""
        import pandas as pd

        return pd.read_csv(self.check(f"tables/{name}.csv"), keep_default_na=True)

    def cached_table(self, name: str, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table, computed only if it is missing, damaged, or made from something else."""
        return self._cached(
            f"tables/{name}.csv", key, lambda: self.table(name), compute,
            lambda value, seconds: self.save_table(name, value, key, seconds=seconds),
        )  # fmt: skip

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], key: str = "", **facts: Any) -> Path:
        """Write ``tensors/<name>.safetensors``."""
        from safetensors.torch import save_file

        whole = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
        return self._write(f"tensors/{name}.safetensors", lambda p: save_file(whole, p), key, **facts)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read ``tensors/<name>.safetensors``, checked."""
        from safetensors.torch import load_file

        return load_file(self.check(f"tensors/{name}.safetensors"))

    def cached_tensors(
        self, name: str, key: str, compute: Callable[[], Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """The tensors, computed only if they are missing, damaged, or made from something else."""
        return self._cached(
            f"tensors/{name}.safetensors", key, lambda: self.tensors(name), compute,
            lambda value, seconds: self.save_tensors(name, value, key, seconds=seconds),
        )  # fmt: skip

    def save_figure(self, name: str, figure: Figure, key: str = "") -> Path:
        """Write ``figures/<name>.svg`` and ``.png``; returns the SVG's path."""
        # Fixed metadata and ids make two runs byte-identical.
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": name, "savefig.bbox": "tight"}):
            self._write(f"figures/{name}.png", lambda p: figure.savefig(p, dpi=160, metadata={"Software": None}), key)
            return self._write(f"figures/{name}.svg", lambda p: figure.savefig(p, metadata={"Date": None}), key)

    def save_file(self, relative: str, write: Callable[[Path], None], key: str = "", **facts: Any) -> Path:
        """Write any other file through ``write(path)``: atomic, hashed, recorded like the rest."""
        return self._write(relative, write, key, **facts)

    def save_numbers(self, **numbers: Any) -> None:
        """Merge named numbers into ``numbers.json``, from which prose quotes them."""
        merged = {**self.numbers(), **numbers}
        self._write("numbers.json", lambda p: write_json(p, merged), "")

    def numbers(self) -> dict[str, Any]:
        """Read ``numbers.json`` (empty before the first chapter that writes it)."""
        return read_json(self.path / "numbers.json", "a file of numbers", "Delete it and run chapter 6 again.")


def _version() -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("saema_utils")
    return None


def _name_of(manifest: Mapping[str, Any]) -> str:
    study = manifest.get("study")
    return repr(study.get("name")) if isinstance(study, dict) else "of no name"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _birth_certificate(study: Study) -> dict[str, Any]:
    versions = {}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "format_version": FORMAT_VERSION, "study": study.as_dict(), "study_digest": study.digest, "created": _now(),
        "python": platform.python_version(), "platform": platform.platform(), "versions": versions,
        "seeds": list(study.seeds), "artifacts": {}, "chapters": {},
    }  # fmt: skip


def forget(run_path: str | Path) -> None:
    """Empty a run directory so that it can start again (``--force``).

    Only a directory that holds a manifest, or nothing, is emptied: a mistyped path loses nothing.
    """
    import shutil

    path = Path(run_path).expanduser().resolve()
    if not path.exists():
        return
    if any(path.iterdir()) and not (path / "manifest.json").exists():
        raise SaemaError(f"{path} holds files but no manifest.json, so it is not a run; nothing was removed.")
    shutil.rmtree(path)
