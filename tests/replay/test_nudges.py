"""Random steps of poles, against the same steps taken plainly, and against records whose relation is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from saema_utils.errors import GeometryError
from saema_utils.replay.nudges import LOSSES, N_STEPS, SCALES, correlations, kept_records, walk_poles
from saema_utils.runtime import generator


@pytest.fixture
def setting():
    draw = torch.Generator().manual_seed(0)
    latents = torch.rand(12, 30, generator=draw) * (torch.rand(12, 30, generator=draw) < 0.2)
    return {
        "latents": latents,
        "residual": torch.randn(12, 7, generator=draw),
        "labels": np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, 0]),
        "counted": torch.arange(12) > 1,
        "dictionary": torch.randn(30, 7, generator=draw),
        "bias": torch.randn(7, generator=draw),
    }


def plainly(setting, scale, step, seed):
    """Separation and error after so many steps, with every token's latents edited in full."""
    random = generator(seed, "random-poles")
    z, labels = setting["latents"].double(), setting["labels"]
    shift = torch.zeros(3, 30, dtype=torch.float64)
    for each in SCALES:
        shift = torch.zeros_like(shift)
        drawn = torch.randn(N_STEPS, 3, 30, generator=random).double()
        for n in range(N_STEPS):
            if (each, n) == (scale, step):
                edited = z.clone()
                for k in range(3):
                    edited[labels == k] += shift[k]
                centres = torch.stack([edited[labels == k].mean(0) for k in range(3)])
                scored = [
                    (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-8)
                    for x in (edited, setting["residual"].double())
                ]
                made = scored[0] @ setting["dictionary"].double() + setting["bias"].double()
                error = (made - scored[1])[setting["counted"]].square().mean()
                return float(torch.nn.functional.pdist(centres).mean()), float(error)
            shift = shift + each * 0.01 * drawn[n]
    raise AssertionError


@pytest.mark.parametrize(("scale", "step"), [(0.5, 0), (0.5, 9), (1.0, 4), (1.5, 9)])
def test_a_step_is_what_editing_every_token_gives(setting, scale, step):
    steps = walk_poles(**setting, seed=3).set_index(["scale", "step"])
    assert len(steps) == len(SCALES) * N_STEPS
    assert steps.loc[(scale, step)].tolist() == pytest.approx(plainly(setting, scale, step, 3), rel=1e-9)


def test_the_order_of_tokens_and_the_names_of_clusters_change_nothing(setting):
    steps = walk_poles(**setting)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    mixed = {name: x[order] if len(x) == 12 else x for name, x in setting.items()}
    mixed["labels"] = 5 * mixed["labels"] + 4 * (mixed["labels"] < 0)
    pd.testing.assert_frame_equal(walk_poles(**mixed), steps)


def test_one_cluster_has_nothing_to_be_moved_from(setting):
    with pytest.raises(GeometryError, match="1 clusters"):
        walk_poles(**setting | {"labels": np.zeros(12, dtype=int)})


def walks(separation, error):
    rows = [(scale, step) for scale in SCALES for step in range(N_STEPS)]
    steps = pd.DataFrame(rows, columns=["scale", "step"])
    return steps.assign(separation=np.ravel(separation), mse=np.ravel(error))


def test_each_loss_keeps_its_best_step_of_every_walk():
    random = np.random.default_rng(0)
    steps = walks(random.uniform(1, 9, (5, 10)), random.uniform(0, 1, (5, 10)))
    kept = kept_records(steps).set_index(["loss", "scale"])
    assert len(kept) == len(LOSSES) * len(SCALES)
    for scale, walk in steps.groupby("scale"):
        first, second = 1 / walk["separation"] + walk["mse"], walk["separation"] + walk["mse"]
        for name, loss in zip(LOSSES, (first, second), strict=True):
            assert kept.loc[(name, scale), "step"] == walk.loc[loss.idxmin(), "step"]


def test_what_falls_with_separation_correlates_with_it():
    separation = np.random.default_rng(0).uniform(1, 9, (5, 10))
    found = correlations(walks(separation, 3 - 0.1 * separation))
    assert found["r_all"] == pytest.approx(-1)
    assert found["r_kept"] == pytest.approx(-1)


def test_the_choice_alone_relates_what_has_nothing_to_do_with_each_other():
    """One loss likes separation, the other dislikes it, both dislike error: what they keep lies on two sides."""
    kept, of_all, null = [], [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        found = correlations(walks(random.uniform(1, 1.2, (5, 10)), random.uniform(0, 0.2, (5, 10))), n_shuffles=20)
        kept.append(found["r_kept"])
        of_all.append(found["r_all"])
        null.append(found["r_null"])
    assert abs(np.mean(of_all)) < 0.06
    assert np.mean(kept) < -0.1
    assert np.mean(null) == pytest.approx(np.mean(kept), abs=0.12)


def test_records_that_never_change_have_no_correlation():
    found = correlations(walks(np.ones((5, 10)), np.random.default_rng(0).uniform(0, 1, (5, 10))))
    assert np.isnan([found["r_all"], found["r_kept"], found["r_null"], found["r_null_low"]]).all()
