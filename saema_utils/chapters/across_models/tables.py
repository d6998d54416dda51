"""Finished runs side by side: one tidy table, and how far they agree beyond what their errors explain."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from saema_utils.chapters.sae.facts import sae_facts
from saema_utils.errors import ArtifactError, SaemaError
from saema_utils.notebook import in_colab
from saema_utils.runs.directory import PLAN_FILE, RunDirectory, read_manifest
from saema_utils.runs.files import atomic_path, name_of, user_path, write_figure
from saema_utils.runs.freshness import outside_digest
from saema_utils.runs.tables import table
from saema_utils.statistics import errors_to_bound, heterogeneity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAE_METRICS = ("explained_variance", "l0", "dead_fraction", "ce_recovered")
RULED = ("estimate", "low", "high", "n", "unit", "direction", "margin", "verdict")
COLUMNS = (
    *("run", "model", "layer", "architecture", "d_sae", "k", "seed", "concepts", "kind", "metric", "representation"),
    *RULED,
)


# ---- which runs ------------------------------------------------------------------------------------


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Run folders among ``paths``; a folder of runs (a sweep's, or ``runs``) stands for all it holds.

    Raises
    ------
    ArtifactError
        If a path is neither, or there is no run at all.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = user_path(given).resolve()
        path = path.parent if path.name in ("manifest.json", PLAN_FILE) else path
        inside = [path] if (path / "manifest.json").exists() else sorted(p.parent for p in path.glob("*/manifest.json"))
        if not inside:
            raise ArtifactError(f"{path} is not a run, nor a folder of runs (no manifest.json). Run: saema run")
        found.update(dict.fromkeys(inside))
    if not found:
        raise ArtifactError("no run to compare. Give the folders of finished runs, such as runs/smoke.")
    return list(found)


def run_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each run: the shortest end of its path that no other run has, mostly its folder's name.

    >>> list(run_names([Path("/a/same"), Path("/b/same"), Path("/b/own")]).values())
    ['a/same', 'b/same', 'own']
    """
    ends = {path: [Path(*path.parts[-n:]).as_posix() for n in range(1, len(path.parts) + 1)] for path in paths}
    counts = Counter(end for found in ends.values() for end in found)
    return {path: next((end for end in found if counts[end] == 1), str(path)) for path, found in ends.items()}


# ---- the table -------------------------------------------------------------------------------------


def compare_runs(
    paths: Iterable[str | Path], *, leave_out_damaged: bool = False, say: Callable[[str], None] = print
) -> pd.DataFrame:
    """Every effect and key metric of finished runs in one tidy table; each file is checked against its hash.

    Parameters
    ----------
    paths
        Run folders, or folders of runs.
    leave_out_damaged
        Leave a run out and ``say`` so, instead of raising.
    say
        Receives a line for each run of which something is left out.

    Returns
    -------
    One row a run (called as :func:`run_names` says) and metric. ``kind`` is ``claim`` (an effect with its
    95 % interval over ``n`` units, and what the rule decided in that run) or ``sae`` (held-out quality, by
    representation). Columns that a sweep changes follow, named as in the sweep file. A run that was not judged, or by
    other rules, has its quality only; ``say`` is told.

    Raises
    ------
    ArtifactError
        If a run is damaged, or no run has a table to compare.
    """
    rows: list[dict[str, Any]] = []
    for path, name in run_names(find_runs(paths)).items():
        try:
            run = RunDirectory.at(path)
            about = {"run": name, **_about(run), **_changes(path)}
            rows.extend({**about, **row} for row in (*_quality(run), *_effects(run, name, say)))
        except SaemaError as error:
            if not leave_out_damaged:
                raise
            say(f"{name} is left out: {error}")
    if not rows:
        raise ArtifactError("no run has finished a chapter with numbers to compare (2 or 7). Run: saema run")
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*COLUMNS, *(name for name in table if name not in COLUMNS)])


def _what_is_compared(run: RunDirectory) -> list[Any]:
    """Every run here: its study, what a sweep changed in it, and the files that its rows are read from.

    Their bytes count, not what the manifest says of them: a damaged run is left out, and comes back when it is whole.
    """
    if in_colab():
        from saema_utils.chapters import declared_results

        for place in ("tables/02_sae_eval.csv", "tables/07_claims.csv"):
            declared_results()[place](run)
    run.check("tables/02_sae_eval.csv")
    names = ("sae/cfg.json", "tables/02_sae_eval.csv", "tables/07_claims.csv")
    found: list[Any] = []
    for path in [run.path, *run.neighbours(sweeps=True)]:
        with contextlib.suppress(ArtifactError):
            study = read_manifest(path).get("study_digest")
            found.append([str(path), study, _changes(path), [outside_digest(str(path / name)) for name in names]])
    return found


