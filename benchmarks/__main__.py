"""Measure everything side by side and write the book's speed page its data.

    python -m benchmarks [--from FILE] [--output FOLDER] [PYTEST OPTIONS]

Writes ``benchmarks.csv``, ``benchmarks_page.csv`` (its narrow form), ``growth.csv``, ``growth_points.csv``,
``benchmarks.json`` (on what it was measured) and ``growth.svg``/``.png``. ``--from`` reads an earlier file of
pytest-benchmark instead of measuring. Set ``SAEMA_BENCH_QUICK=1`` for small sizes. The rows of a whole study come
from ``runs/smollm2-135m``, as ``make book`` leaves it, or from the run in ``SAEMA_BENCH_RUN``; it must have been made
from this very checkout. All of it takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "scipy", "transformers", "transformer-lens", "sae-lens", "saema_utils")


def measure(target: Path, options: list[str]) -> int:
    """Run the benchmarks; the exit code says whether all sides agreed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(ROOT / "benchmarks"),
        "-o",
        "python_files=bench_*.py",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--benchmark-disable-gc",
        "--benchmark-columns=median,rounds",
        f"--benchmark-json={target}",
        *options,
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def conditions(measured: dict[str, Any]) -> dict[str, Any]:
    """Where and with what this was measured; no name of a machine, no path."""
    import torch

    machine = measured.get("machine_info", {})
    return {
        "date": measured["datetime"][:10],
        "processor": machine.get("cpu", {}).get("brand_raw", "unknown"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "sizes": "small" if os.environ.get("SAEMA_BENCH_QUICK", "") not in ("", "0") else "full",
    }


def write(measured: dict[str, Any], folder: Path) -> None:
    """Tables, figure and conditions of one measurement."""
    folder.mkdir(parents=True, exist_ok=True)
    found = table.benchmark_table(measured)
    points = table.growth_points(measured)
    found.to_csv(folder / "benchmarks.csv", index=False)
    table.page_table(found).to_csv(folder / "benchmarks_page.csv", index=False)
    (folder / "benchmarks.json").write_text(json.dumps(conditions(measured), indent=1) + "\n")
    print(found.drop(columns=["Note", "Device"]).to_string(index=False, max_colwidth=70))
    if not len(points):  # a part of the benchmarks was asked for
        return
    growth = table.growth_table(points)
    growth.to_csv(folder / "growth.csv", index=False)
    points.to_csv(folder / "growth_points.csv", index=False, float_format="%.6g")
    figure = table.growth_figure(points)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"growth.{kind}", metadata={"Date": None} if kind == "svg" else None)
    print(growth.to_string(index=False))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, help="a file of pytest-benchmark instead of measuring")
    parser.add_argument("--output", type=Path, default=ROOT / "book" / "static")
    parser.add_argument("--keep", type=Path, help="also keep pytest-benchmark's own file here")
    given, options = parser.parse_known_args()
    code = 0
    with tempfile.TemporaryDirectory() as scratch:
        source = given.source or Path(scratch) / "benchmarks.json"
        if given.source is None:
            code = measure(source, options)
        if not source.exists() or not source.stat().st_size:
            print("nothing was measured", file=sys.stderr)
            return code or 1
        text = source.read_text(encoding="utf-8")
    if given.keep:
        given.keep.write_text(text, encoding="utf-8")
    if code:
        print("a benchmark failed: no page was written", file=sys.stderr)
        return code
    write(json.loads(text), given.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
