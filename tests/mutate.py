"""Mutate the modules and folders that measure, run their unit tests, and report what survives: ``make mutate``.

cosmic-ray makes and runs the mutants; this file gives it a copy of the checkout (it edits files in place), draws a
sample with a fixed seed, and prints the score. A second call goes on where the first was stopped. ::

    python tests/mutate.py --mutants 150 statistics geometry

Mutants of ``|`` are left out: here it joins types in annotations, which nothing executes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "_build/mutation"
TESTS = {
    "statistics": ["tests/test_statistics.py"],
    "geometry": ["tests/geometry"],
    "intervention": ["tests/intervention"],
    "stratification": ["tests/stratification"],
}
SEED = 0
NEVER_EXECUTED = "_BitOr_"


def copy_checkout() -> Path:
    """The tracked files as they stand, in a folder whose package is imported in place of the checkout's."""
    target = PLACE / "checkout"
    if not target.exists():
        parts = ["saema_utils", "tests", "benchmarks", "pyproject.toml"]
        listed = subprocess.run(
            ["git", "ls-files", *parts], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split("\n")
        for name in filter(None, listed):
            if (ROOT / name).exists():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
    return target


def cosmic_ray(*arguments: str, cwd: Path) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run([sys.executable, "-m", "cosmic_ray.cli", *arguments], cwd=cwd, check=True, env=environment)


def mutate(module: str, mutants: int, timeout: float) -> tuple[int, list[str]]:
    """How many mutants were run, and the differences that no test noticed."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    checkout = copy_checkout()
    session, config = PLACE / f"{module}.sqlite", PLACE / f"{module}.toml"
    tests = " ".join(TESTS[module])
    place = f"saema_utils/{module}" if (checkout / "saema_utils" / module).is_dir() else f"saema_utils/{module}.py"
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider -m 'not slow' {tests}"
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "{place}"\ntimeout = {timeout}\nexcluded-modules = []\n'
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    if not session.exists():
        cosmic_ray("baseline", str(config), cwd=checkout)  # the tests pass before anything is changed
        cosmic_ray("init", str(config), str(session), cwd=checkout)
        with use_db(session, WorkDB.Mode.open) as db:
            items = [(item.job_id, item.mutations[0]) for item in db.work_items]
            real = sorted(
                ((m.operator_name, m.occurrence, job) for job, m in items if NEVER_EXECUTED not in m.operator_name)
            )
            drawn = {job for *_, job in random.Random(SEED).sample(real, min(mutants, len(real)))}
            rest = [job for job, _ in items if job not in drawn]
            db.set_multiple_results(rest, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    cosmic_ray("exec", str(config), str(session), cwd=checkout)
    with use_db(session, WorkDB.Mode.open) as db:
        done = [result for _, result in db.results if result.worker_outcome != WorkerOutcome.SKIPPED]
        return len(done), [result.diff or "" for result in done if not result.is_killed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}; default: all")
    parser.add_argument("--mutants", type=int, default=150, help="in all, shared evenly among the modules")
    parser.add_argument("--timeout", type=float, default=120, help="seconds after which a mutant counts as killed")
    given = parser.parse_args()
    modules = given.modules or list(TESTS)
    if unknown := set(modules) - set(TESTS):
        parser.error(f"no tests are named for {', '.join(sorted(unknown))}; allowed: {', '.join(TESTS)}")
    PLACE.mkdir(parents=True, exist_ok=True)
    total = survived = 0
    for module in modules:
        n, survivors = mutate(module, -(-given.mutants // len(modules)), given.timeout)
        (PLACE / f"{module}.survivors.diff").write_text("\n".join(survivors))
        print(
            f"{module}: {n - len(survivors)} of {n} killed; survivors in {PLACE.name}/{module}.survivors.diff",
            flush=True,
        )
        total, survived = total + n, survived + len(survivors)
    print(f"mutation score: {(total - survived) / max(total, 1):.0%} of {total}")


if __name__ == "__main__":
    main()
