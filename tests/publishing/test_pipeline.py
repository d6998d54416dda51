"""Running notebooks and cleaning what they show, on notebooks small enough to know everything about."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saema_utils.errors import BookError
from saema_utils.interactive import PUBLISHING, interactive, menu, page_html, slider, without_page
from saema_utils.notebook import finding, not_borne_out
from saema_utils.publishing import address, execution, fragments
from saema_utils.publishing.build import build_book, last_finished, prepare_page, with_captions
from saema_utils.publishing.cleaning import clean_notebook
from saema_utils.publishing.execution import run_notebooks
from saema_utils.runs.directory import RunDirectory
from saema_utils.study import STUDIES

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = 'study = "auto"\nrun_dir = ""\ndevice = "auto"\nseed = 0'


def write_chapter(root: Path, name: str, *sources: str) -> None:
    cells = [new_markdown_cell("# Try a thing\n\n<!-- badges -->\n\n**Time:** <!-- time -->", id="title")]
    cells.append(new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_chapter(tmp_path, "01_first", "print(seed, object())", "from pathlib import Path; Path(run_dir).name")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nparts:\n- caption: Study\n  chapters:\n  - file: notebooks/01_first\n"
    )
    return tmp_path


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "r", STUDIES["smoke"], device="cpu")


# ---- running -------------------------------------------------------------------------------------


def test_a_chapter_runs_once_and_again_only_when_something_changed(root, run):
    seen = []
    (first,) = run_notebooks(run, [1], root=root, on_progress=lambda *a: seen.append(a))
    assert not first.skipped
    assert first.path == run.path / "notebooks" / "01_first.ipynb"
    assert "0 <object" in first.path.read_text()
    assert seen[0][:2] == (1, 0), "progress starts from nothing"
    assert seen[-1][1] == seen[-1][2], "and ends with all cells"
    record = run.manifest()["chapters"]["01_first"]
    assert record["seconds"] == record["work"] > 0, "nobody else worked for it"
    assert record["peak_memory"] > 1e7
    assert "CPU core" in record["hardware"]
    written = first.path.stat().st_mtime_ns
    (second,) = run_notebooks(run, [1], root=root)
    assert second.skipped
    assert first.path.stat().st_mtime_ns == written
    write_chapter(root, "01_first", "print('other')")
    assert not run_notebooks(run, [1], root=root)[0].skipped


def test_a_later_chapter_depends_on_the_sources_of_earlier_ones(root, run):
    write_chapter(root, "02_second", "1 + 1")
    stamps = [execution.chapter_stamp(run, root, n) for n in (1, 2)]
    write_chapter(root, "02_second", "1 + 2")
    assert execution.chapter_stamp(run, root, 1) == stamps[0]
    assert execution.chapter_stamp(run, root, 2) != stamps[1]
    second = execution.chapter_stamp(run, root, 2)
    write_chapter(root, "01_first", "0")
    assert execution.chapter_stamp(run, root, 2) != second


def test_a_chapter_that_shows_other_runs_runs_again_when_they_change(root, run):
    for number in range(2, 9):
        write_chapter(root, f"0{number}_chapter", "1")

    def stamps():
        return [execution.chapter_stamp(run, root, n) for n in (6, 7, 8)]

    alone = stamps()
    beside = RunDirectory(run.path.parent / "beside", STUDIES["smoke"])
    beside.save_table("07_claims", pd.DataFrame({"claim": ["a"]}))
    with_one = stamps()
    RunDirectory(run.path.parent / "sweep/inside", STUDIES["smoke"]).save_table("02_sae_eval", pd.DataFrame({"x": [1]}))
    with_sweep = stamps()
    (beside.path / "manifest.json").write_text("damaged")
    assert [a == b for a, b in zip(alone, with_one, strict=True)] == [True, False, False]
    assert [a == b for a, b in zip(with_one, with_sweep, strict=True)] == [True, True, False]
    assert [a == b for a, b in zip(with_sweep, stamps(), strict=True)] == [True, False, False]


def test_a_chapter_runs_again_when_a_file_that_the_study_names_changes(root, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"fruit": ["An apple."]}')
    study = STUDIES["smoke"].changed(prompts_file=str(prompts), concepts=["fruit"])
    run = RunDirectory(tmp_path / "runs" / "fruit", study)
    before = execution.chapter_stamp(run, root, 1)
    assert execution.chapter_stamp(run, root, 1) == before
    prompts.write_text('{"fruit": ["A pear."]}')
    assert execution.chapter_stamp(run, root, 1) != before


def test_the_time_of_a_chapter_is_that_of_making_its_tables(root, run):
    write_chapter(root, "01_first", "1")
    run_notebooks(run, [1], root=root)
    record = run.manifest()["chapters"]["01_first"]
    hour = 3600  # what making the tables once took; that no machine is slow enough to need for a cell that is a 1
    run.record_chapter("01_first", **{**record, "seconds": hour, "work": 2 * hour})
    write_chapter(root, "01_first", "2")
    (again,) = run_notebooks(run, [1], root=root)
    assert not again.skipped
    assert again.seconds < hour
    record = run.manifest()["chapters"]["01_first"]
    assert (record["seconds"], record["work"]) == (hour, 2 * hour)


def test_a_damaged_table_makes_its_chapter_run_again(root, run):
    setup = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom saema_utils.notebook import open_run\nimport pandas"
    save = 'open_run(study, run_dir, device, seed).save_table("01_t", pandas.DataFrame({"a": [1]}))'
    write_chapter(root, "01_first", f"{setup}\n{save}")
    run_notebooks(run, [1], root=root)
    assert execution.is_done(run, root, 1)
    (run.path / "tables" / "01_t.csv").write_text("a\n2\n")
    assert not execution.is_done(run, root, 1)


def test_a_failure_is_one_line_with_chapter_cell_and_error_and_costs_nothing(root, run):
    run_notebooks(run, [1], root=root)
    good = (run.path / "notebooks" / "01_first.ipynb").read_text()
    write_chapter(root, "01_first", "x = 1", "raise ValueError('the cause\\nof it')")
    with pytest.raises(BookError) as caught:
        run_notebooks(run, [1], root=root)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("chapter 1", "01_first", "cell 4 (cell-1)", "ValueError: the cause of it", "01_first.failed.ipynb"):
        assert part in message
    assert (run.path / "notebooks" / "01_first.ipynb").read_text() == good
    assert "the cause" in (run.path / "notebooks" / "01_first.failed.ipynb").read_text()
    assert not execution.is_done(run, root, 1)
    assert not list((run.path / "notebooks").glob(".*"))


def test_a_kernel_that_dies_says_so(root, run):
    write_chapter(root, "01_first", "import os; os._exit(1)")
    with pytest.raises(BookError, match=r"cell 3 \(cell-0\): its Python process died"):
        run_notebooks(run, [1], root=root)


def test_a_hung_cell_ends(root, run):
    write_chapter(root, "01_first", "import time; time.sleep(60)")
    with pytest.raises(BookError, match="ran longer than 2 s"):
        run_notebooks(run, [1], root=root, cell_timeout=2)


def test_progress_of_a_long_step_is_passed_on(root, run):
    step = (
        "import time\nfrom saema_utils.runtime import progress\n"
        "for _ in progress(range(4), 'counting'):\n    time.sleep(0.4)"
    )
    write_chapter(root, "01_first", step)
    seen = []
    run_notebooks(run, [1], root=root, on_progress=lambda *a: seen.append(a))
    counted = [(a[4], a[5]) for a in seen if a[3] == "counting"]
    assert counted
    assert all(total == 4 for _, total in counted)
    clean_notebook(nbformat.read(run.path / "notebooks/01_first.ipynb", as_version=4))  # no bar in the page


MEETS = """
import time
from pathlib import Path
Path(run_dir, f"{mine}.met").touch()
while not Path(run_dir, f"{other}.met").exists():
    time.sleep(0.05)
