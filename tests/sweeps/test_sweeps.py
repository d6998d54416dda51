"""Sweeps: what a file asks for, how it is planned, and where it would run."""

import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saema_utils.__main__ import main
from saema_utils.errors import ArtifactError, StudyError, SweepError
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES
from saema_utils.sweeps import engine
from saema_utils.sweeps.plan import Slurm, chapter_needs, expand, plan_sweep, read_sweep_file, run_name
from saema_utils.sweeps.tasks import SHARED, Outcome, carry_out

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # busy machines
GRID = "base: smoke\ngrid: {sae.k: [16, 32], seed: [0, 1]}\nchapters: 1-3\n"


@pytest.fixture
def write(tmp_path):
    def writer(text, name="sweep.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return writer


@pytest.fixture
def plan(write, tmp_path):
    return plan_sweep(write(GRID), folder=tmp_path / "runs")


@pytest.fixture
def saema(tmp_path, monkeypatch, capsys):
    """The command line: its exit code, and what it said."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["saema", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capsys.readouterr())

    return run


def at_once(task, *_):
    return Outcome("done", 1.0, 1, "here")


def statuses(ends):
    return {task.id: outcome.status for task, outcome in ends}


# ---- the file --------------------------------------------------------------------------------------


def runs_of(path):
    return expand(read_sweep_file(path), path)


def test_a_grid_is_every_combination(write):
    runs, changes = runs_of(write(GRID))
    assert sorted((s.sae.k, s.seed) for s in runs.values()) == [(16, 0), (16, 1), (32, 0), (32, 1)]
    assert all(runs[name].changed(name="x") == STUDIES["smoke"].changed(**changes[name], name="x") for name in runs)
    assert all(runs[name].name == name for name in runs)


def test_cases_change_fields_together(write):
    text = "base: [smoke]\ncases: [{layer: 3, sae.k: 8}, {layer: 9, sae.k: 16}]\ngrid: {seed: [0, 1]}"
    runs, _ = runs_of(write(text))
    assert sorted((s.layer, s.sae.k, s.seed) for s in runs.values()) == [(3, 8, 0), (3, 8, 1), (9, 16, 0), (9, 16, 1)]


def test_several_bases_and_study_files_beside_the_sweep(write):
    write('{"base": "smoke", "name": "mine", "layer": 4}', "mine.json")
    runs, _ = runs_of(write("base: [smoke, mine.json]\ngrid: {seed: [7]}"))
    assert sorted((s.layer, s.seed) for s in runs.values()) == [(4, 7), (15, 7)]


def test_paths_beside_the_sweep_file_become_absolute(write, tmp_path):
    write("one two", "text.txt")
    runs, _ = runs_of(write("base: smoke\ngrid: {corpus.source: [text.txt]}"))
    assert [s.corpus.source for s in runs.values()] == [str(tmp_path / "text.txt")]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base: smok", "Did you mean 'smoke'"),
        ("base: smoke\ngird: {}", "Did you mean 'grid'"),
        ("base: smoke\ngird:", "gird"),
        ("grid: {seed: [0]}", "base"),
        ("base: smoke\ngrid: {sae.kk: [1]}", "Did you mean 'k'"),
        ("base: smoke\ngrid: {self: [0]}", "self"),
        ("base: smoke\ngrid: {sae.k: 16}", "16"),
        ("base: smoke\ngrid: {sae.k: []}", "sae.k"),
        ("base: smoke\ngrid: {sae.k: [0]}", "sae.k"),
        ("base: smoke\ngrid: {sae.k: [16, sixteen]}", "sixteen"),
        ("base: smoke\ngrid: {seed: [0, 0]}", "twice"),
        ("base: [smoke, smoke]", "twice"),
        ("base: smoke\ngrid: {seed: [0]}\ncases: [{seed: 1}]", "seed"),
        ("base: smoke\ngrid: {seed: [0], seed: [1]}", "'seed' twice"),
        ("base: smoke\ngrid: {name: [a]}", "name"),
        ("base: smoke\nchapters: 1-99", "1-99"),
        ("base: smoke\nchapters: 8", "chapter 8"),
        ("base: smoke\ndevice: tpu", "tpu"),
        ("base: smoke\nslurm: fast", "fast"),
        ("base: [smoke", "not YAML"),
        ("base: !!python/object/apply:os.system [true]", "not YAML"),
        ("- smoke", "mapping"),
        ("", "mapping"),
        ("base: smoke\nslurm: {partition: gpu}", "partition"),
        ("base: smoke\nslurm: {walltime: 4:00:00}", "walltime"),  # YAML reads a number
        ("base: smoke\nslurm: {walltime: 'a day'}", "a day"),
        ("base: smoke\nslurm: {walltime: '00:05:00'}", "walltime"),  # workers leave five minutes before the end
        ("base: smoke\nslurm: {memory: 8}", "memory"),
        ("base: smoke\nslurm: {cores: 0}", "cores"),
        ("base: smoke\nslurm: {gpus: 4}", "gpus"),
        ("base: smoke\nslurm: {directives: --exclusive}", "directives"),
        ('base: smoke\nslurm: {prologue: ["a\\nb"]}', "single line"),
        (f"base: smoke\ngrid: {{seed: {list(range(500))}, layer: {list(range(200))}}}", "100000"),
    ],
)
def test_mistakes_in_the_file_are_named(write, text, named):
    with pytest.raises((SweepError, StudyError)) as error:
        plan_sweep(write(text))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(SweepError, match=r"nowhere\.yaml"):
        plan_sweep("nowhere.yaml")


texts = st.text("aB9/.\\ \n\0~é漢-_*:", max_size=60)
values = st.one_of(texts, st.integers(), st.floats(allow_nan=False), st.lists(texts, max_size=9))


@relaxed
@given(st.dictionaries(st.sampled_from(["model", "seed", "sae.source", "concepts", "corpus.source"]), values))
def test_run_names_are_safe_folders(changes):
    name = run_name("smoke", changes)
    assert len(name) <= 100
    assert STUDIES["smoke"].changed(name=name).name == name  # the study's own rule: no separators, no leading dot
    assert os.path.basename(name) == name


def test_values_that_look_alike_get_their_own_folders(write):
    runs, _ = runs_of(write("base: smoke\ngrid: {model: ['org/a b', 'org/a?b', 'ORG/A-B']}"))
    assert len({name.lower() for name in runs}) == 3


# ---- the plan --------------------------------------------------------------------------------------


def test_shared_work_is_one_task_and_needs_come_first(plan):
    assert [task.chapter for task in plan.tasks].count(SHARED) == 2  # k does not change the corpus, the seed does
    assert len(plan.tasks) == 2 + 4 * 3
    place = {task.id: number for number, task in enumerate(plan.tasks)}
    assert all(place[needed] < place[task.id] for task in plan.tasks for needed in task.needs)
    for task in plan.tasks:
        if task.chapter == 1:
            (corpus,) = task.needs
            first = next(other for other in plan.tasks if other.id == corpus)
            assert plan.runs[first.run].seed == plan.runs[task.run].seed


def test_chapters_bring_the_ones_they_need():
    assert chapter_needs([5]) == {1: (), 2: (1,), 5: (1, 2)}
    assert chapter_needs([6]) == {1: (), 2: (1,), 6: (1, 2)}
    assert chapter_needs([7]) == {1: (), 2: (1,), 5: (1, 2), 6: (1, 2), 7: (1, 2, 5, 6)}


def test_planning_writes_nothing(plan):
    assert not plan.folder.exists()


def test_keys_change_with_the_study_and_its_files_only(write, tmp_path):
    text = write("some text", "text.txt")
    sweep = write("base: smoke\ngrid: {corpus.source: [text.txt], seed: [0, 1]}\nchapters: 1-2")

    def keys(folder):
        return {task.id: task.key for task in plan_sweep(sweep, folder=tmp_path / folder).tasks}

    before = keys("runs")
    assert before == keys("elsewhere")
    assert len(set(before.values())) == 2
    text.write_text("other text")
    assert not set(keys("runs").values()) & set(before.values())


def test_finished_tasks_are_recognised_by_key_and_whole_files(plan, write):
    def finished():
        return {task.id for task in plan_sweep(write(GRID), folder=plan.folder).tasks if task.finished}

    task = next(task for task in plan.tasks if task.chapter == 1)
    run = RunDirectory(task.folder, plan.runs[task.run])
    table = run.save_table("01_concepts", pd.DataFrame({"a": [1]}))
    run.record_task("chapter-1", key=task.key, seconds=3.0)
    assert finished() == {task.id}
    table.write_text("a\n2\n")
    assert not finished()
    table.write_text("a\n1\n")
    assert finished() == {task.id}
    run.record_task("chapter-1", key="of another study", seconds=3.0)
    assert not finished()


def test_a_folder_of_another_study_is_refused(plan, write):
    name = next(iter(plan.runs))
    RunDirectory(plan.folder / name, STUDIES["smoke"])
    with pytest.raises(ArtifactError, match=name):
        plan_sweep(write(GRID), folder=plan.folder)


@relaxed
@given(st.integers(1, 500), st.integers(1, 128), st.integers(2**30, 2**40), st.integers(0, 8))
def test_workers_fit_the_machine(tasks, cores, memory, gpus):
    workers, threads = engine.fit_workers(tasks, cores, memory, gpus)
    assert 1 <= workers <= tasks
    assert workers * threads <= cores or threads == 1
    assert workers == 1 or (workers <= gpus if gpus else workers <= cores and workers * 2**30 <= memory)
    assert engine.fit_workers(tasks, cores, memory, gpus, workers=3, threads=2) == (3, 2)


def test_a_sweep_that_resumes_keeps_its_threads(plan, write, monkeypatch):
    """Sixteen cores: each task has as many threads when one is left as when none was done."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**40))
    monkeypatch.setattr(engine, "visible_gpus", lambda _: [])
    workers, threads = engine.fit_this_machine(plan)
    assert (workers, threads) == (14, 1)
    plan.write(threads)
    again = plan_sweep(write(GRID), folder=plan.folder)
    one = replace(again, tasks=tuple(replace(t, finished=t.id != again.tasks[-1].id) for t in again.tasks))
    assert engine.fit_this_machine(one) == (1, 1)
    assert engine.fit_this_machine(one, workers=2) == (2, 8)
    (plan.folder / "sweep.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"sweep\.json"):
        plan_sweep(write(GRID), folder=plan.folder)


# ---- the engines -----------------------------------------------------------------------------------


def poisoned(task, *_):
    if task.run.endswith("k-16_seed-0") and task.chapter == 2:
        raise ValueError("out of\ncheese")
    return at_once(task)


def check_that_a_failure_stops_only_what_needs_it(ends):
    ends = list(ends)
    assert len(ends) == 14
    status = statuses(ends)
    assert [name for name, found in status.items() if found == "failed"] == ["smoke_k-16_seed-0/2"]
    assert [name for name, found in status.items() if found == "not run"] == ["smoke_k-16_seed-0/3"]
    errors = {task.id: outcome.error for task, outcome in ends}
    assert "ValueError: out of cheese" in errors["smoke_k-16_seed-0/2"]
    assert "smoke_k-16_seed-0/2" in errors["smoke_k-16_seed-0/3"]
    assert set(status.values()) == {"done", "failed", "not run"}


def test_a_failure_stops_only_what_needs_it(plan):
    check_that_a_failure_stops_only_what_needs_it(engine.run_serially(plan, work=poisoned))


def test_a_failed_task_is_tried_again(plan):
    tries = []

    def work(task, *_):
        tries.append(task.id)
        if tries.count(task.id) < 3:
            raise OSError("the disk was away")
        return at_once(task)

    assert set(statuses(engine.run_serially(plan, retries=2, work=work)).values()) == {"done"}
    assert len(tries) == 3 * 14
    tries.clear()
    assert "failed" in statuses(engine.run_serially(plan, retries=1, work=work)).values()


def test_dask_settles_every_task_and_one_gpu_a_worker(plan):
    """On one cluster of two processes: Dask takes seconds to start one."""
    pytest.importorskip("distributed")

    def environment():
        return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]

    def work(task, *_):  # nested, so that they travel by value: workers cannot import this test
        from saema_utils.sweeps.tasks import Outcome

        if task.run.endswith("k-16_seed-0") and task.chapter == 2:
            raise ValueError("out of\ncheese")
        return Outcome("done", 1.0, 1, "a worker")

    def work_after_two_deaths(task, *_):
        import os
        from pathlib import Path

        from saema_utils.sweeps.tasks import Outcome

        deaths = Path(task.folder).parent / "deaths"
        if task.chapter == 2 and (not deaths.exists() or len(deaths.read_text()) < 2):
            with deaths.open("a") as file:
                file.write("x")
            os._exit(1)
        return Outcome("done", 1.0, 1, "a worker")

    with engine.local_client(2, 3, ["3", "5"]) as client:
        client.wait_for_workers(2, timeout=120)
        assert sorted(client.run(environment).values()) == [("3", "3"), ("5", "3")]
        assert all(worker["nthreads"] == 1 for worker in client.scheduler_info()["workers"].values())
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
        check_that_a_failure_stops_only_what_needs_it(engine.run_on_dask(plan, client, retries=0, work=work))
        plan.write(1)
        survived = engine.run_on_dask(plan, client, retries=0, work=work_after_two_deaths)
        assert set(statuses(survived).values()) == {"done"}


def test_workers_without_the_package_are_told(plan):
    distributed = pytest.importorskip("distributed")

    def forget():
        import sys

        sys.modules["saema_utils"] = None  # what Python does when a module cannot be found

    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        with distributed.Client(cluster) as client:
            client.run(forget)
        with pytest.raises(SweepError, match="ModuleNotFoundError"), engine.existing_client(cluster.scheduler_address):
            pass


def test_a_scheduler_without_workers_is_given_up():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 0, "processes": False, "dashboard_address": None, "protocol": "tcp"}
    with distributed.LocalCluster(**options) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(SweepError, match=f"dask worker {address}"), engine.existing_client(address, patience=0.5):
            pass
        threading.Timer(0.5, cluster.scale, [1]).start()
        with engine.existing_client(address, patience=60) as client:
            assert client.nthreads()


