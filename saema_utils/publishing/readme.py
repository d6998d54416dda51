"""The generated parts of the README: the answer, the chapters with their times, and the scorecard.

``python -m saema_utils.publishing.readme RUN_DIR`` copies the scorecard of a finished run to ``book/`` (that of the
confirmatory study beside the default's) and rewrites the text between the markers from both; without a run it rewrites
it from what is committed. A test holds them together. The sentences of the answer were written by a person, and the run
checks them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saema_utils.errors import BookError, SaemaError
from saema_utils.notebook import finding
from saema_utils.publishing import address
from saema_utils.publishing.confirmation import CLAIMS, CONFIRMATORY, on_a_second_model, read_card
from saema_utils.publishing.execution import chapter_notebooks, read_notebook
from saema_utils.statistics import with_interval
from saema_utils.study import CONFIRMATORY_STUDY
from saema_utils.wording import in_prose

if TYPE_CHECKING:
    import pandas as pd

    from saema_utils.chapters.found import Found

    Check = Callable[[pd.DataFrame, pd.DataFrame | None], Found]

TIMES = "book/default_times.json"
DESCRIPTIVE = ("07_rank_values", "07_geometry_values")
CAUSAL = ("correlation", "cause-after-training", "worth-after-training", "gradient", "cause-during-training")


# ---- the answer ------------------------------------------------------------------------------------


def protocol_comes_back(card: pd.DataFrame, signs: pd.DataFrame | None) -> Found:
    """Whether most of the paper's own measures show what it says, and show it for a random dictionary as well.

    Without the ``signs`` of the replay only the first is asked.
    """
    from saema_utils.chapters.found import Count, Found
    from saema_utils.chapters.scorecard.findings import come_back
    from saema_utils.evidence.replay import SIGNS

    own = come_back(card)
    if signs is None:
        return own
    published = (signs["prompts"] == "authors") & (signs["recipe"] == "as published")
    random = Count.true(signs.loc[published & (signs["coder"] == "random_dictionary"), "sign"] == SIGNS[0])
    return Found(own.holds and 2 * random.n > random.of, f"{own.shows} · random dictionary {random}")


def nothing_was_learned(card: pd.DataFrame, signs: pd.DataFrame | None) -> Found:
    """Whether no claim about ranks or geometry is supported."""
    from saema_utils.chapters.scorecard.findings import none_supported
    from saema_utils.evidence.claims import load_claims

    names = [claim.id for claim in load_claims() if claim.units in DESCRIPTIVE]
    return none_supported(card[card["claim"].isin(names)])


def separation_does_not_help(card: pd.DataFrame, signs: pd.DataFrame | None) -> Found:
    """Whether the best dose is worth less than its margin, and no claim that separation helps is supported."""
    from saema_utils.chapters.found import Found
    from saema_utils.chapters.scorecard.findings import none_supported
    from saema_utils.evidence.verdicts import NO_EFFECT

    found = none_supported(card[card["claim"].isin(CAUSAL)])
    worth = card.set_index("claim").loc["worth-after-training"]
    shows = f"share of the error removed {with_interval(worth['estimate'], worth['low'], worth['high'], '.2%')}"
    return Found(found.holds and worth["holds_up"] == NO_EFFECT, f"{shows} · {found.shows}")


ANSWER: tuple[tuple[str, Check], ...] = (
    (
        "The paper's own protocol gives most of the paper's signs here, and gives them for a random dictionary too.",
        protocol_comes_back,
    ),
    (
        "No claim about what sparse coding does to geometry holds up under every defensible analysis as something "
        "that was learned.",
        nothing_was_learned,
    ),
    (
        "Moving the poles apart, even as far as reconstruction likes best, removes next to nothing of the error.",
        separation_does_not_help,
    ),
)
"""What the default study answers, each sentence with what must be so for it: of the scorecard, and of the signs of
the replay where they are at hand."""


def answer(card: pd.DataFrame, signs: pd.DataFrame | None = None, strict: bool = True) -> str:
    """The answer, a sentence a line, with the numbers behind it.

    Parameters
    ----------
    card, signs
        Tables ``07_claims`` and ``06_replay_signs``.
    strict
        Refuse a sentence that the run does not bear out. Otherwise (in another study than the one that the sentences
        are about) it is shown as one that does not hold here.

    Raises
    ------
    BookError
        Names the sentence, and what was found instead.
    """
    lines = []
    for sentence, check in ANSWER:
        found = check(card, signs)
        if strict and not found.holds:
            raise BookError(
                f"the run does not bear out the sentence {sentence!r}; it found: {found.shows}. "
                "Correct the sentence in saema_utils/publishing/readme.py."
            )
        lines.append(f"- {finding(sentence, holds=found.holds, shows=found.shows).data}")
    return "\n".join(lines)


def read_signs(tables: Path) -> pd.DataFrame | None:
    """The signs of the replay among the tables of a run, if it has them."""
    import pandas as pd

    path = tables / "06_replay_signs.csv"
    return pd.read_csv(path) if path.exists() else None


# ---- what follows ----------------------------------------------------------------------------------


def scorecard_lines(card: pd.DataFrame) -> str:
    """The statements grouped by verdict, each with its effect, its margin and how many units it has and needs."""
    from saema_utils.evidence.verdicts import VERDICTS

    rules = "[claims.yaml](saema_utils/evidence/claims.yaml)"
    lines = [f"{len(card)} statements of the paper or about it, each judged under every analysis that {rules} allows."]
    for verdict in VERDICTS:
        rows = card[card["holds_up"] == verdict]
        if rows.empty:
            continue
        lines += ["", f"### {verdict.capitalize()} ({len(rows)})", ""]
        for row in rows.itertuples():
            effect = with_interval(row.estimate, row.low, row.high)
            units = f"{row.n} {row.unit}s (at least {row.minimum_n})"
            lines.append(in_prose(f"- {row.statement} Effect {effect}, margin {row.margin:g}, {units}."))
    return "\n".join(lines)


def chapter_lines(root: Path, seconds: dict[str, float]) -> str:
    """The table of chapters: title, Colab link where the book has an address, measured work."""
    rerun = " rerun |" if address.is_set() else ""
    lines = [
        f"| chapter | what it shows |{rerun} work on one core |",
        f"| --- | --- |{' --- |' if rerun else ''} --- |",
    ]
    for number, path in chapter_notebooks(root).items():
        title = read_notebook(path).cells[0].source.splitlines()[0].removeprefix("# ")
        took = f"{seconds[path.stem]:.0f} s" if seconds.get(path.stem) else "optional"
        rerun = f" [Colab]({address.colab_url(f'notebooks/{path.name}')}) |" if address.is_set() else ""
        lines.append(f"| {number} | {title} |{rerun} {took} |")
    total = sum(seconds.values()) / 60
    return "\n".join(
        [*lines, "", f"Together {total:.0f} minutes, shared by the cores of the machine that made the tables below."]
    )


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


def generated(root: Path) -> dict[str, str]:
    """The text between each pair of markers, from the committed scorecard and times."""
    card = read_card(root / CLAIMS)
    seconds = json.loads((root / TIMES).read_text(encoding="utf-8"))
    chapters = f"{chapter_lines(root, seconds)}\n\n{figure_lines(root)}"
    return {
        "answer": f"\n{answer(card)}\n",
        "generated": f"\n{chapters}\n\n## What holds up\n\n{scorecard_lines(card)}\n{on_a_second_model(root)}",
    }


def between_markers(text: str, part: str) -> tuple[str, str, str]:
    """The README before, between and after the markers of a generated part."""
    opening, closing = f"<!-- {part}: start -->", f"<!-- {part}: end -->"
    before, start, rest = text.partition(opening)
    middle, end, after = rest.partition(closing)
    if not start or not end:
        raise BookError(f"README.md lacks {opening} or {closing}; put both back around the generated part.")
    return before + start, middle, end + after


def refresh(root: Path, run_path: Path) -> None:
    """Take scorecard and times from a finished run and rewrite the README's generated parts.

    Of the confirmatory study the scorecard is taken whatever it says: the answer is about the default.

    Raises
    ------
    BookError
        If the run does not bear out the answer; nothing is written then.
    """
    tables = run_path / "tables"
    manifest = json.loads((run_path / "manifest.json").read_text(encoding="utf-8"))
    if manifest.get("study", {}).get("name") == CONFIRMATORY_STUDY:
        shutil.copyfile(tables / "07_claims.csv", root / CONFIRMATORY)
        rewrite(root)
        return
    answer(read_card(tables / "07_claims.csv"), read_signs(tables))
    shutil.copyfile(tables / "07_claims.csv", root / CLAIMS)
    seconds = {name: round(facts["work"]) for name, facts in manifest["chapters"].items()}
    (root / TIMES).write_text(json.dumps(seconds, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    rewrite(root)


def rewrite(root: Path) -> None:
    """Write the README's generated parts anew from what is committed."""
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for part, made in generated(root).items():
        before, _, after = between_markers(text, part)
        text = before + made + after
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        refresh(Path.cwd(), Path(sys.argv[1])) if len(sys.argv) > 1 else rewrite(Path.cwd())
    except (SaemaError, OSError) as error:
        sys.exit(f"saema: {error}")
