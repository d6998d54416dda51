"""What every source notebook must be before anybody runs it."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from symtable import symtable

import nbformat
import pytest

from saema_utils.chapters import SUBJECTS
from saema_utils.errors import BookError
from saema_utils.notebook import CHAPTERS
from saema_utils.publishing import address
from saema_utils.publishing.execution import chapter_notebooks, check_parameters, parameter_names

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = chapter_notebooks(ROOT)
NOTEBOOK_METADATA = {"kernelspec", "language_info", "colab"}
CELL_METADATA = {"tags", "mystnb", "cellView", "jupyter"}
TAGS = {
    "parameters",
    "setup",
    "definition",
    "exercise",
    "solution",
    "hide-input",
    "hide-cell",
    "hide-output",
    "remove-output",
}
# Numbers with decimals that nothing here measured: of a definition, of a toy, of the paper.
GIVEN = {(4, "dimension"): {"0.9"}, (5, "toy"): {"0.8", "1.25", "0.25"}, (5, "correlation"): {"0.95", "0.89", "0.97"}}
# Verbs that a title opens with: a chapter is something that one does.
VERB = re.compile(r"^# [A-Z][a-z]+(?<!ing)(?<!tion)(?<!ity) \w+")
SHOWS = re.compile(r"^\s*(?:\w+ = )?(?:show|interactive)\(", re.M)


@pytest.fixture(params=sorted(NOTEBOOKS), ids=lambda n: NOTEBOOKS[n].stem)
def number(request) -> int:
    return request.param


@pytest.fixture
def notebook(number):
    return nbformat.read(NOTEBOOKS[number], as_version=4)


def code(notebook, tag: str | None = None):
    return [c for c in notebook.cells if c.cell_type == "code" and (tag is None or tag in c.metadata.get("tags", []))]


def markdown(notebook) -> str:
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def test_all_chapters_are_there():
    assert set(NOTEBOOKS) == set(CHAPTERS)


def test_format_is_4_5_with_readable_unique_ids(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    odd = [i for i in ids if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", i) or re.fullmatch(r"[0-9a-f]{8}", i)]
    assert not odd, f"ids that say nothing: {odd}"


def test_carries_no_outputs_and_no_stray_metadata(notebook):
    assert set(notebook.metadata) <= NOTEBOOK_METADATA
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata) <= CELL_METADATA, cell["id"]
        assert set(cell.metadata.get("tags", [])) <= TAGS, cell["id"]
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell["id"]


def test_cells_are_short_and_valid_python(notebook):
    for cell in code(notebook):
        assert cell.source.count("\n") < 25, f"{cell['id']} is longer than 25 lines"
        python = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)
        ast.parse(python)


def test_code_that_a_page_shows_fits_its_width(notebook):
    """A longer line is cut at the frame, in the book as in Colab."""
    shown = [cell for cell in code(notebook) if not {"hide-input", "hide-cell"} & set(cell.metadata.get("tags", []))]
    assert not [line for cell in shown for line in cell.source.splitlines() if len(line) > 100]


def test_what_cells_say_holds_no_formula(notebook):
    """Outputs are not typeset: a formula between dollars would be read as it is written."""
    assert not [cell.id for cell in code(notebook) if "$" in cell.source]


def test_parameters_are_four_literals(number, notebook):
    assert parameter_names(NOTEBOOKS[number]) == ["study", "run_dir", "device", "seed"]
    (cell,) = code(notebook, "parameters")
    assert cell is code(notebook)[0], "parameters come before any other code"


def test_unknown_parameters_are_refused(number):
    with pytest.raises(BookError, match=r"no parameter of .* named 'sed'. Did you mean 'seed'"):
        check_parameters(NOTEBOOKS[number], {"study": "smoke", "sed": 1})


def test_setup_is_the_same_everywhere(notebook):
    (cell,) = code(notebook, "setup")
    assert cell is code(notebook)[1]
    lines = cell.source.splitlines()
    reference = nbformat.read(NOTEBOOKS[min(NOTEBOOKS)], as_version=4)
    assert cell.source == code(reference, "setup")[0].source
    assert len(lines) <= 9  # its title among them
    assert f'"{address.repository_url()}@{address.BRANCH}"' in cell.source, (
        "the setup cell installs from the book's address"
    )


def test_imports_are_the_public_names_and_those_of_its_own_chapter(number, notebook):
    own = f"saema_utils.chapters.{SUBJECTS[number]}"
    for cell in code(notebook):
        source = re.sub(r"^(\s*)%.*", r"\1pass", cell.source, flags=re.M)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "saema_utils":
                assert node.module in ("saema_utils", own), f"{cell['id']} imports from {node.module}"
                source = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(source, alias.name)]
                assert not missing, f"{cell['id']} imports what {node.module} has not"
            elif isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0] == "saema_utils" for a in node.names), cell["id"]


def test_opens_with_a_verb_and_says_what_to_expect(notebook):
    opening = notebook.cells[0]
    assert opening.cell_type == "markdown"
    assert VERB.match(opening.source), "the title opens with a verb: " + opening.source.splitlines()[0]
    for needed in ("<!-- badges -->", "**You will be able to**", "**Before:**", "**Time:**", "<!-- time -->"):
        assert needed in opening.source, needed
    assert len(re.findall(r"^# ", markdown(notebook), re.M)) == 1, "one title"


def test_opens_with_a_figure_of_its_own(notebook):
    opening = re.search(r"^<!-- opening: (\w+) -->$", notebook.cells[0].source, re.M)
    assert opening, "a comment '<!-- opening: NAME -->' says which figure stands at the top of the page"
    assert any(f'show(run, "{opening[1]}"' in cell.source for cell in code(notebook)), opening[1]


def test_asks_for_a_guess_before_the_figure_that_answers_it(notebook):
    before, _, _ = notebook.cells[0].source.partition("<!-- opening:")
    guess = re.search(r"^\*\*Guess first\.\*\* .*\?.* Most people .+\.$", before, re.M)
    assert guess, "the opening asks a question and says what most people guess, before its figure"


def test_no_section_starts_with_code(notebook):
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        bare_heading = before.cell_type == "markdown" and re.fullmatch(r"#+ [^\n]+\n*", before.source)
        if bare_heading and cell.cell_type == "code":
            # A cell that only shows a finding is text on the page.
            speaks = "finding(" in cell.source and "hide-input" in cell.metadata.get("tags", [])
            assert speaks, f"section {before.source.strip()!r} starts with code ({cell['id']})"


def test_ends_with_what_was_learned_what_could_be_wrong_and_what_is_next(notebook):
    text = markdown(notebook)
    found = [
        re.search(rf"^(## |\*\*){heading}", text, re.M)
        for heading in ("What we learned", "What could be wrong", "Next")
    ]
    assert all(found), found
    places = [match.start() for match in found]
    assert places == sorted(places), places


def description(cell) -> str:
    """What a figure's cell says to those who cannot see it: in its metadata, or, of an interactive one, in its code."""
    if "interactive(" not in cell.source:
        return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
    (alt,) = re.findall(r"^alt = (\(.*?^\)|\".*?\"$)", cell.source, re.M | re.S)
    return ast.literal_eval(alt)


