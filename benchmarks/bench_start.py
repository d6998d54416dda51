"""How long a command takes before it does anything, and a whole study: the first time, and again.

The study is the run in ``SAEMA_BENCH_RUN``, or ``runs/smollm2-135m`` where ``make book`` leaves it, if this very
checkout finished it: how long its chapters took the first time is read off its manifest, running it again is
measured. Without such a run those rows are left out, and pytest's summary says why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import QUICK, compare, sides

EAGER = "import saema_utils, torch, transformers, transformer_lens, sae_lens, umap, plotly"
COMMANDS = {"import saema_utils": ["-c", "import saema_utils"], "saema --help": ["-m", "saema_utils", "--help"]}
ROOT = Path(__file__).resolve().parents[1]
FINISHED = Path(os.environ.get("SAEMA_BENCH_RUN") or ROOT / "runs" / "smollm2-135m")
COLD, WARM, ROOM = 900, 90, 6 * 2**30  # what the whole study may take: seconds the first time and again, bytes


def run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)


@sides
@pytest.mark.parametrize("name", COMMANDS)
def test_start(benchmark, name, side):
    if side == "plain" and QUICK:
        pytest.skip("importing everything takes long")
    arguments = COMMANDS[name] if side == "ours" else ["-c", EAGER]
    note = "plain: every library that the package uses, imported at once"
    compare(
        benchmark,
        f"start: {name}",
        side,
        lambda: run(arguments),
        memory=False,
        warmup=int(side == "ours"),
        note=note,
        seconds_aim=1,
    )


@pytest.fixture(scope="module")
def finished() -> dict:
    """Manifest of the finished run; skips where there is none that a rerun would leave alone."""
    from saema_utils.errors import SaemaError
    from saema_utils.publishing.execution import is_done
    from saema_utils.runs.directory import RunDirectory
    from saema_utils.study import STUDIES

    if not (FINISHED / "manifest.json").exists():
        pytest.skip(f"no finished run in {FINISHED.name!r}; make book leaves one")
    manifest = json.loads((FINISHED / "manifest.json").read_text())
    try:
        directory = RunDirectory(FINISHED, STUDIES[manifest["study"]["name"]])
    except SaemaError as error:  # left from another version of the study
        pytest.skip(str(error))
    stale = [name for name in sorted(manifest["chapters"]) if not is_done(directory, ROOT, int(name[:2]))]
    if stale:
        pytest.skip(f"chapters {stale} of {FINISHED.name!r} were not made from this checkout; run make book")
    return manifest


def chapters_of(manifest: dict) -> str:
    numbers = sorted(int(name[:2]) for name in manifest["chapters"])
    return f"{numbers[0]}-{numbers[-1]}"


def test_study_the_first_time(benchmark, finished):
    chapters = finished["chapters"].values()
    compare(
        benchmark,
        f"study {finished['study']['name']}, chapters {chapters_of(finished)}, the first time",
        "ours",
        lambda: None,
        rounds=1,
        warmup=0,
        memory=False,
        seconds_aim=COLD,
        bytes_aim=ROOM,
        recorded=sum(chapter["seconds"] for chapter in chapters),
        note="recorded by the run itself, once",
    )
    benchmark.extra_info["memory"] = max(chapter["peak_memory"] for chapter in chapters)


@pytest.mark.parametrize("executed", [False, True], ids=["finished", "notebooks"])
def test_study_again(benchmark, tmp_path, finished, executed):
    """The run as it is, or a copy without the record of its notebooks, which are then executed again."""
    place = FINISHED
    if executed:
        place = shutil.copytree(FINISHED, tmp_path / FINISHED.name)
    # Chapters 7 and 8 also look at the runs beside it, of which the copy has none.
    tables = [name for name in finished["artifacts"] if name.startswith("tables/") and name[7:10] not in ("07_", "08_")]
    made = {name: (place / name).stat().st_mtime_ns for name in tables}

    def again() -> None:
        if executed:
            (place / "manifest.json").write_text(json.dumps(finished | {"chapters": {}}))
        run(["-m", "saema_utils", "run", *arguments])

    arguments = ["--study", finished["study"]["name"], "--run-dir", str(place), "--chapters", chapters_of(finished)]
    compare(
        benchmark,
        f"the same study again, {'every notebook executed' if executed else 'nothing changed'}",
        "ours",
        again,
        warmup=0,
        memory=False,
        seconds_aim=WARM,
    )
    assert {name: (place / name).stat().st_mtime_ns for name in made} == made, "a table was made again: not a rerun"
