"""The manifest of a run: what it must look like, and what it says at birth."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .files import read_json
from .study import Study

FORMAT_VERSION = 1
VERSIONED = ("torch", "transformer-lens", "sae-lens", "transformers", "numpy", "scipy", "scikit-learn", "umap-learn")


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
    if not isinstance(manifest.get("numbers", {}), dict):
        raise ArtifactError(f"{path} is not a readable manifest (its 'numbers' are malformed). {remedy}")
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


def birth_certificate(study: Study) -> dict[str, Any]:
    """What a manifest says before anything was made: the study, and with what it is run."""
    versions = {}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "format_version": FORMAT_VERSION, "study": study.as_dict(), "study_digest": study.digest, "created": now(),
        "python": platform.python_version(), "platform": platform.platform(), "versions": versions,
        "seeds": list(study.seeds), "artifacts": {}, "chapters": {},
    }  # fmt: skip


def name_of(manifest: Mapping[str, Any]) -> str:
    """The name of the study in a manifest, for a message."""
    study = manifest.get("study")
    return repr(study.get("name")) if isinstance(study, dict) else "of no name"


def now() -> str:
    """The time in UTC, as manifests write it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
