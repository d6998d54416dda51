"""The registry: a result is made once, and again exactly when something that it is made from has changed."""

import ast
import json
import sys

import pandas as pd
import pytest

from saema_utils.chapters import declared_results
from saema_utils.errors import ArtifactError
from saema_utils.runs import freshness, tables
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.freshness import file_digest, outside_digest
from saema_utils.study import STUDIES

PACKAGE = freshness.PACKAGE_DIR
SOURCES = {
    "runs/tables.py": "",
    "errors.py": "",
    "stage.py": """
from typing import TYPE_CHECKING
from saema_utils.runs.tables import table
from saema_utils.errors import E
from saema_utils.middle import relative
import saema_utils.absolute
from saema_utils.other_stage import g
if TYPE_CHECKING:
    from saema_utils.only_types import T
""",
    "absolute.py": "",
    "middle/__init__.py": "",
    "middle/relative.py": "from .beside import f\ndef g():\n    from ..deep.deeper import h\n",
    "middle/beside.py": "from . import relative  # a circle\n",
    "deep/__init__.py": "",
    "deep/deeper.py": "",
    "other_stage.py": "from saema_utils.runs.tables import table\nfrom saema_utils.behind_other import x\n",
    "behind_other.py": "",
    "only_types.py": "",
    "unrelated.py": "",
}


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run", STUDIES["smoke"])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of the real one; call it to write or change modules."""
    monkeypatch.setattr(freshness, "PACKAGE_DIR", tmp_path / "saema_utils")
    monkeypatch.setattr(tables, "RESULTS", {})

    def write(sources):
        for name, source in sources.items():
            path = tmp_path / "saema_utils" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        freshness.imports.cache_clear()
        freshness.modules_behind.cache_clear()

    write(SOURCES)
    yield write
    freshness.imports.cache_clear()
    freshness.modules_behind.cache_clear()


@pytest.fixture
def declare(package):
    """Declares a table of some module of the small package; ``declare.made`` lists what was made."""

    def declare(name, module="stage", needs=(), **facts):
        def make(run):
            for need in needs:
                need(run)
            declare.made.append(name)
            return pd.DataFrame({"value": [0.1 + 0.2]})

        make.__module__ = f"saema_utils.{module}"
        return tables.table(name, needs=needs, **facts)(make)

    declare.made = []
    return declare


def test_a_result_is_made_once(run, declare):
    result = declare("03_x")
    first = result(run)
    pd.testing.assert_frame_equal(result(run), first, check_exact=True)
    pd.testing.assert_frame_equal(result(RunDirectory(run.path, run.study)), first, check_exact=True)
    assert declare.made == ["03_x"]


@pytest.mark.parametrize(
    "changed", ["stage.py", "absolute.py", "middle/relative.py", "middle/beside.py", "deep/deeper.py"]
)
def test_a_result_is_made_again_when_source_behind_it_changes(run, declare, package, changed):
    result = declare("03_x")
    result(run)
    package({changed: f"{SOURCES[changed]}# other\n"})
    result(run)
    result(run)
    assert declare.made == ["03_x", "03_x"]


@pytest.mark.parametrize("changed", ["errors.py", "only_types.py", "other_stage.py", "behind_other.py", "unrelated.py"])
def test_a_result_is_not_made_again_for_what_it_is_not_made_from(run, declare, package, changed):
    """Errors and types decide nothing; what another stage gives enters by being needed."""
    result = declare("03_x")
    result(run)
    package({changed: f"{SOURCES[changed]}# other\n"})
    result(run)
    assert declare.made == ["03_x"]


