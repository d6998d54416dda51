"""The laboratory's worlds are what they say, and the verdicts on them are right."""

from __future__ import annotations

import pytest
import torch

from saema_utils.errors import SaemaError
from saema_utils.rank_verdicts import stratification_table
from saema_utils.stratification import sweep_clouds
from saema_utils.worlds import LEVELS, WORLDS, false_alarm_and_sensitivity, rank_recovery, tucker_tensor, wilson


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


@pytest.mark.parametrize("name", ["smooth", "repeated", "stratified", "chance"])
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
        assert stratification_table(table)["verdict"].tolist() == [verdict]


def test_false_alarms_are_rare_and_strata_are_found():
    table = false_alarm_and_sensitivity(12).set_index(["test", "world"])
    assert table.loc[("rank changes", "smooth"), "flagged"] == 0
    assert table.loc[("rank changes", "stratified"), "flagged"] == 1
    assert table.loc[("rank changes", "repeated"), "flagged"] == 1  # the trap that the controls are for
    assert table.loc[("rank changes, distinct contexts", "repeated"), "flagged"] == 0
    assert table.loc[("beats its controls", "repeated"), "flagged"] == 0
    assert table.loc[("beats its controls", "chance"), "flagged"] <= 2 / 12
    assert table.loc[("beats its controls", "stratified"), "flagged"] >= 10 / 12
    assert ((table["low"] <= table["flagged"]) & (table["flagged"] <= table["high"])).all()


def test_wilson_interval_is_the_textbook_one():
    assert wilson(0, 200) == (0.0, pytest.approx(0.0188, abs=1e-4))
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
