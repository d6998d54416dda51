"""Runs one notebook the way Colab would: every code cell in order, in a fresh process, with no earlier artefacts.

``python colab_host.py NOTEBOOK`` in an empty folder; SAEMA_COLAB_STUDY may name a smaller study, and SAEMA_COLAB_COPY
whose copy of a book without an address this is. ``google.colab``
exists (as a stand-in, for detection only), the installs of the setup cell are recorded instead of run, and what the
cells leave is printed as one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path


def stand_in_for_colab() -> None:
    """A ``google.colab`` that can be found and holds nothing; ``google`` stays what other packages make of it."""
    try:
        import google
    except ImportError:
        google = sys.modules["google"] = types.ModuleType("google")
        google.__path__ = []
    google.colab = sys.modules["google.colab"] = types.ModuleType("google.colab")
    google.colab.__spec__ = ModuleSpec("google.colab", loader=None)


def main(path: Path) -> dict:
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    stand_in_for_colab()
    shell = InteractiveShell.instance()
    installs: list[str] = []
    shell.register_magic_function(lambda line: installs.append(line), "line", "pip")
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    for cell in cells:
        source = cell.source
        if "parameters" in cell.metadata.get("tags", []) and "SAEMA_COLAB_STUDY" in os.environ:
            source = source.replace('study = "auto"', f"study = {os.environ['SAEMA_COLAB_STUDY']!r}")
        if "setup" in cell.metadata.get("tags", []) and "SAEMA_COLAB_COPY" in os.environ:
            source = source.replace("/OWNER/", f"/{os.environ['SAEMA_COLAB_COPY']}/", 1)
        done = shell.run_cell(source, store_history=False)
        if done.error_in_exec or done.error_before_exec:
            return {"failed": cell.id, "error": repr(done.error_in_exec or done.error_before_exec)}
    run = shell.user_ns["run"]
    return {
        "cells": len(cells),
        "installs": installs,
        "study": run.study.name,
        "device": str(run.device),
        "tables": sorted(p.stem for p in (run.path / "tables").glob("*.csv")),
        "figures": sorted(p.stem for p in (run.path / "figures").glob("*.svg")),
        "path": str(run.path),
    }


if __name__ == "__main__":
    sys.path.insert(0, os.environ["SAEMA_TREE"])
    result = main(Path(sys.argv[1]))
    print("RESULT " + json.dumps(result))
