"""Where the rank moves: subspaces that turn, supports that change, slices of the tensor that gain rank."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from .errors import ActivationError
from .runtime import progress_bar
from .stratification import Encode, effective_rank, numerical_rank
from .token_grams import TokenCloud, center_both, cloud_grams, eigenvalues, gram_of_rows, one_thread_each

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor

N_LEADING = 5


def leading_subspace(latents: Float[Tensor, "N F"], cloud: TokenCloud, mode: int, n: int = N_LEADING) -> Tensor:
    """Orthonormal columns spanning the ``n`` strongest directions of a mode's covariance.

    Shape [size of the mode, m] with m the smaller of ``n`` and the number of positive eigenvalues.
    """
    if mode == 2:
        centred = latents.double() - latents.mean(0, dtype=torch.float64)
        if len(latents) > latents.shape[1]:
            return _strongest(centred.T @ centred, n)[1]
        values, vectors = _strongest(center_both(gram_of_rows(latents)[0]), n)
        return torch.linalg.qr(centred.T @ (vectors / values.sqrt()))[0]
    return _strongest(cloud_grams(latents, cloud, (mode,))[mode][0], n)[1]


def _strongest(gram: Float[Tensor, "n n"], n: int) -> tuple[Tensor, Tensor]:
    if len(gram) > 40 * n and gram.device.type == "cpu":
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(0).standard_normal(len(gram))
        values, vectors = (torch.from_numpy(part.copy()) for part in eigsh(gram.numpy(), k=n, v0=start))
    else:
        values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:n], vectors.flip(1)[:, :n]
    keep = values > 1e-12 * max(float(values[0]), 1e-300)
    return values[keep], vectors[:, keep]


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
    modes: Sequence[int] = (0, 1, 2),
    n: int = N_LEADING,
    description: str = "",
) -> pd.DataFrame:
    """How far the leading subspace of each mode turns away from its place without noise, and the support with it.

    The same noise as in :func:`~saema_utils.stratification.noise_rank_sweep`.

    Returns
    -------
    Columns concept, representation, mode, noise, noise_rms, seed, angle_mean and angle_max (degrees between
    the ``n`` leading directions and those at noise 0), support_kept (mean share, per token, of nonzero
    latents common to both among those in either), new_share (share of the latents' variance that lies on
    latents silent at every token without noise).
    """
    import pandas as pd

    steps = [(level, seed) for seed in seeds for level in noise_levels if level]
    lock = threading.Lock()

    def one(name: str, cloud: TokenCloud) -> list[dict]:
        def encode(x: Tensor) -> Tensor:
            with lock, torch.no_grad():
                return encoders[name](x)

        rows, clean = [], encode(cloud.points)
        bases = [leading_subspace(clean, cloud, mode, n) for mode in modes]
        for level, seed in steps:
            noisy = encode(cloud.noisy(level, seed))
            facts = {
                "concept": cloud.concept, "representation": name, "noise": float(level),
                "noise_rms": float(level) / cloud.rms, "seed": seed, **_turnover(clean, noisy),
            }  # fmt: skip
            for mode, basis in zip(modes, bases, strict=True):
                angles = _angles(basis, leading_subspace(noisy, cloud, mode, n))
                rows.append({**facts, "mode": mode, "angle_mean": angles[0], "angle_max": angles[1]})
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
    clouds: Sequence[TokenCloud], encoders: Mapping[str, Encode], *, level: float, seed: int
) -> pd.DataFrame:
    """Feature-mode rank of each prompt's tokens and of each position's tokens, without noise and with it.

    Returns
    -------
    Columns concept, representation, axis (prompt or position), index, n_tokens, n_distinct (different
    vectors among them), noise, rank_clean, rank_noisy, rank_gain, effective_rank_clean, effective_rank_noisy
    (NaN where all tokens of the slice are equal). Slices of fewer than two tokens are left out.
    """
    import pandas as pd

    rows = []
    for name, encode in encoders.items():
        for cloud in clouds:
            with torch.no_grad():
                grams = [gram_of_rows(encode(cloud.noisy(s, seed)))[0] for s in (0.0, level)]
            alone = cloud.distinct
            for axis, place, kept in (
                ("prompt", cloud.prompt, alone.prompt), ("position", cloud.position, alone.position)
            ):  # fmt: skip
                for index in place.unique().tolist():
                    here = (place == index).nonzero()[:, 0]
                    if len(here) < 2:
                        continue
                    blocks = [gram[here][:, here] for gram in grams]
                    floors = [16 * torch.finfo(torch.float64).eps * float(b.diagonal().sum()) for b in blocks]
                    spectra = eigenvalues([center_both(block) for block in blocks], floors)
                    clean, noisy = (_two_ranks(spectrum) for spectrum in spectra)
                    rows.append({
                        "concept": cloud.concept, "representation": name, "axis": axis, "index": index,
                        "n_tokens": len(here), "n_distinct": int((kept == index).sum()), "noise": float(level),
                        "rank_clean": clean[0], "rank_noisy": noisy[0], "rank_gain": noisy[0] - clean[0],
                        "effective_rank_clean": clean[1], "effective_rank_noisy": noisy[1],
                    })  # fmt: skip
    return pd.DataFrame(rows)


def _two_ranks(spectrum: Tensor) -> tuple[int, float]:
    return (numerical_rank(spectrum), effective_rank(spectrum)) if (spectrum > 0).any() else (0, math.nan)


def covariance_root(points: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    """Symmetric square root of the covariance of vectors, scaled to unit mean variance: noise shaped by it
    stays near the cloud (on the manifold) instead of filling the space."""
    centred = points.cpu().double() - points.cpu().double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(points) - 1))
    values = values.clamp(min=0)
    return ((vectors * (values / values.mean()).sqrt()) @ vectors.T).float()


def only_distinct(latents: Float[Tensor, "N F"], cloud: TokenCloud) -> tuple[Float[Tensor, "M F"], TokenCloud]:
    """Latents of one token for each distinct context (:attr:`~saema_utils.token_grams.TokenCloud.first_of_each`)."""
    return latents[cloud.first_of_each], cloud.distinct


def shuffle_latents(
    latents: Float[Tensor, "N F"], cloud: TokenCloud, seed: int = 0
) -> tuple[Float[Tensor, "N F"], TokenCloud]:
    """Latents whose features are permuted token by token: same values, same l0, no feature that means anything.

    Token i sends feature f to ``(a_i f + b_i) mod F`` with ``a_i`` prime to F: a permutation that needs no
    memory. It is drawn per token from the seed and is the same at every noise level.
    """
    from .runtime import generator

    n, width = latents.shape
    prime_to = torch.tensor([a for a in range(1, width + 1) if math.gcd(a, width) == 1])
    draw = generator(seed, f"shuffle:{cloud.concept}")
    a = prime_to[torch.randint(len(prime_to), (n,), generator=draw)].to(latents.device)
    b = torch.randint(width, (n,), generator=draw).to(latents.device)
    token, feature = latents.nonzero(as_tuple=True)
    shuffled = torch.zeros_like(latents)
    shuffled[token, (a[token] * feature + b[token]) % width] = latents[token, feature]
    return shuffled, cloud
