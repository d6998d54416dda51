"""The expensive things that several tests share: the smoke study, really run, the book built from it, and rulers.

``SAEMA_TEST_RUN`` names a folder to keep them in, so that a second session finds them finished. Workers of
pytest-xdist share one folder and wait for whoever came first.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from saema_utils.chapters import declared_results
from saema_utils.notebook import CHAPTERS
from saema_utils.publishing.execution import ChapterResult, run_notebooks
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES


@dataclass(frozen=True)
class SmokeRun:
    """The run, how its chapters went in this session, and the folder that the site is built in."""

    run: RunDirectory
    results: list[ChapterResult]
    build_dir: Path


def pytest_collection_modifyitems(items):
    """The browser's tests first: one worker runs the study that many tests share. Others that ask for it come last, and
    need not wait for it. Files with slow tests begin early, so that no worker is left alone with one at the end."""
    text = {path: path.read_text(encoding="utf-8") for path in {item.path for item in items}}
    waiting = {path for path in text if "smoke_run" in text[path]}
    slow = {path for path in text if "pytest.mark.slow" in text[path]}
    items.sort(key=lambda item: (item.path.name != "test_browser.py", item.path in waiting, item.path not in slow))


@pytest.fixture
def interrupts_are_heard():
    """A program inherits deafness to SIGINT from a shell that started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def rulers_into(shared) -> Callable[[Path], None]:
    """Puts a run that has all rulers, made once a session, into a folder: small runs in it take them over."""
    run = RunDirectory(shared / "rulers", STUDIES["smoke"], device="cpu")
    with FileLock(shared / "rulers.lock"):
        for result in declared_results().values():
            if result.is_ruler:
                result(run)
    return lambda folder: shutil.copytree(run.path, folder / run.path.name)


@pytest.fixture(scope="session")
def smoke_run(shared) -> SmokeRun:
    """The ``smoke`` study through papermill, every chapter."""
    given = os.environ.get("SAEMA_TEST_RUN")
    folder = Path(given).resolve() if given else shared / "smoke-run"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".tests.lock"):
        run = RunDirectory(folder / "run", STUDIES["smoke"], device="cpu")
        return SmokeRun(run, run_notebooks(run, CHAPTERS, device="cpu", jobs=2), folder / "build")


@pytest.fixture(scope="session")
def site(request) -> Path:
    """The folder of the built site, from the smoke study; ``SAEMA_TEST_SITE`` names one that exists."""
    from saema_utils.publishing.build import build_book

    given = os.environ.get("SAEMA_TEST_SITE")
    if given:
        return Path(given).resolve()
    smoke_run: SmokeRun = request.getfixturevalue("smoke_run")
    with FileLock(smoke_run.build_dir.parent / ".tests.lock"):
        done = smoke_run.build_dir / "html" / "index.html"
        stamp = smoke_run.build_dir / "stamp"
        current = "".join(str(record["stamp"]) for record in smoke_run.run.manifest()["chapters"].values())
        if not (done.exists() and stamp.exists() and stamp.read_text() == current):
            done = build_book(smoke_run.run, build_dir=smoke_run.build_dir)
            stamp.write_text(current)
    return done.parent
