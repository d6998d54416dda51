"""Pieces of the book's pages that are generated from a run: numbers, tables, times.

Prose quotes a number as ``{{ name }}``; larger pieces are included from ``book/fragments/``.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.chapters.sae.facts import sae_facts
from saema_utils.errors import BookError
from saema_utils.figures import NAMES
from saema_utils.model.embedded import EMBEDDED
from saema_utils.notebook import finding, table
from saema_utils.publishing import address
from saema_utils.publishing.confirmation import both_cards, read_card
from saema_utils.publishing.readme import answer, read_signs
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.files import name_of, write_figure
from saema_utils.runs.freshness import PACKAGE_DIR
from saema_utils.saes.facts import SaeFacts
from saema_utils.study import DEFAULT_STUDY, STUDIES, Study
from saema_utils.wording import format_number, in_words

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from nbformat import NotebookNode

WORDS_PER_MINUTE, MINUTES_A_FIGURE = 180, 0.5
EXERCISE = re.compile(r"^### Exercise .*\((?:\w+, )?(\d+) min\)", re.MULTILINE)
ROWS_SHOWN = 8
ROUND, BEFORE_AND_AFTER = ("months", "days"), ("residual", "sae", "random_dictionary")
CIRCULARITY = (
    "Circularity is 1 for words that stand in their order at equal angles; p is the share of shuffled orders that "
    "score as high. From [chapter 4](../notebooks/04_local_and_global_geometry.ipynb), which has the other concepts."
)
HEROES = ("04_circles", "01_word_circles")
ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?([^`]+)`")


def numbers(run: RunDirectory) -> dict[str, str]:
    """Everything that a page may quote, formatted for reading: the study's choices, what was measured, times."""
    study, sae = run.study, sae_facts(run)
    manifest = run.manifest()
    records = manifest.get("chapters", {}).values()
    chosen: dict[str, Any] = {
        "study": study.name,
        "study_title": study.title,
        "model": _model_name(study.model),
        "layer": study.layer,
        "n_concepts": len(study.concepts),
        "concepts": ", ".join(in_words(concept) for concept in study.concepts),
        "templates": study.templates,
        "sae": _sae_in_words(study, sae),
        "d_sae": sae.d_sae,
        "k": sae.k,
        "epochs": study.sae.epochs,
        "n_seeds": study.n_seeds,
        "corpus_tokens": study.corpus.tokens,
        "heldout_tokens": study.corpus.heldout_tokens,
        "n_noise_levels": len(study.noise_levels),
        "created": manifest.get("created", "")[:10],
        "python": manifest.get("python", ""),
        "run_time": duration(sum(r.get("seconds", 0) for r in records)),
        "peak_gib": max((r.get("peak_memory", 0) for r in records), default=0) / 2**30,
        "hardware": ", ".join(sorted({r.get("hardware", "") for r in records})),
        "version": address.VERSION,
    }
    return {name: format_number(value) for name, value in {**chosen, **run.numbers()}.items()}


def _sae_in_words(study: Study, sae: SaeFacts) -> str:
    made = f"trained on {study.corpus.tokens:,} tokens" if study.sae.source == "train" else name_of(study.sae.source)
    at_a_time = f"{sae.k:g} at a time, " if sae.k else ""
    return f"{sae.architecture}, {sae.d_sae:,} latents, {at_a_time}{made}"


def _model_name(source: str) -> str:
    return EMBEDDED[source].title if source in EMBEDDED else name_of(source)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``45 s``, ``3.5 min``."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def reading_time(notebook: NotebookNode) -> tuple[int, int]:
    """Minutes that a chapter takes to read, and those that its exercises say of themselves.

    What a run wrote is read as well: its findings, the captions, and half a minute for each figure or table.
    """
    words, shown, exercises = 0, 0, 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words += len(cell.source.split())
            exercises += sum(map(int, EXERCISE.findall(cell.source)))
            continue
        words += len(cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "").split())
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            words += len(data.get("text/markdown", "").split())
            shown += bool({"image/svg+xml", "image/png", "text/html"} & set(data))
    return max(1, round(words / WORDS_PER_MINUTE + shown * MINUTES_A_FIGURE)), exercises


