"""Ctrl-C while a chapter runs: one line that says how to resume, no traceback, and nothing left running."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("interrupts_are_heard")]
SECONDS_INSIDE = 2  # past a process's start, while it imports and loads
STARTED_BY = {"1": "ipykernel", "2": "spawn_main"}  # what makes the tables, by --jobs: the kernel, or workers before it


@pytest.mark.parametrize("jobs", STARTED_BY)
@pytest.mark.parametrize("to", ["the program", "its whole group"])
def test_ctrl_c_says_how_to_resume_and_leaves_nothing_running(tmp_path, to, jobs):
    """A terminal sends the signal to the group; ``kill -INT`` and many schedulers only to the program."""
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "saema_utils",
            "run",
            "--study",
            "smoke",
            "--chapters",
            "1",
            "--jobs",
            jobs,
            "--run-dir",
            str(tmp_path / "run"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(STARTED_BY[jobs], running)
        children = psutil.Process(running.pid).children(recursive=True)
        (os.kill if to == "the program" else os.killpg)(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, err
    assert out == ""
    assert err.splitlines() == [
        "chapter 1 ...",
        "saema: interrupted; finished parts are kept. Run the same command again to resume.",
    ]
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert list(tmp_path.glob("run/notebooks/*")) == []


def wait_for(mark, running):
    """Return once a process below it, known by its command line, has run for a while."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert running.poll() is None, running.communicate()
        for child in psutil.Process(running.pid).children(recursive=True):
            old = time.time() - child.create_time() > SECONDS_INSIDE
            if old and any(mark in part for part in child.cmdline()):
                return
        time.sleep(0.1)
    raise AssertionError(f"no {mark} started")
