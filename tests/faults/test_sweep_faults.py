"""Sweeps that go wrong, with the real chapters on tiny studies: a dead worker, a poisoned task, a lost scheduler."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress

import hub_layout
import pytest

from saema_utils.sweeps.plan import plan_sweep

pytest.importorskip("distributed")
pytestmark = [pytest.mark.model, pytest.mark.slow]

TINY = hub_layout.TINY | {"base": "smoke", "name": "tiny", "concepts": ["days"], "n_seeds": 1, "sae.epochs": 1}
SEEDS = "base: tiny.json\ngrid: {seed: [0, 1]}\nchapters: 1-2\n"
POISONED = "base: tiny.json\ngrid: {seed: [0, 1]}\ncases: [{layer: 15}, {layer: 99}]\nchapters: 1-2\n"


@pytest.fixture(scope="module")
def converted():
    """The embedded model, converted once for all tests."""
    from saema_utils.model.loading import model_folder
    from saema_utils.study import EMBEDDED_MODEL

    return model_folder(EMBEDDED_MODEL).parent


@pytest.fixture
def workplace(tmp_path, converted, monkeypatch):
    """A folder with the study, and a cache of its own: nothing is read that another run computed."""
    return fresh_place(tmp_path, converted, monkeypatch)


def fresh_place(folder, converted, monkeypatch):
    (folder / "cache").mkdir()
    (folder / "cache/models").symlink_to(converted)
    (folder / "tiny.json").write_text(json.dumps(TINY))
    (folder / "sweep.yaml").write_text(SEEDS)
    (folder / "poisoned.yaml").write_text(POISONED)
    monkeypatch.setenv("SAEMA_CACHE", str(folder / "cache"))
    return folder


@pytest.fixture(scope="module")
def serial_tables(tmp_path_factory, converted):
    """Tables by seed, from one process and one thread."""
    folder = tmp_path_factory.mktemp("serial")
    with pytest.MonkeyPatch.context() as monkeypatch:
        fresh_place(folder, converted, monkeypatch)
        done = sweep(folder, "--serial", "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return tables_by_seed(plan_sweep(folder / "sweep.yaml", folder=folder / "runs"))


def sweep(folder, *arguments, file="sweep.yaml"):
    return subprocess.run(command(folder, *arguments, file=file), capture_output=True, text=True, cwd=folder)


def command(folder, *arguments, file="sweep.yaml"):
    return [
        sys.executable,
        "-m",
        "saema_utils",
        "sweep",
        file,
        "--out",
        str(folder / "runs"),
        "--device",
        "cpu",
        *arguments,
    ]


def tables_by_seed(plan):
    """The bytes of every table of every run that was to finish."""
    found = {}
    for name, study in plan.runs.items():
        if study.layer < 30:
            tables = {p.name: p.read_bytes() for p in sorted((plan.folder / name / "tables").glob("*.csv"))}
            found[study.seed] = tables
    assert all("02_sae_eval.csv" in tables for tables in found.values())
    return found


def test_two_workers_give_the_serial_tables_and_a_poisoned_task_fails_alone(workplace, serial_tables):
    import pandas as pd

    done = sweep(workplace, "--workers", "2", file="poisoned.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "http://127.0.0.1:" in done.stdout  # the dashboard
    plan = plan_sweep(workplace / "poisoned.yaml", folder=workplace / "runs", device="cpu")
    assert tables_by_seed(plan) == serial_tables

    tasks = pd.read_csv(workplace / "runs/sweep_tasks.csv").set_index("task")
    sound = [task.id for task in plan.tasks if plan.runs[task.run].layer == 15 and task.chapter]
    assert set(tasks.loc[sound, "status"]) == {"done"}
    assert tasks.loc[sound, "where"].nunique() == 2
    failed = tasks[tasks["status"] == "failed"]
    assert failed["error"].str.contains(r"layer 99 does not exist.*allowed: 0 to 29").all()
    assert len(failed) == 2
    for name, study in plan.runs.items():
        if study.layer == 99:
            assert f" of {name}: " in done.stderr
    assert "Traceback" not in done.stderr
    gathered = pd.read_csv(workplace / "runs/sweep.csv")
    assert set(gathered["layer"]) == {15}
    assert set(gathered["seed"]) == {0, 1}


def test_a_worker_killed_in_the_middle_changes_nothing(workplace, serial_tables):
    from saema_utils.sweeps.engine import local_client, run_on_dask

    plan = plan_sweep(workplace / "sweep.yaml", folder=workplace / "runs", device="cpu")
    plan.write(1)
    killed = []
    with local_client(2, 1, []) as client:
        client.wait_for_workers(2, timeout=300)
        processes = client.run(os.getpid)

        def kill_one_that_works():
            """Kill a worker while it makes the tables of chapter 2."""
            wait_for(lambda: list(plan.folder.glob("*/logs/chapter-2.txt")))
            for worker, keys in client.processing().items():
                if not killed and any(str(key).endswith("/2") for key in keys):
                    killed.append(processes[worker])
                    os.kill(processes[worker], signal.SIGKILL)

        killer = threading.Thread(target=kill_one_that_works)
        killer.start()
        ends = list(run_on_dask(plan, client, threads=1, retries=0))
        killer.join()
    assert len(killed) == 1
    assert {outcome.status for _, outcome in ends} <= {"done", "skipped"}, ends
    assert tables_by_seed(plan) == serial_tables


def test_a_lost_scheduler_is_one_line_and_the_rerun_resumes(workplace, serial_tables):
    def dask(what, *arguments):
        module = f"distributed.cli.dask_{what}"
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=workplace,
        )

    with ExitStack() as stack:
        file = workplace / "scheduler.json"
        scheduler = dask(
            "scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)
        )
        stack.callback(scheduler.kill)
        wait_for(file.exists)
        address = json.loads(file.read_text())["address"]
        worker = dask("worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--death-timeout", "5")
        stack.callback(worker.kill)
        log = workplace / "out.txt"
        with log.open("w") as out:
            running = subprocess.Popen(
                command(workplace, "--scheduler", address, "--chapters", "1"), stdout=out, stderr=out, cwd=workplace
            )
        stack.callback(running.kill)
        wait_for(lambda: "done: chapter 1" in log.read_text() or running.poll() is not None)
        scheduler.kill()
        assert running.wait(timeout=300) == 2, log.read_text()
    said = log.read_text()
    assert f"saema: the scheduler at {address} is gone; " in said
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith("run the same command to resume.")

    again = sweep(workplace, "--serial", "--workers", "2", "--chapters", "1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert " skipped" in again.stdout
    for name, study in plan_sweep(workplace / "sweep.yaml", folder=workplace / "runs").runs.items():
        made = (workplace / "runs" / name / "tables/01_concepts.csv").read_bytes()
        assert made == serial_tables[study.seed]["01_concepts.csv"]


def test_a_sweep_and_a_run_of_one_folder_keep_out_of_each_others_way(workplace, serial_tables):
    """The two commands at once: the second says in one line that the first is there, which ends as if alone."""
    plan = plan_sweep(workplace / "sweep.yaml", folder=workplace / "runs", device="cpu")
    name, study = next(iter(plan.runs.items()))
    where = ["--study", f"runs/{name}/study.json", "--run-dir", f"runs/{name}", "--chapters", "1"]
    log = workplace / "out.txt"
    with log.open("w") as out:
        sweeping = subprocess.Popen(
            command(workplace, "--serial", "--workers", "2", "--chapters", "1"),
            stdout=out,
            stderr=out,
            cwd=workplace,
            start_new_session=True,
        )
    try:
        wait_for((plan.folder / name / "logs/chapter-1.txt").exists)
        os.killpg(sweeping.pid, signal.SIGSTOP)  # however fast the machine, it is there while the run asks
        run = [sys.executable, "-m", "saema_utils", "run", *where]
        refused = subprocess.run(run, capture_output=True, text=True, cwd=workplace)
        os.killpg(sweeping.pid, signal.SIGCONT)
        assert sweeping.wait(timeout=400) == 0, log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(sweeping.pid, signal.SIGKILL)
    assert refused.returncode == 2
    assert refused.stderr.startswith("saema: ")
    assert refused.stderr.count("\n") == 1
    assert "Wait for it" in refused.stderr
    made = (plan.folder / name / "tables/01_concepts.csv").read_bytes()
    assert made == serial_tables[study.seed]["01_concepts.csv"]


def test_no_scheduler_at_the_address_is_one_line(workplace):
    refused = sweep(workplace, "--scheduler", "tcp://127.0.0.1:9")
    assert refused.returncode == 2
    assert "tcp://127.0.0.1:9" in refused.stderr
    assert refused.stderr.count("\n") == 1


def wait_for(condition, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
