"""What every notebook calls: open the run, show a figure, a table, a finding."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import StudyError
from saema_utils.interactive import publishing
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.files import read_json, user_path
from saema_utils.runs.freshness import digest
from saema_utils.study import DEFAULT_STUDY, STUDIES, Study, get_study
from saema_utils.wording import format_number, heading, in_words, true_minus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Libraries ask for a widget toolkit when they are imported; published pages have no widgets and no warnings.
warnings.filterwarnings("ignore", message="IProgress not found")

NUMBERED = ("latent", "seed")  # columns whose numbers name something: no thousands are set apart
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
    """Save a figure to the run as SVG and PNG, and show the SVG in the page."""
    from IPython.display import SVG

    return SVG(filename=str(run.save_figure(name, figure)))


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
    numbers = f" *{shows}*" if shows else ""
    if holds:
        return Markdown(f"**{sentence}**{numbers}")
    if _study is not None and not is_the_books(_study):
        numbers += f" (The sentence is about the book's study; this one is {_study.name}.)"
    if holds is None:
        return Markdown(f"*This run cannot tell whether:* {sentence}{numbers}")
    return Markdown(f"*Here this run differs from the sentence* “{sentence}”{numbers}")


def table(frame: Any, caption: str = "", digits: int = 3, html_columns: tuple[str, ...] = ()) -> Any:
    """A small table of the page, rounded for reading and in words; the CSV keeps every digit and its own names.

    Text is escaped, except in ``html_columns``, which the package itself has written. Over a heading stands the name
    that the column has in the data.
    """
    from html import escape

    from IPython.display import HTML

    def shown(value: Any) -> str:
        value = getattr(value, "item", lambda: value)()
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float) and abs(value) < 1e-12:
            return "0"
        if isinstance(value, str):
            return escape(true_minus(in_words(value))).replace("_", "_<wbr>")  # a long name may break
        return escape(format_number(value, digits))

    def above(column: str) -> str:
        return f"<span title='{escape(column)}'>{escape(heading(column))}</span>"

    numeric = [f"tr > :nth-child({n})" for n, kind in enumerate(frame.dtypes, 1) if kind.kind in "iuf"]
    styler = frame.reset_index(drop=True).style.hide(axis="index").format_index(above, axis="columns")
    how = dict.fromkeys(frame, shown) | dict.fromkeys(NUMBERED, str) | dict.fromkeys(html_columns)
    styler = styler.format({name: how[name] for name in frame}, na_rep="–")
    to_the_right = "text-align: right !important; white-space: nowrap; min-width: 0"
    styler = styler.set_table_styles([{"selector": place, "props": to_the_right} for place in numeric])
    styler.cell_ids = False
    body = styler.to_html(table_uuid=digest([caption, frame.to_csv()]), table_attributes="class='saema-table'")
    title = f"<p class='saema-table-caption'>{without_nan(caption)}</p>" if caption else ""
    return HTML(f"<div class='saema-table-wrap'>{title}{body}</div>")
