"""What every notebook calls: open the run, show a figure, a table, a finding."""

from __future__ import annotations

import itertools
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import StudyError
from saema_utils.interactive import publishing
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.files import PNG_DPI, read_json, user_path
from saema_utils.study import DEFAULT_STUDY, STUDIES, Study, get_study
from saema_utils.wording import SIGNS, format_number, heading, in_prose, in_words, signed, told

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from nbformat import NotebookNode

# Libraries ask for a widget toolkit when they are imported; published pages have no widgets and no warnings.
warnings.filterwarnings("ignore", message="IProgress not found")

NUMBERED = ("latent", "seed")  # columns whose numbers name something: no thousands are set apart
JUDGED = ("reproduces", "holds_up", "verdict", "change", "called", "on the mean", "on the next one")
P_VALUES = ("p_", "_p")  # how names of columns begin or end that hold them: one may be as small as it likes
REMARKS = ("reason", "left_out")  # columns in which something stands only where there is something to say
ROWS_IN_SIGHT = 12
# What a table needs where the book's own style is not: notebooks set every cell to the right.
ALIGNED = (
    "<style>.saema-table th, .saema-table td {text-align: left !important; vertical-align: top} "
    ".saema-table .number {text-align: right !important} .saema-table td.number {white-space: nowrap}</style>"
)
CHAPTERS = range(1, 10)  # 8 and 9 are run when asked for: make book-full
_study: Study | None = None  # that of the run which this notebook has opened: findings are about the book's


def in_colab() -> bool:
    return "google.colab" in sys.modules


def resolve_study(name: str = "auto", seed: int | None = None) -> Study:
    """A study from a registered name, from a study file (``.json``), the name of a run in ``runs/``, or ``auto``.

    ``auto`` is the default study, except on a Colab machine without a GPU, which gets ``smoke``.
    """
    if name == "auto":
        name = DEFAULT_STUDY
        if in_colab():
            from saema_utils.runtime import choose_device

            name = DEFAULT_STUDY if choose_device().type != "cpu" else "smoke"
    own = runs_folder() / name / "study.json"
    if name not in STUDIES and not name.endswith(".json") and own.is_file():
        study = read_study_file(own)
    else:
        study = read_study_file(user_path(name)) if name.endswith(".json") else get_study(name)
    return study if seed is None or seed == study.seed else study.changed(seed=seed)


def read_study_file(path: Path) -> Study:
    """Read a study from JSON: all its fields, or ``{"base": NAME, ...changes}``."""
    plain = read_json(path, "a study", "Give a mapping of field names to values.", StudyError)
    if "base" in plain:
        base = plain.pop("base")
        if not isinstance(base, str):
            raise StudyError(f"study file {path} has a base that is a {type(base).__name__}; allowed: a study's name.")
        return get_study(base).changed(**plain)
    return Study.from_dict(plain)


def parse_chapters(text: str) -> tuple[int, ...]:
    """Chapters from text such as ``3``, ``1-3`` or ``1,3-5``.

    >>> parse_chapters("1,3-5")
    (1, 3, 4, 5)
    """
    chosen: set[int] = set()
    for part in text.split(","):
        # One or two digits: a longer number is no chapter, and its range would fill the memory.
        match = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part)
        chosen.update(range(int(match[1]), int(match[2] or match[1]) + 1) if match else {0})
    if not chosen or not chosen <= set(CHAPTERS):
        raise StudyError(f"chapters is {text!r}; allowed: {CHAPTERS[0]} to {CHAPTERS[-1]}, such as 3, 1-3 or 1,3-5.")
    return tuple(sorted(chosen))


def open_run(study: str = "auto", run_dir: str = "", device: str = "auto", seed: int | None = None) -> RunDirectory:
    """The run that a notebook works in; ``run_dir`` defaults to ``runs/<study>`` of the project.

    Every name is checked before anything heavy happens. Outside the book it says in a line which study this is.
    """
    global _study
    for name, value, kind in (("study", study, str), ("run_dir", run_dir, str | Path), ("device", device, str)):
        if not isinstance(value, kind):
            raise StudyError(f"parameter {name} is {value!r}; allowed: text. Put it in quotes and run again.")
    resolved = resolve_study(study, seed)
    run = RunDirectory(run_dir or default_run_dir(resolved), resolved, device=device)
    _study = resolved
    if not publishing():
        print(opening_line(run, chosen=study == "auto"))
    return run


