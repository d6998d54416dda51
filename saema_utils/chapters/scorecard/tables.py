"""Chapter 7: every claim judged under every defensible analysis, and beside other finished runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from saema_utils.chapters.replay.tables import correlations_table, signs_table
from saema_utils.chapters.sae.tables import sae_evaluation
from saema_utils.chapters.scorecard.values import (
    as_it_stands,
    dose_values,
    explained_on_concepts,
    geometry_values,
    rank_values,
    searched_values,
    stored,
    trained_values,
)
from saema_utils.errors import ArtifactError, ClaimError
from saema_utils.evidence.claims import ADDED_FILE, Claim, load_claims, rules_digest, rules_text
from saema_utils.evidence.multiverse import (
    ITSELF,
    LEAD,
    contrasts_of,
    effects_of,
    in_short,
    interval_of,
    margins_of,
    power,
    primary_effects,
    shares_of_choices,
    specifications,
    verdict_of,
    why_missing,
)
from saema_utils.evidence.replay import NOT_REPLAYED, reproduces
from saema_utils.evidence.verdicts import VERDICTS
from saema_utils.interactive import publishing
from saema_utils.rulers.rules import RULES, laboratory_of
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import RESULTS, table
from saema_utils.runtime import in_processes
from saema_utils.statistics import NO_INTERVAL, with_interval, written

OTHERS = (signs_table, correlations_table, sae_evaluation)
VALUES = (rank_values, geometry_values, dose_values, searched_values, trained_values)
ONE_SAE = "one SAE"
DRAWN = 100  # studies of the laboratory a rule and truth; a tenth of them in a study of few seeds


def _rules(run: RunDirectory) -> list[Any]:
    return [run.study.digest, rules_text()]


def values_of(run: RunDirectory, claim: Claim) -> pd.DataFrame:
    """The table of values that a claim is judged on."""
    return RESULTS[f"tables/{claim.units}.csv"](run)


def _each(run: RunDirectory) -> Iterator[tuple[Claim, pd.DataFrame]]:
    tables: dict[str, pd.DataFrame] = {}
    for claim in load_claims():
        if claim.units not in tables:
            tables[claim.units] = values_of(run, claim)
        yield claim, tables[claim.units]


@table(
    "07_multiverse",
    needs=VALUES,
    choices=_rules,
    columns={choice: meaning for made in VALUES for choice, meaning in made.columns.items()}
    | {
        "claim": "its id",
        "contrast": "itself: the code against its baseline; lead: against a control that learned nothing",
        "against": "what the code is compared with",
        "measure": "what is measured",
        "primary": "whether this is the analysis that was named beforehand",
        "estimate": "mean effect over units, in the unit of the measure",
        "margin": "the least effect that counts, on the paper's side of zero",
        "reason": "why there is no estimate; empty where there is one",
    },
)
def multiverse(run: RunDirectory) -> pd.DataFrame:
    """Every claim under every defensible analysis."""
    found = []
    for claim, values in _each(run):
        try:
            found.append(specifications(values, claim).assign(reason=""))
        except ClaimError as error:
            found.append(pd.DataFrame([{"claim": claim.id, "n": 0, "primary": False, "reason": str(error)}]))
    whole = pd.concat(found, ignore_index=True)
    return whole.assign(reason=whole["reason"].replace("", "no unit has a value").where(whole["n"] == 0, ""))


@table(
    "07_multiverse_in_short",
    needs=VALUES,
    choices=_rules,
    columns={
        "claim": "its id",
        "contrast": "itself, or its lead over a control that learned nothing",
        "specifications": "analyses that gave a value",
        "median": "median of their estimates, in margins; positive on the paper's side",
        "share_paper_sign": "share of them on the paper's side of zero",
        "share_beyond_margin": "share of them beyond the margin",
        "joint_p": "p-value of that median when the signs of whole units are flipped across all analyses",
        "matters_most": "the choice that explains most of their variance",
        "matters_share": "how much of it",
    },
)
def multiverse_in_short(run: RunDirectory) -> pd.DataFrame:
    """What all analyses of a claim say together."""
    found = []
    for claim, values in _each(run):
        try:
            found.append(in_short(values, claim))
        except ClaimError:
            none = {"claim": claim.id, "specifications": 0, "matters_most": ""}
            found.append(pd.DataFrame([none | {"contrast": contrast} for contrast in contrasts_of(claim)]))
    return pd.concat(found, ignore_index=True)


@table(
    "07_choices",
    needs=VALUES,
    choices=_rules,
    columns={
        "claim": "its id",
        "contrast": "itself, or its lead over a control that learned nothing",
        "choice": "what an analyst may choose",
        "share": "share of the variance of the estimates that it explains by itself",
    },
)
def choices_that_matter(run: RunDirectory) -> pd.DataFrame:
    """Which choices move the estimates of a claim, and by how much."""
    rows = []
    for claim, values in _each(run):
        for contrast in contrasts_of(claim):
            try:
                effects = effects_of(values, claim, contrast)
            except ClaimError:
                continue
            shares = shares_of_choices(effects, margins_of(effects, claim))
            head = {"claim": claim.id, "contrast": contrast}
            rows += [head | {"choice": choice, "share": share} for choice, share in shares.items()]
    return pd.DataFrame(rows, columns=["claim", "contrast", "choice", "share"])


@table(
    "07_laboratory",
    ruler=True,
    choices=lambda run: [_draws(run), rules_text()],
    columns={
        "rule": "id of the claim that it judges",
        "truth": "true effect in the world, in margins, on the paper's side",
        "control": "what a code that learned nothing shows there: nothing, or as large an effect",
        "n": "studies drawn",
        "units": "units of each",
    }
    | {verdict: "share of studies with this verdict" for verdict in VERDICTS},
)
def laboratory_table(run: RunDirectory) -> pd.DataFrame:
    """How often each rule gives each verdict in worlds whose true effect is known."""
    jobs = [(rule, _draws(run)) for rule in RULES]
    return pd.concat(in_processes(laboratory_of, jobs, "laboratory of the rules", run.device), ignore_index=True)


def _draws(run: RunDirectory) -> int:
    return DRAWN if run.study.n_seeds >= 5 else DRAWN // 10


@table(
    "07_claims",
    needs=(multiverse, multiverse_in_short, explained_on_concepts, *OTHERS),
    choices=lambda run: [*_rules(run), *stored(*OTHERS)(run)],
    columns={
        "claim": "its id",
        "statement": "what is claimed",
        "reproduces": "whether the paper's own measure on the authors' prompts shows it: yes, no, or not replayed",
        "holds_up": "what the rule decides",
        "study": "the study that was judged",
        "estimate": "the effect by the analysis that was named beforehand, mean over units",
        "minimum_n": "fewest units with which the rule may speak",
        "power": "how often as many units, as scattered, would support an effect of twice the margin",
        "lead": "its lead over a control that learned nothing, by the same analysis",
        "lead_low": "lower end of that lead's 95 % interval",
        "lead_high": "upper end of it",
        "median": "median over all analyses, in margins; positive on the paper's side",
        "specifications": "analyses that gave a value",
        "joint_p": "p-value of that median under flips of whole units",
        "matters_most": "the choice that moves the estimates most",
        "matters_share": "share of their variance that it explains",
        "explained_variance_tokens": "share of the variance of the concepts' tokens that the SAE explains",
        "explained_variance_words": "the same of the tokens of their words",
        "explained_variance_text": "the same of held-out running text",
        "saes": "how many autoencoders stand behind it",
        "reads": "what the rule reads",
        "control": "what could have refuted it",
        "direction": "side on which the claim lies",
        "margin_source": "where the margin is from",
        "figure": "the figure behind it",
        "dropped": "units left out of n",
    },
)
def scorecard(run: RunDirectory) -> pd.DataFrame:
    """The claims, their evidence and the verdicts.

    Raises
    ------
    MissingInputError
        If a chapter that a claim draws on has not been run; names it. (In Colab it is computed instead.)
    """
    specs, short = multiverse(run), multiverse_in_short(run)
    explained = explained_on_concepts(run).mean(numeric_only=True)
    found = {made.name: as_it_stands(run, made) for made in OTHERS}
    text = found[sae_evaluation.name].set_index("representation").loc["sae", "explained_variance"]
    rows = []
    for claim, values in _each(run):
        found[claim.units] = values
        facts = {"claim": claim.id, "statement": claim.statement, "reproduces": reproduces(claim, found)}
        facts |= {"holds_up": verdict_of(specs, short, claim), "study": run.study.name}
        facts |= _numbers(values, claim)
        whole = short[(short["claim"] == claim.id) & (short["contrast"] == ITSELF)].iloc[0]
        names = ("median", "specifications", "joint_p", "matters_most", "matters_share")
        facts |= {name: whole.get(name) for name in names}
        facts |= {name: explained[name] for name in ("explained_variance_tokens", "explained_variance_words")}
        saes = f"{facts['n']} SAEs" if claim.unit == "seed" else ONE_SAE
        facts |= {"explained_variance_text": text, "saes": saes}
        names = ("reads", "control", "direction", "margin_source", "figure")
        rows.append(facts | {name: getattr(claim, name) for name in names})
    return pd.DataFrame(rows)


def _numbers(values: pd.DataFrame, claim: Claim) -> dict[str, Any]:
    """Effect and lead by the analysis that was named beforehand, with intervals, and the units behind them."""
    nothing = dict.fromkeys(("estimate", "low", "high", "lead", "lead_low", "lead_high", "power"), np.nan)
    row: dict[str, Any] = nothing | {"n": 0, "dropped": 0, "reason": ""}
    row |= {"unit": claim.unit, "minimum_n": claim.minimum_n, "margin": claim.margin}
    try:
        own = interval_of(values, claim)
        effects = primary_effects(values, claim).to_numpy()
    except ClaimError as error:
        return row | {"reason": str(error)}
    row["reason"] = why_missing(values, claim)
    row |= {"estimate": own.estimate, "low": own.low, "high": own.high, "n": own.n, "dropped": len(effects) - own.n}
    row["power"] = power(effects, claim.margin)
    if LEAD in contrasts_of(claim):
        lead = interval_of(values, claim, LEAD)
        row |= {"lead": lead.estimate, "lead_low": lead.low, "lead_high": lead.high}
    return row


def card_in_brief(card: pd.DataFrame) -> pd.DataFrame:
    """The scorecard as a page shows it: columns claim (its statement over its name), reproduces, holds_up, effect (with
    interval), margin, n (and the least that the rule asks for), see.

    The first and the last are HTML. ``see`` names the chapter of the figure behind a row; on a published page it is a
    link to that figure.
    """
    from html import escape

    def see(figure: str) -> str:
        notebook, _, anchor = figure.partition("#")
        chapter = f"ch.\xa0{int(notebook[:2])}"
        return f'<a href="{notebook.replace(".ipynb", ".html")}#{anchor}">{chapter}</a>' if publishing() else chapter

    effects = [with_interval(row.estimate, row.low, row.high) for row in card.itertuples()]
    units = [f"{row.n} ({row.minimum_n})" for row in card.itertuples()]
    effect = "effect (95 % interval)"
    claims = [f"{escape(row.statement)} <code>{escape(row.claim)}</code>" for row in card.itertuples()]
    shown = card.assign(**{"claim": claims, effect: effects, "n (least)": units, "see": card["figure"].map(see)})
    return shown[["claim", "reproduces", "holds_up", effect, "margin", "n (least)", "see"]]


def neighbouring_verdicts(run: RunDirectory) -> pd.DataFrame:
    """Verdicts of this run and of every finished run beside it: one row a claim, one column a run.

    This run goes by its study, the others by their folders. Runs that were judged by other rules are left out.
    """
    neighbours, own = run.neighbours(), run.study.name
    own = f"{own} (this run)" if own in {path.name for path in neighbours} else own
    verdicts = {own: scorecard(run).set_index("claim")["holds_up"]}
    for path in neighbours:
        if not (path / "tables/07_claims.csv").exists():
            continue
        try:
            verdicts[path.name] = RunDirectory.at(path).table("07_claims").set_index("claim")["holds_up"]
        except ArtifactError as error:
            run.remark(f"{path.name} is left out: {error}")
        except KeyError:
            run.remark(f"{path.name} is left out: it was judged by other rules. Run its chapter 7 again.")
    return pd.DataFrame(verdicts).rename_axis("claim").reset_index()


def record_numbers(run: RunDirectory) -> None:
    """Write the numbers that prose outside the notebooks quotes to ``numbers.json``, and by which rules was judged."""
    card = scorecard(run)
    counts = card["holds_up"].value_counts()
    numbers: dict[str, object] = {
        f"claims_{verdict.replace(',', '').replace(' ', '_')}": int(counts.get(verdict, 0)) for verdict in VERDICTS
    }
    numbers["claims_total"] = len(card)
    numbers["claims_replayed"] = int((card["reproduces"] != NOT_REPLAYED).sum())
    numbers["claims_reproduced"] = int((card["reproduces"] == "yes").sum())
    numbers["rules_digest"], numbers["added_rules_digest"] = rules_digest(), rules_digest(ADDED_FILE)
    numbers["study_name"] = run.study.name
    numbers["n_concepts"] = len(run.study.concepts)
    for row in card.itertuples():
        name = row.claim.replace("-", "_")
        numbers[f"{name}_verdict"] = row.holds_up
        numbers[f"{name}_estimate"] = _rounded(row.estimate)
        bounded = np.isfinite([row.low, row.high]).all()
        numbers[f"{name}_interval"] = f"{_rounded(row.low)} to {_rounded(row.high)}" if bounded else NO_INTERVAL
    evaluation = as_it_stands(run, sae_evaluation).set_index("representation").loc["sae"]
    for metric in ("explained_variance", "l0", "dead_fraction", "ce_recovered"):
        if metric in evaluation:
            numbers[f"sae_{metric}"] = _rounded(evaluation[metric])
    run.save_numbers(**numbers)


def _rounded(value: float) -> str:
    return written(float(value), ".3g")
