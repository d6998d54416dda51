"""A study killed at any moment resumes, redoes nothing that was finished, and ends with the same tables."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hub_layout
import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from saema_utils.chapters import declared_results
from saema_utils.runs.directory import RunDirectory, read_manifest
from saema_utils.runs.files import UNFINISHED
from saema_utils.runs.workers import made_ahead, missing_of
from saema_utils.study import STUDIES
from saema_utils.sweeps.tasks import make_chapter

KILLS, KILLS_OF_THE_COMMAND = 17, 3
KILLED_CHAPTER = 5  # the one with the most parts
TINY = STUDIES["smoke"].changed(**hub_layout.TINY | {"concepts": ["days", "color"], "templates": 3}, name="tiny")

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """The converted model is shared with other tests; activations of this study are its own."""
    from saema_utils.runs.files import cache_dir

    own = tmp_path_factory.mktemp("cache")
    (cache_dir() / "models").mkdir(parents=True, exist_ok=True)
    (own / "models").symlink_to(cache_dir() / "models")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SAEMA_CACHE", str(own))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The study that nobody touched, a copy of it as it was before KILLED_CHAPTER, and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    _warm_up(folder)
    started = time.monotonic()
    assert run_study(folder / "whole", range(1, KILLED_CHAPTER))
    shutil.copytree(folder / "whole", folder / "begun")
    assert run_study(folder / "whole")
    return folder / "whole", folder / "begun", time.monotonic() - started


def run_study(path, chapters=range(1, 8), seconds=600):
    """Chapters of the study in a child process, killed without warning after ``seconds``; True when it finished."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            run = RunDirectory(path, TINY)
            with run.locked():
                for chapter in chapters:
                    make_chapter(run, chapter)
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def finished(path):
    """When each table and part that the manifest counts as made was written, and its bytes.

    A kill may fall between a file and the manifest's line about it: such a file may be made again.
    """
    return {
        name: ((path / name).stat().st_mtime_ns, hashlib.sha256((path / name).read_bytes()).hexdigest())
        for name in tables_made(path)
    }


def tables_made(path):
    return [name for name in read_manifest(path)["artifacts"] if name.startswith("tables/")]


def test_kills_at_any_moment_change_nothing(tmp_path, whole):
    expected, _, seconds = whole
    draw = random.Random(0)
    kills, folders = 0, []
    while kills < KILLS:  # a study that finished before enough kills is followed by another
        folders.append(tmp_path / f"killed{len(folders)}")
        ended, before = False, {}
        while kills < KILLS and not ended:
            ended = run_study(folders[-1], seconds=draw.uniform(0.02, 0.1) * seconds)
            kills += not ended
            after = finished(folders[-1])
            assert {name: after.get(name) for name in before} == before, "a finished table was made again"
            before = after
        assert ended or run_study(folders[-1])
    for folder in folders:
        _assert_nothing_is_left_over(folder)
        _assert_equal_runs(expected, folder)


def test_the_command_killed_with_its_kernel_redoes_no_finished_part(tmp_path, whole):
    """``kill -9`` for ``saema run`` and its kernel, each time a few more files were finished."""
    expected, begun, _ = whole
    folder = Path(shutil.copytree(begun, tmp_path / "run", copy_function=shutil.copy2))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY.as_dict()))
    draw, before, parts = random.Random(1), finished(folder), 0
    for _ in range(KILLS_OF_THE_COMMAND):
        running = saema_run(tmp_path)
        wait_for_tables(folder, len(before) + draw.randint(1, 3), running)
        time.sleep(draw.uniform(0, 0.1))
        processes = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
        assert any("ipykernel" in part for process in processes for part in process.cmdline())
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)
        running.wait()
        after = finished(folder)
        assert after.items() >= before.items(), "a finished table was made again"
        parts = max(parts, sum("/parts/" in name for name in after.keys() - before.keys()))
        before = after
    assert parts, "no kill fell among the parts of a table"
    assert f"tables/{KILLED_CHAPTER:02d}_effects.csv" not in before, "the chapter was over before the last kill"

    running = saema_run(tmp_path)
    assert running.wait(timeout=600) == 0
    assert finished(folder).items() >= before.items()
    _assert_nothing_is_left_over(folder)
    _assert_equal_runs(expected, folder, f"{KILLED_CHAPTER:02d}_*.csv")


