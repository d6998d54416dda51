"""Worker processes: everything is made once and after what it needs, and no process outlives the first one."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from saema_utils.runs import tables
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.workers import made_ahead, missing_of
from saema_utils.study import STUDIES

TOYS = '''
"""Results of two chapters that note in their tables when and where they were made."""

import os
import time
from pathlib import Path

import pandas as pd

from saema_utils.runs.tables import parts, table

def note(name, **facts):
    began = time.time()
    fault = Path(__file__).with_name(name)  # what goes wrong when this result is made, if anything does
    (fault.parent / f"{name}.{os.getpid()}").touch()
    if fault.exists():
        exec(fault.read_text())
    return pd.DataFrame([{"process": os.getpid(), "began": began, "ended": time.time(), **facts}])


@table("01_first")
def first(run):
    return note("01_first")


@parts("01_apart", of=lambda run: ["a", "b", "c"], needs=(first,))
def apart(run, names):
    for name in names:
        yield name, {"01_apart": note(f"01_apart_{name}", part=name)}


@parts("01_chain", of=lambda run: ["a", "b", "c"], needs=(first,), after=lambda run, part: "abc".partition(part)[2])
def chain(run, names):
    for name in names:
        yield name, {"01_chain": note("01_chain", part=name)}


@table("02_last", needs=(apart, chain))
def last(run):
    assert len(apart(run)) == len(chain(run)) == 3
    return note("02_last", threads=os.environ["OMP_NUM_THREADS"], given=os.environ["SAEMA_TEST_GIVEN"])


@table("02_beside")
def beside(run):
    return note("02_beside")


def page(name):
    return note(name).to_dict("records")[0]
'''


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A module that other processes can import too; its results are known to nobody else."""
    (tmp_path / "toys_of_workers.py").write_text(TOYS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tables, "RESULTS", {})
    yield importlib.import_module("toys_of_workers")
    del sys.modules["toys_of_workers"]


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run", STUDIES["smoke"], device="cpu")


def results_of(toys):
    return [toys.first, toys.apart, toys.chain, toys.last, toys.beside]


def begun(tmp_path, name):
    """Processes that began to make a result, or a part of one."""
    return [int(path.suffix[1:]) for path in tmp_path.glob(f"{name}*.*") if path.suffix[1:].isdigit()]


def until(happened, seconds=120):
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def test_everything_is_made_once_and_after_what_it_needs(toys, run, tmp_path):
    told = []
    with made_ahead(run, results_of(toys), 2, {"SAEMA_TEST_GIVEN": "yes"}) as workers:
        workers.wait(1, lambda *said: told.append(said))
        assert not missing_of(run, [toys.first, toys.apart, toys.chain])
        workers.wait(2, lambda *said: told.append(said))
    assert not workers.death
    assert workers.peak > 2**20
    first, apart, chain, last = (made(run) for made in (toys.first, toys.apart, toys.chain, toys.last))
    for name in ("01_first", "01_apart_a", "01_apart_b", "01_apart_c", "02_last", "02_beside"):
        assert len(begun(tmp_path, name)) == 1, name
    assert os.getpid() not in {*first["process"], *apart["process"], *chain["process"], *last["process"]}
    assert apart["part"].tolist() == chain["part"].tolist() == ["a", "b", "c"]
    began, ended = chain["began"].tolist(), chain["ended"].tolist()
    assert began[0] >= ended[1] > began[1] >= ended[2], "a part was made before one that it needs"
    assert max(first["ended"]) <= min(apart["began"].min(), chain["began"].min())
    assert max(apart["ended"].max(), chain["ended"].max()) <= last["began"].min()
    assert last[["threads", "given"]].values.tolist() == [[1, "yes"]]
    assert told, "nobody was told what is being made"
    assert {total for _, _, total in told} == {9}
    assert sorted(done for _, done, _ in told) == [done for _, done, _ in told]


def pages_of(toys):
    return {chapter: (toys.page, (f"page_{chapter}",)) for chapter in (1, 2)}


def test_a_page_is_made_when_all_up_to_its_chapter_is(toys, run, tmp_path):
    with made_ahead(run, results_of(toys), 2, {"SAEMA_TEST_GIVEN": "yes"}, pages_of(toys)) as workers:
        first, last = (workers.wait(chapter, lambda *_: None) for chapter in (1, 2))
    assert first["began"] >= max(toys.apart(run)["ended"].max(), toys.chain(run)["ended"].max())
    assert last["began"] >= toys.last(run)["ended"][0]
    assert os.getpid() not in (first["process"], last["process"])
    assert set(workers.seconds) == {1, 2}, "of results"


