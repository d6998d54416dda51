"""Build the book: mirror the sources, put the executed notebooks and the measured numbers in, run Sphinx.

Sphinx never sees the repository itself (it would read ``.venv``) and never executes anything. The
site replaces the previous one only when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.chapters import OF_A_RUN
from saema_utils.errors import TERMINAL_CODE, ArtifactError, BookError
from saema_utils.interactive import without_page
from saema_utils.notebook import is_the_books, not_borne_out
from saema_utils.publishing import address, fragments, terms
from saema_utils.publishing.cleaning import clean_notebook, default_build_paths
from saema_utils.publishing.execution import chapter_notebooks, find_root, import_path, is_done
from saema_utils.runs.directory import RunDirectory, read_manifest
from saema_utils.runs.files import write_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

BADGES = "<!-- badges -->"
# What a notebook says of its time, for those who open it elsewhere; a page says what was measured.
TIME = re.compile(r"<!-- time -->[^\n]*")
OPENING = re.compile(r"<!-- opening: (\w+) -->")
RULES = tuple(f"saema_utils/evidence/{name}.yaml" for name in ("claims", "claims_added"))
COPIED = ("book", "_toc.yml", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", *RULES)
# The notebooks that pages hand out: Sphinx copies what is in here beside the pages.
HANDED_OUT = "handed_out"
NO_NUMBER = "(not measured in this run)"
# A link to another page or chapter, which a notebook that is handed out alone does not have beside it.
NEIGHBOUR = re.compile(r"(?<!!)\[([^\[\]]+)\]\((\.\./)?(?!https?:|#)([^)]+)\)")
# Cells that the page shows on demand: how they fold, and what the fold says.
FOLDED = {
    "parameters": ("hide-input", "Parameters of this chapter"),
    "setup": ("hide-input", "Setup"),
    "solution": ("hide-cell", "Show the solution"),
}
# What Colab writes over a cell that it folds; a page folds it in its own way.
FORM_TITLE = re.compile(r"\A# @title .*\n+")
SUBSTITUTION = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")


@dataclass(frozen=True)
class BuildReport:
    """What a build made: seconds, pages, bytes of the site and of its heaviest page, numbers it lacked."""

    seconds: float
    pages: int
    site_bytes: int
    heaviest_page: str
    heaviest_bytes: int
    missing_numbers: list[str]

    def __str__(self) -> str:
        line = (
            f"{self.pages} pages, {self.site_bytes / 1e6:.1f} MB in all, built in {self.seconds:.0f} s; "
            f"heaviest page {self.heaviest_page} ({self.heaviest_bytes / 1e6:.2f} MB)"
        )
        missing = ", ".join(self.missing_numbers)
        return line + (f"; numbers that this run did not measure: {missing}" if missing else "")


def build_book(
    run: RunDirectory,
    *,
    root: Path | None = None,
    build_dir: Path | None = None,
    allow_stale: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Build the HTML book from the executed notebooks of a run.

    Parameters
    ----------
    run
        A run whose chapters are done.
    root
        The repository; found when not given.
    build_dir
        Where staging tree and site go; ``_build`` of the repository when not given.
    allow_stale
        Also publish chapters that were executed from older sources.
    say
        Receives one line on page weight and build time, and one on each sentence that the book's own study does not
        bear out.

    Returns
    -------
    Path of ``html/index.html`` in the build folder.

    Raises
    ------
    BookError
        If a chapter was not executed, shows what a page must not show, or Sphinx warns. The
        previous site is then left as it was.
    """
    root = (root or find_root()).resolve()
    build = (build_dir or root / "_build").resolve()
    started = time.perf_counter()
    staging, work = build / "staging", build / "work"
    for folder in (staging, work):
        shutil.rmtree(folder, ignore_errors=True)
    missing = stage(run, root, staging, allow_stale=allow_stale, say=say)
    _sphinx(staging, work, build / "sphinx.log")
    fresh, site, old = work / "_build" / "html", build / "html", build / "html.old"
    _mend_roles(fresh)
    terms.explain_on_hover(fresh)
    shutil.rmtree(old, ignore_errors=True)
    if site.exists():
        os.replace(site, old)
    os.replace(fresh, site)
    for folder in (old, work):
        shutil.rmtree(folder, ignore_errors=True)
    report = weigh(site, time.perf_counter() - started, missing)
    write_json(build / "report.json", asdict(report))
    say(str(report))
    return site / "index.html"


