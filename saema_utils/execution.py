"""Run the notebooks of a study through papermill.

A notebook counts as done only by its stamp in the manifest: a digest of the study, this package,
the pinned requirements, and the notebook together with all earlier ones.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import address
from .artifacts import RunDirectory, chapter_of
from .errors import ArtifactError, BookError, unknown_name
from .files import PACKAGE_DIR, digest, file_digest, outside_digest, source_digest, write_json
from .kernel import ChapterResult, OnProgress, execute
from .manifest import read_manifest
from .study import STUDIES

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
        f"no notebooks/ and _toc.yml at or above {here}. Clone {address.repository_url()} and run from there."
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
    data = sorted([*PACKAGE_DIR.glob("*.yaml"), *PACKAGE_DIR.glob("*.json")])
    return digest(
        {
            "study": run.study.digest,
            "package": [source_digest(), *map(file_digest, data)],
            "pins": [file_digest(path) for path in pins if path.exists()],
            "notebooks": [(path.name, file_digest(path)) for n, path in sources.items() if n <= chapter],
            "outside": outside_digest(*run.study.outside),
            "neighbours": _tables_beside(run, chapter),
        }
    )


def _tables_beside(run: RunDirectory, chapter: int) -> dict[str, dict[str, str]]:
    """Hashes of the tables of other runs, for the chapters that show them: 6 those beside it, 7 those of sweeps too."""
    if chapter not in (6, 7):
        return {}
    found = {}
    for path in run.neighbours(sweeps=chapter == 7):
        with contextlib.suppress(ArtifactError):  # the chapter itself names a run that cannot be read
            artifacts = read_manifest(path).get("artifacts", {})
            found[str(path)] = {name: made["sha256"] for name, made in artifacts.items() if name.startswith("tables/")}
    return found


def is_done(run: RunDirectory, root: Path, chapter: int) -> bool:
    """Whether a chapter was executed from exactly these sources and its files are still whole."""
    name = chapter_notebooks(root)[chapter].stem
    manifest = run.manifest()
    record = manifest.get("chapters", {}).get(name, {})
    executed = run.path / "notebooks" / f"{name}.ipynb"
    if record.get("stamp") != chapter_stamp(run, root, chapter) or not executed.exists():
        return False
    if file_digest(executed) != record.get("sha256"):
        return False
    made_here = [a for a in manifest.get("artifacts", {}) if chapter_of(a) == chapter]
    try:
        for artifact in made_here:
            run.check(artifact)
    except ArtifactError:
        return False
    return True


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
) -> list[ChapterResult]:
    """Execute chapters in order, each into ``<run>/notebooks/``; what did not change is skipped.

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
    with run.locked():
        for chapter in wanted:
            source = sources[chapter]
            if not force and is_done(run, root, chapter):
                record = run.manifest()["chapters"][source.stem]
                path = run.path / "notebooks" / source.name
                results.append(
                    ChapterResult(chapter, source.stem, path, record["seconds"], record["peak_memory"], skipped=True)
                )
                continue
            stamp = chapter_stamp(run, root, chapter)
            result = execute(run.path / "notebooks", chapter, source, parameters, report, cell_timeout)
            # What a chapter takes is what it took when its tables had to be made: later executions find them.
            before = run.manifest().get("chapters", {}).get(source.stem, {})
            run.record_chapter(
                source.stem, stamp=stamp, sha256=file_digest(result.path),
                seconds=max(round(result.seconds, 1), before.get("seconds", 0)),
                peak_memory=max(result.peak_memory, before.get("peak_memory", 0)),
                device=str(run.device), hardware=describe_hardware(run.device),
                finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )  # fmt: skip
            results.append(result)
    return results


def _study_argument(run: RunDirectory) -> str:
    """The name of a registered study, or a study file written into the run for any other."""
    registered = STUDIES.get(run.study.name)
    if registered is not None and registered.changed(seed=run.study.seed).digest == run.study.digest:
        return run.study.name
    path = run.path / "study.json"
    write_json(path, run.study.as_dict())
    return str(path)


def describe_hardware(device: Any) -> str:
    """The machine in a few words, such as ``2 CPU cores (x86_64)`` or the name of the GPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = "Apple GPU" if device.type == "mps" else f"{cores} CPU core{'s' if cores != 1 else ''}"
    return f"{kind} ({platform.machine()})"
