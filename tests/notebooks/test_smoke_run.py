"""The smoke study through the real pipeline: what a run leaves behind, and that it is not done twice."""

from __future__ import annotations

import base64
import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest

from saema_utils.__main__ import what_to_look_at
from saema_utils.chapters import declared_results
from saema_utils.chapters.activations.concepts import concept_activations
from saema_utils.chapters.columns import COMMON
from saema_utils.chapters.scorecard.values import judged_coders, values_known, values_of_concept
from saema_utils.evidence.verdicts import VERDICTS
from saema_utils.notebook import CHAPTERS
from saema_utils.publishing.execution import chapter_notebooks, find_root, run_notebooks
from saema_utils.publishing.fragments import reading_time
from saema_utils.publishing.readme import ANSWER
from saema_utils.runs.directory import RunDirectory
from saema_utils.sweeps.tasks import make_chapter

pytestmark = [pytest.mark.model, pytest.mark.slow]
# Columns that tests and readers outside this repository rely on.
TABLES = {
    "01_concepts": {"concept"},
    "02_sae_training": set(),
    "02_sae_eval": {"representation", "explained_variance", "l0"},
    "03_noise_rank": {
        "concept",
        "representation",
        "mode",
        "noise",
        "noise_rms",
        "seed",
        "rank",
        "effective_rank",
        "participation_ratio",
        "l0",
    },
    "03_stratification": {"concept", "representation", "mode"},
    "04_geometry": {
        "concept",
        "protocol",
        "representation",
        "seed",
        "n_local",
        "betti0",
        "intrinsic_dimension",
        "mst_weight",
        "mst_weight_scale_free",
        "average_geodesic_distance",
        "procrustes_disparity",
    },
    "05_dose_response": {"alpha", "arm", "aedp", "separation_scale_free", "mse", "fvu", "l0", "ce_loss"},
    "05_optimum": {"arm"},
    "06_replay": {"prompts", "coder", "concept", "recipe", "n_local", "mst_weight"},
    "07_claims": {"claim", "statement", "reproduces", "holds_up", "estimate", "low", "high", "n", "minimum_n", "margin"}
    | {"joint_p", "explained_variance_words"},
    "07_multiverse": {"claim", "estimate", "low", "high", "n"},
    "07_laboratory": {"rule", "truth"},
    "09_ruler": {"family", "L0", "recovery"},
    "09_families": {"architecture", "seed", "l0", "explained_variance"},
    "09_layers": {"layer", "concept", "representation"},
    "09_replicates": {"claim", "contrast", "concept", "layer", "seed", "effect"},
    "09_replication": {"claim", "contrast", "estimate", "low", "high", "new_low", "new_high", "n", "saes", "holds_up"},
}


@pytest.fixture(scope="module")
def executed(smoke_run):
    return {r.chapter: nbformat.read(r.path, as_version=4) for r in smoke_run.results}


def printed(notebook) -> str:
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "".join(o.text for o in outputs if o.output_type == "stream")


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_there_with_its_columns(smoke_run, name):
    table = smoke_run.run.table(name)
    assert len(table) > 0
    assert TABLES[name] <= set(table.columns), TABLES[name] - set(table.columns)


def test_every_table_judges_in_one_set_of_words(smoke_run):
    judged = {}
    for path in smoke_run.run.path.glob("tables/*.csv"):
        found = pd.read_csv(path)
        for column in {"verdict", "holds_up"} & set(found):
            judged[path.stem] = set(found[column].dropna())
    assert {"03_controls", "05_effects", "07_claims", "09_replication"} <= set(judged)
    assert {name: words - set(VERDICTS) for name, words in judged.items() if words - set(VERDICTS)} == {}


def test_every_declared_table_is_made_and_every_column_has_a_meaning(smoke_run):
    declared = [made for place, made in declared_results().items() if re.fullmatch(r"tables/[^/]+", place)]
    for made in declared:
        columns = smoke_run.run.table(made.name).columns
        unexplained = [c for c in columns if not (made.columns.get(c) or COMMON.get(c))]
        assert not unexplained, f"{made.name}: {unexplained}"
        assert made.description.endswith("."), made.name


