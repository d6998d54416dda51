"""CONTRIBUTING's recipes, walked through: every edit made as written in a copy, every check run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w+) (insert|append|file|check)(?:=(\S+))?\n(.*?)^```$", re.M | re.S)


def recipes() -> dict[str, list[tuple[str, str, str, str]]]:
    """Fences of each section of CONTRIBUTING: language, action, target, text."""
    sections = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    return {section.splitlines()[0]: FENCE.findall(section) for section in sections}


def insert(path: Path, name: str, text: str) -> None:
    """Put ``text`` right after the line that opens the collection ``name``."""
    source = path.read_text(encoding="utf-8")
    opening = re.search(rf"^{name}\b[^\n]*[\[({{]$", source, re.M)
    assert opening, f"{path.name} has no collection {name} any more: correct the recipe"
    path.write_text(source[: opening.end() + 1] + text + source[opening.end() + 1 :], encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("saema_utils", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (tmp_path / "tests" / "intervention").mkdir(parents=True)
    return tmp_path


def test_every_promised_recipe_has_a_check():
    found = recipes()
    assert list(found) == ["Add a concept", "Add a study", "Add a measure", "Add a chapter"]
    for name, fences in found.items():
        assert any(action == "check" for _, action, _, _ in fences), name


@pytest.mark.parametrize("name", list(recipes()))
def test_recipe(name: str, copy: Path):
    environment = {**os.environ, "PYTHONPATH": str(copy), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    checks = 0
    for language, action, target, text in recipes()[name]:
        if action == "insert":
            path, _, collection = target.partition(":")
            insert(copy / path, collection, text)
        elif action == "append":
            with open(copy / target, "a", encoding="utf-8") as file:
                file.write("\n\n" + text)
        elif action == "file":
            (copy / target).write_text(text, encoding="utf-8")
        else:
            command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
            done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            checks += 1
    assert checks