"""


def test_notebooks_run_side_by_side(root, run, monkeypatch):
    """Each waits until the other has begun."""
    monkeypatch.setattr(execution, "declared_results", dict)
    write_chapter(root, "01_first", "mine, other = 1, 2" + MEETS)
    write_chapter(root, "02_second", "mine, other = 2, 1" + MEETS)
    seen = []
    done = run_notebooks(run, [1, 2], root=root, jobs=2, cell_timeout=120, on_progress=lambda *a: seen.append(a))
    assert [result.chapter for result in done] == [1, 2]
    assert all(execution.is_done(run, root, chapter) for chapter in (1, 2))
    assert all(result.work > 0 and result.peak_memory > 2**20 for result in done)
    assert {a[0]: a[1:3] for a in seen} == {1: (3, 3), 2: (3, 3)}
    assert {path.suffix for path in (run.path / "notebooks").iterdir()} == {".ipynb"}


@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize("to", ["the program", "its whole group"])
def test_ctrl_c_ends_notebooks_that_run_side_by_side_without_a_trace(root, run, tmp_path, to):
    for name in ("01_first", "02_second"):
        write_chapter(
            root, name, f"import time; from pathlib import Path; Path(run_dir, '{name}').touch()\ntime.sleep(600)"
        )
    (tmp_path / "tmp").mkdir()
    (tmp_path / "program.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "from saema_utils.publishing import execution\n"
        "from saema_utils.runs.directory import RunDirectory\n"
        "from saema_utils.study import STUDIES\n"
        "if __name__ == '__main__':\n"
        "    execution.declared_results = dict\n"
        "    run = RunDirectory(sys.argv[1], STUDIES['smoke'], device='cpu')\n"
        "    execution.run_notebooks(run, [1, 2], root=Path(sys.argv[2]), jobs=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, str(tmp_path / "program.py"), str(run.path), str(root)]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 120
    try:
        while not all((run.path / name).exists() for name in ("01_first", "02_second")):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.1)
        children = psutil.Process(running.pid).children(recursive=True)
        assert sum("ipykernel" in " ".join(child.cmdline()) for child in children) == 2
        (os.kill if to == "the program" else os.killpg)(running.pid, signal.SIGINT)
        said = running.communicate(timeout=60)[1]
    finally:
        running.kill()
    assert said.strip().splitlines()[-1] == "KeyboardInterrupt", said
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert list((run.path / "notebooks").iterdir()) == []
    assert list((tmp_path / "tmp").glob("saema-*")) == []


def test_a_notebook_that_fails_beside_others_fails_as_if_alone(root, run, monkeypatch):
    monkeypatch.setattr(execution, "declared_results", dict)
    write_chapter(root, "02_second", "raise ValueError('the cause')")
    write_chapter(root, "03_third", "print('sound')")
    with pytest.raises(BookError, match=r"chapter 2 \(02_second\), cell 3 \(cell-0\): ValueError: the cause"):
        run_notebooks(run, [1, 2, 3], root=root, jobs=2)
    assert execution.is_done(run, root, 1)
    assert (run.path / "notebooks" / "02_second.failed.ipynb").exists()
    write_chapter(root, "02_second", "print('mended')")
    run_notebooks(run, [1, 2, 3], root=root, jobs=2)
    assert all(execution.is_done(run, root, chapter) for chapter in (1, 2, 3))


def test_unknown_chapters_and_unfit_parameters_are_refused(root, run):
    with pytest.raises(BookError, match="no chapter named '7'"):
        run_notebooks(run, [7], root=root)
    path = root / "notebooks" / "01_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = PARAMETERS + "\nlater = seed + 1"
    nbformat.write(notebook, path)
    with pytest.raises(BookError, match="derives 'later = seed \\+ 1'"):
        run_notebooks(run, [1], root=root)
    del notebook.cells[1].metadata["tags"]
    nbformat.write(notebook, path)
    with pytest.raises(BookError, match="has 0 cells tagged 'parameters'"):
        run_notebooks(run, [1], root=root)


def test_without_sources_the_message_says_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution, "PACKAGE_DIR", tmp_path / "site-packages" / "saema_utils")
    for repository, book in (("OWNER/saema-book", "the book"), ("ada/fork", r"https://github\.com/ada/fork")):
        monkeypatch.setattr(address, "REPOSITORY", repository)
        with pytest.raises(BookError, match=rf"Clone {book} and run from there"):
            execution.find_root()


# ---- cleaning ------------------------------------------------------------------------------------


def executed(*outputs, source: str = "1"):
    return new_notebook(cells=[new_code_cell(source, id="a-cell", outputs=list(outputs), execution_count=9)])


def test_two_executions_clean_to_the_same_bytes(root, run):
    texts = []
    for _ in range(2):
        (result,) = run_notebooks(run, [1], root=root, force=True)
        texts.append(nbformat.writes(clean_notebook(nbformat.read(result.path, as_version=4))))
    assert texts[0] == texts[1]
    assert "papermill" not in texts[0]
    assert "injected" not in texts[0]
    assert str(run.path) not in texts[0]


def test_cleaning_keeps_what_matters_and_is_idempotent():
    notebook = executed(
        new_output("stream", name="stdout", text="a"),
        new_output("stream", name="stdout", text="b <x at 0x7f12345678>\n"),
        new_output("execute_result", data={"text/plain": "1"}, execution_count=9),
    )
    kept = {"tags": ["hide-input"], "mystnb": {"image": {"alt": "x"}}, "cellView": "form"}
    notebook.cells[0].metadata = kept | {"papermill": {"d": 1}}
    before = nbformat.writes(notebook)
    cleaned = clean_notebook(notebook)
    assert nbformat.writes(notebook) == before, "the executed notebook itself is not touched"
    (cell,) = cleaned.cells
    assert cell.outputs[0].text == "ab <x>\n"
    assert len(cell.outputs) == 2
    assert cell.execution_count == cell.outputs[1].execution_count == 1
    assert cell.metadata == kept
    assert nbformat.writes(clean_notebook(cleaned)) == nbformat.writes(cleaned)


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (new_output("error", ename="KeyError", evalue="'x'", traceback=[]), "ends in KeyError"),
        (new_output("stream", name="stderr", text="UserWarning: careful"), "standard error"),
        (new_output("stream", name="stdout", text=" 40%|████      | 4/10 [00:01<00:02]"), "progress bar"),
        (new_output("stream", name="stdout", text="1\r2\r3"), "progress bar"),
        (new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}}), "widget"),
        (new_output("display_data", data={"application/vnd.plotly.v1+json": {}}), "bare plotly figure"),
        (new_output("stream", name="stdout", text=f"saved in {Path.home()}/runs/x"), "path of this machine"),
        (new_output("display_data", data={"text/html": f"<b>{Path.cwd()}/x</b>"}), "path of this machine"),
    ],
)
def test_what_no_page_may_show_is_refused(output, complaint):
    with pytest.raises(BookError, match=rf"cell 1 \(a-cell\) .*{complaint}"):
        clean_notebook(executed(output))


def test_harmless_output_is_not_mistaken_for_harm():
    text = "100% of 4/10 items; 3.2 it is; a rootless tree\r\n"
    assert clean_notebook(executed(new_output("stream", name="stdout", text=text))).cells[0].outputs[0].text == text


def test_a_notebook_that_is_handed_out_numbers_its_figures_as_the_page_does():
    def figure(caption, **data):
        shown = [new_output("display_data", data=data)] if data else []
        return new_code_cell("show()", outputs=shown, metadata={"mystnb": {"figure": {"caption": caption}}})

    drawn = {"image/svg+xml": "<svg/>"}
    notebook = new_notebook(cells=[figure("One?", **drawn), figure("Not drawn here."), figure("Two?", **drawn)])
    before = nbformat.writes(notebook)
    told = [[o.data.get("text/markdown") for o in cell.outputs[1:]] for cell in with_captions(notebook, 4).cells]
    assert told == [["**Fig. 4.1** One?"], [], ["**Fig. 4.2** Two?"]]
    assert nbformat.writes(notebook) == before


def test_sentences_that_a_run_does_not_bear_out_are_found_in_its_notebook():
    shown = [finding(f"It is {holds}.", holds=holds, shows="x 1").data for holds in (True, False, None)]
    outputs = [new_output("display_data", data={"text/markdown": text}) for text in [*shown, "Prose."]]
    notebook = new_notebook(cells=[new_markdown_cell("Prose."), new_code_cell("x", outputs=outputs)])
    assert not_borne_out(notebook) == ["It is False."]


@pytest.mark.parametrize(
    ("repository", "told"),
    [
        ("OWNER/saema-book", "See Method and chapter 5, [3] of [this](https://a.org/b.md). ![x](../book/x.svg)"),
        (
            "ada/saema-book",
            "See [Method](https://github.com/ada/saema-book/blob/{tag}/book/method.md#poles) and [chapter 5]"
            "(https://github.com/ada/saema-book/blob/{tag}/notebooks/05_x.ipynb), [3] of [this](https://a.org/b.md). "
            "![x](../book/x.svg)",
        ),
    ],
)
def test_links_of_a_notebook_that_is_handed_out_alone_lead_somewhere_or_are_words(monkeypatch, repository, told):
    monkeypatch.setattr(address, "REPOSITORY", repository)
    here = "See [Method](../book/method.md#poles) and [chapter 5](05_x.ipynb), [3] of [this](https://a.org/b.md). "
    handed = with_captions(new_notebook(cells=[new_markdown_cell(here + "![x](../book/x.svg)")]), 4)
    assert handed.cells[0].source == told.format(tag=address.BRANCH)


# ---- the address ---------------------------------------------------------------------------------


def test_every_follower_quotes_the_one_address():
    quoted = re.compile(
        r"github\.com/(?:github/)?([\w.-]+/saema-book)|colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)"
    )
    followers = [path for glob in address.FOLLOWERS for path in ROOT.glob(glob)]
    assert len(followers) >= 4
    for path in followers:
        found = {a or b for a, b in quoted.findall(path.read_text(encoding="utf-8"))}
        assert found <= {address.REPOSITORY}, f"{path.name} quotes {found}"
        if not address.is_set() and path.suffix != ".ipynb":
            assert "OWNER/saema-book" not in path.read_text(encoding="utf-8"), f"{path.name} leads nowhere"
    cited = f'repository-code: "{address.repository_url()}"' in (ROOT / "CITATION.cff").read_text()
    assert cited == address.is_set()
    assert f"version: {address.VERSION}" in (ROOT / "CITATION.cff").read_text()


def test_no_other_module_spells_the_address():
    for path in (ROOT / "saema_utils").rglob("*.py"):
        if path.name != "address.py":
            assert address.REPOSITORY not in path.read_text(encoding="utf-8"), path.name


def test_badges_point_at_notebooks_that_exist():
    for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        url = address.colab_url(f"notebooks/{path.name}")
        inside = re.fullmatch(r"https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/[^/]+/(.+)", url)[1]
        assert (ROOT / inside).exists()


def test_a_fork_moves_every_follower_and_a_fork_of_it_again(tmp_path, monkeypatch):
    names = [address.HERE, *address.CITED, *(f"notebooks/{p.name}" for p in (ROOT / "notebooks").glob("0*.ipynb"))]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for new in ("ada/saema-fork", "grace/saema-book"):
        old = address.REPOSITORY
        moved = address.move_repository(tmp_path, new)
        assert {p.relative_to(tmp_path).as_posix() for p in moved} == set(names)
        for path in moved:
            text = path.read_text()
            assert text.count(new) == 1
            assert old not in text
        monkeypatch.setattr(address, "REPOSITORY", new)
        assert address.move_repository(tmp_path, new) == []
    with pytest.raises(BookError, match="allowed: OWNER/NAME"):
        address.move_repository(tmp_path, "not a repository")


# ---- pieces of pages -----------------------------------------------------------------------------


@pytest.mark.parametrize("repository", ["OWNER/saema-book", "ada/saema-fork"])
def test_placeholders_are_filled_from_the_manifest(root, run, repository, monkeypatch):
    monkeypatch.setattr(address, "REPOSITORY", repository)
    notebook = nbformat.read(root / "notebooks/01_first.ipynb", as_version=4)
    run.record_chapter("01_first", seconds=40, work=72.4, peak_memory=2**31, hardware="2 CPU cores (x86_64)")
    prepare_page(notebook, run, "01_first")
    text = notebook.cells[0].source
    assert "72 s of work on 2 CPU cores (x86_64), peak memory 2.0 GiB (measured)" in text
    assert (address.colab_url("notebooks/01_first.ipynb") in text) == (repository != "OWNER/saema-book")
    assert "OWNER" not in text
    assert "<!--" not in text


def test_a_page_has_its_own_time_and_folds_and_not_those_of_an_open_notebook(run):
    folded = new_code_cell("# @title Solution\nx = 1  # @title is no title here", metadata={"tags": ["solution"]})
    title = new_markdown_cell("**Time:** <!-- time --> about ten minutes to read\n\nMore")
    notebook = new_notebook(cells=[title, folded])
    prepare_page(notebook, run, "01_first")
    assert "about ten minutes" not in title.source
    assert title.source.endswith("not run yet\n\nMore")
    assert folded.source == "x = 1  # @title is no title here"
    assert {"solution", "hide-cell"} <= set(folded.metadata["tags"])


@pytest.mark.parametrize(("random", "holds"), [(0.001, True), (0.5, False)])
def test_the_opening_shows_months_and_days_alone_and_what_becomes_of_them(tmp_path, random, holds):
    places = [(c, n) for c, n in (("months", 12), ("days", 7), ("planets", 8)) for _ in fragments.BEFORE_AND_AFTER]
    rows = list(zip(places, fragments.BEFORE_AND_AFTER * 3, strict=True))
    circles = pd.DataFrame({"concept": c, "representation": r, "period": n, "score": 0.9} for (c, n), r in rows)
    circles = circles.assign(p_value=np.where(circles["representation"] == "random_dictionary", random, 0.001))
    points = [
        {"concept": c, "representation": r, "word": f"w{k}", "place": k}
        | {"x": np.cos(2 * np.pi * k / n), "y": np.sin(2 * np.pi * k / n)}
        for (c, n), r in rows
        for k in range(n)
    ]
    for folder in ("tables", "figures", "notebooks"):
        (tmp_path / folder).mkdir()
    circles.assign(distance_score=0.5).to_csv(tmp_path / "tables" / "04_circles.csv", index=False)
    pd.DataFrame(points).to_csv(tmp_path / "tables" / "04_circle_points.csv", index=False)
    shown = fragments.hero(tmp_path)
    assert "figures/opening.svg" in shown
    assert ("**The year stays closed" in shown) == holds
    assert f"random dictionary {2 if holds else 0} of 2" in shown
    figure = (tmp_path / "figures" / "opening.svg").read_text()
    assert figure.count('id="axes_') == 6
    only_days = pd.DataFrame(points).query("concept != 'months'")
    only_days.to_csv(tmp_path / "tables" / "04_circle_points.csv", index=False)
    assert "opening.svg" not in fragments.hero(tmp_path), "without months the chapter's own figure stands there"


# ---- interactive figures -------------------------------------------------------------------------


@pytest.fixture
def scatter():
    import plotly.graph_objects as go

    return go.Figure([go.Scatter(x=[0.0, 1.0], y=[1.0, 2.0], hovertext=["</script><b>one</b>", "two"])])


def test_a_notebook_shows_plotly_and_the_book_shows_html(scatter, monkeypatch):
    monkeypatch.delenv(PUBLISHING, raising=False)
    assert interactive(scatter, "two-points", "Two points on a rising line") is scatter
    monkeypatch.setenv(PUBLISHING, "1")
    page = interactive(scatter, "two-points", 'Two "points" on a rising line')
    html = page.data
    assert 'id="two-points"' in html
    assert 'aria-label="Two &quot;points&quot; on a rising line"' in html
    assert html.count("</script>") == 1, "data cannot end its own element"
    data = json.loads(re.search(r'<script type="application/json">(.*)</script>', html)[1])
    assert data["data"][0]["hovertext"][0] == "</script><b>one</b>"
    assert "template" not in data["layout"]
    assert "://" not in re.sub(r"<script.*", "", html)
    assert (
        interactive(scatter, "two-points", "Two points on a rising line").data
        == interactive(scatter, "two-points", "Two points on a rising line").data
    )


def test_a_notebook_elsewhere_has_plotlys_own_figure_and_its_description(scatter):
    shown = without_page(page_html(scatter.to_json(), "two", 'Two "points" on a line', 400))
    assert list(shown["application/vnd.plotly.v1+json"]["data"][0]["hovertext"]) == list(scatter.data[0].hovertext)
    assert "Two &quot;points&quot; on a line" in shown["text/html"]
    assert "saema-plot" not in str(shown)
    assert without_page("<table class='saema-table'></table>") is None


@pytest.mark.parametrize(
    ("name", "alt"), [("Two Points", "a rising line of points"), ("two", "points"), ("", "a b c d")]
)
def test_an_interactive_figure_needs_name_and_description(scatter, name, alt):
    with pytest.raises(BookError, match="interactive figure"):
        interactive(scatter, name, alt)


@pytest.fixture
def steered(scatter):
    """Two kinds of dots, of which one is shown at a time, at one of three heights."""
    scatter.add_scatter(x=[0.0, 1.0], y=[3.0, 1.0], visible=False)
    heights = {f"<{height}>": ({"y": [[height, height]] * 2}, [0, 1]) for height in (1, 2, 3)}
    return scatter.update_layout(
        sliders=[slider("height", heights, active=1)],
        updatemenus=[menu("way", ["up", "down"]), menu("way & kind", ["up", "down"], buttons=True)],
    )


def test_each_slider_and_menu_is_a_control_of_the_page_with_a_label_and_the_same_steps(steered, monkeypatch):
    monkeypatch.setenv(PUBLISHING, "1")
    element = interactive(steered, "two-points", "Two points on a rising line").data
    page = BeautifulSoup(element, "html.parser")
    data = json.loads(page.script.string)
    assert not {"sliders", "updatemenus"} & set(data["layout"]), "the page would draw them once more"
    way, kind = (menu["buttons"] for menu in data["controls"]["updatemenus"])
    (height,) = (slider["steps"] for slider in data["controls"]["sliders"])
    assert [step["args"] for step in way] == [["visible", [True, False]], ["visible", [False, True]]]
    assert kind == way
    assert [step["args"] for step in height] == [[{"y": [[y, y]] * 2}, [0, 1]] for y in (1, 2, 3)]
    drawn_down, grouped, moved = page.select(".saema-controls > :has(input, select)")
    assert [option.string for option in drawn_down.select("option")] == ["up", "down"]
    assert [label.text.strip() for label in grouped.select("label:has([type=radio])")] == ["up", "down"]
    assert [radio["value"] for radio in grouped.select("[checked]")] == ["0"]
    control = moved.select_one("[type=range]")
    assert (control["min"], control["max"], control["value"], control["aria-valuetext"]) == ("0", "2", "1", "<2>")
    named = {page.select_one(f"label[for={control['id']}]").string for control in page.select("[type=range], select")}
    assert named == {"way", "height"}
    assert grouped.legend.string == "way & kind"
    ids = [found["id"] for found in page.select("[id]")]
    assert len(set(ids)) == len(ids)
    assert "hidden" in page.select_one(".saema-controls").attrs, "without its script the page has nothing to steer"
    handed_out = without_page(element)["application/vnd.plotly.v1+json"]["layout"]
    assert [len(handed_out[kind]) for kind in ("updatemenus", "sliders")] == [2, 1]


def test_a_control_without_a_name_is_refused(steered):
    steered.layout.sliders[0].name = None
    with pytest.raises(BookError, match="control without a name"):
        interactive(steered, "two-points", "Two points on a rising line")


def test_a_menu_shows_one_kind_of_trace_at_a_time_and_together_all():
    kinds = ["a", "b", "a", "c"]
    steps = menu("kind", kinds)["buttons"]
    assert [step["label"] for step in steps] == ["a", "b", "c"]
    shown = np.array([step["args"][1] for step in steps])
    assert (shown.sum(axis=0) == 1).all()


# ---- building ------------------------------------------------------------------------------------


@pytest.fixture
def buildable(root) -> Path:
    (root / "book" / "static").mkdir(parents=True)
    (root / "book" / "static" / "colab.svg").write_bytes((ROOT / "book" / "static" / "colab.svg").read_bytes())
    (root / "book" / "intro.md").write_text("# Start\n\nStudy {{ study }}, {{ never_measured }}.\n")
    (root / "_config.yml").write_text('title: T\nonly_build_toc_files: true\nexecute: {execute_notebooks: "off"}\n')
    return root


def test_a_chapter_that_was_not_executed_is_named(buildable, run):
    with pytest.raises(BookError, match=r"chapter 1 \(01_first\) was not executed .* --chapters 1"):
        build_book(run, root=buildable)


def test_without_a_name_the_run_that_finished_last_is_built(tmp_path):
    def finished(name: str, when: str, chapters=range(1, 8)) -> RunDirectory:
        run = RunDirectory(tmp_path / name, STUDIES["smoke"].changed(name=name))
        for chapter in chapters:
            run.record_chapter(f"0{chapter}_chapter", finished=when)
        return run

    with pytest.raises(BookError, match=r"no run in .* has executed chapters 1 to 7\. Run: saema run"):
        last_finished(tmp_path)
    finished("older", "2026-01-01T00:00:00")
    younger = finished("younger", "2026-01-02T00:00:00")
    finished("unfinished", "2026-01-03T00:00:00", chapters=(1, 2))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    assert last_finished(tmp_path).path == younger.path


def test_a_build_is_whole_or_leaves_the_previous_one(buildable, run):
    run_notebooks(run, [1], root=buildable)
    said = []
    index = build_book(run, root=buildable, say=said.append)
    assert index == buildable / "_build/html/index.html"
    assert index.exists()
    assert "Study smoke, (not measured in this run)." in (index.parent / "book/intro.html").read_text()
    assert "never_measured" in said[0]
    assert "MB" in said[0]
    assert json.loads((buildable / "_build/report.json").read_text())["pages"] >= 2
    before = {p: p.read_bytes() for p in index.parent.rglob("*") if p.is_file()}
    (buildable / "book" / "intro.md").write_text("# Start\n\n{doc}`no_such_page`\n")
    with pytest.raises(BookError, match=r"does not build cleanly .*no_such_page"):
        build_book(run, root=buildable)
    assert {p: p.read_bytes() for p in index.parent.rglob("*") if p.is_file()} == before


def test_a_term_on_a_built_page_leads_to_its_entry(buildable, run):
    path = buildable / "notebooks" / "01_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\nRead **residual streams**."
    nbformat.write(notebook, path)
    entry = "# Words\n\n```{glossary}\nresidual stream\n  A running sum.\n```\n"
    (buildable / "book" / "glossary.md").write_text(entry)
    toc = buildable / "_toc.yml"
    toc.write_text(toc.read_text() + "- caption: More\n  chapters:\n  - file: book/glossary\n")
    run_notebooks(run, [1], root=buildable)
    page = build_book(run, root=buildable, say=lambda _: None).parent / "notebooks" / "01_first.html"
    link = re.search(r'<strong>\s*<a[^>]*href="([^"]+)"[^>]*>(.*?)</a>\s*</strong>', page.read_text(), re.S)
    assert link[1] == "../book/glossary.html#term-residual-stream"
    assert re.sub("<[^>]+>", "", link[2]) == "residual streams"


def test_stale_chapters_are_not_published_unawares(buildable, run):
    run_notebooks(run, [1], root=buildable)
    write_chapter(buildable, "01_first", "print('newer')")
    with pytest.raises(BookError, match="executed from older sources"):
        build_book(run, root=buildable)
    assert build_book(run, root=buildable, allow_stale=True, say=lambda _: None).exists()


def test_an_optional_chapter_is_published_while_it_is_fresh_and_named_when_it_is_not(buildable, run):
    write_chapter(buildable, "08_more", "print('more')")
    run_notebooks(run, [1, 8], root=buildable)
    said = []
    site = build_book(run, root=buildable, say=said.append).parent
    assert (site / "notebooks/08_more.html").exists()
    write_chapter(buildable, "08_more", "print('newer')")
    site = build_book(run, root=buildable, say=said.append).parent
    assert not (site / "notebooks/08_more.html").exists()
    assert any("Chapter 8 is left out" in line and "--chapters 8" in line for line in said)


def test_kernels_are_this_interpreter_whatever_the_machine_has_set(root, run, monkeypatch, tmp_path):
    """A kernel of the same name, start-up files, and settings of matplotlib: none of them reaches a run."""
    own = tmp_path / "own"
    kernel = own / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "no", "language": "no"}))
    startup = own / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("raise SystemExit('start-up files are run')")
    (own / "startup.py").write_text("surprise = 1")
    (own / "matplotlibrc").write_text("figure.dpi: 7\n")
    monkeypatch.setenv("JUPYTER_PATH", str(own))
    monkeypatch.setenv("IPYTHONDIR", str(own / "ipython"))
    monkeypatch.setenv("PYTHONSTARTUP", str(own / "startup.py"))
    monkeypatch.setenv("MPLCONFIGDIR", str(own))
    source = "import sys, matplotlib; print(sys.executable, matplotlib.rcParams['figure.dpi'], 'surprise' in globals())"
    write_chapter(root, "01_first", source)
    (done,) = run_notebooks(run, [1], root=root)
    shown = nbformat.read(done.path, as_version=4).cells[-1].outputs[0].text.split()
    assert shown == [sys.executable, "100.0", "False"]


@pytest.mark.parametrize("name", ["{x}", "{", "a b", "100%", "{run_dir}"])
def test_folders_may_have_any_name(tmp_path, name):
    root = tmp_path / name
    root.mkdir()
    write_chapter(root, "01_first", "from pathlib import Path; print(Path(run_dir).name)")
    (root / "_toc.yml").write_text("format: jb-book\n")
    run = RunDirectory(root / "runs" / name, STUDIES["smoke"], device="cpu")
    (done,) = run_notebooks(run, [1], root=root)
    assert nbformat.read(done.path, as_version=4).cells[-1].outputs[0].text.strip() == name


def test_environment_of_kernels_does_not_leak(root, run):
    before = dict(os.environ)
    run_notebooks(run, [1], root=root)
    assert dict(os.environ) == before