@pytest.mark.parametrize("name", ["03_noise_rank", "04_geometry"])
def test_tables_hold_all_concepts_and_at_least_three_seeds(smoke_run, name):
    table: pd.DataFrame = smoke_run.run.table(name)
    assert set(table["concept"]) == set(smoke_run.run.study.concepts)
    assert table["seed"].nunique() >= 3
    assert {"residual", "sae"} <= set(table["representation"])


def test_the_tree_of_a_run_is_complete(smoke_run):
    path = smoke_run.run.path
    manifest = json.loads((path / "manifest.json").read_text())
    assert {name[:2] for name in manifest["chapters"]} == {f"{chapter:02}" for chapter in CHAPTERS}
    for record in manifest["chapters"].values():
        assert record["seconds"] > 0
        assert record["work"] > 0
        assert record["peak_memory"] > 0
    for name in manifest["artifacts"]:
        smoke_run.run.check(name)
    for number in CHAPTERS:
        figures = {p.stem for p in (path / "figures").glob(f"{number:02}_*.svg")}
        assert len(figures) >= 3, f"chapter {number} has figures {figures}"
        assert figures == {p.stem for p in (path / "figures").glob(f"{number:02}_*.png")}
    assert list((path / "tensors").glob("*.safetensors"))
    assert list((path / "sae").rglob("*.safetensors"))


def test_tables_of_pages_have_words_above_them_and_numbers_for_reading(executed):
    faults = []
    for cell in (cell for notebook in executed.values() for cell in notebook.cells):
        for html in (o.get("data", {}).get("text/html", "") for o in cell.get("outputs", [])):
            if "class='saema-table'" not in html:
                continue
            above = [re.sub("<[^>]+>", "", x) for x in re.findall(r"<th [^>]*>(.*?)</th>", html.split("</thead>")[0])]
            inside = [re.sub("<[^>]+>", "", x) for x in re.findall(r"<td[^>]*>(.*?)</td>", html, re.S)]
            faults += [(cell["id"], name) for name in above if "_" in name or above.count(name) > 1]
            faults += [(cell["id"], value) for value in inside if re.fullmatch(r"-.*\d|[\d.]+e[-+]?\d+", value)]
    assert faults == []


def test_an_open_notebook_says_how_long_it_takes_to_read_as_its_page_does(executed):
    numbers = {"ten": 10, "twenty": 20, "twenty-five": 25}
    for number, notebook in executed.items():
        (said,) = re.findall(r"<!-- time --> about ([\w-]+) minutes to read", notebook.cells[0].source)
        minutes, _ = reading_time(notebook)
        assert minutes == pytest.approx(numbers[said], abs=3), number


def test_figures_can_be_seen_where_a_notebook_is_not_trusted(executed):
    """Jupyter draws no SVG in a notebook that somebody else ran; it takes the PNG, which is to be of the same size."""
    drawn = [
        output
        for notebook in executed.values()
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/svg+xml" in output.get("data", {})
    ]
    assert len(drawn) > 40
    for output in drawn:
        points = float(re.search(r'<svg[^>]* width="([\d.]+)pt"', output.data["image/svg+xml"])[1])
        assert base64.b64decode(output.data["image/png"])[1:4] == b"PNG"
        assert output.metadata["image/png"]["width"] == pytest.approx(points * 96 / 72, rel=0.01)


def test_every_solution_is_correct_and_every_open_answer_is_met_kindly(executed):
    assert set(executed) == set(CHAPTERS)
    for number, notebook in executed.items():
        text = printed(notebook)
        names = set(re.findall(rf'check\("({number}\.\d+)"', "\n".join(c.source for c in notebook.cells)))
        assert len(names) >= 3, f"chapter {number}"
        for name in names:
            assert f"{name}: why this is right." in text, f"the solution of {name} is not accepted"
            assert f"{name}: not answered yet" in text, name


def test_pages_show_no_error_and_no_warning(executed):
    from saema_utils.publishing.cleaning import clean_notebook

    for notebook in executed.values():
        assert clean_notebook(notebook).cells


def test_numbers_that_cells_print_are_written_as_in_prose(executed):
    for name, notebook in executed.items():
        assert re.findall(r"(?<![\w.\-])-\.?\d.*|\de[-+]\d.*", printed(notebook)) == [], name