@table(
    "08_comparison",
    choices=_what_is_compared,
    columns={
        "run": "the shortest end of its folder's path that no other run has",
        "model": "the language model",
        "architecture": "family of the autoencoder",
        "d_sae": "latents of the autoencoder",
        "k": "active latents a token that the family is told, if any",
        "seed": "seed of the run",
        "concepts": "how many concepts its study has",
        "kind": "claim: an effect; sae: quality on held-out text",
        "metric": "id of the claim, or name of the quality",
        "estimate": "the effect, or the quality",
        "direction": "side on which the claim lies",
    },
)
def comparison(run: RunDirectory, most: int = 16) -> pd.DataFrame:
    """This run beside its neighbours, sixteen at most: every claimed effect and the quality of every autoencoder.

    Raises
    ------
    MissingInputError
        If this run has not finished chapter 2. (In Colab its tables are made instead.)
    """
    found = compare_runs([run.path, *run.neighbours(sweeps=True)], leave_out_damaged=True, say=run.remark)
    return found[found["run"].isin(found["run"].unique()[:most])]


def _changes(path: Path) -> dict[str, Any]:
    """What a sweep changed in a run, if it belongs to one."""
    plan = path.parent / PLAN_FILE
    try:
        changes = json.loads(plan.read_text(encoding="utf-8"))["runs"].get(path.name, {}).get("changes", {})
    except (OSError, ValueError, KeyError, AttributeError):
        return {}
    return {name: _plain(value) for name, value in changes.items() if name not in COLUMNS}


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _about(run: RunDirectory) -> dict[str, Any]:
    study, sae = run.study, sae_facts(run)
    about = {"model": name_of(study.model), "layer": study.layer, "architecture": sae.architecture, "d_sae": sae.d_sae}
    return about | {"k": sae.k, "seed": study.seed, "concepts": len(study.concepts)}


def _quality(run: RunDirectory) -> Iterator[dict[str, Any]]:
    """Held-out quality of a run's autoencoder and its controls, if it has been measured."""
    if not run.entry("tables/02_sae_eval.csv"):
        return
    evaluation = run.table("02_sae_eval").set_index("representation")
    for representation, metric in ((r, m) for r in evaluation.index for m in SAE_METRICS if m in evaluation):
        value = float(evaluation.loc[representation, metric])
        yield {"kind": "sae", "metric": metric, "representation": representation, "estimate": value}


def _effects(run: RunDirectory, name: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The claims as the run judged them; none, and a word on it, where it did not or went by other rules."""
    if not run.entry("tables/07_claims.csv"):
        say(f"{name} shows no effects: it was not judged. Run its chapter 7.")
        return []
    card = run.table("07_claims")
    if "holds_up" not in card:
        say(f"{name} shows no effects: it was judged by other rules. Run its chapter 7 again.")
        return []
    card = card.rename(columns={"claim": "metric", "holds_up": "verdict"})[["metric", *RULED]]
    return card.assign(kind="claim", representation="sae").to_dict("records")


def standard_errors(claims: pd.DataFrame) -> pd.Series:
    """Standard errors of effects, read off their 95 % intervals: fewer units, more errors to an interval's end."""
    return (claims["high"] - claims["low"]) / (2 * claims["n"].map(errors_to_bound))


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Heterogeneity of every claim over the runs of :func:`compare_runs`; errors are read off the intervals.

    Returns
    -------
    One row a claim: metric, runs, pooled, error, q, df, p, i_squared, lowest, highest (estimates), verdicts
    (such as ``2 supported · 1 too few units``).
    """
    rows = []
    for metric, found in table[table["kind"] == "claim"].groupby("metric", sort=False):
        counts = found["verdict"].value_counts()
        row = {"metric": metric, "runs": len(found)}
        row |= asdict(heterogeneity(found["estimate"], standard_errors(found)))
        row |= {"lowest": found["estimate"].min(), "highest": found["estimate"].max()}
        rows.append(row | {"verdicts": " · ".join(f"{count} {verdict}" for verdict, count in counts.items())})
    return pd.DataFrame(rows)


# ---- the command -----------------------------------------------------------------------------------


def save_comparison(table: pd.DataFrame, figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``<name>.csv``, ``.svg`` and ``.png`` into a folder, whole or not at all."""
    made = [folder / f"{name}{suffix}" for suffix in (".csv", ".svg", ".png")]
    for file in made:
        with atomic_path(file) as path:
            table.to_csv(path, index=False) if file.suffix == ".csv" else write_figure(path, figure, name)
    return made
