"""The sweep file: a grid of studies, read and checked before anything runs.

base: smoke                    a registered study, a study file, or a list of them
grid: {sae.k: [16, 32], seed: [0, 1]}    every combination of these
cases: [{model: gpt2, layer: 11}, ...]   optional: changes that belong together
chapters: 1-5
"""

from __future__ import annotations

import itertools
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chapter import resolve_study
from .errors import StudyError, SweepError, unknown_name
from .files import digest, user_path
from .study import Study

SWEEP_KEYS = ("base", "grid", "cases", "chapters", "device", "slurm")
PATH_FIELDS = ("model", "prompts_file", "corpus.source", "sae.source")
MOST_RUNS = 20_000
MOST_VALUES = 1_000_000
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 120


@dataclass(frozen=True)
class SweepFile:
    """A sweep file as it stands, each part of the right shape."""

    path: Path
    base: tuple[str, ...]
    grid: Mapping[str, Sequence[Any]]
    cases: tuple[Mapping[str, Any], ...]
    chapters: str
    device: str
    slurm: Mapping[str, Any]


def read_sweep_file(path: str | Path) -> SweepFile:
    """Read and check the shape of a sweep file.

    Raises
    ------
    SweepError
        If it cannot be read, is not YAML, names a key twice or an unknown one, or a part has the wrong shape.
    """
    path = user_path(path)
    plain = _load_yaml(path)
    _require(
        isinstance(plain, dict),
        f"sweep file {path}",
        type(plain).__name__,
        "a mapping such as {base: smoke, grid: ...}",
    )
    for key in plain:
        if key not in SWEEP_KEYS:
            raise SweepError(unknown_name(f"part of {path.name}", key, SWEEP_KEYS))
    base = plain.get("base")
    base = [base] if isinstance(base, str) else base
    _require(_is_list_of(base, str), "base", plain.get("base"), "a study's name, a study file, or a list of them")
    grid = plain.get("grid") or {}
    _require(
        isinstance(grid, dict) and all(isinstance(k, str) for k in grid), "grid", grid, "a mapping of study fields"
    )
    for name, values in grid.items():
        _require(isinstance(values, list) and len(values) > 0, f"grid.{name}", values, "a list, such as [0, 1]")
    cases = plain.get("cases") or [{}]
    _require(
        _is_list_of(cases, dict) and all(isinstance(k, str) for case in cases for k in case),
        "cases", cases, "a list of mappings of study fields",
    )  # fmt: skip
    slurm = plain.get("slurm") or {}
    _require(
        isinstance(slurm, dict) and all(isinstance(k, str) for k in slurm),
        "slurm",
        slurm,
        "a mapping such as {queue: gpu, walltime: '04:00:00'}",
    )
    device = plain.get("device", "auto")
    _require(device in ("auto", "cpu", "cuda", "mps"), "device", device, "auto, cpu, cuda or mps")
    return SweepFile(path, tuple(base), grid, tuple(cases), str(plain.get("chapters", "1-6")), device, slurm)