def opening_line(run: RunDirectory, chosen: bool = False) -> str:
    """Which study a notebook runs, on what, and what that means for its numbers."""
    if is_the_books(run.study):
        return (
            f"Study {run.study.name}, the book's, on {run.device}. "
            "Numbers will differ from the book's a little, as they do between machines."
        )
    why = " ('auto' chooses it where there is no GPU)" if chosen and run.study.name != DEFAULT_STUDY else ""
    return (
        f"Study {run.study.name} on {run.device}{why}: not the book's. "
        "Numbers will differ from the book's, and some findings with them; those say so."
    )


def is_the_books(study: Study) -> bool:
    """Whether it is the default study, with all its choices."""
    return study.digest == STUDIES[DEFAULT_STUDY].digest


def default_run_dir(study: Study) -> Path:
    """``runs/<study>`` beside the notebooks folder, wherever the notebook was started from."""
    return runs_folder() / study.name


def runs_folder() -> Path:
    """``runs/`` of the project."""
    here = Path.cwd()
    return (here.parent if here.name == "notebooks" else here) / "runs"


def show(run: RunDirectory, name: str, figure: Figure) -> Any:
    """Save a figure to the run as SVG and PNG, and show it: the page takes the SVG; Jupyter, which draws no SVG in a
    notebook that it did not run, the PNG."""
    return _Drawn(run.save_figure(name, figure))


class _Drawn:
    """A figure on disk, in both of its forms and at one size."""

    def __init__(self, svg: Path) -> None:
        self.svg = svg

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        import base64

        from IPython.display import SVG

        png = self.svg.with_suffix(".png").read_bytes()
        across = int.from_bytes(png[16:20])  # of the header, in dots; a page counts 96 an inch
        forms = {
            "text/plain": f"Figure {self.svg.stem}",
            "image/svg+xml": SVG(filename=str(self.svg)).data,
            "image/png": base64.b64encode(png).decode(),
        }
        return forms, {"image/png": {"width": round(across * 96 / PNG_DPI)}}


DIFFERS = "*Here this run differs from the sentence* "
_NAN = re.compile(r"[+-]?\bnan\b(?: ?[%°])?", re.IGNORECASE)


def without_nan(text: str) -> str:
    """A text in which numbers that are missing read ``no value``."""
    from saema_utils.statistics import NO_VALUE

    return _NAN.sub(NO_VALUE, text)


def as_told(holds: object, shows: str) -> tuple[bool | None, str]:
    """Whether a run bears a sentence out, and its line as a page shows it.

    A line that lacks a number or an interval tells nothing: comparisons with what is missing are false, and false is
    not what the run found.
    """
    from saema_utils.statistics import NO_INTERVAL, NO_VALUE

    shows = without_nan(shows)
    if holds is None or NO_VALUE in shows or NO_INTERVAL in shows:
        return None, shows
    return bool(holds), shows


def finding(sentence: str, *, holds: bool | None, shows: str = "") -> Any:
    """A sentence that a person wrote, shown with its numbers if the run bears it out.

    Parameters
    ----------
    sentence
        The finding, without numbers.
    holds
        Whether this run shows it; None where it has nothing to show it with (a concept too few, say).
    shows
        The numbers, in one short line. Where one of them or its interval is missing, the run cannot tell
        (:func:`as_told`).
    """
    from IPython.display import Markdown

    holds, shows = as_told(holds, shows)
    numbers = f" *{told(shows)}*" if shows else ""
    if holds:
        return Markdown(f"**{sentence}**{numbers}")
    if _study is not None and not is_the_books(_study):
        numbers += f" (The sentence is about the book's study; this one is {_study.name}.)"
    if holds is None:
        return Markdown(f"*This run cannot tell whether:* {sentence}{numbers}")
    return Markdown(f"{DIFFERS}“{sentence}”{numbers}")