def test_a_worker_with_other_code_or_another_disk_is_refused(plan):
    with pytest.raises(SweepError, match="does not see"):
        carry_out(plan.tasks[0])
    plan.write(1)
    with pytest.raises(SweepError, match="another version"):
        carry_out(replace(plan.tasks[0], code="other"))


# ---- the command -----------------------------------------------------------------------------------


def test_what_cannot_work_is_said_before_any_task_and_the_others_stay(write, saema):
    code, out, err = saema("sweep", write("base: smoke\ngrid: {layer: [15, 99], seed: [0, 1]}"), "--dry-run")
    assert code == 0
    said = [line for line in err.splitlines() if "cannot work" in line]
    assert len(said) == 2
    assert all("layer 99 does not exist" in line and "allowed: 0 to 29" in line for line in said)
    assert len({line.partition(" ")[0] for line in said}) == 2
    assert "4 runs" in out


def test_a_dry_run_shows_the_plan_and_runs_nothing(write, tmp_path, saema):
    code, out, _ = saema("sweep", write(GRID), "--dry-run")
    assert code == 0
    assert "smoke_k-16_seed-0" in out
    assert "4 runs, 14 tasks" in out
    assert not (tmp_path / "runs").exists()


def test_many_runs_need_a_word(write, tmp_path, saema):
    code, _, said = saema("sweep", write(f"base: smoke\ngrid: {{seed: {list(range(201))}}}"))
    assert code == 2
    assert "--yes" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["--scheduler", "localhost"], ["--slurm", "--serial"], ["--workers", "-1"]])