def test_every_figure_has_caption_name_and_description(notebook):
    names = []
    for cell in code(notebook):
        if not SHOWS.search(cell.source):
            continue
        figure, alt = cell.metadata.get("mystnb", {}).get("figure", {}), description(cell)
        assert figure.get("caption"), f"{cell['id']} has no caption"
        assert re.fullmatch(r"fig-[a-z0-9-]+", figure.get("name", "")), f"{cell['id']} has no name"
        assert len(alt.split()) >= 8, f"{cell['id']}: describe what is drawn and how to read it: {alt!r}"
        assert alt.strip(". ") != figure["caption"].strip(". "), f"{cell['id']}: the description repeats the caption"
        names.append(figure["name"])
    assert len(names) >= 3, "at least three figures a chapter"
    assert len(set(names)) == len(names)


def test_names_of_figures_are_unique_in_the_book():
    names = [
        cell.metadata["mystnb"]["figure"]["name"]
        for path in NOTEBOOKS.values()
        for cell in code(nbformat.read(path, as_version=4))
        if "figure" in cell.metadata.get("mystnb", {})
    ]
    assert len(set(names)) == len(names)


def test_what_is_plumbing_folds_everywhere(notebook):
    """Colab folds a form under its title, JupyterLab a hidden source, the page by its tag."""
    for cell in code(notebook):
        folded = {"setup", "hide-input", "hide-cell"} & set(cell.metadata.get("tags", []))
        assert bool(folded) == (cell.metadata.get("cellView") == "form"), cell["id"]
        assert bool(folded) == (cell.metadata.get("jupyter") == {"source_hidden": True}), cell["id"]
        assert bool(folded) == bool(re.match(r"# @title \w[^\n]+\n", cell.source)), cell["id"]


def test_text_reads_as_well_where_there_is_no_sphinx(notebook):
    captions = [cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "") for cell in code(notebook)]
    said = "\n".join([markdown(notebook), *captions])
    assert not re.findall(r"\{[a-z:]+\}`[^`]*`|^(?:```|:::)\{.*$|\{\{.*?\}\}|^\([\w-]+\)=", said, re.M), (
        "a role is raw text in Colab"
    )


