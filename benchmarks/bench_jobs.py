"""What worker processes gain a study: each notebook making its own tables, or one process a core ahead of them all.

    python -m benchmarks.bench_jobs [--study NAME] [--chapters 1-7] [--rounds N] [--jobs N] [--quiet]

Both sides start from nothing but the converted model, in turns, on the machine as it is and (unless told to be quiet)
beside one process that never rests. Tests hold that both give the same bytes where both use one thread; here the plain
side uses all, so that the last digits differ. Writes the study's rows of the table of the book's page on speed.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.bench_busy import neighbour
from saema_utils.model.loading import model_folder
from saema_utils.runtime import cores
from saema_utils.study import STUDIES

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "book" / "static" / "jobs.csv"


def carried_out(study: str, chapters: str, jobs: int) -> tuple[float, float]:
    """Seconds on the clock, and of all cores together, that ``saema run`` takes in an empty folder."""
    with tempfile.TemporaryDirectory() as place:
        models = model_folder(STUDIES[study].model).parent
        (Path(place) / "cache").mkdir()
        (Path(place) / "cache" / "models").symlink_to(models)
        arguments = ["--study", study, "--chapters", chapters, "--jobs", str(jobs), "--run-dir", f"{place}/run"]
        command = [sys.executable, "-m", "saema_utils", "run", *arguments, "--device", "cpu"]
        environment = {**os.environ, "SAEMA_CACHE": f"{place}/cache"}
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, sum(getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))


def medians(rows: list[dict], study: str) -> pd.DataFrame:
    """Both sides, quiet and busy, as the page shows them."""
    found = pd.DataFrame(rows).groupby(["busy", "jobs"], sort=False).median().reset_index()
    plain = found[found["jobs"] == 1].set_index("busy")["seconds"]
    quiet = found[~found["busy"]].set_index("jobs")["seconds"]
    return pd.DataFrame(
        {
            "Study": study,
            "Machine": found["busy"].map({False: "quiet", True: "beside a busy process"}),
            "Tables made by": found["jobs"].map(lambda jobs: "the notebooks" if jobs == 1 else f"{jobs} workers"),
            "Seconds": found["seconds"].round().astype(int),
            "Seconds of all cores": found["cores"].round().astype(int),
            "Times faster than notebooks": (found["busy"].map(plain) / found["seconds"]).round(2),
            "Times its own quiet time": (found["seconds"] / found["jobs"].map(quiet)).round(2),
            "Rounds": len(rows) // len(found),
        }
    )


def write(shown: pd.DataFrame) -> None:
    """Put a study's rows into the table of the page, in place of those that it had."""
    kept = pd.read_csv(TABLE)
    others = kept[~kept["Study"].isin(shown["Study"])]
    pd.concat([others, shown]).sort_values("Study", kind="stable").to_csv(TABLE, index=False)


def main() -> None:
    """Print and write medians of both sides, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="smoke")
    parser.add_argument("--chapters", default="1-7")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=cores(), help="processes. Default: one a core")
    parser.add_argument("--quiet", action="store_true", help="only on the machine as it is, in half the time")
    given = parser.parse_args()
    rows: list[dict] = []
    for _ in range(given.rounds):
        for busy in (False,) if given.quiet else (False, True):
            for jobs in (1, given.jobs):
                with neighbour(busy):
                    seconds, worked = carried_out(given.study, given.chapters, jobs)
                rows.append({"busy": busy, "jobs": jobs, "seconds": seconds, "cores": worked})
                print(rows[-1], flush=True)
        shown = medians(rows, given.study)  # after each round, for a round takes long and may be the last
        print(shown.to_string(index=False), flush=True)
        write(shown)


if __name__ == "__main__":
    main()