def time_needed(notebook: NotebookNode, record: Mapping[str, Any] | None) -> str:
    """How long a chapter takes to read and to do, and took to run, from what it holds and its record."""
    minutes, exercises = reading_time(notebook)
    reading = f"{minutes} min to read" + (f", {exercises} min for all exercises" if exercises else "")
    if not record:
        return f"{reading}; not run yet"
    memory = f"{record['peak_memory'] / 2**30:.1f} GiB"
    return f"{reading}; {duration(record['work'])} of work on {record['hardware']}, peak memory {memory} (measured)"


def write_fragments(run: RunDirectory, folder: Path, staging: Path) -> None:
    """Write every generated piece into ``folder``, as Markdown that pages include."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], str]] = {
        "execution": lambda: execution_table(run, staging / "notebooks"),
        "versions": lambda: versions_table(run),
        "results": lambda: results_tables(staging),
        "graph": lambda: graph_figure(staging / "figures"),
        "hero": lambda: hero(staging),
        "path": lambda: path_figure(staging / "figures"),
        "answer": lambda: in_a_box(opening_answer(staging / "tables", run.study)),
        "scorecard": lambda: scorecard(staging / "tables"),
        "chapters": lambda: chapter_list(run, staging / "notebooks"),
        "both_cards": lambda: both_cards(staging),
    }
    for name, make in makers.items():
        (folder / f"{name}.md").write_text(make() + "\n", encoding="utf-8")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table. Bars in cells are escaped."""
    import pandas as pd

    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return pd.DataFrame(cells, columns=list(header)).to_markdown(index=False, disable_numparse=True) + "\n"


def execution_table(run: RunDirectory, notebooks: Path) -> str:
    """Time, memory and hardware of every chapter of the book, from the manifest."""
    records = run.manifest().get("chapters", {})
    chapters = {name: title for name, title in chapter_titles(notebooks).items() if name in records}
    rows = [
        [
            f"[{title}](../notebooks/{name}.ipynb)",
            duration(records[name]["seconds"]),
            duration(records[name]["work"]),
            f"{records[name]['peak_memory'] / 2**30:.2f} GiB",
            records[name]["hardware"],
            records[name]["finished"].replace("T", " ").rstrip("Z"),
        ]
        for name, title in chapters.items()
    ]
    total, work = (sum(records[name][what] for name in chapters) for what in ("seconds", "work"))
    peak = max((records[name]["peak_memory"] for name in chapters), default=0)
    rows.append(["**All**", f"**{duration(total)}**", f"**{duration(work)}**", f"**{peak / 2**30:.2f} GiB**", "", ""])
    return markdown_table(["Chapter", "Time", "Work", "Peak memory", "Hardware", "Finished (UTC)"], rows)


def versions_table(run: RunDirectory) -> str:
    """Versions of what computed the results."""
    manifest = run.manifest()
    rows = [["python", manifest.get("python", "")], *map(list, manifest.get("versions", {}).items())]
    return markdown_table(["Package", "Version"], rows)