def saema_run(folder):
    arguments = ["--study", "tiny.json", "--run-dir", "run", "--chapters", str(KILLED_CHAPTER), "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "saema_utils", "run", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_tables(folder, number, running, seconds=400):
    end = time.monotonic() + seconds
    while len(tables_made(folder)) < number:
        assert running.poll() is None, "the command ended by itself"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _assert_nothing_is_left_over(folder):
    assert [p.name for p in folder.rglob(f"{UNFINISHED}*")] == []
    assert [p.name for p in folder.glob("notebooks/.*")] == []


def _assert_equal_runs(expected, found, pattern="*.csv"):
    names = {p.name for p in (expected / "tables").glob(pattern)}
    assert names == {p.name for p in (found / "tables").glob(pattern)}
    for name in names:
        _assert_equal_tables(pd.read_csv(expected / "tables" / name), pd.read_csv(found / "tables" / name), name)


def _assert_equal_tables(a, b, name):
    assert list(a) == list(b), name
    assert len(a) == len(b), name
    for column in a:
        if "seconds" in column:
            continue
        if a[column].dtype.kind == "f":
            assert np.allclose(a[column], b[column], rtol=1e-6, atol=1e-9, equal_nan=True), (name, column)
        else:
            assert a[column].astype(str).equals(b[column].astype(str)), (name, column)


def _warm_up(tmp_path):
    """Import and compile in the parent, so that children start at the study itself."""
    import saema_utils as saema
    from saema_utils.chapters.activations.model import language_model

    torch.set_num_threads(1)
    language_model(RunDirectory(tmp_path / "warm", TINY))
    points = np.random.default_rng(0).normal(size=(40, 6))
    for method in ("paper", "direct"):
        saema.find_local_representations(points, method=method, min_cluster_size=4, seed=0)


# ---- side by side ----------------------------------------------------------------------------------


def test_two_workers_make_the_tables_of_one_process(tmp_path, whole):
    """Byte for byte, all chapters, one of the workers killed half way."""
    expected, _, _ = whole
    run = RunDirectory(tmp_path / "run", TINY, device="cpu")
    results = [made for made in declared_results().values() if made.chapter <= 7]

    def killed_half_way(_: str, done: int, total: int) -> None:
        if done > total / 2 and not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    killed = []
    with made_ahead(run, results, 2, {}) as workers:
        for chapter in range(1, 8):
            workers.wait(chapter, killed_half_way)
        assert workers.death
    assert 0 < len(missing_of(run, results)) < len(results)
    with made_ahead(run, results, 2, {}) as workers:
        for chapter in range(1, 8):
            workers.wait(chapter, lambda *_: None)
        assert not workers.death
    assert not missing_of(run, results)
    compared = [path for path in (expected / "tables").rglob("*.csv") if "seconds" not in path.read_text()]
    assert len(compared) > 50
    different = [p.name for p in compared if p.read_bytes() != (run.path / p.relative_to(expected)).read_bytes()]
    assert different == []


# ---- a full disk -----------------------------------------------------------------------------------

SAVES = """
import json, resource, sys
import numpy as np, pandas as pd
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES

kind, path = sys.argv[1:]
run = RunDirectory(path, STUDIES["smoke"])

def save(rows):
    numbers = np.random.default_rng(0).normal(size=(rows, 2))
    if kind == "table":
        run.save_table("01_x", pd.DataFrame(numbers))
    elif kind == "tensors":
        import torch
        run.save_tensors("01_x", {"x": torch.from_numpy(numbers)})
    else:
        from saema_utils.figures import panels
        figure, axes = panels()
        axes.plot(*numbers.T)
        run.save_figure("01_x", figure)

save(3)
limit = 2**17
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save(20_000)
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.parametrize("kind", ["table", "tensors", "figure"])
def test_a_disk_that_is_full_costs_one_line_and_no_earlier_file(kind, tmp_path):
    """The system itself refuses to write on: a limit on the size of files, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", SAVES, kind, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, message = json.loads(done.stdout)
    assert name == "ArtifactError", message
    assert "cannot write" in message
    assert "earlier files are whole" in message
    assert "\n" not in message
    run = RunDirectory(tmp_path, STUDIES["smoke"])
    made = [relative for relative in run.manifest()["artifacts"] if "01_x" in relative]
    assert made
    for relative in made:
        run.check(relative)
    hidden = {".manifest.lock"}
    kept = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() and p.name not in hidden}
    assert kept == {*made, "manifest.json"}, "something is left over"