def test_options_that_cannot_be_are_refused(write, saema, arguments):
    code, _, said = saema("sweep", write(GRID), *arguments)
    assert code == 2
    assert said.startswith("saema: ")
    assert said.count("\n") == 1


def test_without_dask_one_line_says_how_to_get_it(write, saema, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, _, said = saema("sweep", write(GRID))
    assert code == 2
    assert 'pip install "saema_utils[sweep]"' in said
    assert said.count("\n") == 1


# ---- SLURM -----------------------------------------------------------------------------------------

SLURM = f"""{GRID}
slurm:
  {{queue: gpu, account: lab-7, walltime: '1-02:00:00', cores: 8, memory: 16GiB, gpus: 1, directives: [--exclusive]}}
"""


def test_the_slurm_job_script_says_what_the_file_asks(write, tmp_path, monkeypatch, saema):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("SAEMA_CACHE", "/shared disk/cache")
    code, script, _ = saema("sweep", write(SLURM), "--slurm", "--dry-run")
    assert code == 0
    script = script[script.index("#!") :]
    directives = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    names = "-p gpu", "-A lab-7", "-n 1", "-t 1-02:00:00"
    assert {*names, "--cpus-per-task=8", "--mem=16G", "--gres=gpu:1", "--exclusive"} <= directives
    assert "export OMP_NUM_THREADS=8" in script
    assert "export SAEMA_CACHE='/shared disk/cache'" in script
    assert "--nthreads 1" in script
    assert "--lifetime 93300s" in script  # 26 h less 5 min
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


def test_what_dask_jobqueue_refuses_is_one_line(plan):
    pytest.importorskip("dask_jobqueue")
    refused = pytest.raises(SweepError, match=r"slurm.*lots")
    with refused as error, engine.slurm_cluster(replace(plan, slurm=Slurm(memory="lots"))):
        pass
    assert "\n" not in str(error.value)


def test_slurm_without_sbatch_is_one_line(plan, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SweepError, match="sbatch"), engine.slurm_client(plan):
        pass


@pytest.mark.slow
def test_the_whole_slurm_path_runs_with_a_stand_in_for_sbatch(write, tmp_path, monkeypatch):
    """Jobs are really started from the generated script; only the queue between is not SLURM's."""
    pytest.importorskip("dask_jobqueue")

    def work(task, *_):  # nested, so that it travels by value: the jobs cannot import this test
        from saema_utils.sweeps.tasks import Outcome

        return Outcome("done", 1.0, 1, "a job")

    tools = {
        "sbatch": 'cp "$1" "$0.$$"\nsetsid bash "$0.$$" >/dev/null 2>&1 &\necho "Submitted batch job $!"',
        "scancel": 'kill -TERM -- "-$1"',
    }
    for name, body in tools.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    plan = plan_sweep(write(f"{GRID}slurm: {{cores: 1, memory: 1GiB, jobs: 2}}"), folder=tmp_path / "runs")
    with engine.slurm_client(plan) as client:
        ends = list(engine.run_on_dask(plan, client, work=work))
    assert {(outcome.status, outcome.error) for _, outcome in ends} == {("done", "")}
    assert len(ends) == 14


@relaxed
@given(st.integers(0, 9), st.integers(1, 99), st.integers(0, 59), st.integers(0, 59))
def test_slurm_times_are_read(days, hours, minutes, seconds):
    walltime = f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}"
    assert Slurm(walltime=walltime).seconds == days * 86400 + hours * 3600 + minutes * 60 + seconds