def test_a_result_is_made_again_when_what_it_needs_changes(run, declare, package):
    first = declare("01_first", module="other_stage")
    second = declare("02_second", needs=(first,))
    third = declare("03_third", needs=(second,))
    apart = declare("03_apart")
    assert third.behind() == {first, second}
    for result in (third, apart):
        result(run)
    package({"behind_other.py": "# other"})
    for result in (third, apart):
        result(run)
    assert declare.made == ["01_first", "02_second", "03_third", "03_apart", "01_first", "02_second", "03_third"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_result_is_noticed_and_made_again(run, declare, damage, capsys):
    result = declare("03_x")
    result(run)
    path = run.path / result.place
    whole = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if damage == "flip" else whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="03_x"):
        run.table("03_x")
    assert not run.is_whole(3)
    result(run)
    assert path.read_bytes() == whole
    assert run.is_whole(3)
    assert "made anew" in capsys.readouterr().out
    assert len(declare.made) == 2


def test_files_outside_count_where_the_choices_name_them(run, declare, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text("{}")
    reads = declare("01_reads", choices=lambda run: [run.study.digest, outside_digest(str(prompts))])
    does_not = declare("01_does_not")
    for _ in range(2):
        reads(run), does_not(run)
    prompts.write_text("{ }")
    reads(run), does_not(run)
    assert declare.made == ["01_reads", "01_does_not", "01_reads"]


def test_a_ruler_is_shared_by_runs_side_by_side_that_choose_the_same(run, declare, tmp_path):
    shape = declare("04_shape", ruler=True, choices=lambda run: run.study.seed)
    model = declare("04_model")
    for name in ("run", "beside"):
        study = run.study.changed(name=name, templates=2)  # another study, the same seed
        other = run if name == "run" else RunDirectory(tmp_path / name, study)
        shape(other), model(other)
    assert declare.made == ["04_shape", "04_model", "04_model"]
    assert (tmp_path / "beside" / shape.place).read_bytes() == (run.path / shape.place).read_bytes()
    assert RunDirectory(tmp_path / "beside", study).is_whole(4)
    shape(RunDirectory(tmp_path / "seed", run.study.changed(name="seed", seed=7)))
    assert declare.made[3:] == ["04_shape"]


@pytest.mark.parametrize("wrong", ["damaged", "gone", "manifest", "versions", "source"])
def test_a_ruler_is_made_where_the_one_beside_is_not_the_same(run, declare, package, tmp_path, wrong):
    shape = declare("04_shape", ruler=True, choices=lambda run: None)
    shape(run)
    path, manifest = run.path / shape.place, run.path / "manifest.json"
    if wrong == "damaged":
        path.write_text("value\n7\n")
    elif wrong == "gone":
        path.unlink()
    elif wrong == "manifest":
        manifest.write_text("{")
    elif wrong == "versions":
        known = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(known | {"versions": known["versions"] | {"numpy": "1.0"}}))
    else:
        package({"stage.py": SOURCES["stage.py"] + "# changed\n"})
    assert shape(RunDirectory(tmp_path / "beside", run.study))["value"].tolist() == [0.1 + 0.2]
    assert declare.made == ["04_shape", "04_shape"]


def test_parts_resume_after_an_interruption(run, package):
    made, interrupted = [], [True]

    def make(run, missing):
        for part in missing:
            if part == "days" and interrupted and interrupted.pop():
                raise KeyboardInterrupt
            made.append(part)
            rows = pd.DataFrame({"concept": [part]})
            yield part, {"03_x": rows, "03_empty": rows[:0] if part != "color" else rows}

    make.__module__ = "saema_utils.stage"
    result = tables.parts("03_x", of=lambda run: run.study.concepts)(make)
    assert run.study.concepts == ("months", "days", "color")
    with pytest.raises(KeyboardInterrupt):
        result(run)
    assert result(run)["concept"].tolist() == ["months", "days", "color"]
    assert made == ["months", "days", "color"]
    assert result(run, "03_empty")["concept"].tolist() == ["color"]
    assert result.part(run, "days")["concept"].tolist() == ["days"]
    (run.path / "tables/parts/03_x_001.csv").write_text("damaged")
    assert result(run)["concept"].tolist() == ["months", "days", "color"]
    assert made == ["months", "days", "color", "days"]


