"""Chapter 6: every claim judged on the tables of a run, and beside other finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .artifacts import RunDirectory
from .chapter import in_colab
from .claims import VERDICTS, judgement, load_claims
from .errors import ArtifactError
from .files import digest, source_digest
from .interactive import publishing

if TYPE_CHECKING:
    import pandas as pd


def scorecard(run: RunDirectory) -> pd.DataFrame:
    """Judge every claim on the run's tables; cached as table ``06_claims``.

    Returns
    -------
    One row a claim: claim (its id), statement, study, statistic, estimate, low, high, n, unit,
    control, direction, margin, verdict, scale (``full``, or ``smoke`` when the study has too few units), figure,
    dropped (units left out of n) and reason (why).

    Raises
    ------
    MissingInputError
        If a chapter that a claim draws on has not been run; names it. (In Colab it is computed instead.)
    """
    import pandas as pd

    claims = load_claims()
    tables = {claim.table for claim in claims}
    if in_colab():  # each chapter opens on a machine of its own, where no earlier one has run
        compute_inputs(run)
    for name in sorted(tables):
        run.check(f"tables/{name}.csv")
    inputs = {name: run.entry(f"tables/{name}.csv")["sha256"] for name in tables}
    claims_file = Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8")
    key = digest([inputs, source_digest("stage6_scorecard"), claims_file])

    def compute() -> pd.DataFrame:
        loaded = {name: run.table(name) for name in tables}
        rows = []
        for claim in claims:
            found = judgement(claim, loaded[claim.table], seed=run.study.seed)
            interval = found.interval
            enough = interval.n + found.dropped >= claim.minimum_units
            rows.append({
                "claim": claim.id, "statement": claim.claim, "study": run.study.name, "statistic": claim.reads,
                "estimate": interval.estimate, "low": interval.low, "high": interval.high, "n": interval.n,
                "unit": claim.unit, "control": claim.control, "direction": claim.direction, "margin": claim.margin,
                "verdict": found.verdict, "scale": "full" if enough else "smoke",
                "figure": claim.figure, "dropped": found.dropped, "reason": found.reason,
            })  # fmt: skip
        return pd.DataFrame(rows)

    return run.cached_table("06_claims", key, compute)


def card_in_brief(card: pd.DataFrame) -> pd.DataFrame:
    """The scorecard as a page shows it: columns statement, control, effect (with interval), n, verdict, see.

    ``see`` names the chapter of the figure behind a row; on a published page it is a link to that figure.
    """
    import pandas as pd

    def see(figure: str) -> str:
        notebook, _, anchor = figure.partition("#")
        chapter = f"ch. {int(notebook[:2])}"
        return f'<a href="{notebook.replace(".ipynb", ".html")}#{anchor}">{chapter}</a>' if publishing() else chapter

    effects = [f"{row.estimate:.2g} ({row.low:.2g} to {row.high:.2g})" for row in card.itertuples()]
    return pd.DataFrame({
        "statement": card["statement"], "control": card["control"], "effect (95 % interval)": effects, "n": card["n"],
        "verdict": card["verdict"], "see": card["figure"].map(see),
    })  # fmt: skip


def compute_inputs(run: RunDirectory) -> None:
    """Make every table that the scorecard reads and that is not there yet."""
    from .stage2_sae import sae_evaluation
    from .stage3_stratification import distinct_contexts, noise_rank_table
    from .stage4_geometry import geometry_table
    from .stage5_intervention import dose_response_table
    from .stage5_training import training_table

    makers = (sae_evaluation, noise_rank_table, distinct_contexts, geometry_table, dose_response_table, training_table)
    for make in makers:
        make(run)


def neighbouring_verdicts(run: RunDirectory) -> pd.DataFrame:
    """Verdicts of this run and of every finished run beside it: one row a claim, one column a run.

    This run goes by its study, the others by their folders.
    """
    import pandas as pd

    neighbours, own = run.neighbours(), run.study.name
    own = f"{own} (this run)" if own in {path.name for path in neighbours} else own
    verdicts = {own: scorecard(run).set_index("claim")["verdict"]}
    for path in neighbours:
        if not (path / "tables/06_claims.csv").exists():
            continue
        try:
            verdicts[path.name] = RunDirectory.at(path).table("06_claims").set_index("claim")["verdict"]
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
    evaluation = run.table("02_sae_eval").set_index("representation").loc["sae"]
    for metric in ("explained_variance", "l0", "dead_fraction", "ce_recovered"):
        if metric in evaluation:
            numbers[f"sae_{metric}"] = _rounded(evaluation[metric])
    run.save_numbers(**numbers)


def _rounded(value: float) -> str:
    return f"{value:.3g}"
