"""A run directory loses nothing, and never hands out what is damaged or foreign."""

import contextlib
import json
import os
import shlex
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

from saema_utils.errors import ArtifactError, MissingInputError, RunLockedError, SaemaError, StudyError
from saema_utils.notebook import resolve_study
from saema_utils.runs import directory
from saema_utils.runs.directory import RunDirectory, forget
from saema_utils.runs.files import atomic_path, cache_dir, name_of, share, write_json
from saema_utils.runs.freshness import digest, file_digest, outside_digest, source_digest
from saema_utils.study import STUDIES

SMOKE = STUDIES["smoke"]


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run", SMOKE)


def frame():
    return pd.DataFrame({"name": ["a", "b"], "value": [0.1 + 0.2, float("nan")]})


def test_the_command_that_runs_a_run_again_can_be_run(tmp_path, monkeypatch):
    """A registered study by its name, any other by its file; a run elsewhere by its folder, quoted for the shell."""
    monkeypatch.chdir(tmp_path)
    smoke = STUDIES["smoke"]
    assert RunDirectory("runs/smoke", smoke).again("3") == "saema run --study smoke --chapters 3"
    elsewhere = RunDirectory(tmp_path / "a b", smoke).again("1-3")
    assert elsewhere == f"saema run --study smoke --chapters 1-3 --run-dir '{tmp_path}/a b'"
    own = RunDirectory("runs/mine", smoke.changed(name="mine", templates=2))
    assert shlex.split(own.again("2"))[2:] == [
        *("--study", f"{own.path}/study.json", "--chapters", "2", "--run-dir", str(own.path))
    ]


def test_a_run_of_ones_own_is_a_study_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = STUDIES["smoke"].changed(name="smoke-1a2b3c", templates=2)
    write_json(RunDirectory("runs/smoke-1a2b3c", own).path / "study.json", own.as_dict())
    assert resolve_study("smoke-1a2b3c") == own
    with pytest.raises(StudyError, match="smoke"):
        resolve_study("smoke-1a2b3d")


@pytest.mark.parametrize(
    ("source", "name"),
    [("/data/models/mine", "mine"), ("here", "here"), ("org/model", "org/model"), ("embedded:x", "embedded:x")],
)
def test_pages_name_a_folder_by_its_last_part(tmp_path, monkeypatch, source, name):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert name_of(source) == name


def test_a_cache_that_cannot_be_written_is_kept_beside_temporary_files(tmp_path, monkeypatch):
    monkeypatch.delenv("SAEMA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache" / "saema"
    (tmp_path / "cache").write_text("no folder")
    assert cache_dir().parent == Path(tempfile.gettempdir())
    monkeypatch.setenv("SAEMA_CACHE", str(tmp_path / "cache" / "mine"))  # what the user names is never replaced
    assert cache_dir() == tmp_path / "cache" / "mine"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_what_is_shared_is_readable_by_those_who_share_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        share(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask


def test_tables_come_back_with_every_digit(run):
    run.save_table("01_x", frame())
    pd.testing.assert_frame_equal(run.table("01_x"), frame(), check_exact=True)


def test_tensors_come_back_equal(run):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5), "c": torch.randn(2).half()}
    run.save_tensors("01_t", tensors)
    loaded = run.tensors("01_t")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)


def test_a_missing_input_names_the_chapter_and_the_command(run):
    with pytest.raises(MissingInputError, match="saema run --study smoke --chapters 1-3"):
        run.table("03_noise_rank")


def test_another_study_is_refused(run):
    with pytest.raises(ArtifactError, match="belongs to study 'smoke'"):
        RunDirectory(run.path, SMOKE.changed(seed=1))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"format_version": 99}'])
def test_a_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="run-dir"):
        RunDirectory(tmp_path, SMOKE)


def test_the_manifest_says_where_a_table_came_from(run):
    run.save_table("01_x", frame(), "key")
    manifest = json.loads((run.path / "manifest.json").read_text())
    entry = manifest["artifacts"]["tables/01_x.csv"]
    assert entry["study_digest"] == SMOKE.digest
    assert entry["code"] == source_digest()
    assert entry["sha256"] == file_digest(run.path / "tables/01_x.csv")
    assert manifest["study"] == SMOKE.as_dict()
    assert manifest["versions"]["torch"]


def test_a_manifest_of_an_earlier_version_still_reads(run):
    run.save_table("02_x", frame(), "key")
    path = run.path / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("version", "model", "chapter"):
        manifest["artifacts"]["tables/02_x.csv"].pop(name)
    path.write_text(json.dumps(manifest))
    assert RunDirectory(run.path, SMOKE).is_fresh("tables/02_x.csv", "key")


@pytest.mark.parametrize(
    "part",
    [
        {"artifacts": []},
        {"artifacts": {"a": 1}},
        {"artifacts": {"a": {"key": "k"}}},
        {"chapters": {"a": {"seconds": "x"}}},
    ],
)
def test_a_manifest_with_malformed_parts_is_refused(run, part):
    path = run.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **part}))
    with pytest.raises(ArtifactError, match="manifest"):
        run.manifest()


@pytest.mark.parametrize("damage", ["{", '{"a": 9}', None])
def test_damage_to_the_file_of_numbers_reaches_no_page_and_is_mended(run, damage):
    run.save_numbers(a=1)
    path = run.path / "numbers.json"
    path.write_text(damage) if damage else path.unlink()
    assert run.numbers() == {"a": 1}
    run.save_numbers(b=2)
    assert json.loads(path.read_text()) == {"a": 1, "b": 2}