def test_pages_alone_are_made_side_by_side_and_a_single_one_by_whoever_asks(toys, run, tmp_path):
    for mine, other in ((1, 2), (2, 1)):
        ask = f"while not Path(__file__).with_name('page_{other}.met').exists(): time.sleep(0.05)"
        (tmp_path / f"page_{mine}").write_text(f"Path(__file__).with_name('page_{mine}.met').touch()\n{ask}")
    with made_ahead(run, [], 2, {}, pages_of(toys)) as workers:
        assert all(workers.wait(chapter, lambda *_: None) for chapter in (1, 2))
    with made_ahead(run, [], 2, {}, {1: (toys.page, ("page_1",))}) as workers:
        assert workers is None


def test_what_a_page_raises_is_raised_where_it_is_waited_for(toys, run, tmp_path):
    (tmp_path / "page_1").write_text("time.sleep(600)")
    (tmp_path / "page_2").write_text("raise ValueError('a cell failed')")
    with made_ahead(run, [], 2, {}, pages_of(toys)) as workers:
        assert workers.wait(1, lambda *_: None) is None, "left to be done"
        with pytest.raises(ValueError, match="a cell failed"):
            workers.wait(2, lambda *_: None)


def test_nothing_is_begun_where_nothing_is_missing(toys, run, monkeypatch):
    monkeypatch.setenv("SAEMA_TEST_GIVEN", "yes")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for result in results_of(toys):
        result(run)
    with made_ahead(run, results_of(toys), 2, {}) as workers:
        assert workers is None
    run.path.joinpath("tables/02_last.csv").write_text("damaged")
    assert missing_of(run, results_of(toys)) == {toys.last, toys.first, toys.apart, toys.chain}
    run.path.joinpath("tables/parts/01_apart_001.csv").unlink()
    assert missing_of(run, [toys.apart]) == {toys.apart}


def test_what_fails_is_left_with_all_that_comes_after(toys, run, tmp_path):
    """A page says it in its own cell; until then nobody waits for work that may be in vain."""
    (tmp_path / "01_apart_a").write_text("time.sleep(600)")
    (tmp_path / "01_apart_b").write_text("raise ValueError('a word that only a page shows')")
    with made_ahead(run, results_of(toys), 2, {}) as workers:
        workers.wait(1, lambda *_: None)
        workers.wait(2, lambda *_: None)
        assert not workers.death
    assert toys.first.is_made(run)
    assert not toys.apart.is_made(run)
    assert begun(tmp_path, "02_last") == []
    (tmp_path / "01_apart_a").unlink()
    until(lambda: not any(map(psutil.pid_exists, begun(tmp_path, "01_apart"))))
    with pytest.raises(ValueError, match="a word that only a page shows"):
        toys.apart(run)


def test_a_worker_that_dies_is_said_and_costs_nothing_that_was_made(toys, run, tmp_path, monkeypatch):
    (tmp_path / "01_apart_c").write_text("os.kill(os.getpid(), 9)")
    with made_ahead(run, results_of(toys), 1, {}) as workers:
        workers.wait(2, lambda *_: None)
        assert workers.death
    (tmp_path / "01_apart_c").unlink()
    made = begun(tmp_path, "01_apart_a")
    assert toys.apart(run)["part"].tolist() == ["a", "b", "c"]
    assert begun(tmp_path, "01_apart_a") == made, "a finished part was made again"


@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize("how", ["is told", "is killed"])
def test_no_process_outlives_the_one_that_began_it(toys, run, tmp_path, how):
    """In the middle of a piece, whether the first process ends them itself or is gone without a word; nor does one that
    a piece began, as a page begins a kernel."""
    (tmp_path / "01_first").write_text("import subprocess; subprocess.Popen(['sleep', '600']).wait()")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, toys_of_workers as toys\n"
        "from saema_utils.runs.directory import RunDirectory\n"
        "from saema_utils.runs.workers import made_ahead\n"
        "from saema_utils.study import STUDIES\n"
        "if __name__ == '__main__':\n"
        "    run = RunDirectory(sys.argv[1], STUDIES['smoke'], device='cpu')\n"
        "    with made_ahead(run, [toys.first, toys.beside], 2, {}) as workers:\n"
        "        workers.wait(1, lambda *_: None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    first = subprocess.Popen(
        [sys.executable, str(program), str(run.path)], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        (asleep,) = until(lambda: begun(tmp_path, "01_first"))
        until(psutil.Process(asleep).children)
        others = psutil.Process(first.pid).children(recursive=True)
        assert asleep in {process.pid for process in others}
        assert any("sleep" in process.name() for process in others)
        if how == "is told":
            os.killpg(first.pid, signal.SIGINT)  # as a terminal does
        else:
            first.kill()
        said = first.communicate(timeout=60)[1].decode()
        _, alive = psutil.wait_procs(others, timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    assert not alive
    if how == "is told":
        assert said.strip().splitlines()[-1] == "KeyboardInterrupt", "something else was said after it"
