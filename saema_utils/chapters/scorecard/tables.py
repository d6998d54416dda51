"""Chapter 7: every claim judged on the tables of a run, and beside other finished runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

import saema_utils.chapters.geometry.tables
import saema_utils.chapters.intervention.tables
import saema_utils.chapters.stratification.tables  # noqa: F401
from saema_utils.chapters.sae.tables import sae_evaluation
from saema_utils.errors import ArtifactError
from saema_utils.evidence.claims import CLAIMS_FILE, VERDICTS, Claim, judgement, load_claims
from saema_utils.interactive import publishing
from saema_utils.notebook import in_colab
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import RESULTS, Result, table

COLUMNS = (
    "claim statement study statistic estimate low high n unit control direction margin "
    "verdict scale figure dropped reason"
)


def _result(claim: Claim) -> Result:
    return RESULTS[f"tables/{claim.table}.csv"]


def _inputs() -> tuple[Result, ...]:
    return tuple(sorted({_result(claim) for claim in load_claims()}, key=lambda made: made.name))


def as_it_stands(run: RunDirectory, made: Result) -> pd.DataFrame:
    """A table of an earlier chapter, which may be older than the code.

    Raises
    ------
    MissingInputError
        If that chapter has not been run. (In Colab, where each chapter opens on a machine of its own, the table is
        made instead.)
    """
    return made(run) if in_colab() else run.table(made.name)


def _what_is_judged(run: RunDirectory) -> list[Any]:
    for made in _inputs():
        as_it_stands(run, made)
    hashes = [run.entry(made.place)["sha256"] for made in _inputs()]
    return [run.study.digest, hashes, CLAIMS_FILE.read_text(encoding="utf-8")]


def evidence_of(run: RunDirectory, claim: Claim) -> pd.DataFrame:
    """The table that a claim is judged on, :func:`as it stands <as_it_stands>`."""
    return as_it_stands(run, _result(claim))


@table(
    "07_claims",
    needs=(*_inputs(), sae_evaluation),
    choices=_what_is_judged,
    columns={
        "claim": "its id",
        "statement": "what is claimed",
        "study": "the study that was judged",
        "statistic": "what the rule reads",
        "control": "what could have refuted it",
        "direction": "side on which the claim lies",
        "scale": "full, or smoke when the study has too few units",
        "figure": "the figure behind it",
        "dropped": "units left out of n",
        "reason": "why they were",
    },
)
def scorecard(run: RunDirectory) -> pd.DataFrame:
    """The claims, their evidence and the verdicts.

    Raises
    ------
    MissingInputError
        If a chapter that a claim draws on has not been run; names it. (In Colab it is computed instead.)
    """
    claims = load_claims()
    found = [judgement(claim, evidence_of(run, claim), seed=run.study.seed) for claim in claims]
    rules = pd.DataFrame(map(asdict, claims)).drop(columns="statistic")
    rules = rules.rename(columns={"id": "claim", "claim": "statement", "reads": "statistic"})
    outcomes = pd.DataFrame({**asdict(made), **asdict(made.interval)} for made in found)
    card = rules.join(outcomes).assign(study=run.study.name)
    enough = card["n"] + card["dropped"] >= card["minimum_units"]
    card["scale"] = enough.map({True: "full", False: "smoke"})
    return card[COLUMNS.split()]


def card_in_brief(card: pd.DataFrame) -> pd.DataFrame:
    """The scorecard as a page shows it: columns statement, control, effect (with interval), n, verdict, see.

    ``see`` names the chapter of the figure behind a row; on a published page it is a link to that figure.
    """

    def see(figure: str) -> str:
        notebook, _, anchor = figure.partition("#")
        chapter = f"ch. {int(notebook[:2])}"
        return f'<a href="{notebook.replace(".ipynb", ".html")}#{anchor}">{chapter}</a>' if publishing() else chapter

    effects = [f"{row.estimate:.2g} ({row.low:.2g} to {row.high:.2g})" for row in card.itertuples()]
    effect = "effect (95 % interval)"
    shown = card.assign(**{effect: effects, "see": card["figure"].map(see)})
    return shown[["statement", "control", effect, "n", "verdict", "see"]]


def neighbouring_verdicts(run: RunDirectory) -> pd.DataFrame:
    """Verdicts of this run and of every finished run beside it: one row a claim, one column a run.

    This run goes by its study, the others by their folders.
    """
    neighbours, own = run.neighbours(), run.study.name
    own = f"{own} (this run)" if own in {path.name for path in neighbours} else own
    verdicts = {own: scorecard(run).set_index("claim")["verdict"]}
    for path in neighbours:
        if not (path / "tables/07_claims.csv").exists():
            continue
        try:
            verdicts[path.name] = RunDirectory.at(path).table("07_claims").set_index("claim")["verdict"]
        except ArtifactError as error:
            run.remark(f"{path.name} is left out: {error}")
    return pd.DataFrame(verdicts).rename_axis("claim").reset_index()


def record_numbers(run: RunDirectory) -> None:
    """Write the numbers that prose outside the notebooks quotes to ``numbers.json``."""
    card = scorecard(run)
    counts = card["verdict"].value_counts()
    numbers: dict[str, object] = {
        f"claims_{verdict.replace(' ', '_')}": int(counts.get(verdict, 0)) for verdict in VERDICTS
    }
    numbers["claims_total"] = len(card)
    numbers["study_name"] = run.study.name
    numbers["n_concepts"] = len(run.study.concepts)
    for row in card.itertuples():
        name = row.claim.replace("-", "_")
        numbers[f"{name}_verdict"] = row.verdict
        numbers[f"{name}_estimate"] = _rounded(row.estimate)
        numbers[f"{name}_interval"] = f"{_rounded(row.low)} to {_rounded(row.high)}"
    evaluation = as_it_stands(run, sae_evaluation).set_index("representation").loc["sae"]
    for metric in ("explained_variance", "l0", "dead_fraction", "ce_recovered"):
        if metric in evaluation:
            numbers[f"sae_{metric}"] = _rounded(evaluation[metric])
    run.save_numbers(**numbers)


def _rounded(value: float) -> str:
    return f"{value:.3g}"
