"""What a notebook says to somebody who has it open: which study runs, and what it is busy with."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from saema_utils import notebook
from saema_utils.interactive import PUBLISHING
from saema_utils.notebook import finding, open_run
from saema_utils.runtime import PROGRESS_FILE


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.delenv(PUBLISHING, raising=False)
    monkeypatch.setattr(notebook, "_study", None)
    return lambda study, **more: open_run(study, str(tmp_path / "run"), "cpu", **more)


def test_another_study_says_that_it_is_not_the_books(opened, capsys):
    opened("smoke")
    said = capsys.readouterr().out
    assert said.startswith("Study smoke on cpu: not the book's.")
    assert said.count("\n") == 1


def test_the_books_study_says_so_and_one_with_another_seed_does_not(opened, capsys, tmp_path):
    opened("smollm2-135m")
    assert "the book's, on cpu" in capsys.readouterr().out
    open_run("smollm2-135m", str(tmp_path / "other"), "cpu", seed=5)
    assert "not the book's" in capsys.readouterr().out


def test_a_page_says_nothing(opened, capsys, monkeypatch):
    monkeypatch.setenv(PUBLISHING, "1")
    opened("smoke")
    assert capsys.readouterr().out == ""


def test_a_finding_that_fails_says_whose_study_it_is_about(opened):
    for study, remark in (("smoke", True), ("smollm2-135m", False)):
        notebook._study = notebook.resolve_study(study)
        texts = [finding("All are equal.", holds=holds, shows="1 · 2").data for holds in (True, False, None)]
        assert ["smoke" in text for text in texts] == [False, remark, remark]


BUSY = """
from saema_utils.runtime import a_line, progress
import time
with a_line("making tables/04_x.csv ..."):
    for _ in progress(range(3), "counting"):
        time.sleep(0.6)
print("done")
"""


@pytest.mark.parametrize("kept", [False, True])
def test_a_long_cell_says_what_it_does_and_leaves_nothing_of_it(tmp_path, monkeypatch, kept):
    """In a kernel that ``saema run`` has started, nothing is shown at all."""
    monkeypatch.delenv(PROGRESS_FILE, raising=False)
    if kept:
        monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress"))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BUSY)])
    seen = []

    class Watching(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if "data" in msg["content"]:
                seen.append(msg["content"]["data"]["text/plain"])
            return super().process_message(msg, cell, cell_index)

    Watching(book, timeout=120, kernel_name="python3").execute()
    outputs = book.cells[0].outputs
    assert "".join(o.text for o in outputs if o.output_type == "stream") == "done\n"
    assert [o.data["text/plain"] for o in outputs if o.output_type == "display_data" and o.data["text/plain"]] == []
    assert ("making tables/04_x.csv ..." in seen) != kept
    assert any(text.startswith("counting: 2 of 3") for text in seen) != kept
    assert len(outputs) == (1 if kept else 2), "one line, whatever goes on within"
    assert (tmp_path / "progress").exists() == kept