def test_tables_of_a_part_count_as_made_together_or_not_at_all(run, package, monkeypatch):
    """Whenever a process ends among the files of a part, what the manifest calls made is never made again."""

    def make(run, missing):
        yield from ((part, {"03_x": pd.DataFrame({"a": [1]}), "03_y": pd.DataFrame({"a": [2]})}) for part in missing)

    make.__module__ = "saema_utils.stage"
    result = tables.parts("03_x", of=lambda run: run.study.concepts)(make)
    writes, save = [], RunDirectory.save_table

    def killed_at_the_last(self, name, *rest):
        writes.append(name)
        if len(writes) == 2 * len(run.study.concepts):
            raise KeyboardInterrupt
        return save(self, name, *rest)

    monkeypatch.setattr(RunDirectory, "save_table", killed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        result(run)
    made = {name: entry["written"] for name, entry in run.manifest()["artifacts"].items()}
    assert len(made) == 2 * len(run.study.concepts) - 2, "half a part counts as made"
    result(run)
    after = run.manifest()["artifacts"]
    assert {name: after[name]["written"] for name in made} == made
    assert len(after) == 2 * len(run.study.concepts)


def test_every_result_names_the_code_study_model_sae_and_chapter_it_came_from(run, declare):
    def keep(run, name, key, make):
        run.save_file("sae/sae_weights.safetensors", lambda path: path.write_bytes(b"weights"), key)
        return make()

    def sae(run):
        run.model = "the model"

    sae.__module__ = "saema_utils.other_stage"
    sae = tables.result("02_sae", "sae", keep)(sae)
    without = declare("01_x")
    with_sae = declare("03_x", needs=(declare("02_x", needs=(sae,)),))
    with_sae(run), without(run)
    weights = file_digest(run.path / "sae/sae_weights.safetensors")
    for place, chapter, found in (
        ("tables/01_x.csv", 1, None),
        ("sae/sae_weights.safetensors", 2, None),
        ("tables/02_x.csv", 2, weights),
        ("tables/03_x.csv", 3, weights),
    ):
        entry = run.entry(place)
        assert (entry["chapter"], entry.get("sae")) == (chapter, found)
        assert entry["code"] == freshness.source_digest()
        assert entry["version"]
        assert entry["study_digest"] == STUDIES["smoke"].digest
    assert run.entry("tables/03_x.csv")["model"] == "the model"


# ---- the results of the book -----------------------------------------------------------------------


def test_no_two_results_share_a_place():
    known = declared_results()
    for module in {result.__module__ for result in known.values()}:
        for found in vars(sys.modules[module]).values():
            if isinstance(found, tables.Result):
                assert known[found.place] is found


def test_a_stage_needs_the_stages_whose_results_it_uses():
    """Keys do not follow imports into another stage: what it gives has to be declared as needed."""
    results = declared_results().values()
    stages = {name for name in freshness.package_modules() if freshness.is_stage(name)}
    undeclared = []
    for module in {result.__module__ for result in results}:
        own = [result for result in results if result.__module__ == module]
        needed = {need.__module__ for result in own for need in result.behind()} | {module}
        used = {name for behind in freshness.modules_behind(module) for name in freshness.imports(behind) & stages}
        undeclared += [f"{module} uses {name}" for name in used - needed]
    assert not undeclared


def test_every_part_is_needed_by_a_table():
    results = declared_results().values()
    needed = {need for result in results for need in result.needs}
    assert all(result in needed for result in results if isinstance(result, tables.Parts))


def test_modules_import_from_modules_not_from_the_face_of_a_folder():
    """A face hands names out lazily: a key could not follow the import to the module behind it."""
    lazy = {
        "saema_utils" if path.parent == PACKAGE else f"saema_utils.{path.parent.relative_to(PACKAGE)}".replace("/", ".")
        for path in PACKAGE.rglob("__init__.py")
        if "lazy_loader" in path.read_text(encoding="utf-8")
    }
    assert "saema_utils" in lazy
    modules = set(freshness.package_modules())
    through_a_face = [
        f"{path.relative_to(PACKAGE)}: from {node.module} import {alias.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in lazy
        for alias in node.names
        if f"{node.module}.{alias.name}" not in modules
    ]
    assert not through_a_face
