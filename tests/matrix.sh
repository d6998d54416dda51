#!/usr/bin/env bash
# Fresh environments: for each Python, install as a reader would, run the unit tests and the smoke study.
# Interpreters that are not on this machine are named and passed over. Usage: tests/matrix.sh [VERSION...]
set -uo pipefail
cd "$(dirname "$0")/.."
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(3.11 3.12 3.13)
failed=0 ran=0
for version in "${versions[@]}"; do
  # A version manager may have the name without the interpreter, so it is asked to run.
  if ! "python$version" -c "" 2>/dev/null; then
    echo "python$version: not on this machine, passed over"
    continue
  fi
  ran=$((ran + 1))
  folder=".matrix/$version"
  rm -rf "$folder" && mkdir -p "$folder"
  started=$SECONDS
  # The second make finds the environment installed: its stamp is newer than the pins.
  if make install PYTHON="python$version" VENV="$folder/venv" >"$folder/install.log" 2>&1 &&
    OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m pytest -q -n auto --dist loadfile -m "not slow" \
      --ignore tests/faults --ignore tests/notebooks --ignore tests/publishing >"$folder/unit.log" 2>&1 &&
    "$folder/venv/bin/saema" run --study smoke --run-dir "$folder/run" >"$folder/smoke.log" 2>&1; then
    echo "python$version: passed in $((SECONDS - started)) s"
  else
    echo "python$version: FAILED after $((SECONDS - started)) s; logs in $folder"
    failed=1
  fi
done
[ "$ran" -gt 0 ] || { echo "no Python of ${versions[*]} is on this machine"; exit 1; }
exit "$failed"
