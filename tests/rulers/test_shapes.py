"""The shapes are what they say, and the rulers land where the book says they do."""

from __future__ import annotations

import numpy as np
import pytest

from saema_utils.distances import pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.rulers import shapes
from saema_utils.rulers.shapes import EMBEDDED, Trial, ruler_table, swiss_roll, trials


def rng_of(seed=0):
    return np.random.default_rng(seed)


def test_sphere_and_circle_lie_where_they_should():
    assert np.linalg.norm(shapes.sphere(rng_of(), 50, 4), axis=1) == pytest.approx(np.ones(50))
    assert np.linalg.norm(shapes.circle(rng_of(), 50, ambient=5), axis=1) == pytest.approx(np.ones(50))
    with pytest.raises(GeometryError, match="ambient"):
        shapes.circle(rng_of(), ambient=1)


def test_torus_satisfies_its_equation():
    x, y, z = shapes.torus(rng_of(), 200, 3.0, 1.0).T
    assert (np.hypot(x, y) - 3) ** 2 + z**2 == pytest.approx(np.ones(200))


def test_swiss_roll_is_flat_up_close():
    rolled, flat = swiss_roll(rng_of(), 3000)
    near, truth = pairwise_distances(rolled), pairwise_distances(flat)
    close = (truth < 0.5) & (truth > 0)
    assert near[close] == pytest.approx(truth[close], rel=0.02)
    assert (near <= truth + 1e-5).all()


def test_rotations_are_orthogonal():
    q = shapes.random_rotation(rng_of(), 7)
    assert q @ q.T == pytest.approx(np.eye(7), abs=1e-12)


@pytest.fixture(scope="module")
def table(monkeypatch_module):
    """The ruler table with few repeats, without the row that has to compile UMAP."""
    kept = [t for t in trials() if t.measure != EMBEDDED]
    monkeypatch_module.setattr(shapes, "trials", lambda: kept)
    return ruler_table(0, 4).set_index(["shape", "measure"])


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_holes_and_clusters_are_counted_right_most_of_the_time(table):
    counts = table[table.index.get_level_values(1).str.startswith("Betti")]
    assert (counts["bias"].abs() <= 0.5).all()
    assert (counts["bias"] == 0).mean() > 0.8


@pytest.mark.parametrize(
    ("shape", "measure", "tolerance"),
    [
        ("1-sphere, 400 points", "intrinsic dimension", 0.2),
        ("5-sphere, 400 points", "intrinsic dimension", 0.6),
        ("six 3-balls in 30 dimensions", "mean local dimension", 0.4),
        ("8 noisy clusters on a simplex", "AEDP", 0.2),
        ("8 noisy clusters on a simplex", "tree weight", 4),
        ("8 clusters, scaled by 7", "tree weight, scale-free", 1e-9),
        ("half circle, 7 poles", "average geodesic distance", 0.01),
        ("swiss roll, ratio to truth", "average geodesic distance", 0.1),
        ("rotated, scaled copy", "Procrustes disparity", 1e-9),
        ("words merged by threes", "homogeneity", 1e-9),
        ("labels at random", "adjusted mutual information", 0.05),
        ("12 items on a noisy circle", "circularity, power at 0.05", 0.1),
        ("12 items of pure noise", "circularity, false alarms at 0.05", 0.1),
    ],
)
def test_ruler_lands_near_the_truth(table, shape, measure, tolerance):
    assert abs(table.loc[(shape, measure), "bias"]) <= tolerance


def test_rulers_known_to_mislead_do(table):
    assert table.loc[("20-sphere, 400 points", "intrinsic dimension"), "bias"] < -2
    assert table.loc[("12 unrelated poles, 576 dimensions", "Procrustes disparity"), "estimate"] < 0.1
    assert table.loc[("one Gaussian lump", "clusters (direct)"), "estimate"] == 0


def test_same_seed_same_table():
    chosen = [t for t in trials() if t.measure == "AEDP"]
    assert all(isinstance(t, Trial) for t in chosen)
    first, second = ([float(t.run(rng_of(4))) for t in chosen] for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_a_umap_embedding_reads_a_five_sphere_as_flatter():
    trial = next(t for t in trials() if t.measure == EMBEDDED)
    assert float(trial.run(rng_of())) < 4


@pytest.mark.slow
def test_synthetic_words_merge_when_they_must_and_only_then():
    from saema_utils.rulers.words import synthetic_merging_table

    table = synthetic_merging_table(0).set_index("representation")
    assert (table["homogeneity"] - table["homogeneity_truth"]).abs().max() < 0.15
    assert table.loc["SAE, 1 of 4", "purity"] < 0.8 < table.loc["SAE, 4 of 40", "purity"]