def test_a_task_of_a_sweep_makes_every_table_of_its_chapter(smoke_run, tmp_path, monkeypatch):
    """The tables that the notebooks asked for are those that a task asks for, but for rulers: they know no model."""
    run = RunDirectory(shutil.copytree(smoke_run.run.path, tmp_path / "run"), smoke_run.run.study, device="cpu")
    by_notebooks = {name for name in run.manifest()["artifacts"] if re.match(r"tables/0[1-7]_", name)}
    asked, check = set(), RunDirectory.check

    def recorded(self, relative, *more):
        asked.add(relative)
        return check(self, relative, *more)

    monkeypatch.setattr(RunDirectory, "check", recorded)
    rulers = {place for place, result in declared_results().items() if result.is_ruler}
    for chapter in range(1, 8):
        asked.clear()
        make_chapter(run, chapter)
        own = {name for name in by_notebooks if name.startswith(f"tables/{chapter:02d}_")}
        assert own
        assert own - asked == rulers & own, f"chapter {chapter}"


def test_running_again_runs_nothing(smoke_run):
    again = run_notebooks(smoke_run.run, CHAPTERS, device="cpu")
    assert all(result.skipped for result in again)
    assert [r.path for r in again] == [r.path for r in smoke_run.results]


def test_a_chapter_says_which_chapter_it_misses(tmp_path):
    from saema_utils.errors import BookError
    from saema_utils.study import STUDIES

    run = RunDirectory(tmp_path / "empty", STUDIES["smoke"], device="cpu")
    assert 7 in chapter_notebooks(find_root())
    with pytest.raises(BookError, match=r"chapter 7 .*MissingInputError.*saema run --study smoke --chapters 1-"):
        run_notebooks(run, [7], device="cpu")


def test_the_studys_own_autoencoder_is_one_of_the_replicates(smoke_run):
    """What chapter 9 finds with it is what chapter 7 judged, claim by claim, and its lead as well."""
    run = smoke_run.run
    effects, card = run.table("09_replicates"), run.table("07_claims").set_index("claim")
    own = effects[(effects["layer"] == run.study.layer) & (effects["seed"] == run.study.seed)]
    means = own.groupby(["claim", "contrast"])["effect"].mean().unstack()
    judged = card.loc[means.index]
    np.testing.assert_allclose(means["itself"], judged["estimate"], rtol=1e-6, equal_nan=True)
    np.testing.assert_allclose(means["lead"], judged["lead"], rtol=1e-6, equal_nan=True)
    reasons = effects["reason"].fillna("").astype(str)  # a column without any reason is read as one of numbers
    assert reasons[effects["effect"].isna()].ne("").all(), "a number is missing and nothing says why"
    assert not reasons.str.contains("again").any()
    others = effects[(effects["layer"] != run.study.layer) | (effects["seed"] != run.study.seed)]
    assert set(others["claim"]) == set(means.index)
    assert others["effect"].notna().mean() > 0.5


def test_what_chapter_9_takes_from_chapter_7_is_what_it_would_measure(smoke_run):
    run, concept = smoke_run.run, "months"
    activations, coders = concept_activations(run)[concept], judged_coders(run)
    known, measured = values_known(run, concept), values_of_concept(activations, coders, run.study)
    assert set(known) < set(measured)
    for name, values in known.items():
        facts = [column for column in values if values[column].dtype == object or column == "smallest"]
        fresh = measured[name].reset_index(drop=True)
        stored = values.reset_index(drop=True)
        assert fresh[facts].astype(object).fillna("").equals(stored[facts].astype(object).fillna("")), name
        np.testing.assert_allclose(fresh["value"], stored["value"], rtol=1e-3, atol=1e-5)


def test_a_run_ends_with_the_answer_the_verdicts_and_where_everything_is(smoke_run):
    *answers, verdicts, results, following = what_to_look_at(smoke_run.run, judged=True)
    assert len(answers) == len(ANSWER)
    assert all(line.startswith(sentence) for line, (sentence, _) in zip(answers, ANSWER, strict=True))
    counts = smoke_run.run.table("07_claims")["holds_up"].value_counts()
    assert all(f"{count} {verdict}" in verdicts for verdict, count in counts.items())
    assert str(smoke_run.run.path) in results
    assert following.startswith("Next: saema book --run-dir ")
    assert list(what_to_look_at(smoke_run.run, judged=False)) == [results, following], "an older scorecard is no answer"