def chapter_titles(notebooks: Path) -> dict[str, str]:
    """Titles of the chapters in a folder, by the name of their notebook, in order."""
    import nbformat

    titles = {}
    for path in sorted(notebooks.glob("*.ipynb")):
        first = next(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
        titles[path.stem] = f"{int(path.name[:2])}. {first.splitlines()[0].lstrip('# ')}"
    return titles


def chapter_list(run: RunDirectory, notebooks: Path) -> str:
    """The chapters: what each does, how long it takes, and where to open it."""
    chapters = run.manifest().get("chapters", {})
    rows = [
        [
            f"[{title}](../notebooks/{name}.ipynb)",
            duration(chapters[name]["work"]) if name in chapters else "",
            *([f"[Colab]({address.colab_url(f'notebooks/{name}.ipynb')})"] if address.is_set() else []),
        ]
        for name, title in chapter_titles(notebooks).items()
    ]
    return markdown_table(["Chapter", "Work on one core", *(["Open"] if address.is_set() else [])], rows)


def circles_large(tables: Path) -> tuple[Figure, str] | None:
    """Months and days drawn large, and what becomes of their circles in one sentence; None without both."""
    import pandas as pd

    from saema_utils.chapters.geometry import circle_grid, significant_circles

    points, circles = pd.read_csv(tables / "04_circle_points.csv"), pd.read_csv(tables / "04_circles.csv")
    points = points[points["concept"].isin(ROUND) & points["representation"].isin(BEFORE_AND_AFTER)]
    if set(points["concept"]) != set(ROUND):
        return None
    found = significant_circles(circles)
    kept = {name: set(ROUND) & found.kept(name) for name in BEFORE_AND_AFTER[1:]}
    says = finding(
        "The year stays closed, and so does the week: in the latents, and in directions drawn at random as well.",
        holds=all(names == set(ROUND) for names in kept.values()),
        shows=" · ".join(f"{NAMES[name]} {len(names)} of {len(ROUND)}" for name, names in kept.items()),
    )
    return circle_grid(points, circles), says.data


def hero(staging: Path) -> str:
    """The opening figure with its answer; where the study has no months or no days, a figure of :data:`HEROES`."""
    import nbformat

    tables = staging / "tables"
    if (tables / "04_circle_points.csv").exists() and (large := circles_large(tables)):
        figure, says = large
        write_figure(staging / "figures" / "opening.svg", figure, "opening")
        return (
            "```{figure} ../figures/opening.svg\n:name: fig-hero\n"
            ":alt: Months above, days below, as dots joined in their order, in the plane where they differ most: in "
            "the residual stream, in the latents of the autoencoder, and in a random dictionary; below each, how round "
            f"it is.\n:class: saema-hero\n\nMonths and days before and after. {CIRCULARITY}\n```\n\n{says}"
        )
    made = [name for name in HEROES if (staging / "figures" / f"{name}.svg").exists()]
    for path in sorted((staging / "notebooks").glob("*.ipynb")) if made else []:
        facts = figure_facts(nbformat.read(path, as_version=4), made[0])
        if facts:
            link = f"[chapter {int(path.name[:2])}](../notebooks/{path.name})"
            return (
                f"```{{figure}} ../figures/{made[0]}.svg\n:name: fig-hero\n:alt: {facts['image']['alt']}\n"
                f":class: saema-hero\n\n{facts['figure']['caption']} From {link}.\n```"
            )
    return ""


def path_figure(figures: Path) -> str:
    """The way through the book, for its first page."""
    from saema_utils.publishing.path import path_of_the_book, said_of_the_path

    write_figure(figures / "path.svg", path_of_the_book(), "path")
    caption = (
        "Which way leads through the book, and who may skip what? From text to latents, what is asked of them, and the "
        "verdicts. A chapter needs what stands before it in its line below the boxes, and no other."
    )
    return f"```{{figure}} ../figures/path.svg\n:name: fig-path\n:alt: {said_of_the_path()}\n\n{caption}\n```"


def figure_facts(notebook: NotebookNode, name: str) -> Mapping[str, Any]:
    """Caption, name and description of the figure that a chapter saves as ``name``; empty when it has none."""
    for cell in notebook.cells:
        facts = cell.metadata.get("mystnb", {})
        if cell.cell_type == "code" and f'"{name}"' in cell.source and "figure" in facts:
            return facts
    return {}


def opening_figure(notebook: NotebookNode, name: str, run: RunDirectory) -> str:
    """A chapter's main figure once more at its top, with a link to where it is made; empty if this run has none."""
    facts = figure_facts(notebook, name)
    if not facts:
        raise BookError(f"the opening asks for figure {name!r}, which no cell shows. Correct '<!-- opening: ... -->'.")
    if not (run.path / "figures" / f"{name}.svg").exists():
        return ""
    where = facts["figure"]["name"]
    return (
        f"```{{figure}} ../figures/{name}.svg\n:alt: {facts['image']['alt']}\n:figclass: saema-opening\n```\n\n"
        f"*{facts['figure']['caption'].split('?')[0]}? See* {{numref}}`{where}`."
    )


def opening_answer(tables: Path, study: Study) -> str:
    """The book's answer, which the default study must bear out; for another study, whether it does.

    Raises
    ------
    BookError
        If the default study does not, or if its rules are none that could; names the sentence, or the rules.
    """
    path = tables / "07_claims.csv"
    if not path.exists():
        return "*(The answer stands here once chapter 7 has run.)*"
    strict = study.digest == STUDIES[DEFAULT_STUDY].digest
    if strict:
        check_rules(tables / "07_laboratory.csv")
    return answer(read_card(path), read_signs(tables), strict)


def in_a_box(lines: str) -> str:
    return f":::{{admonition}} The answer, in three sentences\n:class: saema-answer\n\n{lines}\n:::"


def check_rules(laboratory: Path) -> None:
    """Refuse rules that support what is not there, or that miss twice their margin.

    Raises
    ------
    BookError
        Names the rules.
    """
    import pandas as pd

    from saema_utils.chapters.scorecard.findings import rules_measure

    if not laboratory.exists():
        raise BookError("the laboratory of chapter 7 is missing. Run: saema run --chapters 7")
    found = rules_measure(pd.read_csv(laboratory))
    if not found.holds:
        raise BookError(
            f"the laboratory of chapter 7 finds rules that do not measure: {found.shows or 'no world was drawn'}. "
            "Mend the rule in saema_utils/evidence/claims.yaml, or retire it."
        )


def scorecard(tables: Path) -> str:
    """The scorecard as chapter 7 shows it, but for its links."""
    from saema_utils.chapters.scorecard.tables import card_in_brief

    path = tables / "07_claims.csv"
    if not path.exists():
        return "*(The verdicts stand here once chapter 7 has run.)*"
    return table(card_in_brief(read_card(path)).drop(columns="see"), html_columns=("claim",)).data


def results_tables(staging: Path) -> str:
    """Every table of the run, chapter by chapter: what it is, what its columns mean, and some of its rows."""
    import pandas as pd

    from saema_utils.chapters import declared_results
    from saema_utils.chapters.columns import COMMON

    declared, titles = declared_results(), chapter_titles(staging / "notebooks")
    parts, chapter = [], ""
    for path in sorted((staging / "tables").glob("[0-9][0-9]_*.csv")):
        title = next((title for name, title in titles.items() if name[:2] == path.name[:2]), f"Chapter {path.name[:2]}")
        if title != chapter:
            chapter = title
            parts.append(f"## {title}\n")
        frame, result = pd.read_csv(path), declared.get(f"tables/{path.name}")
        meanings = {**COMMON, **(result.columns if result else {})}
        columns = [[f"`{name}`", in_markdown(meanings.get(name, ""))] for name in frame]
        shown = f"{ROWS_SHOWN} rows, from all over it" if len(frame) > ROWS_SHOWN else "All rows"
        parts.append(
            f"### {path.stem}\n\n{in_markdown(result.description) if result else ''} {len(frame):,} rows. "
            f"{{download}}`CSV <../tables/{path.name}>`\n\n"
            f":::{{dropdown}} What the columns mean\n{markdown_table(['Column', 'Meaning'], columns)}:::\n\n"
            f":::{{dropdown}} {shown}\n{table(preview(frame)).data}\n:::\n"
        )
    return "\n".join(parts)


def preview(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows from all over a table, without the columns in which they have nothing: its first rows are mostly alike."""
    last, steps = len(frame) - 1, ROWS_SHOWN - 1
    rows = frame if last < ROWS_SHOWN else frame.iloc[[round(step * last / steps) for step in range(ROWS_SHOWN)]]
    return rows.dropna(axis="columns", how="all")


def in_markdown(docstring: str) -> str:
    """A piece of a docstring, which is reStructuredText, as Markdown: code in single ticks, roles as their targets."""
    return ROLE.sub(r"`\1`", docstring).replace("``", "`")


def graph_figure(figures: Path) -> str:
    """The picture of what comes from what, drawn from the registry."""
    from saema_utils.publishing.graph import draw_results, graph_of_results

    graph = graph_of_results()
    figures.mkdir(parents=True, exist_ok=True)
    draw_results(graph, figures / "graph_of_results.svg")
    alt = (
        f"The {len(graph)} results of a run as boxes in one band a chapter, with a line from each to those made from "
        "it. Most lines start at the activations of concepts and of the corpus or at the autoencoder, and run right."
    )
    caption = (
        "What is made from what? Every result of a run, in one band a chapter; a line leads from a result to those "
        "that are made from it. What stands at the left edge needs no other result."
    )
    return f"```{{figure}} ../figures/graph_of_results.svg\n:name: fig-graph\n:alt: {alt}\n\n{caption}\n```"


# ---- the package -----------------------------------------------------------------------------------


def write_api_pages(folder: Path, root: Path) -> list[str]:
    """A page for each folder and each module beside them, filled from docstrings; returns the names of the pages.

    ``fragments/folders.md`` lists them from the ground up. Sphinx's autosummary would name pages that the table of
    contents does not list, and jupyter-book builds no others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place in from_the_ground_up(root):
        path = PACKAGE_DIR.joinpath(*place.split("."))
        modules = sorted(path.glob("[!_]*.py")) if path.is_dir() else [path.with_suffix(".py")]
        page, summary = place.replace(".", "-"), _docstring(path / "__init__.py" if path.is_dir() else modules[0])
        inside = ", ".join(f"`{module.stem}`" for module in modules if path.is_dir())
        rows.append([f"[{place}](api/{page}.rst)", in_markdown(" ".join(summary.split("\n\n")[0].split())), inside])
        # reStructuredText, in which docstrings are written: their footnotes do not survive inside Markdown.
        text = [place, "=" * len(place), "", *([summary, ""] if path.is_dir() else [])]
        for module in modules:
            name = ".".join(module.relative_to(PACKAGE_DIR.parent).with_suffix("").parts)
            source = address.source_url(module.relative_to(PACKAGE_DIR.parent).as_posix())
            link = [f"`On the web <{source}>`__", ""] if address.is_set() else []
            heading = [module.stem, "-" * len(module.stem), ""] if path.is_dir() else []
            text += [*heading, *link, f".. automodule:: {name}", "   :members:"]
            text += ["   :ignore-module-all:", ""]
        (folder / f"{page}.rst").write_text("\n".join(text), encoding="utf-8")
    fragments = folder.parent / "fragments"
    fragments.mkdir(exist_ok=True)
    table = markdown_table(["Folder", "What it answers", "Its modules"], rows)
    (fragments / "folders.md").write_text(table, encoding="utf-8")
    return [row[0].partition("(api/")[2].removesuffix(".rst)") for row in rows]


def from_the_ground_up(root: Path) -> list[str]:
    """Folders and modules of the package as the contract in ``pyproject.toml`` lists them, the lowest first.

    The folder of each chapter follows ``chapters``.
    """
    file = root / "pyproject.toml"
    text = (file if file.exists() else PACKAGE_DIR.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = []
    for contract in tomllib.loads(text)["tool"]["importlinter"]["contracts"][:2]:
        inside = contract["containers"][0].removeprefix("saema_utils").lstrip(".")
        names = [name for layer in reversed(contract["layers"]) for name in re.findall(r"\w+", layer)]
        found.append([f"{inside}.{name}".lstrip(".") for name in names if not name.startswith("_")])
    folders, chapters = found
    after = folders.index("chapters") + 1
    return [*folders[:after], *(c for c in chapters if (PACKAGE_DIR / c.replace(".", "/")).is_dir()), *folders[after:]]


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
