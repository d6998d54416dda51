"""Runs side by side: the table, what may enter it, and what agreement means."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from saema_utils.chapters.across_models import figures as plots_compare
from saema_utils.chapters.across_models.findings import (
    alarms,
    beyond_chance,
    disagreeing,
    pointing_apart,
    training_parts_the_models,
)
from saema_utils.chapters.across_models.tables import agreement, compare_runs, comparison, find_runs, run_names
from saema_utils.chapters.intervention.tables import optimised_table
from saema_utils.chapters.intervention.training import training_choices_table
from saema_utils.chapters.scorecard.tables import OTHERS, neighbouring_verdicts, record_numbers, scorecard
from saema_utils.errors import ArtifactError, MissingInputError, SaemaError
from saema_utils.evidence.verdicts import DEPENDS, NO_EFFECT, NOT_LEARNED, SUPPORTED, TOO_FEW, VERDICTS
from saema_utils.interactive import PUBLISHING
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import Result
from saema_utils.statistics import heterogeneity
from saema_utils.study import STUDIES
from saema_utils.wording import SIGNS

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # busy machines
ROOT = Path(__file__).resolve().parents[2]


def judged(verdicts=None, **effects):
    """A scorecard: effects by claim, of six concepts each, with an interval 0.1 to both sides and a margin of 0.1."""
    rows = [
        {
            "claim": claim.replace("_", "-"),
            "holds_up": (verdicts or {}).get(claim, SUPPORTED),
            "estimate": effect,
            "low": effect - 0.1,
            "high": effect + 0.1,
            "n": 6,
            "unit": "concept",
            "direction": "greater",
            "margin": 0.1,
        }
        for claim, effect in effects.items()
    ]
    return pd.DataFrame(rows)


def make_run(folder, name, effect=2.0, explained=0.8, seed=0, **changes):
    """A run with an autoencoder of some quality, and with a scorecard of one claim unless its effect is None."""
    run = RunDirectory(folder / name, STUDIES["smoke"].changed(name=name, seed=seed, **changes))
    rows = [
        {"representation": r, "explained_variance": v, "l0": 32.0, "dead_fraction": 0.1, "ce_recovered": 0.9}
        for r, v in {"sae": explained, "pca": 0.7, "random_dictionary": 0.2}.items()
    ]
    run.save_table("02_sae_eval", pd.DataFrame(rows))
    if effect is not None:
        run.save_table("07_claims", judged(rank_moves_more=effect))
    return run


# ---- the table -------------------------------------------------------------------------------------


def test_every_run_gives_its_effects_and_its_quality(tmp_path):
    make_run(tmp_path, "one", effect=2.0)
    make_run(tmp_path, "two", effect=4.0, explained=0.9, seed=3)
    table = compare_runs([tmp_path / "one", tmp_path / "two"])
    effects = table[table["metric"] == "rank-moves-more"].set_index("run")
    assert effects["estimate"].to_dict() == {"one": 2.0, "two": 4.0}
    assert effects["low"].to_dict() == {"one": 1.9, "two": 3.9}
    assert set(effects["verdict"]) == {SUPPORTED}
    assert set(effects["n"]) == {6}
    quality = table[(table["metric"] == "explained_variance") & (table["representation"] == "sae")].set_index("run")
    assert quality["estimate"].to_dict() == {"one": 0.8, "two": 0.9}
    assert table.set_index("run").loc["two", "seed"].unique().tolist() == [3]


def test_a_terminal_of_80_columns_shows_them_side_by_side_with_what_each_sign_means(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path, name, effect=-2.0)
    command = [sys.executable, "-m", "saema_utils", "compare", "one", "two", "--out", "out"]
    places = {"COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | places, check=True)
    assert re.search(r"rank-moves-more +−2 ✓ +−2 ✓", done.stdout)
    shown = done.stdout.split(str(tmp_path))[0].splitlines()
    assert max(map(len, shown)) <= 80
    assert all(any(f"{SIGNS[verdict]} {verdict}" in line for line in shown) for verdict in VERDICTS)


def test_effects_are_what_the_run_said_of_itself(tmp_path):
    """No verdict is given a second time: what the rules of today would say does not enter."""
    verdicts = {f"claim_{i}": verdict for i, verdict in enumerate(VERDICTS)}
    run = make_run(tmp_path, "one")
    run.save_table("07_claims", judged(verdicts, **dict.fromkeys(verdicts, 0.0)))
    table = compare_runs([run.path])
    claims = table[table["kind"] == "claim"]
    assert claims["verdict"].tolist() == list(VERDICTS)
    shown = plots_compare.by_run(table).set_index("metric").loc[list(claims["metric"]), "one"]
    assert shown.tolist() == [f"0 {SIGNS[verdict]}" for verdict in VERDICTS]


OLD_RULES = pd.DataFrame({"claim": ["rank-moves-more"], "estimate": [1.0], "verdict": ["not supported"]})


@pytest.mark.parametrize(("card", "why"), [(None, "was not judged"), (OLD_RULES, "by other rules")])
def test_a_run_without_effects_still_shows_its_quality_and_it_is_said(tmp_path, capsys, card, why):
    run = make_run(tmp_path, "one", effect=None)
    if card is not None:
        run.save_table("07_claims", card)
    make_run(tmp_path, "two")
    table = compare_runs([tmp_path])
    assert set(table.loc[table["run"] == "one", "kind"]) == {"sae"}
    assert set(table.loc[table["run"] == "two", "kind"]) == {"sae", "claim"}
    assert list(table.columns[:3]) == ["run", "model", "layer"]
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("one ")
    assert why in said
    assert "chapter 7" in said


def test_a_folder_of_runs_stands_for_all_of_them_once(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path, name)
    assert find_runs([tmp_path, tmp_path / "one"]) == [tmp_path / "one", tmp_path / "two"]


def test_fields_that_a_sweep_changed_become_columns(tmp_path):
    make_run(tmp_path, "a")
    changes = {"seed": 0, "corpus.tokens": 16000, "concepts": ["months", "days"]}
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": {"a": {"changes": changes}}}))
    table = compare_runs([tmp_path])
    assert set(table["corpus.tokens"]) == {16000}
    assert list(table.columns).count("seed") == 1


def test_damaged_runs_are_refused_or_left_out_by_name(tmp_path, capsys):
    make_run(tmp_path, "one")
    run = make_run(tmp_path, "two")
    (run.path / "tables/02_sae_eval.csv").write_text("representation,l0\nsae,1\n")
    with pytest.raises(ArtifactError, match="damaged"):
        compare_runs([tmp_path])
    assert set(compare_runs([tmp_path], leave_out_damaged=True)["run"]) == {"one"}
    assert "two is left out" in capsys.readouterr().out


@pytest.mark.parametrize("manifest", ["{", "[]", "{}", '{"format_version": 1}', '{"format_version": 9}'])
def test_unreadable_manifests_are_refused(tmp_path, manifest):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/manifest.json").write_text(manifest)
    with pytest.raises(SaemaError) as error:
        compare_runs([tmp_path / "one"])
    assert "\n" not in str(error.value)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a run"):
        compare_runs([tmp_path])
    with pytest.raises(ArtifactError, match="no run to compare"):
        compare_runs([])
    RunDirectory(tmp_path / "empty", STUDIES["smoke"])
    with pytest.raises(ArtifactError, match="no run has finished"):
        compare_runs([tmp_path / "empty"])


def test_runs_of_one_name_stay_apart(tmp_path):
    for folder, effect in (("a", 0.1), ("b", 0.3)):
        make_run(tmp_path / folder, "same", effect=effect)
    make_run(tmp_path / "b", "own", effect=0.2)
    table = compare_runs([tmp_path / "a", tmp_path / "b"])
    effects = table[table["metric"] == "rank-moves-more"].set_index("run")["estimate"]
    assert effects.to_dict() == {"a/same": 0.1, "own": 0.2, "b/same": 0.3}
    wide = plots_compare.by_run(table).set_index("metric")
    assert list(wide) == ["a/same", "own", "b/same"]
    assert [text[:3] for text in wide.loc["rank-moves-more"]] == ["0.1", "0.2", "0.3"]
    (mesh,) = plots_compare.effects_by_run(table).axes[0].collections
    claims = table["metric"].loc[table["kind"] == "claim"].unique()
    drawn = dict(zip(claims, mesh.get_array().reshape(len(claims), -1), strict=True))
    assert list(drawn["rank-moves-more"]) == sorted(set(drawn["rank-moves-more"]))


parts = st.lists(st.sampled_from(["a", "b", "a b"]), min_size=1, max_size=4)
paths = st.lists(parts.map(lambda names: Path("/", *names)), unique=True, max_size=9)


@relaxed
@given(paths)
def test_names_are_unique_ends_of_paths(found):
    names = run_names(found)
    assert len(set(names.values())) == len(found)
    assert all(f"/{path}".endswith(f"/{name}") for path, name in names.items())
    assert all("/" not in name for path, name in names.items() if [p.name for p in found].count(path.name) == 1)


def finished_run(folder, name, verdict):
    """A run whose chapter 7 is finished and fresh: it gave this verdict."""
    run = make_run(folder, name)
    for made in (*OTHERS, optimised_table, training_choices_table):
        if not run.entry(made.place):
            run.save_table(made.name, pd.DataFrame({"made": [made.name]}))
    card = judged({"rank_moves_more": verdict}, rank_moves_more=1.0).assign(reproduces="yes")
    run.save_table("07_claims", card, scorecard.key(run))
    return run


def test_a_neighbour_called_like_the_study_does_not_take_its_place(tmp_path):
    own = RunDirectory.at(finished_run(tmp_path, "same", SUPPORTED).path.rename(tmp_path / "own"))
    finished_run(tmp_path, "same", NO_EFFECT)
    verdicts = neighbouring_verdicts(own).set_index("claim").loc["rank-moves-more"]
    assert verdicts.to_dict() == {"same (this run)": SUPPORTED, "same": NO_EFFECT}
    (tmp_path / "same").rename(tmp_path / "other")
    assert list(neighbouring_verdicts(own)) == ["claim", "same", "other"]


@pytest.mark.parametrize("read", [record_numbers, comparison], ids=["chapter 7", "chapter 8"])
def test_in_colab_what_is_read_is_made_first(tmp_path, monkeypatch, read):
    """Each chapter opens on a machine of its own there: no earlier one has run."""
    source = finished_run(tmp_path / "source", "run", SUPPORTED)
    run = RunDirectory(tmp_path / "bare/run", STUDIES["smoke"])
    call = Result.__call__

    def made(self, run, **options):
        if not source.entry(self.place):
            return call(self, run, **options)
        run.save_table(self.name, source.table(self.name))
        return run.table(self.name)

    monkeypatch.setattr(Result, "__call__", made)
    monkeypatch.setattr("saema_utils.chapters.scorecard.values.in_colab", lambda: True)
    monkeypatch.setattr("saema_utils.chapters.across_models.tables.in_colab", lambda: True)
    kept = run.path / "tables"
    assert not list(kept.glob("*.csv"))
    read(run)
    assert {"02_sae_eval", "07_claims"} <= {path.stem for path in kept.glob("*.csv")}


def test_comparing_changes_no_run(tmp_path):
    run = make_run(tmp_path, "one")
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    compare_runs([run.path])
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def test_chapter_seven_finds_neighbours_and_sweeps(tmp_path):
    own = make_run(tmp_path, "own")
    make_run(tmp_path, "beside")
    make_run(tmp_path / "sweep", "inside")
    assert own.neighbours(sweeps=True) == [tmp_path / "beside", tmp_path / "sweep/inside"]
    assert own.neighbours() == [tmp_path / "beside"]
    assert list(comparison(own)["run"].unique()) == ["own", "beside", "inside"]
    assert list(comparison(own, most=2)["run"].unique()) == ["own", "beside"]
    with pytest.raises(MissingInputError, match="--chapters 1-2"):
        comparison(RunDirectory(tmp_path / "fresh", STUDIES["smoke"]))


def test_the_comparison_is_kept_until_a_run_beside_it_changes(tmp_path):
    own, beside = make_run(tmp_path, "own"), make_run(tmp_path, "beside", effect=2.0)
    kept = comparison(own)
    entry = own.entry(comparison.place)
    pd.testing.assert_frame_equal(comparison(own), kept)
    assert own.entry(comparison.place) == entry
    sound = (beside.path / "tables/07_claims.csv").read_bytes()
    (beside.path / "tables/07_claims.csv").write_bytes(b"damaged")
    assert set(comparison(own)["run"]) == {"own"}
    (beside.path / "tables/07_claims.csv").write_bytes(sound)
    pd.testing.assert_frame_equal(comparison(own), kept)
    make_run(tmp_path, "beside", effect=3.0)
    changed = comparison(own).set_index(["run", "metric"])["estimate"]
    assert changed["beside", "rank-moves-more"] == 3.0


def test_chapter_eight_passes_on_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv(PUBLISHING, "1")
    own = make_run(tmp_path, "own")
    make_run(tmp_path, "beside", effect=None)
    comparison(own)
    (remark,) = own.remarks()
    assert remark.startswith("beside ")


def test_the_wide_table_has_a_column_a_run(tmp_path):
    make_run(tmp_path, "one")
    make_run(tmp_path, "two", effect=None)
    wide = plots_compare.by_run(compare_runs([tmp_path])).set_index("metric")
    assert list(wide) == ["one", "two"]
    assert wide.loc["rank-moves-more", "one"] == f"2 {SIGNS[SUPPORTED]}"
    assert wide.loc["rank-moves-more", "two"] == ""


# ---- agreement -------------------------------------------------------------------------------------

finite = st.floats(-50, 50, allow_nan=False)
positive = st.floats(0.05, 10)
studies = st.lists(st.tuples(finite, positive), min_size=2, max_size=8)


def test_two_unit_studies_two_apart():
    found = heterogeneity([1.0, 3.0], [1.0, 1.0])
    assert (found.pooled, found.q, found.df, found.i_squared) == (2.0, 2.0, 1, 0.5)
    assert found.error == pytest.approx(math.sqrt(0.5))
    assert found.p == pytest.approx(chi2.sf(2, 1))


@relaxed
@given(studies, finite, st.floats(0.1, 10))
def test_q_ignores_shift_and_scale(pairs, shift, scale):
    x, s = np.array(pairs).T
    found, moved = heterogeneity(x, s), heterogeneity(scale * x + shift, scale * s)
    assert moved.q == pytest.approx(found.q, rel=1e-6, abs=1e-6)
    assert moved.pooled == pytest.approx(scale * found.pooled + shift, rel=1e-6, abs=1e-6)
    assert min(x) - 1e-9 <= found.pooled <= max(x) + 1e-9
    assert 0 <= found.i_squared <= 1


@relaxed
@given(finite, st.lists(positive, min_size=2, max_size=6))
def test_equal_effects_agree(effect, errors):
    found = heterogeneity([effect] * len(errors), errors)
    assert found.q == pytest.approx(0, abs=1e-6)
    assert found.i_squared == 0
    assert found.error == pytest.approx(sum(1 / s**2 for s in errors) ** -0.5)


@relaxed
@given(studies)
def test_a_study_that_knows_nothing_adds_nothing(pairs):
    x, s = np.array(pairs).T
    assert heterogeneity([*x, 40.0], [*s, 1e9]).q == pytest.approx(heterogeneity(x, s).q, rel=1e-6, abs=1e-9)


def test_one_study_cannot_disagree_and_unusable_ones_are_left_out():
    found = heterogeneity([2.0, math.nan, 1.0, 5.0], [0.5, 1.0, 0.0, math.nan])
    assert (found.pooled, found.error, found.df) == (2.0, 0.5, 0)
    assert math.isnan(found.q)
    assert math.isnan(found.i_squared)
    assert math.isnan(heterogeneity([], []).pooled)
    with pytest.raises(SaemaError, match="shape"):
        heterogeneity([1.0], [1.0, 2.0])


def test_q_of_shared_effects_is_chi_squared():
    rng = np.random.default_rng(0)
    errors = np.array([0.5, 1.0, 2.0, 4.0])
    p = [heterogeneity(errors * rng.standard_normal(4), errors).p for _ in range(2000)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(p) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("n", "half"), [(40, 1.959963984540054), (9, 2.306004135204166)])
def test_agreement_reads_errors_off_intervals(n, half):
    rows = [
        {"kind": "claim", "metric": "m", "estimate": x, "low": x - half, "high": x + half, "n": n, "verdict": v}
        for x, v in ((1.0, SUPPORTED), (3.0, NOT_LEARNED))
    ]
    (row,) = agreement(pd.DataFrame(rows)).itertuples()
    assert (row.runs, row.lowest, row.highest, row.verdicts) == (2, 1.0, 3.0, f"1 {SUPPORTED} · 1 {NOT_LEARNED}")
    assert (row.pooled, row.q, row.i_squared) == pytest.approx((2.0, 2.0, 0.5))


# ---- what the chapter finds ------------------------------------------------------------------------


def claim_rows(effects, margin=0.1, n=9, half=0.2):
    """Claims of runs: name, run and estimate, with intervals of one width."""
    return pd.DataFrame(
        [
            {
                "kind": "claim",
                "metric": metric,
                "run": run,
                "representation": "sae",
                "estimate": x,
                "low": x - half,
                "high": x + half,
                "n": n,
                "margin": margin,
                "verdict": DEPENDS,
            }
            for metric, runs in effects.items()
            for run, x in runs.items()
        ]
    )


def test_effects_part_where_runs_point_both_ways():
    table = claim_rows({"same": {"a": 1.0, "b": 0.1}, "apart": {"a": 1.0, "b": -0.1}, "alone": {"a": 1.0}})
    assert pointing_apart(table) == (True, "1 of 2: apart")
    assert pointing_apart(table[table["metric"] == "same"]) == (False, "0 of 1")
    assert pointing_apart(table[table["run"] == "a"]) == (None, "no two runs measured the same")


def test_training_parts_the_models_where_both_have_a_run():
    both = claim_rows({"cause-during-training": {"smollm2-135m": 0.0, "gemma3-270m": 0.1}})
    for second, holds in ((DEPENDS, True), (NO_EFFECT, False)):
        table = both.assign(verdict=[second if run == "gemma3-270m" else NO_EFFECT for run in both["run"]])
        assert training_parts_the_models(table) == (holds, f"smollm2-135m: {NO_EFFECT} · gemma3-270m: {second}")
    assert training_parts_the_models(both[both["run"] == "smollm2-135m"]).holds is None


def test_runs_disagree_beyond_their_errors_or_not_at_all():
    close, far = {"a": 0.0, "b": 0.05}, {"a": -5.0, "b": 5.0}
    three = claim_rows({"close": close, "far": far, "alone": {"a": 0.0}})
    assert disagreeing(agreement(three)) == (True, "1 of 2: far")
    assert disagreeing(agreement(claim_rows({"close": close}))).holds is False
    assert disagreeing(agreement(claim_rows({"alone": {"a": 0.0}}))).holds is None
    assert disagreeing(agreement(claim_rows({"none": {"a": 0.0}}).iloc[:0])).holds is None


def test_many_claims_are_tested_more_strictly():
    table = agreement(claim_rows({f"claim-{i}": {"a": 0.0, "b": 0.3} for i in range(20)}))
    assert disagreeing(table[:1]) == (True, "1 of 1: claim-0")
    assert disagreeing(table) == (False, "0 of 20")


def test_alarms_keep_their_level_and_grow_with_what_is_there():
    q = np.random.default_rng(0).chisquare(4, 20_000)
    assert alarms(q, df=4) == pytest.approx(0.05, abs=0.01)
    assert alarms(q, df=4, level=0.2) == pytest.approx(0.2, abs=0.02)
    assert alarms(3 * q, df=4) > 0.3


def test_what_an_autoencoder_learned_is_measured_against_chance(tmp_path):
    make_run(tmp_path, "good", explained=0.8)
    make_run(tmp_path, "bad", explained=0.1)
    learned = beyond_chance(compare_runs([tmp_path]))
    assert learned.to_dict() == pytest.approx({"bad": -0.1, "good": 0.6})


def definition():
    cells = json.loads((ROOT / "notebooks/08_across_models.ipynb").read_text())["cells"]
    (cell,) = [c for c in cells if "definition" in c["metadata"].get("tags", [])]
    namespace = {}
    exec("".join(cell["source"]), namespace)
    return namespace["heterogeneity_by_hand"]


@relaxed
@given(studies)
def test_the_chapter_shows_what_the_package_does(pairs):
    x, s = np.array(pairs).T
    found = heterogeneity(x, s)
    pooled, q, share = definition()(x, s)
    assert (pooled, q) == pytest.approx((found.pooled, found.q), rel=1e-9, abs=1e-9)
    assert share == pytest.approx(found.i_squared, rel=1e-6, abs=1e-9)


# ---- figures and the command -----------------------------------------------------------------------


@pytest.mark.parametrize("effects", [(2.0,), (2.0, 3.0, None), (None,)])
def test_every_figure_is_drawn_for_whatever_runs_exist(tmp_path, effects):
    for number, effect in enumerate(effects):
        run = make_run(tmp_path, f"run-{number}", effect=effect, **{"sae.k": 8 * (number + 1)})
        if effect is not None:
            verdicts = {f"claim_{i}": verdict for i, verdict in enumerate(VERDICTS)} | {"no_value": TOO_FEW}
            run.save_table("07_claims", judged(verdicts, **dict.fromkeys(verdicts, effect) | {"no_value": np.nan}))
    table = compare_runs([tmp_path])
    agreed = agreement(table)
    metrics = [] if agreed.empty else list(agreed["metric"])
    figures = [
        plots_compare.effects_by_run(table),
        plots_compare.sae_quality(table),
        plots_compare.agreement_forest(table, agreed, metrics[-3:]),
        plots_compare.sweep_figure(table, ["k"]),
    ]
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.svg")
        assert (tmp_path / f"{number}.svg").stat().st_size > 1000


def test_the_command_writes_one_table_and_one_figure(tmp_path):
    for name, effect in (("one", 2.0), ("two", 3.0)):
        make_run(tmp_path, name, effect=effect)
    arguments = [sys.executable, "-m", "saema_utils", "compare", "one", "two", "--out", "both"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == [
        "comparison.csv",
        "comparison.png",
        "comparison.svg",
    ]
    assert set(pd.read_csv(tmp_path / "both/comparison.csv")["run"]) == {"one", "two"}
    assert "rank-moves-more" in done.stdout
    assert all(verdict in done.stdout for verdict in VERDICTS)
    refused = subprocess.run([*arguments[:4], "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "nowhere" in refused.stderr
    assert refused.stderr.count("\n") == 1
