"""Shapes whose geometry is known, and how far each measure lands from the truth.

A ruler is trusted after it has measured what is known. Every sampler takes a NumPy generator and
returns points [N, D]; :func:`ruler_table` measures them and reports estimate, truth, bias and spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.distances import pairwise_distances
from saema_utils.errors import GeometryError
from saema_utils.geometry.circles import circularity
from saema_utils.geometry.clouds import rms_radius
from saema_utils.geometry.clusters import find_local_representations, standardise_to_sphere, umap_embedding
from saema_utils.geometry.dimension import IntrinsicDimension, intrinsic_dimension, local_dimensions, mean_dimension
from saema_utils.geometry.matching import MergingScores, merging_scores, procrustes_disparity
from saema_utils.geometry.pole_measures import aedp, average_geodesic_distance, mst_weight, mst_weight_scale_free, poles
from saema_utils.geometry.topology import betti_numbers

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

    Sample = Float[np.ndarray, "N D"]


def circle(rng: np.random.Generator, n: int = 100, noise: float = 0.0, ambient: int = 2) -> Sample:
    """Unit circle at random angles, with Gaussian noise in all ``ambient`` dimensions. Betti (1, 1)."""
    angles = rng.uniform(0, 2 * np.pi, n)
    return _noisy(rng, np.stack([np.cos(angles), np.sin(angles)], axis=1), noise, ambient)


def ordered_circle(rng: np.random.Generator, n: int = 12, noise: float = 0.0, ambient: int = 50) -> Sample:
    """``n`` items at equal angles in their order, turned at random into ``ambient`` dimensions."""
    angles = 2 * np.pi * np.arange(n) / n
    flat = _noisy(rng, np.stack([np.cos(angles), np.sin(angles)], axis=1), noise, ambient)
    return flat @ random_rotation(rng, ambient)


def sphere(rng: np.random.Generator, n: int = 300, dimension: int = 2) -> Sample:
    """Uniform on the unit sphere of a ``dimension``, in one more."""
    x = rng.normal(size=(n, dimension + 1))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def torus(rng: np.random.Generator, n: int = 500, major: float = 2.0, minor: float = 1.0) -> Sample:
    """Uniform by area on a torus in three dimensions. Dimension 2, Betti (1, 2, 1)."""
    u, v = rng.uniform(0, 2 * np.pi, (2, 8 * n))
    kept = np.flatnonzero(rng.uniform(size=8 * n) < (major + minor * np.cos(v)) / (major + minor))[:n]
    ring = major + minor * np.cos(v[kept])
    return np.stack([ring * np.cos(u[kept]), ring * np.sin(u[kept]), minor * np.sin(v[kept])], axis=1)


def swiss_roll(rng: np.random.Generator, n: int = 600, height: float = 8.0) -> tuple[Sample, Sample]:
    """A rolled-up rectangle, and the flat coordinates (arc length, height) in which geodesics are straight."""
    end = 4.5 * np.pi
    along = rng.uniform(0, 1, n)
    # Uniform along the arc: invert arc length t -> s numerically.
    t = np.linspace(1.5 * np.pi, end, 4000)
    arc = 0.5 * (t * np.sqrt(1 + t**2) + np.arcsinh(t))
    arc -= arc[0]
    length = along * arc[-1]
    turn = np.interp(length, arc, t)
    h = rng.uniform(0, height, n)
    return np.stack([turn * np.cos(turn), h, turn * np.sin(turn)], axis=1), np.stack([length, h], axis=1)


def clusters(
    rng: np.random.Generator, centres: Sample, n_each: int = 40, noise: float = 1.0, dimension: int | None = None
) -> tuple[Sample, Int[np.ndarray, " N"]]:
    """Gaussian clusters about given centres, each filling the first ``dimension`` coordinates; and their labels."""
    k, ambient = centres.shape
    spread = np.zeros((k * n_each, ambient))
    spread[:, : dimension or ambient] = noise * rng.normal(size=(k * n_each, dimension or ambient))
    labels = np.repeat(np.arange(k), n_each)
    return centres[labels] + spread, labels


def simplex(k: int, side: float = 1.0) -> Sample:
    """``k`` points at equal distances: AEDP is the side, the spanning tree k - 1 sides."""
    return np.eye(k) * side / math.sqrt(2)


def random_rotation(rng: np.random.Generator, dimension: int) -> Sample:
    """A rotation (or reflection) drawn uniformly."""
    q, r = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    return q * np.sign(np.diag(r))


def _noisy(rng: np.random.Generator, x: np.ndarray, noise: float, ambient: int) -> np.ndarray:
    if ambient < x.shape[1]:
        raise GeometryError(
            f"ambient is {ambient} for a shape in {x.shape[1]} dimensions; allowed: at least that many."
        )
    wide = np.zeros((len(x), ambient))
    wide[:, : x.shape[1]] = x
    return wide + noise * rng.normal(size=wide.shape) if noise else wide


# ---- the ruler table ---------------------------------------------------------------------------

EMBEDDED = "dimension of its UMAP embedding"


@dataclass(frozen=True)
class Trial:
    """A shape, a measure, the truth; ``run`` measures a fresh sample: a number, or an estimate with its ``error``."""

    shape: str
    measure: str
    truth: float
    run: Callable[[np.random.Generator], float | IntrinsicDimension]
    note: str = ""


def trials() -> list[Trial]:
    """Everything that the ruler table measures."""
    found = []
    for dimension, n in ((1, 400), (2, 400), (5, 400), (10, 400), (20, 400), (5, 40)):
        note = "too few points for so many dimensions: biased low" if dimension >= 10 else ""
        run = partial(_dimension, n=n, dimension=dimension)
        found.append(Trial(f"{dimension}-sphere, {n} points", "intrinsic dimension", dimension, run, note))
    copies, protocol = "copies are counted and dropped", "what the paper's protocol reads"
    found += [
        Trial("40 copies in a 5-sphere", "intrinsic dimension", 5, _with_copies, copies),
        Trial("5-sphere, 400 points", EMBEDDED, 5, _embedded_dimension, protocol),
        Trial("six 3-balls in 30 dimensions", "mean local dimension", 3, _local_dimension),
    ]
    for name, sample, betti in _holed_shapes():
        for degree, truth in enumerate(betti):
            found.append(Trial(name, f"Betti-{degree}", truth, partial(_betti, sample=sample, degree=degree)))
    lump, ratio = "HDBSCAN knows no single cluster", "ratio to the unscaled value"
    alike = "high-dimensional poles look alike: compare with chance"
    noisy, noise = partial(_circle_detected, noise=0.1), partial(_circle_detected, noise=math.inf)
    return [
        *found,
        Trial("six clusters in 30 dimensions", "clusters (direct)", 6, _n_clusters),
        Trial("one Gaussian lump", "clusters (direct)", 1, _lump, lump),
        Trial("8 noisy clusters on a simplex", "AEDP", 10, lambda rng: aedp(_simplex_poles(rng))),
        Trial("8 noisy clusters on a simplex", "tree weight", 70, lambda rng: mst_weight(_simplex_poles(rng))),
        Trial("8 clusters, scaled by 7", "tree weight, scale-free", 1, _scale_ratio, ratio),
        Trial("half circle, 7 poles", "average geodesic distance", math.pi * 8 / 18, _half_circle),
        Trial("swiss roll, ratio to truth", "average geodesic distance", 1, _swiss_geodesic),
        Trial("rotated, scaled copy", "Procrustes disparity", 0, _procrustes_copy),
        Trial("12 unrelated poles, 576 dimensions", "Procrustes disparity", 1, _procrustes_chance, alike),
        Trial(
            "words merged by threes", "homogeneity", math.log(4) / math.log(12), lambda rng: _merging(rng).homogeneity
        ),
        Trial("words merged by threes", "completeness", 1, lambda rng: _merging(rng).completeness),
        Trial("labels at random", "adjusted mutual information", 0, _unrelated),
        Trial("12 items on a noisy circle", "circularity, power at 0.05", 1, noisy),
        Trial("12 items of pure noise", "circularity, false alarms at 0.05", 0.05, noise),
    ]


def ruler_table(seed: int = 0, n_repeats: int = 20) -> pd.DataFrame:
    """Every measure against the truth, over fresh samples.

    Returns
    -------
    Columns shape, measure, truth, estimate (mean over samples), bias, spread (standard deviation over
    samples), stated_error (mean standard error that the measure itself reports, where it does), n, note.
    """
    import pandas as pd

    rows = []
    for index, trial in enumerate(trials()):
        n = 10 * n_repeats if trial.measure.endswith("at 0.05") else n_repeats
        n = max(3, n_repeats // 4) if trial.measure in ("Betti-2", EMBEDDED) else n
        found = [trial.run(np.random.default_rng([seed, index, repeat])) for repeat in range(n)]
        estimates, errors = np.array([(float(one), getattr(one, "error", math.nan)) for one in found]).T
        rows.append(
            {
                "shape": trial.shape,
                "measure": trial.measure,
                "truth": trial.truth,
                "estimate": estimates.mean(),
                "bias": estimates.mean() - trial.truth,
                "spread": estimates.std(ddof=1),
                "stated_error": errors.mean(),
                "n": n,
                "note": trial.note,
            }
        )
    return pd.DataFrame(rows)


def _dimension(rng: np.random.Generator, n: int, dimension: int) -> IntrinsicDimension:
    return intrinsic_dimension(sphere(rng, n, dimension))


def _embedded_dimension(rng: np.random.Generator) -> IntrinsicDimension:
    d = pairwise_distances(standardise_to_sphere(sphere(rng, 400, 5)))
    return intrinsic_dimension(umap_embedding(d, n_components=50, seed=int(rng.integers(2**31))))


def _with_copies(rng: np.random.Generator) -> IntrinsicDimension:
    x = sphere(rng, 400, 5)
    return intrinsic_dimension(np.vstack([x, x[:40]]))


def _local_dimension(rng: np.random.Generator) -> IntrinsicDimension:
    x, labels = clusters(rng, 30 * rng.normal(size=(6, 30)), 40, 1.0, 3)
    return mean_dimension(local_dimensions(labels, pairwise_distances(x)))


def _holed_shapes() -> list[tuple[str, Callable, tuple[int, ...]]]:
    far = np.array([5.0, 0.0])
    return [
        ("circle, 60 noisy points", lambda rng: circle(rng, 60, 0.1), (1, 1)),
        ("two circles", lambda rng: np.vstack([circle(rng, 60, 0.03), circle(rng, 60, 0.03) + far]), (2, 2)),
        ("five far clusters", lambda rng: clusters(rng, 20 * rng.normal(size=(5, 20)))[0], (5, 0)),
        ("Gaussian cloud, 10 dimensions", lambda rng: rng.normal(size=(200, 10)), (1, 0)),
        ("filled square", lambda rng: rng.uniform(size=(150, 2)), (1, 0)),
        ("sphere", lambda rng: sphere(rng, 300, 2), (1, 0, 1)),
        ("torus", lambda rng: torus(rng, 600), (1, 2, 1)),
    ]


def _betti(rng: np.random.Generator, sample: Callable, degree: int) -> float:
    return betti_numbers(sample(rng), degree)[degree]


def _n_clusters(rng: np.random.Generator) -> float:
    x, _ = clusters(rng, 8 * rng.normal(size=(6, 30)), 30)
    return find_local_representations(x, method="direct").n_local


def _lump(rng: np.random.Generator) -> float:
    return find_local_representations(rng.normal(size=(200, 10)), method="direct").n_local


def _simplex_poles(rng: np.random.Generator) -> Sample:
    return poles(*clusters(rng, simplex(8, 10.0), 40))


def _scale_ratio(rng: np.random.Generator) -> float:
    x, labels = clusters(rng, 10 * rng.normal(size=(8, 20)))
    before, after = (mst_weight_scale_free(poles(s * x, labels), rms_radius(s * x)) for s in (1.0, 7.0))
    return after / before


def _half_circle(rng: np.random.Generator) -> float:
    # Poles at multiples of pi/6; arcs of i to j average pi/6 * 8/3 over the 21 pairs of 7 poles.
    fine = np.linspace(0, np.pi, 400)
    x = np.stack([np.cos(fine), np.sin(fine)], axis=1) + 0.002 * rng.normal(size=(400, 2))
    places = np.array([int(np.abs(fine - a).argmin()) for a in np.pi * np.arange(7) / 6])
    labels = np.full(400, -1)
    labels[places] = np.arange(7)
    return average_geodesic_distance(x, labels, 8)


def _swiss_geodesic(rng: np.random.Generator) -> float:
    x, flat = swiss_roll(rng)
    labels = np.full(len(x), -1)
    labels[:12] = np.arange(12)  # single points as poles: their medoids are themselves
    return average_geodesic_distance(x, labels, 8) / aedp(flat[:12])


def _procrustes_copy(rng: np.random.Generator) -> float:
    x = rng.normal(size=(12, 30))
    return procrustes_disparity(x, 5 * x @ random_rotation(rng, 30) + 3)


def _procrustes_chance(rng: np.random.Generator) -> float:
    return procrustes_disparity(rng.normal(size=(12, 576)), rng.normal(size=(12, 576)))


def _merging(rng: np.random.Generator) -> MergingScores:
    words = rng.permutation(np.repeat(np.arange(12), 20))
    return merging_scores(rng.permutation(4)[words // 3], words)


def _unrelated(rng: np.random.Generator) -> float:
    return merging_scores(rng.integers(0, 6, 240), rng.integers(0, 12, 240)).ami


def _circle_detected(rng: np.random.Generator, noise: float) -> float:
    x = rng.normal(size=(12, 50)) if math.isinf(noise) else ordered_circle(rng, 12, noise)
    found = circularity(x, np.arange(12), n_resamples=199, seed=int(rng.integers(2**31)))
    return found.p_value <= 0.05
