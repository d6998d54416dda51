"""The contracts in pyproject.toml on who may import whom, and the doorways of the chapters."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from saema_utils import chapters

ROOT = Path(__file__).resolve().parents[1]


def test_imports_keep_to_the_contracts(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", cache_dir=None, no_cache=True) == 0, "see the report above"


@pytest.mark.parametrize("subject", chapters.SUBJECTS.values())
def test_a_chapter_hands_on_names_of_this_package_and_no_others(subject):
    chapter = importlib.import_module(f"saema_utils.chapters.{subject}")
    assert chapter.findings.__name__ == f"{chapter.__name__}.findings"
    assert {"tables", "figures", "findings"} <= set(dir(chapter))
    for name in dir(chapter):
        getattr(chapter, name)
    for imported in ("np", "pd", "sns", "torch", "Tensor", "dataclass"):
        assert imported not in dir(chapter)
        with pytest.raises(AttributeError, match=f"{subject}.*has no attribute '{imported}'"):
            getattr(chapter, imported)


def test_what_the_page_on_speed_names_is_there():
    rooms = "|".join(path.name for path in (ROOT / "saema_utils").iterdir() if (path / "__init__.py").exists())
    named = re.findall(rf"`((?:{rooms})\.[\w.]+)`", (ROOT / "book" / "speed.md").read_text(encoding="utf-8"))
    assert len(named) > 8
    for name in named:
        pkgutil.resolve_name(f"saema_utils.{name}")
