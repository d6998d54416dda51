"""Which pole answers to which, how alike two configurations are, and which words share a cluster.

Cluster numbers mean nothing: two clusterings are matched by the assignment that shares the most tokens. Nothing here
looks at the order of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.arrays import any_numbers
from saema_utils.distances import check_points
from saema_utils.errors import GeometryError
from saema_utils.geometry.clouds import check_labels

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Int

    from saema_utils.distances import Distances, Points
    from saema_utils.geometry.clouds import Labels


@any_numbers
def procrustes_disparity(a: Points, b: Points) -> float:
    r"""How far two matched configurations are from having the same shape: 0 the same, 1 nothing shared.

    Both are centred and scaled to unit Frobenius norm; the best rotation, reflection and scale leave

    .. math:: 1 - \lVert A^\top B \rVert_*^2

    (nuclear norm) [1]_, the value of ``scipy.spatial.procrustes``, here without padding to a common
    dimension and without forming D x D matrices.

    Parameters
    ----------
    a, b
        Shapes [K, D1] and [K, D2]; row k of one answers to row k of the other.

    Returns
    -------
    Between 0 and 1; NaN for fewer than three rows (two points always match two points) and for a
    configuration of equal points. Many poles in a high dimension are all nearly a regular simplex:
    compare with :func:`procrustes_test`'s chance level before calling a value small.

    Raises
    ------
    GeometryError
        If the numbers of rows differ, or a value is not finite.

    References
    ----------
    .. [1] Gower, Psychometrika 40, 1975.
    """
    ka, kb = _gram(a), _gram(b)
    if len(ka) != len(kb):
        raise GeometryError(
            f"configurations have {len(ka)} and {len(kb)} rows; allowed: matched rows. Match them first."
        )
    return _disparity(ka, kb)


def _gram(points: Points) -> np.ndarray:
    """A square root [K, K] of the centred, normalised Gram matrix: all that shape depends on."""
    x = check_points(points)
    largest = float(x.abs().max())
    x = (x - x.mean(dim=0)).cpu().numpy()
    norm = np.linalg.norm(x)
    if norm <= 1e-12 * max(1.0, largest):
        return np.full((len(x), 1), np.nan)
    if x.shape[1] <= len(x):
        return x / norm
    values, vectors = np.linalg.eigh(x @ x.T)
    return vectors * np.sqrt(values.clip(min=0)) / norm


def _disparity(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or np.isnan(a).any() or np.isnan(b).any():
        return float("nan")
    shared = np.linalg.svd(a.T @ b, compute_uv=False).sum()
    return float(min(1.0, max(0.0, 1 - shared**2)))


@dataclass(frozen=True)
class ProcrustesTest:
    """Disparity, its mean when rows are matched at random, and the share of those at most as large."""

    disparity: float
    chance: float
    p_value: float
    n: int


@any_numbers
def procrustes_test(a: Points, b: Points, *, n_resamples: int = 199, seed: int = 0) -> ProcrustesTest:
    """Procrustes disparity beside what a random matching of the same rows gives."""
    disparity = procrustes_disparity(a, b)
    if not np.isfinite(disparity):
        return ProcrustesTest(disparity, float("nan"), float("nan"), len(a))
    ka, kb = _gram(a), _gram(b)
    rng = np.random.default_rng(seed)
    null = np.array([_disparity(ka, kb[rng.permutation(len(kb))]) for _ in range(n_resamples)])
    p = (np.sum(null <= disparity + 1e-12) + 1) / (n_resamples + 1)
    return ProcrustesTest(disparity, float(null.mean()), float(p), len(ka))


@any_numbers
def match_by_assignment(labels_a: Labels, labels_b: Labels) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Rows of the poles of two clusterings of the same points, matched to share the most points.

    The optimal assignment [1]_ on the contingency table; pairs that share no point are no match.
    Rows count the clusters in ascending order of label, as :func:`saema_utils.geometry.pole_measures.poles` does.

    References
    ----------
    .. [1] Kuhn, Naval Research Logistics Quarterly 2, 1955; ``scipy.optimize.linear_sum_assignment``.
    """
    from scipy.optimize import linear_sum_assignment

    a = check_labels(labels_a, len(labels_a))
    b = check_labels(labels_b, len(a))
    (names_a, row), (names_b, column) = (np.unique(labels, return_inverse=True) for labels in (a, b))
    counts = np.zeros((len(names_a), len(names_b)), dtype=np.int64)
    np.add.at(counts, (row, column), 1)
    counts = counts[names_a >= 0][:, names_b >= 0]  # noise matches nothing
    rows, columns = linear_sum_assignment(counts, maximize=True)
    shared = counts[rows, columns] > 0
    return rows[shared], columns[shared]


