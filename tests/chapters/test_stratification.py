"""Chapter 3: what the page defines is what the package computes, and its tables hold together."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from saema_utils.chapters.stratification import figures as plots
from saema_utils.chapters.stratification import findings as found
from saema_utils.chapters.stratification.tables import few_levels
from saema_utils.evidence.rank import (
    TOLERANCES,
    controls_table,
    noise_steps,
    stratification_table,
    tolerance_table,
    why_undecided,
)
from saema_utils.evidence.verdicts import NO_EFFECT, SUPPORTED, TOO_FEW
from saema_utils.rulers.strata import random_topk, rank_recovery, toy_tokens, tucker_tensor
from saema_utils.runs.directory import RunDirectory
from saema_utils.stratification.anatomy import subspace_drift, where_rank_moves
from saema_utils.stratification.noise import sweep_clouds
from saema_utils.stratification.spectra import covariance_spectrum, effective_rank, ranks_at
from saema_utils.stratification.token_cloud import TokenCloud
from saema_utils.study import PAPER_NOISE_LEVELS, STUDIES

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "03_noise_rank_stratification.ipynb"
LEVELS = (0.0, 0.1, 0.4, 0.8)


@pytest.fixture(scope="module")
def by_hand():
    scope: dict = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if "definition" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), scope)
    return scope


@pytest.mark.parametrize("shape", [(4, 3, 50), (6, 5, 7), (30, 2, 4)])
def test_the_page_and_the_package_agree(by_hand, shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mode in range(3):
        shown, used = by_hand["spectrum_by_hand"](tensor, mode), covariance_spectrum(tensor, mode)
        torch.testing.assert_close(shown[: len(used)], used, rtol=1e-8, atol=1e-10 * float(used[0]))
        assert by_hand["effective_rank_by_hand"](shown) == pytest.approx(effective_rank(used), rel=1e-6)


@pytest.fixture(scope="module")
def small_study() -> dict[str, pd.DataFrame]:
    """Two toy concepts through every table of the chapter, without a language model."""
    mask = torch.ones(6, 4, dtype=torch.bool)
    clouds = [TokenCloud.of(toy_tokens(seed=i), mask, name) for i, name in enumerate(("months", "days"))]
    encoders = {"residual": lambda x: x, "sae": random_topk(3), "random_dictionary": random_topk(4)}
    swept = sweep_clouds(clouds, encoders, noise_levels=LEVELS, seeds=range(6), measure=ranks_at(TOLERANCES))
    return {
        "ranks": swept,
        "tolerance": tolerance_table(swept),
        "controls": controls_table(swept),
        "drift": subspace_drift(clouds, encoders, noise_levels=LEVELS, seeds=(0, 1)),
        "places": where_rank_moves(clouds, encoders, level=0.4, seed=0),
    }


def test_a_looser_tolerance_never_finds_more_rank(small_study):
    ranks = small_study["ranks"][[c for c in small_study["ranks"] if c.startswith("rank@")]]
    assert (ranks.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    assert (small_study["ranks"]["rank@1e-06"] == small_study["ranks"]["rank"]).all()
    assert len(small_study["tolerance"]) == 2 * 3 * 3 * 5


def test_subspaces_turn_further_under_more_noise_and_supports_shrink(small_study):
    drift = small_study["drift"]
    assert drift["angle_mean"].between(0, 90 + 1e-9).all()
    assert (drift["angle_mean"] <= drift["angle_max"] + 1e-9).all()
    by_level = drift.groupby("noise")[["angle_mean", "support_kept"]].mean()
    assert by_level["angle_mean"].is_monotonic_increasing
    assert by_level["support_kept"].is_monotonic_decreasing


def test_leading_subspace_of_features_is_that_of_a_plain_svd():
    from saema_utils.stratification.anatomy import leading_subspaces, principal_angles

    for shape in ((6, 4, 300), (40, 10, 12)):
        latents = tucker_tensor(shape, (6, 4, 10), seed=2, dtype=torch.float64)
        cloud = TokenCloud.of(latents, torch.ones(shape[:2], dtype=torch.bool))
        centred = cloud.points - cloud.points.mean(0)
        expected = torch.linalg.svd(centred, full_matrices=False)[2][:5].T
        angles = principal_angles(leading_subspaces(cloud.points, cloud, (2,))[2], expected)
        assert float(angles.max()) < 1e-3


def test_the_overall_row_has_concepts_as_units(small_study):
    overall = small_study["controls"].query("concept == 'all concepts'")
    assert (overall["n"] == 2).all()
    assert (overall["verdict"] != SUPPORTED).all()  # two concepts can support nothing


@pytest.mark.parametrize("name", list(STUDIES))
def test_the_thinned_levels_keep_zero_and_the_largest(tmp_path, name):
    levels = few_levels(RunDirectory(tmp_path, STUDIES[name]))
    assert levels[0] == 0
    assert levels[-1] == STUDIES[name].noise_levels[-1]
    assert 3 <= len(levels) <= 5
    assert set(levels) <= set(STUDIES[name].noise_levels)


@pytest.mark.parametrize("name", list(STUDIES))
def test_levels_up_to_one_rms_end_at_the_first_that_reaches_it(tmp_path, name):
    run, reach = RunDirectory(tmp_path, STUDIES[name]), 0.9
    levels = few_levels(run, reach)
    assert (levels[0], levels[-1]) == (0, min(level for level in STUDIES[name].noise_levels if level >= reach))
    assert 3 <= len(levels) <= 5
    assert few_levels(run, 1e-9) == STUDIES[name].noise_levels[:2]
    assert few_levels(run, 1e9)[-1] == STUDIES[name].noise_levels[-1]


@pytest.mark.parametrize("size", [1, 255 / 7, 0.002 / 7])
def test_noise_in_rms_moves_a_stream_of_any_size_alike(size):
    """A code without a bias sees every direction as before; only the absolute levels grow with the stream."""
    mask, tokens = torch.ones(6, 4, dtype=torch.bool), toy_tokens(seed=3).double()
    encoders = {"residual": lambda x: x, "sae": lambda x: torch.relu(x), "random_dictionary": lambda x: -x}
    options = {"noise_levels": (0.0, 0.1, 1.0, 3.0), "noise_unit": "rms", "seeds": (0, 1)}
    tables = []
    for scale in (1, size):
        cloud = TokenCloud.of(tokens * scale, mask, "toy")
        tables.append(sweep_clouds([cloud], encoders, measure=ranks_at(TOLERANCES), **options))
        assert set(tables[-1]["noise_rms"]) == {0.0, 0.1, 1.0, 3.0}
        np.testing.assert_allclose(tables[-1]["noise"], tables[-1]["noise_rms"] * cloud.rms, rtol=1e-12)
        drift = subspace_drift([cloud], encoders, **options)
        assert set(drift["noise_rms"]) == {0.1, 1.0, 3.0}
        assert found.keeps_its_place(drift).holds is not None
        places = where_rank_moves([cloud], encoders, level=0.1, noise_unit="rms", seed=0)
        assert set(places["noise_rms"]) == {0.1}
        np.testing.assert_allclose(places["noise"], 0.1 * cloud.rms)
    one, other = tables
    pd.testing.assert_frame_equal(one.drop(columns="noise"), other.drop(columns="noise"), rtol=1e-6)
    assert (controls_table(other)["reason"] == "").all()


def test_where_no_two_tokens_share_a_prompt_or_a_position_there_is_a_table_and_a_figure_without_rows():
    mask = torch.eye(2, dtype=torch.bool)
    cloud = TokenCloud.of(torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0)), mask, "toy")
    places = where_rank_moves([cloud], {"residual": lambda x: x}, level=0.1, seed=0)
    assert places.empty
    assert found.gains_that_are_repeats(places) == found.Count(0, 0)
    assert "two tokens" in plots.gain_against_repeats(places).axes[0].texts[0].get_text()


def in_absolute_units(rms: float, levels: tuple[float, ...]) -> pd.DataFrame:
    """Two concepts whose streams have about this RMS, under these levels in the units of the activations."""
    mask = torch.ones(6, 4, dtype=torch.bool)
    clouds = []
    for seed, name in enumerate(("months", "days")):
        tokens = toy_tokens(seed=seed)
        clouds.append(TokenCloud.of(tokens * rms / tokens.square().mean().sqrt(), mask, name))
    encoders = {"residual": lambda x: x, "sae": random_topk(3), "random_dictionary": random_topk(4)}
    return sweep_clouds(clouds, encoders, noise_levels=levels, seeds=range(4))


@pytest.mark.parametrize(("rms", "says"), [(255.0, "noise reaches 0.039 RMS"), (0.002, "noise begins at 10 RMS")])
def test_what_is_asked_about_one_rms_is_refused_where_noise_does_not_span_it(rms, says):
    swept = in_absolute_units(rms, PAPER_NOISE_LEVELS)
    controls = controls_table(swept)
    excursions = controls[controls["statistic"] == "excursion"]
    assert excursions["reason"].str.startswith(says).all()
    assert (excursions["verdict"] == TOO_FEW).all()
    against = found.advantages(controls)["random_dictionary"]
    assert against.says(NO_EFFECT) is None
    assert says in str(against)
    assert found.keeps_its_place(swept.assign(angle_mean=1.0, support_kept=1.0)) == (None, why_undecided(swept))
    text = [label.get_text() for axis in plots.advantage_forest(controls).axes for label in axis.texts]
    assert any(says in label for label in text)
    plots.noise_units(swept).draw_without_rendering()


def test_the_papers_levels_tell_of_one_rms_where_the_stream_is_of_ordinary_size():
    swept = in_absolute_units(7.3, PAPER_NOISE_LEVELS)
    assert why_undecided(swept) == ""
    assert (controls_table(swept)["reason"] == "").all()


def test_levels_of_concepts_are_paired_step_by_step_though_their_sizes_differ():
    mask, flat = torch.ones(6, 4, dtype=torch.bool), torch.arange(24) < 3  # noise fills the other directions
    clouds = [TokenCloud.of(toy_tokens(seed=i) * flat * 10.0**i, mask, name) for i, name in enumerate("ab")]
    swept = sweep_clouds(clouds, {"sae": lambda x: x}, noise_levels=(0, 0.5, 2), noise_unit="rms", seeds=(0,))
    assert swept.groupby("concept")["noise"].nunique().eq(3).all()
    steps = noise_steps(swept)
    assert dict(zip(steps, swept["noise_rms"], strict=True)) == {0: 0.0, 1: 0.5, 2: 2.0}
    first = stratification_table(swept).query("mode == 2")
    assert first["first_noise_rms"].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(first["first_noise"], [0.5 * cloud.rms for cloud in clouds])


def test_the_spread_of_first_levels_is_that_of_one_concept_over_tolerances():
    first = {"a": (0.1, 0.1), "b": (4.0, 8.0), "c": (float("nan"), 1.0)}
    table = pd.DataFrame(
        {"concept": c, "representation": "sae", "mode": 2, "first_noise_rms": v, "called": str(v == v)}
        for c, values in first.items()
        for v in values
    )
    depends, spread = found.tolerances_matter(table)
    assert (depends, spread) == (found.Count(1, 3), 2)  # not 80, which is how concepts differ
    assert found.tolerances_matter(table[table["concept"] == "a"]) == (found.Count(0, 1), 1)
    assert found.tolerances_matter(table[table["first_noise_rms"].isna()]) == (found.Count(0, 1), 1)


def test_a_place_where_nothing_repeats_and_nothing_moves_agrees_with_nothing():
    places = pd.DataFrame({"rank_gain": [0, 2, 3, 0], "n_tokens": [5, 5, 5, 5], "n_distinct": [5, 3, 4, 4]})
    places = places.assign(axis="position", representation="residual")
    assert found.gains_that_are_repeats(places) == found.Count(1, 3)
    assert found.gains_that_are_repeats(places[:1]) == found.Count(0, 0)
    assert not found.gains_that_are_repeats(places[:1]).all, "nothing shows nothing"


def test_concepts_are_counted_by_representation_in_the_feature_mode():
    rows = [("sae", 2, "stratified"), ("residual", 2, "smooth"), ("residual", 2, "stratified")]
    rows += [("sae", 0, "smooth"), ("residual", 1, "stratified")]
    counts = found.stratified_concepts(pd.DataFrame(rows, columns=["representation", "mode", "called"]))
    assert counts == {"sae": found.Count(1, 1), "residual": found.Count(1, 2)}
    assert counts["sae"].all
    assert not counts["residual"].all


def test_advantages_are_those_of_the_row_over_all_concepts(small_study):
    controls = small_study["controls"]
    for statistic in ("excursion", "onset"):
        against = found.advantages(controls, statistic)
        assert set(against) == {"residual", "random_dictionary", "strongest control"}
        rows = controls.query("concept == 'all concepts' and statistic == @statistic").set_index("control")
        for name, advantage in against.items():
            row = rows.loc[name]
            assert (advantage.estimate, advantage.verdict or TOO_FEW) == (row["difference"], row["verdict"])
            assert advantage.low <= advantage.estimate <= advantage.high


def test_an_undecided_comparison_neither_holds_nor_fails():
    assert [found.Effect(0.0, -1.0, 1.0, v).says("lower") for v in ("lower", "higher", None)] == [True, False, None]


def test_drift_is_read_at_the_largest_level_within_one_rms():
    rows = [("a", 2, 0.1, 0.1, 1.0, 0.9), ("a", 2, 0.5, 0.5, 10.0, 0.6), ("b", 2, 0.5, 0.6, 20.0, 0.8)]
    rows += [("a", 2, 3.0, 3.0, 80.0, 0.1), ("b", 2, 3.0, 3.6, 80.0, 0.1), ("a", 0, 0.9, 0.9, 70.0, 0.2)]
    drift = pd.DataFrame(rows, columns=["concept", "mode", "noise", "noise_rms", "angle_mean", "support_kept"])
    drift = drift.assign(representation="sae")
    assert found.drift_near_one_rms(drift) == {"sae": found.Drift(pytest.approx(15.0), pytest.approx(0.7))}
    assert found.drift_near_one_rms(drift.assign(noise_rms=2.0)) == {}
    assert found.drift_near_one_rms(drift.assign(noise_rms=0.2)) == {}, "noise that stays far below one RMS"


def test_ranks_beside_sinks_are_geometric_means():
    rows = [("a", "masked", 4.0), ("b", "masked", 9.0), ("a", "one sink", 1.0), ("b", "one sink", 1.21)]
    ranks = pd.DataFrame(rows, columns=["concept", "kept", "effective_rank"]).assign(mode=2, representation="sae")
    assert found.rank_by_sinks(ranks) == pytest.approx({"masked": 6.0, "one sink": 1.1})
    assert found.rank_by_sinks(ranks[:0]) == {}


def test_alarms_are_those_of_one_kind_of_world():
    rows = [("bare", "repeated", 1.0), ("repaired", "repeated", 0.0), ("bare", "smooth", 0.5)]
    rates = pd.DataFrame(rows, columns=["test", "world", "flagged"])
    assert found.flagged_by_test(rates, "repeated") == {"bare": 1.0, "repaired": 0.0}


def test_prescribed_ranks_come_back_below_the_tolerance_only():
    counts = found.recovered_by_noise(rank_recovery())
    below, above = [counts[noise] for noise in counts if noise < 1e-3], counts[max(counts)]
    assert all(count.all for count in below)
    assert above.n == 0


def test_every_figure_can_be_drawn(small_study, tmp_path):
    from matplotlib import pyplot

    ranks = small_study["ranks"]
    kinds = pd.concat([ranks.assign(kind="isotropic"), ranks.assign(kind="on_manifold")])
    kept = {"masked": 20.0, "one sink": 1.4, "all sinks": 1.01}
    sinks = pd.DataFrame(
        {"concept": c, "representation": r, "mode": m, "kept": k, "effective_rank": kept[k]}
        for c, r, m, k in itertools.product("ab", ("residual", "sae"), range(3), kept)
    )
    spectra = [covariance_spectrum(tucker_tensor((6, 5, 30), (3, 2, 4)), mode) for mode in range(3)]
    tolerance = small_study["tolerance"]
    never = tolerance.assign(first_noise_rms=tolerance["first_noise_rms"].where(tolerance["rtol"] < 1e-2))
    figures = [
        plots.rank_against_noise(ranks),
        plots.repeated_contexts(ranks, ranks, "months"),
        plots.toy_spectra(spectra, (3, 2, 4)),
        plots.sink_ranks(sinks),
        plots.sink_ranks(sinks[:0]),
        plots.tolerance_map(never),
        plots.drift_curves(small_study["drift"]),
        plots.gain_against_repeats(small_study["places"]),
        plots.noise_kinds(kinds),
        plots.noise_units(ranks),
        plots.advantage_forest(small_study["controls"]),
    ]
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png", dpi=40)
        assert all(axis.get_xlabel() or axis.get_xticklabels() for axis in figure.axes)
    assert not pyplot.get_fignums(), "a figure that pyplot knows is shown twice"


def test_curves_pass_through_geometric_means_over_concepts(small_study):
    """Whoever draws them: the line at each level is the mean log2 ratio to the rank without noise."""
    ranks = small_study["ranks"].query("mode == 2 and representation == 'sae'")
    wide = ranks.pivot_table(index=["concept", "seed"], columns="noise", values="effective_rank")
    expected = np.log2(wide.div(wide[0.0], axis=0)).mean().to_numpy()
    panel = plots.rank_against_noise(small_study["ranks"]).axes[2]
    drawn = panel.get_lines()[1].get_ydata()  # after the residual stream
    np.testing.assert_allclose(drawn, expected, atol=1e-9)
