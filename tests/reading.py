"""What a finding says, read back from its one short line, and what a chapter's page defines."""

from __future__ import annotations

import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def tagged(notebook: str, tag: str) -> list[str]:
    """Sources of the cells of a notebook that have a tag."""
    cells = json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if tag in cell["metadata"].get("tags", [])]


def defined_on(notebook: str) -> dict:
    """The names that the page's definition cells define."""
    names: dict = {}
    for source in tagged(notebook, "definition"):
        exec(source, names)
    return names


def numbers(text: str) -> list[float]:
    """Every number in a line, in its order: shares stay in per cent."""
    return [float(number.replace(",", "")) for number in re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]\d+)?", text)]
