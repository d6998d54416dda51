"""Sweeps: what a file asks for, how it is planned, how long it would take, and where it would run."""

import contextlib
import itertools
import json
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saema_utils.errors import RunLockedError, StudyError, SweepError
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES
from saema_utils.sweeps import engine as sweep_engine
from saema_utils.sweeps import engine as sweep_slurm
from saema_utils.sweeps import tasks as sweep_tasks
from saema_utils.sweeps.command import _Report, describe, duration
from saema_utils.sweeps.engine import Settled, run_serially
from saema_utils.sweeps.plan import (
    Estimate,
    Timed,
    estimate,
    expand,
    fit_workers,
    makespan,
    plan_sweep,
    read_records,
    read_sweep_file,
    remaining_path,
    run_name,
    with_earlier,
)
from saema_utils.sweeps.plan import simulate_schedule as simulate
from saema_utils.sweeps.tasks import Outcome

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # busy machines
GRID = "base: smoke\ngrid: {sae.k: [16, 32], seed: [0, 1]}\nchapters: 1-3\n"


@pytest.fixture
def write(tmp_path):
    def writer(text, name="sweep.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return writer


@pytest.fixture(autouse=True)
def _no_earlier_runs(tmp_path, monkeypatch):
    """Estimates come from the manifests under runs/: start where there are none."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plan(write, tmp_path):
    return plan_sweep(write(GRID), folder=tmp_path / "runs")


def at_once(order, *_):
    return Outcome(order.id, 1.0, 1, False, "here")


# ---- the file --------------------------------------------------------------------------------------


def test_a_grid_is_every_combination(write):
    runs, changes = expand(read_sweep_file(write(GRID)))
    assert sorted((s.sae.k, s.seed) for s in runs.values()) == [(16, 0), (16, 1), (32, 0), (32, 1)]
    assert all(runs[name].changed(name="x") == STUDIES["smoke"].changed(**changes[name], name="x") for name in runs)
    assert all(runs[name].name == name for name in runs)


def test_cases_change_fields_together(write):
    text = "base: [smoke]\ncases: [{layer: 3, sae.k: 8}, {layer: 9, sae.k: 16}]\ngrid: {seed: [0, 1]}"
    runs, _ = expand(read_sweep_file(write(text)))
    assert sorted((s.layer, s.sae.k, s.seed) for s in runs.values()) == [(3, 8, 0), (3, 8, 1), (9, 16, 0), (9, 16, 1)]


def test_several_bases_and_study_files_beside_the_sweep(write):
    write(json.dumps({"base": "smoke", "name": "mine", "layer": 4}), "mine.json")
    runs, _ = expand(read_sweep_file(write("base: [smoke, mine.json]\ngrid: {seed: [7]}")))
    assert sorted((s.layer, s.seed) for s in runs.values()) == [(4, 7), (15, 7)]


def test_paths_beside_the_sweep_file_become_absolute(write, tmp_path):
    write("one two", "text.txt")
    runs, _ = expand(read_sweep_file(write("base: smoke\ngrid: {corpus.source: [text.txt]}")))
    assert [s.corpus.source for s in runs.values()] == [str(tmp_path / "text.txt")]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base: smok", "smok"),
        ("base: smoke\ngird: {}", "gird"),
        ("grid: {seed: [0]}", "base"),
        ("base: smoke\ngrid: {sae.kk: [1]}", "sae.kk"),
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
        ("base: smoke\nchapters: 1-9", "1-9"),
        ("base: smoke\ndevice: tpu", "tpu"),
        ("base: smoke\nslurm: fast", "fast"),
        ("base: [smoke", "not YAML"),
        ("base: !!python/object/apply:os.system [true]", "not YAML"),
        ("- smoke", "mapping"),
        ("", "mapping"),
        (f"base: smoke\ngrid: {{seed: {list(range(500))}, layer: {list(range(200))}}}", "100000"),
    ],
)  # fmt: skip
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
    runs, _ = expand(read_sweep_file(write("base: smoke\ngrid: {model: ['org/a b', 'org/a?b', 'ORG/A-B']}")))
    assert len({name.lower() for name in runs}) == 3


# ---- the plan --------------------------------------------------------------------------------------


def test_shared_work_is_one_task(plan):
    kinds = [task.kind for task in plan.tasks]
    assert kinds.count("model") == 1
    assert kinds.count("corpus") == 2  # k does not change the corpus, the seed does
    assert kinds.count("chapter") == 4 * 3


def test_needs_come_first(plan):
    place = {task.id: number for number, task in enumerate(plan.tasks)}
    assert all(place[needed] < place[task.id] for task in plan.tasks for needed in task.needs)


def test_chapters_bring_the_ones_they_need():
    assert with_earlier([5]) == (1, 2, 5)
    assert with_earlier([6]) == (1, 2, 3, 4, 5, 6)


def test_planning_writes_nothing(plan):
    assert not plan.folder.exists()


def test_keys_change_with_the_study_and_its_files_only(write, tmp_path):
    text = write("some text", "text.txt")
    sweep = write("base: smoke\ngrid: {corpus.source: [text.txt]}\nchapters: 1-2")
    keys = [task.key for task in plan_sweep(sweep, folder=tmp_path / "runs").tasks if task.kind == "chapter"]
    again = [task.key for task in plan_sweep(sweep, folder=tmp_path / "elsewhere").tasks if task.kind == "chapter"]
    assert keys == again
    text.write_text("other text")
    changed = [task.key for task in plan_sweep(sweep, folder=tmp_path / "runs").tasks if task.kind == "chapter"]
    assert not set(keys) & set(changed)


def test_finished_tasks_are_recognised_by_key_and_whole_files(plan, write, tmp_path):
    import pandas as pd

    task = next(task for task in plan.tasks if task.kind == "chapter")
    run = RunDirectory(plan.folder / task.run, plan.runs[task.run])
    table = run.save_table("01_concepts", pd.DataFrame({"a": [1]}))
    facts = {"key": task.key, "seconds": 3.0, "peak_memory": 10, "artifacts": ["tables/01_concepts.csv"]}
    run.record_task("chapter-1", **facts)
    assert {t.id for t in plan_sweep(write(GRID), folder=plan.folder).tasks if t.finished} == {task.id}
    table.write_text("a\n2\n")
    assert not any(t.finished for t in plan_sweep(write(GRID), folder=plan.folder).tasks)
    table.write_text("a\n1\n")
    run.record_task("chapter-1", **{**facts, "key": "of another study"})
    assert not any(t.finished for t in plan_sweep(write(GRID), folder=plan.folder).tasks)


def test_a_folder_of_another_study_is_refused(plan, write):
    name = next(iter(plan.runs))
    RunDirectory(plan.folder / name, STUDIES["smoke"])
    with pytest.raises(SweepError, match=name):
        plan_sweep(write(GRID), folder=plan.folder)


# ---- how long it takes -----------------------------------------------------------------------------


def records_of(folder, study, seconds):
    run = RunDirectory(folder / study.name, study)
    run.record_task("chapter-2", key="k", seconds=seconds, peak_memory=2**30, artifacts=[])
    return read_records([folder])


def test_estimates_come_from_manifests(tmp_path):
    smoke = STUDIES["smoke"]
    records = records_of(tmp_path, smoke, 30.0)
    assert estimate(smoke, 2, records) == Estimate(30.0, 2**30, "measured")
    assert estimate(smoke.changed(name="other"), 2, records).basis == "measured"
    longer = estimate(smoke.changed(**{"sae.epochs": 8}), 2, records)
    assert longer.basis == "scaled from smoke"
    assert 30.0 < longer.seconds < 60.0  # twice the epochs of a chapter that does not only train
    assert estimate(smoke, 3, records) == Estimate(None, None, "unknown")
    assert estimate(smoke.changed(model="gpt2"), 2, records).basis == "unknown"


def test_a_notebook_that_found_its_tables_made_does_not_look_fast(tmp_path):
    import pandas as pd

    run = RunDirectory(tmp_path / "smoke", STUDIES["smoke"])
    run.save_table("03_noise_rank", pd.DataFrame({"a": [1]}), seconds=200.0)
    run.record_chapter("03_noise_rank_stratification", seconds=9.0, peak_memory=5)
    assert estimate(STUDIES["smoke"], 3, read_records([tmp_path])).seconds == 200.0


def test_unreadable_manifests_cost_nothing(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/manifest.json").write_text("{")
    assert read_records([tmp_path]) == []


@st.composite
def graphs(draw):
    n = draw(st.integers(1, 14))
    tasks = []
    for i in range(n):
        needs = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        tasks.append(Timed(str(i), draw(st.floats(0.1, 50)), tuple(map(str, needs))))
    return tasks


@relaxed
@given(graphs(), st.integers(1, 6))
def test_schedules_obey_the_bounds_of_list_scheduling(tasks, workers):
    total, longest = sum(t.seconds for t in tasks), max(remaining_path(tasks).values())
    span = makespan(tasks, workers)
    assert span >= max(longest, total / workers) - 1e-6
    assert span <= total / workers + (1 - 1 / workers) * longest + 1e-6
    assert makespan(tasks, 1) == pytest.approx(total)
    assert makespan(tasks, len(tasks)) == pytest.approx(longest)


@relaxed
@given(graphs(), st.integers(1, 6), st.floats(0, 5))
def test_schedules_are_possible(tasks, workers, startup):
    spans = {span.id: span for span in simulate(tasks, workers, startup=startup)}
    assert set(spans) == {task.id for task in tasks}
    for task in tasks:
        assert all(spans[needed].end <= spans[task.id].start + 1e-9 for needed in task.needs)
    for worker in range(workers):
        own = sorted((s.start, s.end) for s in spans.values() if s.worker == worker)
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(own))
        assert not own or own[0][0] >= startup - 1e-9


def test_impossible_schedules_are_refused():
    with pytest.raises(SweepError, match="wait for each other"):
        simulate([Timed("a", 1, ("b",)), Timed("b", 1, ("a",))], 2)
    with pytest.raises(SweepError, match="nowhere"):
        simulate([Timed("a", 1, ("nowhere",))], 2)
    with pytest.raises(SweepError, match="workers"):
        simulate([], 0)


@relaxed
@given(st.integers(1, 500), st.integers(1, 128), st.integers(2**30, 2**40), st.integers(1, 2**36), st.integers(0, 8))
def test_workers_fit_the_machine(tasks, cores, memory, each, gpus):
    fit = fit_workers(tasks, cores, memory, each, gpus)
    assert 1 <= fit.workers <= max(1, tasks)
    assert fit.workers * fit.threads <= cores or fit.threads == 1
    assert fit.workers == 1 or gpus or (fit.workers * each <= 0.8 * memory and fit.workers <= cores)
    assert not gpus or fit.workers <= gpus


# ---- what is said ----------------------------------------------------------------------------------


def test_a_plan_without_manifests_says_unknown(plan):
    facts = describe(plan, fit_workers(12, 2, 2**34, 2**30))
    assert (facts["runs"], facts["tasks"], facts["finished"]) == (4, 15, 0)
    assert facts["work_seconds"] is facts["wall_seconds"] is facts["memory"] is None
    assert duration(None) == "unknown"


def test_expected_time_follows_from_the_schedule(plan):
    known = replace(plan, tasks=tuple(replace(t, expected=Estimate(10.0, 2**30, "measured")) for t in plan.tasks))
    facts = describe(known, fit_workers(12, 2, 2**34, 2**30, workers=2))
    assert facts["work_seconds"] == pytest.approx(150)
    # model, then both corpora side by side, then six chapters on each of two workers
    assert facts["wall_seconds"] == pytest.approx(10 + 10 + 60)


def test_the_line_of_progress(plan):
    settled = {}
    run_serially(plan, work=at_once, on_settled=lambda s: settled.update({s.task.id: s}) if len(settled) < 5 else None)
    failed = plan.tasks[7]
    settled[failed.id] = Settled(failed, "failed", error="x")
    line = _Report(plan).line(settled, {plan.tasks[6].id})
    assert line.startswith(f"5 of 15 done, 1 running ({plan.tasks[6].id}), 1 failed, about ")
    file = plan.folder / plan.tasks[6].run / f".chapter-{plan.tasks[6].chapter}.progress"
    file.parent.mkdir(parents=True)
    file.write_text("noise ranks\t3\t9")
    assert "noise ranks 3/9" in _Report(plan).line(settled, {plan.tasks[6].id})


def test_a_failure_stops_only_what_needs_it(plan):
    poisoned = next(task for task in plan.tasks if task.chapter == 2)

    def work(order, *_):
        if order.id == poisoned.id:
            raise ValueError("out of\ncheese")
        return at_once(order)

    settled = run_serially(plan, work=work)
    assert settled[poisoned.id].status == "failed"
    assert "ValueError: out of cheese" in settled[poisoned.id].error
    assert settled[f"{poisoned.run}/3"].status == "not run"
    others = [s.status for s in settled.values() if s.task.run != poisoned.run or s.task.chapter < 2]
    assert set(others) == {"done"}
    assert len(settled) == 15


def test_tasks_share_a_run_that_nobody_else_may_have(plan, monkeypatch):
    """Two tasks at a time, in two processes; ``saema run`` keeps out, and its files stay."""
    task = next(task for task in plan.tasks if task.kind == "chapter")
    run = RunDirectory(plan.folder / task.run, plan.runs[task.run])
    half = run.path / "tables/.unfinished-01_concepts.csv"
    half.parent.mkdir()
    with held_by_a_process(run, "beside_other_tasks"):
        half.touch()
        with sweep_tasks.beside_other_tasks(run):
            assert half.exists()
        with pytest.raises(RunLockedError), run.locked():
            pass
        assert half.exists()
    with sweep_tasks.beside_other_tasks(run):  # whoever wrote it is gone
        assert not half.exists()
    plan.write()
    monkeypatch.setattr(sweep_tasks, "PATIENCE", 0.3)
    with held_by_a_process(run, "locked"), pytest.raises(SweepError, match=r"in use by another process.*saema run"):
        sweep_tasks.carry_out(plan.order(task))
    with held_by_a_process(run, "locked") as holder:
        monkeypatch.setattr(sweep_tasks, "PATIENCE", 60)
        threading.Timer(0.5, holder.stdin.close).start()  # who waits gets it as soon as it is free
        with sweep_tasks.beside_other_tasks(run):
            assert holder.wait(timeout=60) == 0


@contextlib.contextmanager
def held_by_a_process(run, how):
    """Another process that holds a run until it is told to go."""
    held = f"RunDirectory({str(run.path)!r}, Study.from_dict({run.study.as_dict()!r}))"
    program = f"""
import sys
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import Study
from saema_utils.sweeps.tasks import beside_other_tasks
run = {held}
with {"run.locked()" if how == "locked" else "beside_other_tasks(run)"}:
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.stdin.close()
        holder.wait(timeout=60)
        holder.stdout.close()


def test_a_failed_task_is_tried_again(plan):
    tries = []

    def work(order, *_):
        tries.append(order.id)
        if tries.count(order.id) < 3:
            raise OSError("the disk was away")
        return at_once(order)

    assert {s.status for s in run_serially(plan, work=work, retries=2).values()} == {"done"}
    assert len(tries) == 3 * 15
    tries.clear()
    settled = run_serially(plan, work=work, retries=1)
    assert [s.status for s in settled.values()].count("failed") == 1  # the model, which all others need
    assert len(tries) == 2


def test_a_sweep_that_resumes_keeps_its_threads(plan, write, monkeypatch):
    """Sixteen cores: each task has as many threads when one is left, and memory is known, as when none was done."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**40))
    fit = sweep_engine.fit_this_machine(plan)
    assert (fit.workers, fit.threads) == (15, 1)
    known = [Estimate(10.0, 2**38, "measured")] * len(plan.tasks)
    run_serially(plan, fit.threads, work=at_once)
    again = plan_sweep(write(GRID), folder=plan.folder)
    measured = [replace(t, expected=e, finished=t.chapter != 3) for t, e in zip(again.tasks, known, strict=True)]
    left = replace(again, tasks=tuple(measured))
    fit = sweep_engine.fit_this_machine(left)
    assert (fit.workers, fit.threads) == (3, 1)
    one = replace(left, tasks=tuple(replace(t, finished=t.id != left.todo[0].id) for t in left.tasks))
    fit = sweep_engine.fit_this_machine(one)
    assert (fit.workers, fit.threads, fit.limited_by) == (1, 1, "tasks")
    assert sweep_engine.fit_this_machine(one, workers=2).threads == 8
    for spoiled in ("[]", "{", '{"threads": "many"}', '{"threads": -1}'):
        (plan.folder / "sweep.json").write_text(spoiled)
        assert plan_sweep(write(GRID), folder=plan.folder).threads == 0


# ---- the command -----------------------------------------------------------------------------------


def saema(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "saema_utils", *arguments], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, "COLUMNS": "160", **environment},
    )  # fmt: skip


def test_a_dry_run_shows_the_plan_and_runs_nothing(write, tmp_path):
    done = saema("sweep", str(write(GRID)), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "smoke_k-16_seed-0" in done.stdout
    assert "4 runs, 15 tasks" in done.stdout
    assert "unknown" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_many_runs_need_a_word(write, tmp_path):
    text = f"base: smoke\ngrid: {{seed: [{', '.join(map(str, range(201)))}]}}"
    refused = saema("sweep", str(write(text)), cwd=tmp_path)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["--scheduler", "localhost"], ["--slurm", "--serial"], ["--workers", "-1"]])
def test_options_that_cannot_be_are_refused(write, tmp_path, arguments):
    refused = saema("sweep", str(write(GRID)), *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("saema: ")
    assert refused.stderr.count("\n") == 1


def test_without_dask_one_line_says_how_to_get_it(write, tmp_path):
    (tmp_path / "distributed.py").write_text("raise ImportError('No module named distributed')")
    refused = saema("sweep", str(write(GRID)), cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert 'pip install "saema_utils[sweep]"' in refused.stderr
    assert refused.stderr.count("\n") == 1


# ---- one GPU a worker ------------------------------------------------------------------------------


def test_gpus_are_those_the_process_may_use(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: a)'\necho 'GPU 1: two (UUID: b)'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep_engine.visible_gpus() == ["0", "1"]
    assert sweep_engine.visible_gpus("cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert sweep_engine.visible_gpus() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep_engine.visible_gpus() == []


def test_each_local_worker_sees_its_own_gpu_and_threads():
    pytest.importorskip("distributed")

    def environment():
        import dask

        pause = dask.config.get("distributed.worker.memory.pause")
        return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], pause

    fit = fit_workers(10, cores=6, memory=2**40, memory_per_task=1, gpus=2)
    with sweep_engine.local_client(fit, ["3", "5"]) as client:
        client.wait_for_workers(2, timeout=60)
        assert sorted(client.run(environment).values()) == [("3", "3", False), ("5", "3", False)]
        assert all(worker["nthreads"] == 1 for worker in client.scheduler_info()["workers"].values())
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")


def test_workers_without_the_package_are_told_from_dead_ones(plan):
    pytest.importorskip("distributed")

    def forget():
        import sys

        sys.modules["saema_utils"] = None  # what Python does when a module cannot be found

    with sweep_engine.local_client(fit_workers(1, 1, 2**40, 1), []) as client:
        client.wait_for_workers(1, timeout=60)
        client.run(forget)
        with pytest.raises(SweepError, match="cannot import saema_utils"):
            sweep_engine.run_on_dask(plan, client, work=at_once)


def test_a_scheduler_without_workers_is_told_and_given_up(plan, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(sweep_engine, "LOOK", 0.2)
    options = {"n_workers": 0, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        said = []
        with pytest.raises(SweepError, match=r"had no worker for \d+ s; .*Start one with dask, then run the same"):
            sweep_engine.run_on_dask(
                plan, client, work=at_once, tell=said.append, patience=1, hint="Start one with dask"
            )
        assert len(said) == 1
        assert said[0].startswith("waiting for a worker, at most 1 s: ")
        settled = sweep_engine.run_on_dask(plan, client, work=at_once, tell=lambda line: cluster.scale(1), patience=60)
    assert {result.status for result in settled.values()} == {"done"}


# ---- SLURM -----------------------------------------------------------------------------------------

SLURM = f"""{GRID}
slurm:
  {{queue: gpu, account: lab-7, walltime: '1-02:00:00', cores: 8, memory: 16GiB, gpus: 1, directives: [--exclusive]}}
"""


def test_the_slurm_job_script_says_what_the_file_asks(write, tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("SAEMA_CACHE", "/shared disk/cache")
    script = sweep_slurm.slurm_job_script(plan_sweep(write(SLURM), folder=tmp_path / "runs"))
    directives = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    asked = {
        "-p gpu",
        "-A lab-7",
        "-n 1",
        "--cpus-per-task=8",
        "--mem=16G",
        "-t 1-02:00:00",
        "--gres=gpu:1",
        "--exclusive",
    }
    assert asked <= directives
    assert "export OMP_NUM_THREADS=8" in script
    assert "export SAEMA_CACHE='/shared disk/cache'" in script
    assert "--nthreads 1" in script
    assert "--lifetime 93300s" in script  # 26 h less 5 min
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("slurm", "named"),
    [
        ("{partition: gpu}", "partition"),
        ("{walltime: 4:00:00}", "walltime"),
        ("{walltime: 'a day'}", "a day"),
        ("{walltime: '00:05:00'}", "walltime"),
        ("{memory: lots}", "lots"),
        ("{memory: 8}", "memory"),
        ("{cores: 0}", "cores"),
        ("{gpus: 4}", "gpus"),
        ("{queue: 'a; rm -rf b'}", "queue"),
        ("{directives: --exclusive}", "directives"),
        (r'{prologue: ["a\nb"]}', "prologue"),
    ],
)
def test_mistakes_in_the_slurm_part_are_named(write, tmp_path, slurm, named):
    pytest.importorskip("dask_jobqueue")
    with pytest.raises(SweepError) as error:
        sweep_slurm.slurm_options(plan_sweep(write(f"{GRID}slurm: {slurm}"), folder=tmp_path / "runs"))
    assert named in str(error.value)


def test_a_task_that_does_not_fit_a_job_is_refused_before_submitting(plan):
    long = replace(plan, tasks=tuple(replace(t, expected=Estimate(7200.0, 2**30, "measured")) for t in plan.tasks))
    with pytest.raises(SweepError, match=r"walltime.*120 min"):
        sweep_slurm.slurm_options(replace(long, slurm={"walltime": "02:05:00"}))
    with pytest.raises(SweepError, match=r"memory.*1\.0 GiB"):
        sweep_slurm.slurm_options(replace(long, slurm={"memory": "500MiB"}))


def test_slurm_without_sbatch_is_one_line(plan, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SweepError, match="sbatch"), sweep_slurm.slurm_client(plan):
        pass


@pytest.mark.slow
def test_the_whole_slurm_path_runs_with_a_stand_in_for_sbatch(write, tmp_path, monkeypatch):
    """Jobs are really started from the generated script; only the queue between is not SLURM's."""
    pytest.importorskip("dask_jobqueue")

    def work(order, *_):  # nested, so that it travels by value: the jobs cannot import this test
        from saema_utils.sweeps.tasks import Outcome

        return Outcome(order.id, 1.0, 1, False, "a job")

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
    with sweep_slurm.slurm_client(plan) as client:
        settled = sweep_engine.run_on_dask(plan, client, work=work)
    assert {(result.status, result.error) for result in settled.values()} == {("done", "")}
    assert len(settled) == 15


@relaxed
@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_slurm_times_are_read(days, hours, minutes, seconds):
    text = f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}"
    assert sweep_slurm._seconds(text) == days * 86400 + hours * 3600 + minutes * 60 + seconds
