"""The artifacts of a run: written atomically, hashed, checked when read, reused when nothing changed. ::

    runs/<study>/manifest.json          what was made, from what, when, with which versions
                 tables/*.csv           figures/*.{svg,png}   tensors/*.safetensors
                 sae/                   notebooks/            numbers.json

Every artifact has a *key*: a digest of all that it was made from (study choices, source code of the
modules involved, keys of earlier artifacts). A file is reused only when its key and its hash agree.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saema_utils.errors import ArtifactError, MissingInputError, RunLockedError, SaemaError
from saema_utils.interactive import publishing
from saema_utils.runs.files import (
    atomic_path,
    cannot_write,
    clear_unfinished,
    read_json,
    user_path,
    write_figure,
    write_json,
    write_tensors,
)
from saema_utils.runs.freshness import file_digest, source_digest
from saema_utils.study import Study, is_registered

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure
    from pydantic import BaseModel

    from saema_utils.runs.tables import Result

RUN_LOCK = ".run.lock"
PATIENCE = 10.0  # seconds that a task of a sweep waits for somebody who has the run alone
SAE_FOLDER, SAE_WEIGHTS = "sae", "sae/sae_weights.safetensors"
MANIFEST_LOCK = ".manifest.lock"
REMARKS = "remarks.log"
PLAN_FILE = "sweep.json"  # in the folder of a sweep: what it changed in each run


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
        self.path = user_path(path).resolve()
        self.study = study
        self._device = device
        #: Digest of the language model's files, once anything was asked of it.
        self.model: str | None = None
        self._made: Result | None = None
        self._together: list[Callable[[dict[str, Any]], None]] | None = None
        manifest = self.manifest()
        known = manifest.get("study_digest")
        if known is not None and known != study.digest:
            raise ArtifactError(
                f"{self.path} belongs to study {manifest.get('study', {}).get('name')!r} with other choices "
                f"(digest {known}, this one has {study.digest}). Choose another folder, or empty this one (--force)."
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
        try:
            return cls(path, Study.from_dict(read_manifest(path)["study"]))
        except (KeyError, SaemaError) as error:
            raise ArtifactError(
                f"{path} holds no readable manifest ({error}). Leave it out or run it again."
            ) from error

    def again(self, chapters: str) -> str:
        """The command that runs some chapters of this run again, such as ``saema run --study smoke --chapters 1-3``.

        A study that is not registered is named by the file that ``saema run`` left in its folder.
        """
        known = is_registered(self.study)
        study = self.study.name if known else shlex.quote(str(self.path / "study.json"))
        elsewhere = not known or self.path != Path("runs", self.study.name).resolve()
        folder = f" --run-dir {shlex.quote(str(self.path))}" if elsewhere else ""
        return f"saema run --study {study} --chapters {chapters}{folder}"

    def neighbours(self, *, sweeps: bool = False) -> list[Path]:
        """Folders of the runs beside this one; with ``sweeps`` also those of sweeps beside it."""
        places = ("*", "*/*") if sweeps else ("*",)
        found = sorted(path.parent for place in places for path in self.path.parent.glob(f"{place}/manifest.json"))
        return [path for path in found if path != self.path]

    @property
    def device(self) -> torch.device:
        from saema_utils.runtime import choose_device

        return choose_device(self._device)

    # ---- manifest ------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands on disk (empty before the first write)."""
        return read_manifest(self.path)

    def _update_manifest(self, change: Callable[[dict[str, Any]], None]) -> None:
        from filelock import FileLock

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / MANIFEST_LOCK):
                manifest = self.manifest()
                change(manifest)
                write_json(self.path / "manifest.json", manifest)
        except OSError as error:
            raise ArtifactError(cannot_write(self.path / "manifest.json", error)) from error

    def record_chapter(self, chapter: str, **facts: Any) -> None:
        """Note how a chapter ran: seconds, peak memory, device, its stamp."""
        self._update_manifest(lambda m: m.setdefault("chapters", {}).update({chapter: facts}))

    def record_task(self, task: str, **facts: Any) -> None:
        """Note how a task of a sweep ran: its key, seconds, where, with how many threads."""
        self._update_manifest(lambda m: m.setdefault("tasks", {}).update({task: facts}))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run alone; whoever else holds it, alone or shared, makes this a RunLockedError at once.

        Half-written files that a killed process left behind are removed: nobody else can be writing them.
        """
        from filelock import FileLock

        with _held(self.path, "in use by another process, such as saema run or saema sweep"):
            with FileLock(self.path / MANIFEST_LOCK):
                clear_unfinished(self.path)
            yield

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the run together with others who share it, such as tasks of a sweep: nobody gets it alone meanwhile.

        Who finds nobody else here removes what a killed process left, as :meth:`locked` does.
        """
        with contextlib.suppress(RunLockedError), self.locked():
            pass
        with _held(self.path, "in use by another process, such as saema run", alone=False, patience=PATIENCE):
            yield

    # ---- artifacts -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def making(self, result: Result) -> Iterator[None]:
        """What is written inside is said to belong to this result: its chapter, and the SAE if it is made from one."""
        before, self._made = self._made, result
        try:
            yield
        finally:
            self._made = before

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Record the files written inside all at once, at the end: after a kill all of them count as made, or none."""
        notes = self._together = []
        try:
            yield
        finally:
            self._together = None

        def note_all(manifest: dict[str, Any]) -> None:
            for note in notes:
                note(manifest)

        self._update_manifest(note_all)

    def save_file(self, relative: str, write: Callable[[Path], None], key: str = "", **facts: Any) -> Path:
        """Write any file through ``write(path)``: atomic, hashed, recorded with what it was made from."""
        path, result = self.path / relative, self._made
        with atomic_path(path) as temporary:
            write(temporary)
            entry = {
                "sha256": file_digest(temporary),
                "bytes": temporary.stat().st_size,
                "key": key,
                "chapter": result.chapter if result else chapter_in_name(relative),
                "study_digest": self.study.digest,
                "code": source_digest(),
                "version": _versions("saema_utils").get("saema_utils"),
                "model": self.model,
                "written": now(),
                **facts,
            }

        def note(manifest: dict[str, Any]) -> None:
            known = manifest.setdefault("artifacts", {})
            if result and any(need.place == SAE_FOLDER for need in result.behind()):
                entry["sae"] = known.get(SAE_WEIGHTS, {}).get("sha256")
            if entry["model"] is None:  # this process read tables only; a run has one model
                entry["model"] = next((e["model"] for e in known.values() if e.get("model")), None)
            known[relative] = entry

        if self._together is None:
            self._update_manifest(note)
        else:
            self._together.append(note)
        return path

    def take_over(self, relative: str, key: str) -> None:
        """Copy a file from a run beside this one, if one made it from the same with the same libraries."""
        if self.is_made(relative, key):
            return
        versions = self.manifest()["versions"]
        for folder in self.neighbours():
            path = folder / relative
            with contextlib.suppress(ArtifactError, OSError):  # what cannot be read there is made here
                theirs = read_manifest(folder)
                entry = theirs.get("artifacts", {}).get(relative, {})
                same = theirs.get("versions") == versions and entry.get("key") == key
                if same and file_digest(path) == entry["sha256"]:
                    break
        else:
            return
        self.save_file(relative, lambda temporary: shutil.copyfile(path, temporary), key)

    def entry(self, relative: str) -> dict[str, Any] | None:
        """What the manifest says of an artifact, or None."""
        return self.manifest().get("artifacts", {}).get(relative)

    def check(self, relative: str, entry: dict[str, Any] | None = None) -> Path:
        """Path of an artifact after checking it against its hash (of ``entry``, by default as the manifest stands).

        Raises
        ------
        MissingInputError
            If it was never made; names the chapter that makes it and the command.
        ArtifactError
            If its bytes are not those that were written.
        """
        entry, path = entry or self.entry(relative), self.path / relative
        if entry is None or not path.is_file():
            chapter = (entry or {}).get("chapter") or chapter_in_name(relative) or 1
            raise MissingInputError(
                f"{relative} of study {self.study.name!r} is missing. Run: {self.again(f'1-{chapter}')}"
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

    def is_whole(self, chapter: int) -> bool:
        """Whether all that a chapter left in this run is still what was written."""
        return all(
            self._is_sound(name, entry)
            for name, entry in self.manifest().get("artifacts", {}).items()
            if entry.get("chapter") == chapter
        )

    def is_fresh(self, relative: str, key: str) -> bool:
        """Whether an artifact exists, is whole, and was made from what ``key`` digests."""
        fresh = self.is_made(relative, key)
        if not fresh and (self.entry(relative) or {}).get("key") == key:
            self.remark(f"{relative} is damaged or missing; it is made anew.")
        return fresh

    def is_made(self, relative: str, key: str) -> bool:
        """The same, without a word where it was damaged."""
        entry = self.entry(relative)
        return entry is not None and entry["key"] == key and self._is_sound(relative, entry)

    def _is_sound(self, relative: str, entry: dict[str, Any]) -> bool:
        try:
            self.check(relative, entry)
        except ArtifactError:
            return False
        return True

    def remark(self, text: str) -> None:
        """Say something about this run to who runs it: on the screen, or in ``remarks.log`` while a page is made.

        What a page shows must not depend on what happened to a file before.
        """
        if publishing():
            with open(self.path / REMARKS, "a", encoding="utf-8") as log:
                log.write(f"{text}\n")
        else:
            print(text)

    def remarks(self) -> list[str]:
        """What :meth:`remark` wrote into ``remarks.log`` so far."""
        log = self.path / REMARKS
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    def save_table(self, name: str, table: pd.DataFrame, key: str = "") -> Path:
        """Write ``tables/<name>.csv``."""
        return self.save_file(f"tables/{name}.csv", lambda p: table.to_csv(p, index=False), key)

    def table(self, name: str) -> pd.DataFrame:
        """Read ``tables/<name>.csv``, checked."""
        import pandas as pd

        return pd.read_csv(self.check(f"tables/{name}.csv"), keep_default_na=True)

    def cached_table(self, name: str, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table, computed only if it is missing, damaged, or made from something else."""
        if not self.is_fresh(f"tables/{name}.csv", key):
            self.save_table(name, compute(), key)
        return self.table(name)

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], key: str = "") -> Path:
        """Write ``tensors/<name>.safetensors``."""
        whole = {k: v.detach().cpu() for k, v in tensors.items()}
        return self.save_file(f"tensors/{name}.safetensors", lambda p: write_tensors(p, whole), key)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read ``tensors/<name>.safetensors``, checked."""
        from safetensors.torch import load_file

        return load_file(self.check(f"tensors/{name}.safetensors"))

    def cached_tensors(
        self, name: str, key: str, compute: Callable[[], Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """The tensors, computed only if they are missing, damaged, or made from something else."""
        if not self.is_fresh(f"tensors/{name}.safetensors", key):
            self.save_tensors(name, compute(), key)
        return self.tensors(name)

    def save_figure(self, name: str, figure: Figure, key: str = "") -> Path:
        """Write ``figures/<name>.svg`` and ``.png``; returns the SVG's path."""
        for suffix in ("png", "svg"):
            path = self.save_file(f"figures/{name}.{suffix}", lambda p: write_figure(p, figure, name), key)
        return path

    def save_numbers(self, **numbers: Any) -> None:
        """Merge named numbers into the manifest, from which prose quotes them, and into ``numbers.json`` for others."""
        self._update_manifest(lambda m: m.setdefault("numbers", {}).update(numbers))
        self.save_file("numbers.json", lambda p: write_json(p, self.numbers()))

    def numbers(self) -> dict[str, Any]:
        """Named numbers of the chapters so far (empty before the first)."""
        return self.manifest().get("numbers", {})


