"""The generated part of the README: the scorecard in a few lines and the chapters with their times.

``python -m saema_utils.publishing.readme RUN_DIR`` copies the scorecard of a finished run to
``book/default_claims.csv`` and rewrites the text between the markers from it; a test holds the two
together.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from saema_utils.errors import BookError, SaemaError
from saema_utils.publishing.address import colab_url
from saema_utils.publishing.execution import chapter_notebooks, read_notebook

if TYPE_CHECKING:
    import pandas as pd

START, END = "<!-- generated: start -->", "<!-- generated: end -->"
CLAIMS, TIMES = "book/default_claims.csv", "book/default_times.json"
HEADINGS = {"supported": "Held up", "not supported": "Did not hold up", "inconclusive": "Cannot be told yet"}


def scorecard_lines(card: pd.DataFrame) -> str:
    """The verdicts in a few lines, and each statement with its effect in a table that folds away."""
    rules = "`saema_utils/evidence/claims.yaml`"
    lines = [f"Of {len(card)} statements of the paper or about it, judged by the rules of {rules}:", ""]
    for verdict, heading in HEADINGS.items():
        ids = card.loc[card["verdict"] == verdict, "claim"]
        lines.append(f"- **{heading} ({len(ids)})**: {', '.join(ids) or 'none'}")
    lines += ["", "<details><summary>Every statement with its effect</summary>", ""]
    lines += ["| statement | effect (95 % interval) | needed | verdict |", "| --- | --- | --- | --- |"]
    for row in card.itertuples():
        sign = ">" if row.direction == "greater" else "<"
        effect = f"{row.estimate:.2g} ({row.low:.2g} to {row.high:.2g})"
        lines.append(f"| {row.statement} | {effect} | {sign} {row.margin:g} | {row.verdict} |")
    return "\n".join([*lines, "", "</details>"])


def chapter_lines(root: Path, seconds: dict[str, float]) -> str:
    """The table of chapters: title, Colab link, measured time."""
    lines = ["| chapter | what it shows | rerun | measured |", "| --- | --- | --- | --- |"]
    for number, path in chapter_notebooks(root).items():
        title = read_notebook(path).cells[0].source.splitlines()[0].removeprefix("# ")
        took = f"{seconds[path.stem]:.0f} s" if seconds.get(path.stem) else "optional"
        lines.append(f"| {number} | {title} | [Colab]({colab_url(f'notebooks/{path.name}')}) | {took} |")
    total = sum(seconds.values()) / 60
    return "\n".join([*lines, "", f"Together {total:.0f} minutes on the machine that made the tables below."])


def figure_lines(root: Path) -> str:
    """Every figure of the book with the command that makes it, in a table that folds away."""
    lines = ["<details><summary>Every figure and the command that makes it</summary>", ""]
    lines += ["| figure | what it asks | command |", "| --- | --- | --- |"]
    for chapter, path in chapter_notebooks(root).items():
        command = f"saema run --chapters {f'1-{chapter}' if chapter > 1 else 1}"
        for cell in read_notebook(path).cells:
            made = re.search(r'show\(\s*run,\s*"(\w+)"', cell.source)
            caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
            if made and caption:
                lines.append(f"| `{made[1]}` | {caption.partition('?')[0]}? | `{command}` |")
    return "\n".join([*lines, "", "</details>"])


def generated(root: Path) -> str:
    """The text between the markers, from the committed scorecard and times."""
    import pandas as pd

    card = pd.read_csv(root / CLAIMS)
    seconds = json.loads((root / TIMES).read_text(encoding="utf-8"))
    chapters = f"{chapter_lines(root, seconds)}\n\n{figure_lines(root)}"
    return f"\n{chapters}\n\n## What held up\n\n{scorecard_lines(card)}\n"


def between_markers(text: str) -> tuple[str, str, str]:
    """The README before, between and after the markers."""
    before, start, rest = text.partition(START)
    middle, end, after = rest.partition(END)
    if not start or not end:
        raise BookError(f"README.md lacks {START} or {END}; put both back around the generated part.")
    return before + start, middle, end + after


def refresh(root: Path, run_path: Path) -> None:
    """Take scorecard and times from a finished run and rewrite the README's generated part."""
    manifest = json.loads((run_path / "manifest.json").read_text(encoding="utf-8"))
    shutil.copyfile(run_path / "tables/07_claims.csv", root / CLAIMS)
    seconds = {name: round(facts["seconds"]) for name, facts in manifest["chapters"].items()}
    (root / TIMES).write_text(json.dumps(seconds, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    readme = root / "README.md"
    before, _, after = between_markers(readme.read_text(encoding="utf-8"))
    readme.write_text(before + generated(root) + after, encoding="utf-8")


if __name__ == "__main__":
    try:
        refresh(Path.cwd(), Path(sys.argv[1] if len(sys.argv) > 1 else "runs/smollm2-135m"))
    except (SaemaError, OSError) as error:
        sys.exit(f"saema: {error}")