def not_borne_out(notebook: NotebookNode) -> list[str]:
    """The sentences of findings that an executed chapter does not bear out."""
    said = (o.get("data", {}).get("text/markdown", "") for cell in notebook.cells for o in cell.get("outputs", []))
    return [text.removeprefix(DIFFERS)[1:].partition("”")[0] for text in said if text.startswith(DIFFERS)]


def table(frame: Any, caption: str = "", digits: int = 3, html_columns: tuple[str, ...] = ()) -> Any:
    """A small table of the page, rounded for reading and in words; the CSV keeps every digit and its own names.

    What judges stands behind the columns that tell the rows apart, with its sign. Of a long table the first dozen rows
    are in sight, the others fold. Every cell knows its heading, so that a narrow page can show a card a row; over a
    heading stands the name that the column has in the data. Text is escaped, except in ``html_columns``, which the
    package itself has written.
    """
    from html import escape

    from IPython.display import HTML

    frame = frame.reset_index(drop=True)
    frame = frame[[name for name in frame if name not in REMARKS or frame[name].notna().any()]]
    judged = [name for name in JUDGED if name in frame and set(frame[name].dropna()) <= set(SIGNS)]
    order = verdicts_first(frame, judged)
    kinds = {name: "number" for name in order if frame[name].dtype.kind in "iuf"} | dict.fromkeys(judged, "verdict")

    def shown(name: str, value: Any) -> str:
        value = getattr(value, "item", lambda: value)()
        if value is None or value != value:
            return "–"
        if name in html_columns:
            return value
        if name in NUMBERED:
            return escape(str(value))
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float) and abs(value) < 1e-12 and not ({"p", *P_VALUES} & {name, name[:2], name[-2:]}):
            return "0"  # but for rounding
        if isinstance(value, str):
            value = signed(value) if name in judged else in_prose(in_words(value))
            return escape(value).replace("\n", "↵").replace("_", "_<wbr>")  # a long name may break
        return escape(format_number(value, digits))

    def cell(tag: str, name: str, inside: str, **facts: str) -> str:
        said = {**facts, "class": kinds.get(name, "")}
        attributes = "".join(f" {fact}='{escape(value)}'" for fact, value in said.items() if value)
        return f"<{tag}{attributes}>{inside}</{tag}>"

    def rows(part: Any) -> str:
        columns = [[cell("td", n, shown(n, v), **{"data-label": heading(n)}) for v in part[n]] for n in order]
        body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in zip(*columns, strict=True))
        above = "".join(cell("th", n, escape(heading(n)), scope="col", title=n) for n in order)
        return (
            f"<div class='saema-scroll'><table class='saema-table'>\n<thead><tr>{above}</tr></thead>\n"
            f"<tbody>\n{body}</tbody></table></div>"
        )

    title = f"<p class='saema-table-caption'>{in_prose(without_nan(caption))}</p>" if caption else ""
    rest = frame[ROWS_IN_SIGHT:]
    many = f"{len(rest):,} more rows" if len(rest) > 1 else "one more row"
    folded = f"<details><summary>{many}</summary>{rows(rest)}</details>" if len(rest) else ""
    return HTML(f"<div class='saema-table-wrap'>{ALIGNED}{title}{rows(frame[:ROWS_IN_SIGHT])}{folded}</div>")


def verdicts_first(frame: Any, judged: Sequence[str]) -> list[str]:
    """The columns of a table with those that judge behind the fewest leading ones that tell its rows apart.

    Measured numbers tell no rows apart, however they differ; where what leads is not enough, all of it goes before.
    """
    others = [name for name in frame if name not in judged]
    leading = list(itertools.takewhile(lambda name: frame[name].dtype.kind != "f", others))
    enough = (n for n in range(1, len(leading)) if not frame[leading[:n]].astype(str).duplicated().any())
    keys = next(enough, len(leading))
    return [*others[:keys], *judged, *others[keys:]]