def chapter_in_name(relative: str) -> int | None:
    """The chapter that a file's name begins with, for figures, which no result declares, and for what is missing.

    >>> chapter_in_name("figures/03_noise_rank.svg"), chapter_in_name("numbers.json")
    (3, None)
    """
    number = Path(relative).name[:2]
    return int(number) if number.isdigit() else None


@contextlib.contextmanager
def _held(folder: Path, taken: str, *, alone: bool = True, patience: float = 0) -> Iterator[None]:
    """Hold the lock of a run, alone or with others who share it, or raise RunLockedError after ``patience`` seconds."""
    from filelock import ReadWriteLock, Timeout

    lock = ReadWriteLock(folder / RUN_LOCK)
    try:
        held = lock.acquire_write(patience) if alone else lock.acquire_read(patience)
    except Timeout as error:
        raise RunLockedError(
            f"{folder} is {taken}. Wait for it and run the same command again, or choose another folder."
        ) from error
    except OSError as error:
        raise ArtifactError(cannot_write(folder / RUN_LOCK, error)) from error
    with held:
        yield


def _versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def forget(run_path: str | Path) -> None:
    """Empty a run directory so that it can start again (``--force``).

    Only a directory that holds a manifest, or nothing, is emptied: a mistyped path loses nothing. Nor does a
    run that another process is using.
    """
    path = user_path(run_path).resolve()
    if not path.exists():
        return
    if not path.is_dir():
        raise SaemaError(f"{path} is a file; allowed: the folder of a run. Choose another --run-dir.")
    if any(path.iterdir()) and not (path / "manifest.json").exists():
        raise SaemaError(f"{path} holds files but no manifest.json, so it is not a run; nothing was removed.")
    try:
        with _held(path, "in use by another process; nothing was removed"):
            shutil.rmtree(path)
    except OSError as error:
        raise ArtifactError(f"cannot empty {path} ({error.strerror or error}). Choose another --run-dir.") from error