def last_finished(folder: Path) -> RunDirectory:
    """Of the runs in a folder that have executed all chapters of a book, the one whose last chapter is youngest.

    Raises
    ------
    BookError
        If none has.
    """
    ends: dict[Path, str] = {}
    for path in sorted(manifest.parent for manifest in folder.glob("*/manifest.json")):
        with contextlib.suppress(ArtifactError):  # a run whose manifest is damaged is no finished one
            chapters = read_manifest(path).get("chapters", {})
            if {int(name[:2]) for name in chapters} >= set(OF_A_RUN):
                ends[path] = max(chapter.get("finished", "") for chapter in chapters.values())
    if not ends:
        raise BookError(f"no run in {folder} has executed chapters 1 to {OF_A_RUN[-1]}. Run: saema run")
    return RunDirectory.at(max(ends, key=lambda path: ends[path]))


def stage(run: RunDirectory, root: Path, staging: Path, *, allow_stale: bool, say: Callable[[str], None]) -> list[str]:
    """Write the tree that Sphinx reads; returns names of numbers that pages quote and the run lacks."""
    import yaml

    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, staging / name, dirs_exist_ok=True)
        elif source.exists():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, staging / name)
    for name in ("figures", "tables"):
        if (run.path / name).is_dir():
            shutil.copytree(run.path / name, staging / name, ignore=shutil.ignore_patterns(".*", "parts"))
    (staging / "book" / "static").mkdir(parents=True, exist_ok=True)
    shutil.copy(str(files("plotly") / "package_data" / "plotly.min.js"), staging / "book" / "static")
    toc = _stage_notebooks(run, root, staging, allow_stale, say)
    fragments.write_fragments(run, staging / "book" / "fragments", staging)
    api_pages = fragments.write_api_pages(staging / "book" / "api", root)
    for part in toc["parts"]:
        for entry in part["chapters"]:
            if entry["file"] == "book/api":
                entry["sections"] = [{"file": f"book/api/{name}"} for name in api_pages]
    (staging / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    numbers = fragments.numbers(run)
    quoted = {
        name for page in (staging / "book").rglob("*.md") for name in SUBSTITUTION.findall(page.read_text("utf-8"))
    }
    missing = sorted(quoted - set(numbers))
    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    config.setdefault("parse", {})["myst_substitutions"] = {**dict.fromkeys(missing, NO_NUMBER), **numbers}
    if address.is_set():
        config["repository"] = {"url": address.repository_url(), "branch": address.BRANCH, "path_to_book": ""}
    else:
        config["html"] = config.get("html", {}) | {"use_repository_button": False, "use_issues_button": False}
        config["launch_buttons"] = {}
    (staging / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return missing


def _stage_notebooks(
    run: RunDirectory, root: Path, staging: Path, allow_stale: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Clean and copy the executed chapters; returns the table of contents that lists exactly these.

    An optional chapter is published when it was run; one that was run from other sources is left out, and named.
    """
    import nbformat
    import yaml

    sources = chapter_notebooks(root)
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    parts = (part["chapters"] for part in toc["parts"])
    listed = next((part for part in parts if any(entry["file"].startswith("notebooks/") for entry in part)), None)
    if listed is None:
        raise BookError(f"{root / '_toc.yml'} lists no notebook. Put the chapters into one of its parts.")
    by_file = {f"notebooks/{path.stem}": number for number, path in sources.items()}
    for entry in listed:
        if entry["file"] not in by_file:
            raise BookError(f"_toc.yml lists {entry['file']}, but there is no such notebook. Correct the name.")
    required = {by_file[entry["file"]] for entry in listed}
    executed = {n for n in set(sources) - required if (run.path / "notebooks" / sources[n].name).exists()}
    optional = {n for n in executed if allow_stale or is_done(run, root, n)}
    for number in sorted(executed - optional):
        again = run.again(str(number))
        say(f"Chapter {number} is left out: it was executed from older sources than these. Run: {again}")
    chosen = sorted(required | optional)
    forbidden = [*default_build_paths(), root, run.path]
    glossary = terms.read_terms(root / "book" / "glossary.md")
    handed_out = staging / HANDED_OUT / "notebooks"
    for folder in (staging / "notebooks", handed_out):
        folder.mkdir(parents=True, exist_ok=True)
    for number in chosen:
        source = _executed(run, root, sources[number].name, number, allow_stale)
        try:
            cleaned = clean_notebook(nbformat.read(source, as_version=4), build_paths=forbidden)
        except BookError as error:
            raise BookError(f"chapter {number} ({source.stem}) cannot be published: {error}") from error
        for sentence in not_borne_out(cleaned) if is_the_books(run.study) else ():
            say(f"Chapter {number} says of the book's own study what this run does not find: “{sentence}”")
        nbformat.write(with_captions(cleaned, number), handed_out / source.name)
        prepare_page(cleaned, run, source.stem, glossary)
        nbformat.write(cleaned, staging / "notebooks" / source.name)
    listed[:] = [{"file": f"notebooks/{sources[number].stem}"} for number in chosen]
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]
    return toc


def _executed(run: RunDirectory, root: Path, name: str, number: int, allow_stale: bool) -> Path:
    command = f"Run: {run.again(str(number))}"
    path = run.path / "notebooks" / name
    if not path.exists():
        raise BookError(f"chapter {number} ({path.stem}) was not executed in {run.path}. {command}")
    if not allow_stale and not is_done(run, root, number):
        raise BookError(f"chapter {number} ({path.stem}) was executed from older sources than these. {command}")
    return path


def with_captions(notebook: NotebookNode, chapter: int) -> NotebookNode:
    """A copy of a cleaned chapter to be read elsewhere, in Colab say: under each figure stand its number and caption,
    which a page takes from the cell, figures to hover over do without the page's script, and links to other pages lead
    to the book's address, or are plain words where it has none.
    """
    import copy

    from nbformat.v4 import new_output

    copied, number = copy.deepcopy(notebook), 0
    for cell in copied.cells:
        if cell.cell_type == "markdown":
            cell.source = NEIGHBOUR.sub(_by_address, cell.source)
        caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption")
        for output in cell.get("outputs", []):
            if shown := without_page(output.get("data", {}).get("text/html", "")):
                output.data = shown
        if caption and any({"image/svg+xml", "text/html"} & set(o.get("data", {})) for o in cell.outputs):
            number += 1
            said = f"**Fig. {chapter}.{number}** {caption}"
            cell.outputs.append(new_output("display_data", data={"text/markdown": said, "text/plain": said}))
    return copied


def _by_address(link: re.Match[str]) -> str:
    """A link of a notebook, relative to the folder of notebooks, as one that leads there from anywhere."""
    words, up, place = link.groups()
    return f"[{words}]({address.source_url(place if up else f'notebooks/{place}')})" if address.is_set() else words


def prepare_page(
    notebook: NotebookNode, run: RunDirectory, name: str, glossary: Mapping[str, str] | None = None
) -> None:
    """Make a cleaned chapter a page: badge, times and opening figure filled in, first uses of glossary terms
    linked, plumbing and solutions folded.
    """
    badge = address.colab_badge(f"notebooks/{name}.ipynb", "../book/static/colab.svg") if address.is_set() else ""
    record = run.manifest().get("chapters", {}).get(name)
    time_line = fragments.time_needed(notebook, record)
    terms.link_first_uses(notebook, glossary or {})  # before the opening figure, whose caption comes again below
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = TIME.sub(lambda _: time_line, cell.source.replace(BADGES, badge))
            cell.source = OPENING.sub(lambda found: fragments.opening_figure(notebook, found[1], run), cell.source)
            continue
        cell.source = FORM_TITLE.sub("", cell.source)
        tags = cell.metadata.get("tags", [])
        for tag in set(tags) & set(FOLDED):
            folding, prompt = FOLDED[tag]
            cell.metadata["tags"] = [*tags, *({folding} - set(tags))]
            cell.metadata.setdefault("mystnb", {})["code_prompt_show"] = prompt


def _sphinx(staging: Path, work: Path, log: Path) -> None:
    """Run jupyter-book, warnings as errors; its whole output goes to ``log``."""
    program = Path(sys.executable).with_name("jupyter-book")
    if not program.exists():
        raise BookError(f"jupyter-book is not installed beside {sys.executable}. Run: pip install 'saema_utils[book]'")
    command = [str(program), "build", str(staging), "--path-output", str(work), "--keep-going", "-W", "-n"]
    environment = {**os.environ, "PYTHONPATH": import_path(), "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=staging, capture_output=True, text=True, env=environment, check=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    output = TERMINAL_CODE.sub("", done.stdout + done.stderr)
    log.write_text(output, encoding="utf-8")
    if done.returncode or not (work / "_build" / "html" / "index.html").exists():
        complaints = [
            line.strip() for line in output.splitlines() if re.search(r"WARNING|ERROR|[Ee]xception|Error:", line)
        ]
        first = (complaints or ["no message"])[0].replace(f"{staging}{os.sep}", "")
        raise BookError(f"the book does not build cleanly ({len(complaints)} complaints). First: {first} | All: {log}")


def _mend_roles(site: Path) -> None:
    """Sphinx calls its citations a list whose entries are no list items: a screen reader finds it empty."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        mended = text.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        if mended != text:
            page.write_text(mended, encoding="utf-8")


def weigh(site: Path, seconds: float, missing: list[str]) -> BuildReport:
    """Count pages and bytes of a built site."""
    sizes = {path: path.stat().st_size for path in site.rglob("*") if path.is_file()}
    pages = {path: size for path, size in sizes.items() if path.suffix == ".html"}
    heaviest = max(pages, key=lambda path: pages[path])
    name = heaviest.relative_to(site).as_posix()
    return BuildReport(round(seconds, 1), len(pages), sum(sizes.values()), name, pages[heaviest], missing)
