"""What worker processes gain: one sweep done plainly, one task after the other, and by Dask on several processes.

    python -m benchmarks.bench_sweep [--sweep FILE] [--workers N ...]

Every side starts from nothing but the converted model, with as many threads a task, and ends with the same tables,
which is checked. The time of a side includes starting its processes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import pandas as pd

from saema_utils.model.loading import model_folder
from saema_utils.runs.freshness import file_digest
from saema_utils.study import EMBEDDED_MODEL
from saema_utils.sweeps.engine import local_client, run_on_dask, run_serially
from saema_utils.sweeps.plan import plan_sweep

GRID = "base: smoke\ngrid: {layer: [3, 9, 15, 21], seed: [0, 1]}\nchapters: 1-3\n"


def carried_out(sweep: Path, workers: int, place: Path) -> tuple[float, dict[str, str]]:
    """Seconds of a sweep on so many processes (0: plainly, in this one), and the digest of every table."""
    models = model_folder(EMBEDDED_MODEL).parent
    (place / "cache").mkdir(parents=True)
    (place / "cache" / "models").symlink_to(models)
    before = os.environ.get("SAEMA_CACHE")
    os.environ["SAEMA_CACHE"] = str(place / "cache")
    try:
        plan = plan_sweep(sweep, folder=place / "runs", device="cpu")
        plan.write(1)
        started = time.perf_counter()
        if workers:
            with local_client(workers, 1, []) as client:
                ends = list(run_on_dask(plan, client))
        else:
            ends = list(run_serially(plan))
        seconds = time.perf_counter() - started
    finally:
        os.environ.pop("SAEMA_CACHE") if before is None else os.environ.__setitem__("SAEMA_CACHE", before)
    failed = [f"{task.title}: {outcome.error}" for task, outcome in ends if outcome.error]
    if failed:
        raise SystemExit("\n".join(failed))
    return seconds, {str(p.relative_to(plan.folder)): file_digest(p) for p in plan.folder.glob("*/tables/*.csv")}


def main() -> None:
    """Print seconds, speed-up and efficiency of every side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, help="a sweep file instead of the built-in grid")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4], help="numbers of processes")
    given = parser.parse_args()
    rows, expected = [], {}
    for workers in (0, *given.workers):
        with tempfile.TemporaryDirectory() as place:
            sweep = given.sweep or Path(place) / "sweep.yaml"
            if given.sweep is None:
                sweep.write_text(GRID)
            seconds, tables = carried_out(sweep, workers, Path(place))
        expected = expected or tables
        if tables != expected:
            raise SystemExit(f"{workers} workers gave other tables")
        plain = rows[0]["seconds"] if rows else seconds
        rows.append({"workers": workers or "plain", "seconds": seconds, "speed-up": plain / seconds})
        print(pd.DataFrame(rows).round(2).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
