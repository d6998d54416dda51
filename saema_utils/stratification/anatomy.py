"""Where the rank moves: subspaces that turn, supports that change, slices of the tensor that gain rank."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import ActivationError
from saema_utils.runtime import generator, progress_bar
from saema_utils.saes.topk_latents import TopKLatents
from saema_utils.stratification.grams import (
    center_both,
    cloud_grams,
    eigenvalues,
    gram_of_rows,
    one_thread_each,
    rounding_floor,
)
from saema_utils.stratification.noise import Encode, Latents
from saema_utils.stratification.spectra import measure_spectrum
from saema_utils.stratification.token_cloud import TokenCloud
from saema_utils.study import NoiseUnit

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor

N_LEADING = 5
PLACE_COLUMNS = ["concept", "representation", "axis", "index", "n_tokens", "n_distinct", "noise", "noise_rms"]
PLACE_COLUMNS += ["rank_clean", "rank_noisy", "rank_gain", "effective_rank_clean", "effective_rank_noisy"]


def leading_subspaces(latents: Float[Tensor, "N F"], cloud: TokenCloud, modes: Sequence[int]) -> dict[int, Tensor]:
    """Orthonormal columns spanning the strongest directions of each mode's covariance, from one Gram matrix.

    Shape [size of the mode, m] each, with m the smaller of :data:`N_LEADING` and the number of positive eigenvalues.
    """
    found = {mode: _strongest(gram) for mode, (gram, _, _) in cloud_grams(latents, cloud, modes).items()}
    bases = {mode: vectors for mode, (_, vectors) in found.items()}
    if 2 in bases and len(latents) <= latents.shape[1]:  # solved between tokens: carry the directions to latents
        values, vectors = found[2]
        across = latents.T.double() @ (vectors - vectors.mean(0))
        bases[2] = torch.linalg.qr(across / values.sqrt())[0]
    return bases


def _strongest(gram: Float[Tensor, "n n"]) -> tuple[Tensor, Tensor]:
    if len(gram) > 40 * N_LEADING and gram.device.type == "cpu":
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(0).standard_normal(len(gram))
        values, vectors = (torch.from_numpy(part.copy()) for part in eigsh(gram.numpy(), k=N_LEADING, v0=start))
    else:
        values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:N_LEADING], vectors.flip(1)[:, :N_LEADING]
    keep = values > 1e-12 * max(float(values[0]), 1e-300)
    return values[keep], vectors[:, keep]


@any_numbers
def principal_angles(a: Float[Tensor, "n p"], b: Float[Tensor, "n q"]) -> Float[Tensor, " m"]:
    r"""Angles in degrees, ascending, between the spans of two sets of orthonormal columns.

    :math:`\cos\theta_i` are the singular values of :math:`A^\top B`; small angles are taken from the sine,
    where the cosine is flat [1]_.

    References
    ----------
    .. [1] Björck and Golub, Math. Comp. 27(123), 1973.
    """
    if a.shape[0] != b.shape[0] or not a.shape[1] or not b.shape[1]:
        raise ActivationError(
            f"subspaces have shapes {tuple(a.shape)} and {tuple(b.shape)}; allowed: one width, at least one direction."
        )
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    cosine = torch.linalg.svdvals(a.T @ b).clamp(0, 1)
    sine = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(0, 1).flip(0)
    return torch.rad2deg(torch.where(cosine > 0.7071, torch.asin(sine), torch.acos(cosine)))


def subspace_drift(
    clouds: Sequence[TokenCloud],
    encoders: Mapping[str, Encode],
    *,
    noise_levels: Sequence[float],
    seeds: Sequence[int],
    description: str = "",
    noise_unit: NoiseUnit = "absolute",
) -> pd.DataFrame:
    """How far the leading subspace of each mode turns away from its place without noise, and the support with it.

    The same noise as in :func:`~saema_utils.stratification.noise.noise_rank_sweep`.

    Returns
    -------
    Columns concept, representation, mode, noise, noise_rms, seed, angle_mean and angle_max (degrees between
    the :data:`N_LEADING` leading directions and those at noise 0), support_kept (mean share, per token, of nonzero
    latents common to both among those in either), new_share (share of the latents' variance that lies on
    latents silent at every token without noise).
    """
    import pandas as pd

    modes, steps = (0, 1, 2), [(level, seed) for seed in seeds for level in noise_levels if level]
    lock = threading.Lock()

    def one(name: str, cloud: TokenCloud) -> list[dict]:
        def encode(x: Tensor) -> Tensor:
            with lock, torch.no_grad():
                return encoders[name](x)

        rows, clean = [], encode(cloud.points)
        bases = leading_subspaces(clean, cloud, modes)
        for level, seed in steps:
            size = cloud.noise_size(level, noise_unit)
            noisy = encode(cloud.noisy(size.absolute, seed))
            facts = {"concept": cloud.concept, "representation": name, "noise": size.absolute, "seed": seed}
            facts |= {"noise_rms": size.rms, **_turnover(clean, noisy)}
            turned = leading_subspaces(noisy, cloud, modes)
            for mode in modes:
                mean, largest = _angles(bases[mode], turned[mode])
                rows.append(facts | {"mode": mode, "angle_mean": mean, "angle_max": largest})
        return rows

    tasks, rows = [(name, cloud) for name in encoders for cloud in clouds], []
    with (
        one_thread_each(clouds[0].points.device) as workers,
        progress_bar(len(tasks), description) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        for part in pool.map(lambda task: one(*task), tasks):
            rows += part
            advance(1)
    order = ["concept", "representation", "mode", "noise", "noise_rms", "seed", "angle_mean", "angle_max"]
    return pd.DataFrame(rows)[[*order, "support_kept", "new_share"]]


def _angles(a: Tensor, b: Tensor) -> tuple[float, float]:
    if not a.shape[1] or not b.shape[1]:
        return math.nan, math.nan
    angles = principal_angles(a, b)
    return float(angles.mean()), float(angles.max())


def _turnover(clean: Float[Tensor, "N F"], noisy: Float[Tensor, "N F"]) -> dict[str, float]:
    was, now = clean != 0, noisy != 0
    either = (was | now).sum(1)
    kept = torch.where(either > 0, (was & now).sum(1) / either.clamp(min=1), 1.0)
    variance = noisy.var(0)
    total = float(variance.sum())
    return {
        "support_kept": float(kept.mean()),
        "new_share": float(variance[~was.any(0)].sum()) / total if total else 0.0,
    }


def where_rank_moves(
    clouds: Sequence[TokenCloud],
    encoders: Mapping[str, Encode],
    *,
    level: float,
    seed: int,
    noise_unit: NoiseUnit = "absolute",
) -> pd.DataFrame:
    """Feature-mode rank of each prompt's tokens and of each position's tokens, without noise and with it.

    Returns
    -------
    Columns concept, representation, axis (prompt or position), index, n_tokens, n_distinct (different
    vectors among them), noise, noise_rms, rank_clean, rank_noisy, rank_gain, effective_rank_clean, effective_rank_noisy
    (NaN where all tokens of the slice are equal). Slices of fewer than two tokens are left out.
    """
    import pandas as pd

    rows = []
    for name, encode in encoders.items():
        for cloud in clouds:
            size = cloud.noise_size(level, noise_unit)
            with torch.no_grad():
                grams = [gram_of_rows(encode(cloud.noisy(s, seed)))[0] for s in (0.0, size.absolute)]
            labels, blocks = [], []
            for axis in ("prompt", "position"):
                place, kept = getattr(cloud, axis), getattr(cloud.distinct, axis)
                for index in place.unique().tolist():
                    here = (place == index).nonzero()[:, 0].to(grams[0].device)
                    if len(here) > 1:
                        n_distinct = int((kept == index).sum())
                        labels.append({"axis": axis, "index": index, "n_tokens": len(here), "n_distinct": n_distinct})
                        blocks += [gram[here][:, here] for gram in grams]
            floors = [rounding_floor(float(block.diagonal().sum())) for block in blocks]
            found = [measure_spectrum(s) for s in eigenvalues([center_both(block) for block in blocks], floors)]
            for label, clean, noisy in zip(labels, found[::2], found[1::2], strict=True):
                row = {"concept": cloud.concept, "representation": name, **label}
                row |= {"noise": size.absolute, "noise_rms": size.rms}
                row |= {"rank_clean": clean["rank"], "rank_noisy": noisy["rank"]}
                row["rank_gain"] = noisy["rank"] - clean["rank"]
                effective = {"clean": clean["effective_rank"], "noisy": noisy["effective_rank"]}
                rows.append(row | {f"effective_rank_{when}": value for when, value in effective.items()})
    return pd.DataFrame(rows, columns=PLACE_COLUMNS)


@any_numbers
def covariance_root(points: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    """Symmetric square root of the covariance of vectors, scaled to unit mean variance: noise shaped by it
    stays near the cloud (on the manifold) instead of filling the space."""
    centred = points.cpu().double() - points.cpu().double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(points) - 1))
    values = values.clamp(min=0)
    return ((vectors * (values / values.mean()).sqrt()) @ vectors.T).float()


def only_distinct(latents: Latents, cloud: TokenCloud) -> tuple[Latents, TokenCloud]:
    """Latents of one token for each distinct context (``TokenCloud.first_of_each``)."""
    return latents[cloud.first_of_each], cloud.distinct


def shuffle_latents(latents: Latents, cloud: TokenCloud, seed: int = 0) -> tuple[Latents, TokenCloud]:
    """Latents whose features are permuted token by token: same values, same l0, no feature that means anything.

    Token i sends feature f to ``(a_i f + b_i) mod F`` with ``a_i`` prime to F: a permutation that needs no
    memory. It is drawn per token from the seed and is the same at every noise level.
    """
    a, b = _permutations(cloud.concept, *latents.shape, seed)
    if isinstance(latents, TopKLatents):
        moved = (a.to(latents.where)[:, None] * latents.where + b.to(latents.where)[:, None]) % latents.width
        return TopKLatents(latents.values, moved, latents.width), cloud
    a, b = a.to(latents.device), b.to(latents.device)
    token, feature = latents.nonzero(as_tuple=True)
    shuffled = torch.zeros_like(latents)
    shuffled[token, (a[token] * feature + b[token]) % latents.shape[1]] = latents[token, feature]
    return shuffled, cloud


@functools.lru_cache(maxsize=64)
def _permutations(concept: str, n: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Factor and shift of each token; kept, for the same are asked for at every level."""
    prime_to = torch.tensor([a for a in range(1, width + 1) if math.gcd(a, width) == 1])
    draw = generator(seed, f"shuffle:{concept}")
    return prime_to[torch.randint(len(prime_to), (n,), generator=draw)], torch.randint(width, (n,), generator=draw)
