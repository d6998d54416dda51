"""The laboratory's worlds are what they say, and the verdicts on them are right."""

from __future__ import annotations

import pytest
import torch

from saema_utils.errors import SaemaError
from saema_utils.evidence.rank import stratification_table
from saema_utils.evidence.verdicts import SUPPORTED
from saema_utils.rulers.strata import (
    CODED,
    LEVELS,
    WORLDS,
    false_alarm_and_sensitivity,
    rank_recovery,
    sweep_alike,
    tucker_tensor,
    wilson,
)
from saema_utils.stratification.noise import sweep_clouds


@pytest.mark.parametrize("ranks", [(1, 1, 1), (2, 3, 6), (5, 4, 20)])
def test_tucker_tensor_has_the_rank_of_each_unfolding(ranks):
    tensor = tucker_tensor((12, 9, 25), ranks, seed=3, dtype=torch.float64)
    for mode, rank in enumerate(ranks):
        values = torch.linalg.svdvals(tensor.movedim(mode, 0).flatten(1))
        assert int((values > 1e-10 * values[0]).sum()) == rank
    assert float(tensor.square().mean()) == pytest.approx(1)


def test_noise_is_added_at_its_size():
    clean, noisy = (tucker_tensor((20, 20, 20), (2, 2, 2), noise=s, dtype=torch.float64) for s in (0.0, 0.1))
    assert float((noisy - clean).std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("ranks", [(13, 2, 2), (2, 2, 5), (0, 1, 1), (2, 2)])
def test_impossible_ranks_are_refused(ranks):
    with pytest.raises(SaemaError):
        tucker_tensor((12, 9, 25), ranks)


def test_every_tensor_without_noise_above_the_tolerance_is_recovered():
    table = rank_recovery(seed=1)
    assert table.loc[table["noise"] <= 1e-5, "recovered"].all()
    assert not table.loc[table["noise"] > 1e-5, "recovered"].any()


@pytest.mark.parametrize("name", ["smooth", "flat", "repeated", "stratified", "chance"])
def test_worlds_start_at_the_rank_they_declare(name):
    world = WORLDS[name](5)
    latents = world.encode(world.cloud.points).double()
    assert int(torch.linalg.matrix_rank(latents - latents.mean(0), rtol=1e-3)) == world.rank


def test_the_smooth_map_never_leaves_its_stratum():
    world = WORLDS["smooth"](0)
    for level in (0.1, 10.0, 1000.0):
        latents = world.encode(world.cloud.noisy(level, 1))
        assert int(torch.linalg.matrix_rank(latents.double(), rtol=1e-4)) == 4
        assert int((latents.abs().sum(0) > 0).sum()) == 6  # always the same latents


def test_the_stratified_map_changes_stratum_above_the_gap_and_not_below():
    world = WORLDS["stratified"](0)
    before = world.encode(world.cloud.points).argmax(1)
    assert torch.equal(world.encode(world.cloud.noisy(1e-3, 0)).argmax(1), before)
    moved = (world.encode(world.cloud.noisy(LEVELS[-1], 0)).argmax(1) != before).float().mean()
    assert 0.2 < float(moved) < 0.9


def test_repeats_alone_change_the_rank_and_distinct_contexts_do_not():
    world = WORLDS["repeated"](2)
    for cloud, verdict in ((world.cloud, "stratified"), (world.cloud.distinct, "smooth")):
        table = sweep_clouds([cloud], {"sae": world.encode}, noise_levels=LEVELS, seeds=(0,), modes=(2,))
        assert stratification_table(table)["called"].tolist() == [verdict]


def test_the_flat_map_is_linear_and_no_token_repeats():
    world = WORLDS["flat"](1)
    x, y = torch.randn(2, 5, 24)
    torch.testing.assert_close(world.encode(2 * x - y), 2 * world.encode(x) - world.encode(y))
    assert len(world.cloud.distinct) == len(world.cloud)


@pytest.mark.parametrize("name", ["flat", "repeated", "stratified"])
def test_the_batched_sweep_is_the_packages(name):
    worlds = [WORLDS[name](seed) for seed in range(3)]
    encoders = {"sae": worlds[0].encode, **worlds[0].controls}
    clouds = [world.cloud for world in worlds]
    plain = sweep_clouds(clouds, encoders, noise_levels=LEVELS, seeds=(0,), modes=(2,))
    keys = ["concept", "representation", "noise"]
    plain, batched = (table.set_index(keys).sort_index() for table in (plain, sweep_alike(clouds, encoders)))
    assert (plain["rank"] == batched["rank"]).all()
    for column in ("effective_rank", "noise_rms"):
        assert batched[column].to_numpy() == pytest.approx(plain[column].to_numpy(), rel=1e-6)


def test_alarms_are_rare_where_a_repair_helps_certain_where_none_does_and_strata_are_found():
    table = false_alarm_and_sensitivity(12).set_index(["test", "world"])
    flagged, tests = table["flagged"], table.index.unique("test")
    assert len(table) == 3 * len(WORLDS) - 2
    for test in tests:
        assert flagged[test, "smooth"] == 0
        assert flagged[test, "flat"] == 1  # a flat cloud gains rank under noise, whatever the encoder
    assert flagged["rank changes", "stratified"] == 1
    assert flagged["rank changes", "repeated"] == 1  # the trap that the controls are for
    assert flagged["rank changes, distinct contexts", "repeated"] == 0
    assert flagged["beats its controls", "repeated"] == 0
    assert flagged["beats its controls", "chance"] <= 2 / 12
    assert flagged["beats its controls", "stratified"] >= 10 / 12
    both = table.loc["beats its controls", ["more", "sooner"]]
    assert (table.loc["beats its controls", "flagged"] >= both.max(axis=1)).all()
    assert ((table["low"] <= table["flagged"]) & (table["flagged"] <= table["high"])).all()


def test_a_map_that_moves_at_the_first_level_is_found_sooner_than_controls_that_wait():
    """Onsets are compared at three levels: a hair trigger beside controls that only react to the strongest noise."""
    from saema_utils.evidence.rank import advantage, movement, over_concepts

    def trigger(level):
        return lambda x: torch.cat([x[:, CODED:], (x[:, 2:CODED].abs() > level) * x[:, 2:CODED]], dim=1)

    clouds = [WORLDS["flat"](seed).cloud for seed in range(9)]
    moves = movement(sweep_alike(clouds, {"sae": trigger(0.0), "waits": trigger(0.9)}))
    gaps = advantage(moves, "onset")["strongest control"].to_numpy()
    (row,) = over_concepts({("onset", "strongest control"): gaps})
    assert row["verdict"] == SUPPORTED


def test_wilson_interval_is_the_textbook_one():
    assert wilson(0, 200) == (0.0, pytest.approx(0.0188, abs=1e-4))
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