VERSIONED = ("torch", "transformer-lens", "sae-lens", "transformers", "numpy", "scipy", "scikit-learn", "umap-learn")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run directory, checked for the shape that is relied on (empty before the first write).

    Raises
    ------
    ArtifactError
        If it cannot be read, has another format, or a part of it is not what a run writes.
    """
    path, remedy = path / "manifest.json", "Move the directory away or choose another --run-dir."
    manifest = read_json(path, "a manifest", remedy, must_exist=False)
    if manifest:
        from pydantic import ValidationError

        try:
            _parts_of_a_manifest().model_validate(manifest)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            where = ".".join(map(str, wrong["loc"]))
            raise ArtifactError(f"{path} is a malformed manifest ({where}: {wrong['msg']}). {remedy}") from error
    return manifest


@functools.cache
def _parts_of_a_manifest() -> type[BaseModel]:
    """What is relied on in a manifest; a run writes more."""
    from pydantic import BaseModel

    class Timed(BaseModel, strict=True):
        seconds: float = 0.0

    class Made(Timed):
        sha256: str
        key: str

    class Manifest(BaseModel):
        format_version: Literal[1]
        study: dict[str, Any] = {}
        artifacts: dict[str, Made] = {}
        chapters: dict[str, Timed] = {}
        tasks: dict[str, Timed] = {}
        numbers: dict[str, Any] = {}

    return Manifest


def _birth_certificate(study: Study) -> dict[str, Any]:
    """What a manifest says before anything was made: the study, and with what it is run."""
    return {
        "format_version": 1,
        "study": study.as_dict(),
        "study_digest": study.digest,
        "created": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _versions(*VERSIONED),
        "seeds": list(study.seeds),
        "artifacts": {},
        "chapters": {},
    }


def now() -> str:
    """The time in UTC, as manifests write it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