# ---- merging -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergingScores:
    """Clusters against words, over the ``n_tokens`` that are in a cluster at all.

    ``homogeneity`` falls when a cluster mixes words (they are merged); ``completeness`` falls when a
    word is split; ``ami`` is their agreement beyond chance. ``coverage`` is the clustered share.
    """

    ami: float
    homogeneity: float
    completeness: float
    coverage: float
    n_tokens: int
    reason: str = ""


@any_numbers
def merging_scores(clusters: Labels, words: Labels) -> MergingScores:
    """Adjusted mutual information [1]_, homogeneity and completeness [2]_ of clusters against words.

    References
    ----------
    .. [1] Vinh, Epps and Bailey, JMLR 11, 2010.
    .. [2] Rosenberg and Hirschberg, EMNLP-CoNLL 2007.
    """
    from sklearn.metrics import adjusted_mutual_info_score, homogeneity_completeness_v_measure

    a = check_labels(clusters, len(clusters))
    b = check_labels(words, len(a))
    kept = a >= 0
    n, coverage = int(kept.sum()), float(kept.mean()) if len(a) else 0.0
    nan = float("nan")
    if n < 2:
        return MergingScores(nan, nan, nan, coverage, n, "no token is in a cluster")
    if len(np.unique(b[kept])) < 2:
        return MergingScores(nan, nan, nan, coverage, n, "all clustered tokens are of one word")
    homogeneity, completeness, _ = homogeneity_completeness_v_measure(b[kept], a[kept])
    ami = adjusted_mutual_info_score(b[kept], a[kept])
    return MergingScores(float(ami), float(homogeneity), float(completeness), coverage, n)


def merged_words(clusters: Labels, words: Labels, names: Sequence[str]) -> pd.DataFrame:
    """Which words share a cluster: one row per cluster that is home to two words or more.

    A word is at home in a cluster that holds at least half of the word's tokens (noise included in
    the whole, so that a word spread over noise has no home).

    Returns
    -------
    Columns cluster, words (joined by ", "), n_words, n_tokens.
    """
    import pandas as pd

    a = check_labels(clusters, len(clusters))
    b = check_labels(words, len(a))
    rows = []
    for cluster in np.unique(a[a >= 0]):
        inside = np.bincount(b[a == cluster], minlength=len(names))
        whole = np.bincount(b, minlength=len(names))
        home = np.flatnonzero((inside > 0) & (2 * inside >= whole))
        if len(home) >= 2:
            shown = ", ".join(names[w] for w in home)
            rows.append(
                {"cluster": int(cluster), "words": shown, "n_words": len(home), "n_tokens": int(inside[home].sum())}
            )
    return pd.DataFrame(rows, columns=["cluster", "words", "n_words", "n_tokens"])


@any_numbers
def neighbour_purity(distances: Distances, words: Labels, prompts: Labels) -> tuple[float, float]:
    """Share of tokens whose nearest token of another prompt is of the same word, and its chance level.

    Merging without a clustering: no smallest cluster, no noise, nothing to tune. Tokens of one
    prompt are not compared with each other. Chance is the mean share of same-word tokens among those
    that could be nearest. NaN when no token has another prompt to look at.
    """
    n = len(distances)
    b, p = check_labels(words, n), check_labels(prompts, n)
    other = p[:, None] != p[None, :]
    usable = other.any(axis=1)
    if not usable.any():
        return float("nan"), float("nan")
    nearest = np.where(other, distances, np.inf).argmin(axis=1)
    same = b[nearest] == b
    chance = ((b[:, None] == b[None, :]) & other).sum(axis=1)[usable] / other.sum(axis=1)[usable]
    return float(same[usable].mean()), float(chance.mean())
