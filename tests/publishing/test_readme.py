"""The README quotes the committed scorecard and nothing else."""

import re
from pathlib import Path

import pytest

from saema_utils.errors import BookError
from saema_utils.publishing.readme import between_markers, generated

ROOT = Path(__file__).parents[2]


def test_the_generated_part_is_what_the_tables_say():
    assert between_markers((ROOT / "README.md").read_text(encoding="utf-8"))[1] == generated(ROOT)


def test_lost_markers_are_named():
    with pytest.raises(BookError, match="generated"):
        between_markers("# a README without markers")


def test_the_hero_is_there():
    assert (ROOT / "book/static/hero.png").stat().st_size > 10_000


@pytest.mark.model
def test_the_ten_lines_of_python_print_ranks(smoke_run, tmp_path, monkeypatch, capsys):
    lines = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/smoke").symlink_to(smoke_run.run.path)
    monkeypatch.chdir(tmp_path)
    exec(compile(lines.replace("smollm2-135m", "smoke"), "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "effective_rank" in shown
    assert len(shown.splitlines()) >= 5
