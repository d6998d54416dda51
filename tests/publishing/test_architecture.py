"""The diagram of the package's layers, held against the real imports: imports only go down."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "saema_utils"


def drawn_order() -> list[str]:
    """Modules in the order of the diagram's rows, left to right, top to bottom."""
    page = (ROOT / "book" / "architecture.md").read_text(encoding="utf-8")
    diagram = re.search(r"saema-layers\n(.*?)\n:::", page, re.S)[1]
    rows = [line.split("|")[2] for line in diagram.splitlines()[2:]]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            inside = node.level == 1 or (node.module or "").split(".")[0] == "saema_utils"
            module = (node.module or "").removeprefix("saema_utils").removeprefix(".")
            if inside:
                found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("saema_utils.")}
    return {name for name in found if (PACKAGE / f"{name}.py").exists()}


def test_every_module_is_drawn_once():
    drawn = drawn_order()
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def test_imports_only_go_down():
    place = {name: i for i, name in enumerate(drawn_order())}
    upward = [
        f"{name} imports {other}"
        for name in place
        for other in imports_of(PACKAGE / f"{name}.py")
        if place.get(other, 0) <= place[name]
    ]
    assert not upward


def test_modules_are_short():
    long = {path.name: n for path in PACKAGE.glob("*.py") if (n := len(path.read_text().splitlines())) > 410}
    assert not long, f"is each one concept? {long}"


def test_keys_name_modules_that_exist_and_every_stage_is_in_a_key_of_its_own():
    named: dict[str, set[str]] = {}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "source_digest":
                named.setdefault(path.stem, set()).update(argument.value for argument in node.args)
    assert {name for names in named.values() for name in names} <= {path.stem for path in PACKAGE.glob("*.py")}
    stages = {path.stem for path in PACKAGE.glob("stage*.py")} | {"layer_sweep"}
    assert stages <= set(named)
    assert all(stage in named[stage] for stage in stages)
