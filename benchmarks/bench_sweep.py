"""How far a sweep scales: measured task times, scheduled by simulation on 1 to 64 workers.

    python -m benchmarks.bench_sweep [RUNS] [--sweep FILE]

Task times come from manifests under RUNS (default ``runs``): those of a sweep, or of any run of the
same model. The schedule is that of a work-conserving scheduler that prefers long chains, which is how
the sweep orders its tasks on Dask; communication is left out, because tasks take seconds and send bytes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from saema_utils.figures import COLORS, panels
from saema_utils.sweeps.plan import Timed, makespan, plan_sweep, read_records, remaining_path

WORKERS = (1, 2, 4, 8, 16, 32, 64)
DEMANDED = """
base: smoke
grid:
  layer: [3, 9, 15, 21]
  sae.architecture: [topk, batchtopk, jumprelu, gated]
  seed: [0, 1, 2, 3, 4]
chapters: 1-6
"""
STARTUP = 12.0  # seconds a worker loses once: importing torch and transformer_lens, loading the model


def scaling(tasks: list[Timed], startup: float = STARTUP) -> pd.DataFrame:
    """Makespan, speed-up and what limits it, for each number of workers."""
    total, longest = sum(task.seconds for task in tasks), max(remaining_path(tasks).values())
    alone = makespan(tasks, 1, startup=startup)
    rows = []
    for workers in WORKERS:
        seconds = makespan(tasks, workers, startup=startup)
        share, chain = startup + total / workers, startup + longest
        limit = "number of workers" if share >= chain else "longest chain"
        speedup = alone / seconds
        rows.append(
            {
                "workers": workers,
                "makespan": seconds,
                "speedup": speedup,
                "efficiency": speedup / workers,
                "lower_bound": max(share, chain),
                "limited_by": limit,
            }
        )
    return pd.DataFrame(rows)


def planned(folder: Path, sweep: str) -> tuple[list[Timed], str]:
    """The tasks of a sweep with the times that manifests under ``folder`` give them."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(sweep) if sweep else Path(place) / "sweep.yaml"
        if not sweep:
            file.write_text(DEMANDED)
        records = read_records([folder])
        plan = plan_sweep(file, folder=Path(place) / "runs", records=records)
    unknown = sorted({task.chapter for task in plan.todo if task.expected.seconds is None})
    if unknown:
        raise SystemExit(
            f"no manifest under {folder} tells how long chapters {unknown} take. Run: saema run --study smoke"
        )
    return plan.timed(), f"{len(plan.runs)} runs, {len(plan.todo)} tasks"


def scaling_curve(table: pd.DataFrame, critical_path: float) -> Figure:
    """Speed-up of a sweep against workers: simulated, with the ideal line and the bound of the longest chain."""
    figure, axes = panels()
    total = table.loc[table["workers"].idxmin(), "makespan"] * table["workers"].min()
    axes.plot(table["workers"], table["workers"], color=COLORS["muted"], linestyle="--", label="ideal")
    axes.axhline(total / critical_path, color=COLORS["accent"], linestyle=":", label="bound of the longest chain")
    axes.plot(table["workers"], table["speedup"], color=COLORS["sae"], marker="o", label="simulated")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("workers")
    axes.set_ylabel("speed-up over one worker")
    axes.legend()
    return figure


def main() -> None:
    """Print the scaling curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", default="runs", type=Path, help="folder of finished runs")
    parser.add_argument("--sweep", default="", help="a sweep file instead of the built-in grid")
    parser.add_argument("--figure", default="", help="also write the curve to this file")
    given = parser.parse_args()
    tasks, what = planned(given.runs, given.sweep)
    table = scaling(tasks)
    longest = max(remaining_path(tasks).values())
    print(f"{what}; work {sum(t.seconds for t in tasks):.0f} s, longest chain {longest:.0f} s")
    print(table.round(2).to_string(index=False))
    if given.figure:
        scaling_curve(table, longest + STARTUP).savefig(given.figure)


if __name__ == "__main__":
    main()
