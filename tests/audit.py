"""Ask PyPI's advisories about every pinned package, and keep the answers in ``tests/audit.json``: ``make audit``.

pip-audit calls a package that it could not look up "skipped" and the whole "no known vulnerabilities found". So an
old release with famous vulnerabilities is asked about first: where that one looks clean, nobody is answering, and
nothing is called audited. Answers on the same version are kept; exit code 0 means all asked and clean, 1 that there
are vulnerabilities, 2 that something was not audited.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "tests/audit.json"
CANARY = {"urllib3": "1.26.0"}
CLEAN, UNKNOWN = "clean", "not audited"


def pins(path: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """Names and versions of a constraints file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower(): version for name, version in found}


def ask(packages: dict[str, str]) -> dict[str, str]:
    """For each package clean, not audited, or the names of its vulnerabilities."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip_audit",
                "--no-deps",
                "--disable-pip",
                "--progress-spinner",
                "off",
                "--format",
                "json",
                "--requirement",
                str(wanted),
            ],
            capture_output=True,
            text=True,
        )
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        print(f"pip-audit gave no answer: {(done.stderr.strip().splitlines() or ['it is not installed'])[-1][:200]}")
        return dict.fromkeys(packages, UNKNOWN)
    verdicts = dict.fromkeys(packages, UNKNOWN)
    for answer in answers:
        if "vulns" in answer:
            verdicts[answer["name"].lower()] = ", ".join(v["id"] for v in answer["vulns"]) or CLEAN
    return verdicts


def main() -> int:
    wanted = pins()
    stored = json.loads(STORED.read_text()) if STORED.exists() else {"packages": {}}
    known = stored["packages"]
    canary = ask(CANARY)["urllib3"]
    if canary in (CLEAN, UNKNOWN):
        print(
            "audit: OFFLINE. No advisory service answers at pypi.org, so nothing was audited now; kept what was known."
        )
        fresh = {}
    else:
        fresh = ask(wanted)
    packages = {}
    for name, version in sorted(wanted.items()):
        before = known.get(name, {})
        verdict = fresh.get(name, UNKNOWN)
        if verdict == UNKNOWN and before.get("version") == version:
            packages[name] = before
        else:
            asked = None if verdict == UNKNOWN else time.strftime("%Y-%m-%d", time.gmtime())
            packages[name] = {"version": version, "verdict": verdict, "asked": asked}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in packages.items())
    STORED.write_text(f'{{"packages": {{\n{lines}\n}}}}\n')
    unknown = [name for name, entry in packages.items() if entry["verdict"] == UNKNOWN]
    bad = {name: entry for name, entry in packages.items() if entry["verdict"] not in (CLEAN, UNKNOWN)}
    for name, entry in bad.items():
        print(f"{name} {entry['version']}: {entry['verdict']}")
    means = "not asked about, so neither clean nor vulnerable is known of them"
    remedy = f" ({means}): run it where pypi.org/pypi/*/json gives advisories" if unknown else ""
    print(
        f"audit: {len(packages)} pinned, {len(bad)} vulnerable, {len(unknown)} not audited{remedy}. See {STORED.name}."
    )
    return 1 if bad else 2 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