def _load_yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and a key given twice is an error instead of the last one winning."""

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, str) and key in seen:
                    raise SweepError(f"{path.name} gives {key!r} twice. Keep one.")
                seen.add(key if isinstance(key, str) else id(key_node))
            return super().construct_mapping(node, deep)

    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # a SafeLoader: no objects are built
    except OSError as error:
        raise SweepError(f"cannot read sweep file {path} ({error.strerror}). Check the path and run again.") from error
    except SweepError:
        raise
    except Exception as error:  # beside YAMLError, a wrong tag raises whatever its constructor does
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}" if mark else type(error).__name__
        reason = " ".join(str(problem or error).split())[:200]
        raise SweepError(f"sweep file {path} is not YAML ({where}: {reason}). Correct it.") from error
    # Aliases let a short file hold a value that fills the memory when it is copied or shown, or holds itself.
    parts, count = [plain], 0
    while parts:
        part, count = parts.pop(), count + 1
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        _require(count <= MOST_VALUES, f"sweep file {path.name}", "one of a million values", "fewer; check its aliases")
    return plain


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, kind) for item in value)


def _require(condition: bool, what: str, value: object, allowed: str) -> None:
    if not condition:
        raise SweepError(f"{what} is {_shown.repr(value)}; allowed: {allowed}.")


# ---- its runs --------------------------------------------------------------------------------------


def expand(file: SweepFile) -> tuple[dict[str, Study], dict[str, dict[str, Any]]]:
    """Every run of the grid by name, validated, and what each changes.

    Raises
    ------
    SweepError
        If two runs would be the same study, or there are too many.
    StudyError
        If a field does not exist or a value is not allowed; names the run's changes.
    """
    count = len(file.base) * len(file.cases)
    for values in file.grid.values():
        count *= len(values)
    _require(count <= MOST_RUNS, "number of runs", count, f"at most {MOST_RUNS:,}; split the grid")
    runs: dict[str, Study] = {}
    changes: dict[str, dict[str, Any]] = {}
    seen: dict[str, str] = {}
    for base, case, values in itertools.product(file.base, file.cases, itertools.product(*file.grid.values())):
        chosen = _chosen(file, case, dict(zip(file.grid, values, strict=True)))
        try:
            study = _changed(resolve_study(_located(file, base) if base.endswith(".json") else base), chosen)
        except StudyError as error:
            raise StudyError(f"{file.path.name}, run {base} with {chosen}: {error}") from error
        name = _unique(run_name(study.name, chosen), runs)
        twin = seen.setdefault(study.changed(name="x").digest, name)
        if twin != name:
            raise SweepError(
                f"{file.path.name} asks twice for one study ({twin} and {name}). Remove a value from the grid."
            )
        runs[name] = study.changed(name=name)
        changes[name] = {**({"base": base} if len(file.base) > 1 else {}), **chosen}
    return runs, changes


def _chosen(file: SweepFile, case: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    both = set(case) & set(values)
    if both:
        raise SweepError(f"{sorted(both)[0]!r} stands in grid and in cases. Keep it in one of them.")
    chosen = {**case, **values}
    _require("name" not in chosen, "grid", sorted(chosen), "any field of a study but its name, which the sweep gives")
    return {name: _located(file, value) if name in PATH_FIELDS else value for name, value in chosen.items()}


def _located(file: SweepFile, value: Any) -> Any:
    """Paths beside the sweep file become absolute: workers may stand in another folder."""
    beside = file.path.parent / value if isinstance(value, str) else None
    return str(beside.resolve()) if beside is not None and value and beside.exists() else value


def _changed(base: Study, chosen: Mapping[str, Any]) -> Study:
    study = base.changed(**chosen)
    if chosen.get("prompts_file") and "concepts" not in chosen:
        from .concepts import build_prompts

        study = study.changed(concepts=tuple(build_prompts(study)))
    return study


def run_name(base: str, changes: Mapping[str, Any]) -> str:
    """A folder's name that says what the run changes, such as ``smoke_k-16_seed-1``.

    Only letters, digits, ``-``, ``_`` and ``.`` are used, so that a value can never point elsewhere.
    """
    parts = [base]
    for field_name, value in changes.items():
        text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = text.rsplit("/", 1)[-1] if field_name in PATH_FIELDS else text
        safe = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")
        parts.append(f"{field_name.rsplit('.', 1)[-1]}-{safe if 0 < len(safe) <= 24 else digest(value)[:8]}")
    name = "_".join(parts)
    return name if len(name) <= 100 else f"{name[:83]}_{digest(dict(changes))}"


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    """Names that differ only by case, or whose values look alike once made safe, get a number."""
    lowered = {other.lower() for other in taken}
    numbered = (name if n == 1 else f"{name}_{n}" for n in itertools.count(1))
    return next(candidate for candidate in numbered if candidate.lower() not in lowered)