def test_a_table_names_its_model_also_from_a_process_that_opened_none(run):
    run.model = "the model"
    run.save_table("01_x", frame())
    RunDirectory(run.path, SMOKE).save_table("07_x", frame())
    assert run.entry("tables/07_x.csv")["model"] == "the model"


def test_what_is_said_of_a_file_stays_out_of_pages(run, monkeypatch, capsys):
    run.cached_table("01_x", "key", frame)
    (run.path / "tables/01_x.csv").write_text("damaged")
    monkeypatch.setenv("SAEMA_PUBLISHING", "1")
    run.cached_table("01_x", "key", frame)
    assert capsys.readouterr().out == ""
    (said,) = run.remarks()
    assert "tables/01_x.csv is damaged" in said
    assert str(run.path) not in said


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_full_disk_is_one_clear_line(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ArtifactError, match="earlier files are whole"), atomic_path(path) as temporary:
        with open("/dev/full", "w") as full:
            full.write("x")
            full.flush()
        temporary.write_text("never")
    assert path.read_text() == "old"


def test_a_directory_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("I am a file")
    with pytest.raises(ArtifactError):
        RunDirectory(tmp_path / "run", SMOKE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_one_clear_line(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(ArtifactError, match="cannot write"):
            RunDirectory(tmp_path / "run", SMOKE)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@contextlib.contextmanager
def held_by_another_process(run, how):
    """A process that has the run ``locked`` or ``shared`` until it is told to go."""
    program = f"""
import sys
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES
with RunDirectory({str(run.path)!r}, STUDIES["smoke"]).{how}():
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.communicate("", timeout=60)


def test_one_process_has_a_run_alone_or_several_share_it(run, monkeypatch):
    """``saema run`` wants it alone; tasks of a sweep share it, wait for a while, and leave each other's files."""
    half = run.path / "tables/.unfinished-01_x.csv"
    half.parent.mkdir()
    with held_by_another_process(run, "shared") as holder:
        half.touch()
        with run.shared():
            assert half.exists()
        with pytest.raises(RunLockedError, match="in use"), run.locked():
            pass
        assert half.exists()
        holder.kill()  # what a killed process held is free
        holder.wait()
        with run.shared():
            assert not half.exists()
    with held_by_another_process(run, "locked") as holder:
        with pytest.raises(RunLockedError, match="in use"), run.locked():
            pass
        monkeypatch.setattr(directory, "PATIENCE", 0.3)
        with pytest.raises(RunLockedError, match="in use"), run.shared():
            pass
        monkeypatch.setattr(directory, "PATIENCE", 60)
        threading.Timer(0.5, holder.kill).start()
        with run.shared():
            assert holder.wait(timeout=60)
    with run.locked(), run.locked():  # saema run, and the notebooks that it runs
        pass


def test_force_refuses_a_run_that_another_process_uses(run):
    run.save_table("01_x", frame())
    for how in ("locked", "shared"):
        with held_by_another_process(run, how), pytest.raises(RunLockedError, match="nothing was removed"):
            forget(run.path)
        assert (run.path / "tables/01_x.csv").exists()
    forget(run.path)
    assert not run.path.exists()


def test_force_on_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("dear")
    with pytest.raises(SaemaError, match="is a file"):
        forget(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "dear"


def test_force_empties_runs_and_nothing_else(run, tmp_path):
    forget(run.path)
    assert not run.path.exists()
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(SaemaError, match="nothing was removed"):
        forget(precious)
    assert (precious / "letter.txt").read_text() == "dear"


def test_figures_are_byte_identical(run):
    from saema_utils.figures import panels

    written = []
    for _ in range(2):
        figure, axes = panels()
        axes.plot([0, 1], [0, 1])
        run.save_figure("01_line", figure)
        written.append([(run.path / f"figures/01_line.{kind}").read_bytes() for kind in ("svg", "png")])
    assert written[0] == written[1]


def test_numbers_are_merged(run):
    run.save_numbers(a=1)
    run.save_numbers(b="two")
    assert json.loads((run.path / "numbers.json").read_text()) == {"a": 1, "b": "two"}


def test_digests_ignore_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_tensors_leave_nothing_half_written_and_others_may_read_them(run):
    path = run.save_tensors("01_t", {"a": torch.ones(3)})
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == run.save_table("01_x", frame()).stat().st_mode & 0o777


def test_folders_that_a_killed_process_left_are_removed_too(run):
    leftover = run.path / "tensors/.unfinished-abc"
    leftover.mkdir(parents=True)
    (leftover / "01_t.safetensors").write_text("half")
    with run.locked():
        assert not leftover.exists()


def test_the_content_of_files_that_a_study_names_counts(tmp_path):
    prompts, folder = tmp_path / "prompts.json", tmp_path / "model"
    prompts.write_text("{}")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    first = outside_digest(str(prompts), str(folder), "gpt2", "")
    assert outside_digest(str(prompts), str(folder), "gpt2-medium", "") == first
    prompts.write_text("{ }")
    second = outside_digest(str(prompts), str(folder), "gpt2", "")
    (folder / "config.json").write_text("{  }")
    assert len({first, second, outside_digest(str(prompts), str(folder), "gpt2", "")}) == 3


def test_a_home_that_does_not_exist_is_one_clear_line():
    with pytest.raises(SaemaError, match="no_such_user_here"):
        RunDirectory("~no_such_user_here/run", SMOKE)


def test_what_a_killed_process_left_half_written_is_removed_by_the_next(run):
    run.save_table("01_whole", pd.DataFrame({"a": [1]}))
    leftover = run.path / "tables/.unfinished-01_half-x2.csv"
    leftover.write_text("a\n")
    with run.locked():
        assert not leftover.exists()
        assert run.table("01_whole")["a"].tolist() == [1]
