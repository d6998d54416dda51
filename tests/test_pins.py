"""constraints.txt holds for every Python that pyproject.toml allows, the oldest patch release among them."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]


def test_every_pinned_release_takes_the_oldest_python_allowed():
    """A release for 3.11.5 and later cannot be installed by Debian's 3.11.2, though pip of 3.11.7 pins it gladly."""
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest = next(one.version for one in SpecifierSet(allowed) if one.operator == ">=")
    installed = {found.metadata["Name"].lower().replace("_", "-"): found for found in metadata.distributions()}
    needs = {
        pin.name: found.metadata.get("Requires-Python") or ""
        for pin in PINS
        if (found := installed.get(pin.name.lower().replace("_", "-"))) and pin.specifier.contains(found.version)
    }
    if len(needs) < len(PINS) / 2:
        pytest.skip("these are not the pinned releases (make latest), so they say nothing about the pins")
    refused = {name: takes for name, takes in needs.items() if not SpecifierSet(takes).contains(f"{oldest}.0")}
    assert not refused, f"pins that Python {oldest}.0 cannot install: {refused}; pin an earlier release of each"
