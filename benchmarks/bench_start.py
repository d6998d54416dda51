"""How long a command takes before it does anything, and a study that is finished already.

``SAEMA_BENCH_RUN`` names the folder of a run that this very checkout finished; without it those rows are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.measure import QUICK, compare, sides

EAGER = "import saema_utils, torch, transformers, transformer_lens, sae_lens, umap, plotly"
COMMANDS = {
    "import saema_utils": ["-c", "import saema_utils"],
    "saema --help": ["-m", "saema_utils", "--help"],
}
FINISHED = os.environ.get("SAEMA_BENCH_RUN", "")


def run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


@sides
@pytest.mark.parametrize("name", COMMANDS)
def test_start(benchmark, name, side):
    if side == "plain" and QUICK:
        pytest.skip("importing everything takes long")
    arguments = COMMANDS[name] if side == "ours" else ["-c", EAGER]
    note = "plain: every library that the package uses, imported at once; aim: under 1 s"
    compare(
        benchmark, f"start: {name}", side, lambda: run(arguments), rounds=5 if side == "ours" else 2, memory=False,
        note=note,
    )  # fmt: skip


@pytest.mark.skipif(not FINISHED, reason="SAEMA_BENCH_RUN names no finished run")
@pytest.mark.parametrize("executed", [False, True], ids=["finished", "notebooks"])
def test_study_again(benchmark, tmp_path, executed):
    """A copy of a finished run, as it is, or without the record of its notebooks, which are then executed again."""
    copy = shutil.copytree(FINISHED, tmp_path / "run")
    manifest = json.loads((copy / "manifest.json").read_text())
    study, chapters = manifest["study"]["name"], sorted(manifest["chapters"])
    cold = [manifest["chapters"][name] for name in chapters]
    made = {name: (copy / name).stat().st_mtime_ns for name in manifest["artifacts"] if name.startswith("tables/")}
    if executed:
        (copy / "manifest.json").write_text(json.dumps(manifest | {"chapters": {}}))
    numbers = f"{int(chapters[0][:2])}-{int(chapters[-1][:2])}"
    compare(
        benchmark, f"study {study} again, {'every notebook executed' if executed else 'nothing changed'}", "ours",
        lambda: run(["-m", "saema_utils", "run", "--study", study, "--run-dir", str(copy), "--chapters", numbers]),
        rounds=1 if executed else 5, warmup=0, memory=False,
        note=f"aim: under 90 s; the first time its chapters took {sum(chapter['seconds'] for chapter in cold):.0f} s",
    )  # fmt: skip
    benchmark.extra_info["memory"] = max(chapter["peak_memory"] for chapter in cold)
    assert {name: (copy / name).stat().st_mtime_ns for name in made} == made, "a table was made again: not a rerun"
