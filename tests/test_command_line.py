"""The command line: light, helpful, one line for every mistake."""

import os
import subprocess
import sys

import pytest

from saema_utils.errors import StudyError
from saema_utils.notebook import parse_chapters
from saema_utils.study import STUDIES


def saema(*arguments, cwd=None, **environment):
    command = [sys.executable, "-m", "saema_utils", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)


@pytest.mark.parametrize(
    ("text", "chapters"), [("3", (3,)), ("1-3", (1, 2, 3)), ("1,3-5", (1, 3, 4, 5)), ("2,2", (2,)), (" 4 ", (4,))]
)
def test_chapters_are_understood(text, chapters):
    assert parse_chapters(text) == chapters


@pytest.mark.parametrize("text", ["", "0", "99", "a", "3-", "-3", "5-3", "1;2", "1.5", "½"])
def test_other_chapters_are_refused(text):
    with pytest.raises(StudyError, match="allowed"):
        parse_chapters(text)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["run", "--study", "gpt2-smal"], "gpt2-smal"),
        (["run", "--study", "nowhere.json"], "nowhere.json"),
        (["run", "--chapters", "99"], "'99'"),
        (["run", "--device", "tpu"], "tpu"),
        (["run", "--seed", "many"], "--seed"),
        (["run", "--bogus"], "--bogus"),
        (["run", "--prompts", "nowhere-prompts.json"], "nowhere-prompts.json"),
        (["run", "--corpus", "nowhere.txt"], "nowhere.txt"),
        (["run", "--layer", "-3"], "-3"),
        (["run", "--jobs", "many"], "many"),
        (["run", "--jobs", "-2"], "-2"),
        (["book", "--study", "smok"], "smok"),
        (["studies", "gpt3"], "gpt3"),
        (["sae", "nowhere"], "nowhere"),
        (["sae", ".", "--layer", "two"], "--layer"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(arguments, named, tmp_path):
    done = saema(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("saema: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert named in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy():
    probe = (
        "import sys, saema_utils.__main__; print(sorted({'torch','numpy','pandas','matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_studies_are_a_row_each_on_a_narrow_terminal():
    done = saema("studies", COLUMNS="80")
    assert done.returncode == 0
    rows = done.stdout.splitlines()[1:-1]
    assert [row.split()[0] for row in rows] == list(STUDIES)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_one_study_is_told_in_full():
    done = saema("studies", "gemma-2-2b")
    study = STUDIES["gemma-2-2b"]
    for said in (study.model, study.sae.source, str(study.layer), *study.concepts):
        assert said in done.stdout


def test_doctor_names_what_is_there_and_what_is_not():
    done = saema("doctor")
    assert "torch:" in done.stdout
    assert "device:" in done.stdout
    assert "Traceback" not in done.stderr