def test_has_three_exercises_each_with_a_hint_a_check_and_a_solution(number, notebook):
    headings = re.findall(rf"^### Exercise ({number}\.\d+) \((easy|medium|hard), (\d+) min\)", markdown(notebook), re.M)
    assert len(headings) >= 3
    all_of_them = re.findall(rf"^#+ Exercise ({number}\.\d+)", markdown(notebook), re.M)
    assert [name for name, _, _ in headings] == all_of_them, "an exercise is easy, medium or hard, and says its minutes"
    for name, _, _ in headings:
        (text,) = (c.source for c in notebook.cells if f"### Exercise {name} " in c.source)
        assert re.search(r"^<details><summary>A hint</summary>\n\n.+\n\n</details>$", text, re.M | re.S), name
        call = f'check("{name}", '
        for tag in ("exercise", "solution"):
            cells = [c for c in code(notebook, tag) if call in c.source]
            assert len(cells) == 1, f"exercise {name} has {len(cells)} cells tagged {tag!r} that call {call}"
        assert "answer = None" in next(c for c in code(notebook, "exercise") if call in c.source).source
    for cell in code(notebook, "solution"):
        assert "hide-cell" in cell.metadata["tags"], f"{cell['id']}: a solution is hidden until asked for"


def test_exercises_stand_beside_their_idea(notebook):
    """Not in a heap before the end; only one that asks for all of a chapter stands there alone."""
    kinds = [c.source for c in notebook.cells if re.search(r"^##+ ", c.source, re.M) and c.cell_type == "markdown"]
    sections = [i for i, source in enumerate(kinds) if source.startswith("## ")]
    last = kinds.index(next(source for source in kinds if source.startswith("## What we learned")))
    heap = [s for s in kinds[sections[sections.index(last) - 1] : last] if "### Exercise" in s]
    assert len(heap) <= 1


def test_exercises_leave_the_names_of_the_chapter_alone(notebook):
    """A chapter runs on whatever a reader makes of its exercises, and when they are skipped."""

    parts: dict[bool, list[str]] = {True: [], False: []}
    for cell in code(notebook):
        python = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)
        parts[bool({"exercise", "solution"} & set(cell.metadata.get("tags", [])))].append(python)
    exercises, chapter = (symtable("\n".join(parts[kind]), "", "exec").get_symbols() for kind in (True, False))
    left = {s.get_name() for s in exercises if s.is_assigned() and not s.is_imported()}
    assert {"answer", "solution"} <= left
    assert not left & {s.get_name() for s in chapter}


def test_shows_its_core_formula_as_a_function(notebook):
    cells = code(notebook, "definition")
    assert cells, "the core formula stands in a cell tagged 'definition'"
    for cell in cells:
        assert any(isinstance(s, ast.FunctionDef) for s in ast.parse(cell.source).body), cell["id"]


def test_every_function_that_a_page_defines_is_held_against_the_package(notebook):
    """Nothing is defined twice unless a test holds both equal: some unit test calls each by its name."""
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "chapters").glob("test_*.py"))
    names = [
        statement.name
        for cell in code(notebook, "definition")
        for statement in ast.parse(cell.source).body
        if isinstance(statement, ast.FunctionDef)
    ]
    assert not [name for name in names if f'"{name}"' not in tests]


def test_links_between_chapters_lead_somewhere(notebook):
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown(notebook)):
        if not re.match(r"(https?:|mailto:|#)", target):
            path = (ROOT / "notebooks" / target.split("#")[0]).resolve()
            assert path.exists(), f"link to {target}"


def test_no_number_with_decimals_is_typed_into_prose(number, notebook):
    """Measured numbers come from tables: the sentences that report them are computed, also those about figures."""
    texts = [
        (cell["id"], cell.source)
        for cell in notebook.cells
        if cell.cell_type == "markdown" and not re.match(r"ex(ercise)?s?(-\d|$)", cell["id"])
    ]
    for cell in code(notebook):
        facts = cell.metadata.get("mystnb", {})
        texts.append((cell["id"], facts.get("image", {}).get("alt", "")))
        texts.append((cell["id"], facts.get("figure", {}).get("caption", "")))
    assert len(texts) > 20
    for name, text in texts:
        found = re.findall(r"(?<!exercise )\d+\.\d+", text)
        typed = set(found) - GIVEN.get((number, name), set())
        assert not typed, f"{name} has typed results: {sorted(typed)}"
