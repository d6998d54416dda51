"""Gram matrices of token vectors: dense or sparse, in float64, one for all three modes.

Why it is fast. For tokens z_i with place (prompt p_i, position t_i) the N x N matrix G of inner
products holds everything that the three unfoldings need, however many latents there are:

    mode 2 (features)    centre G on both sides
    mode 0 (prompts)     add up G[i, j] over pairs with equal position
    mode 1 (positions)   add up G[i, j] over pairs of one prompt

With TopK latents G comes from a sparse product whose cost does not grow with d_sae.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import ActivationError
from saema_utils.saes.topk_latents import TopKLatents
from saema_utils.stratification.token_cloud import TokenCloud

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_BLOCK_BYTES = 2**24
_SPARSE_BELOW = 0.05  # share of nonzero latents below which the sparse product wins (measured)
_SPARSE_FROM = 256  # latents
_COMMON_ABOVE = 0.1  # latents that fire on more tokens than this are multiplied densely
_NUMPY_UPTO = 2000  # rows, from which torch's eigensolver is the faster one on one thread (measured)
_EPS = torch.finfo(torch.float64).eps


@any_numbers
def gram_of_rows(
    matrix: Float[Tensor, "n m"] | TopKLatents, *, center_rows: bool = False, center_columns: bool = False
) -> tuple[Float[Tensor, "n n"], float]:
    """``A A^T`` in float64 after centring rows or columns of ``A``, and the floor of its rounding.

    Sparse input is multiplied sparsely; otherwise one block of columns at a time is held in float64,
    centred before it is multiplied.
    """
    matrix = _multipliable(matrix)
    n, m = matrix.shape
    if (gram := _sparse_gram(matrix)) is not None:
        floor = rounding_floor(float(gram.diagonal().sum()))
        if center_columns:
            gram = center_both(gram)
        if center_rows:
            totals = _row_sums(matrix)
            gram = gram - torch.outer(totals, totals) / m
        return gram, floor
    gram = torch.zeros(n, n, dtype=torch.float64, device=matrix.device)
    energy, mean = 0.0, 0.0
    if center_rows:
        mean = matrix.mean(1, dtype=torch.float64)[:, None]
    width = max(1, _BLOCK_BYTES // (8 * max(1, n)))
    for start in range(0, m, width):
        block = matrix[:, start : start + width].double()
        energy += float(block.pow(2).sum())
        block = block - (block.mean(0) if center_columns else mean)
        gram.addmm_(block, block.T)
    _require_finite(gram)
    # Centring is exact to eps of each entry, so its error enters squared.
    return gram, rounding_floor(float(gram.diagonal().sum())) + 16 * n * (_EPS**2) * energy


def _multipliable(latents: Float[Tensor, "n m"] | TopKLatents) -> Float[Tensor, "n m"] | TopKLatents:
    """Pairs stay pairs on the CPU, of wide latents that rarely fire, for few tokens; tensors go where float64 is."""
    if isinstance(latents, TopKLatents):
        (n, width), k = latents.shape, latents.values.shape[1]
        if latents.values.device.type == "cpu" and width >= max(n, _SPARSE_FROM, k / _SPARSE_BELOW):
            return latents
        latents = latents.dense()
    return latents.cpu() if latents.device.type == "mps" else latents


def _row_sums(matrix: Float[Tensor, "n m"] | TopKLatents) -> Float[Tensor, " n"]:
    return (matrix.values if isinstance(matrix, TopKLatents) else matrix).sum(1, dtype=torch.float64)


def _require_finite(gram: Tensor) -> None:
    # The diagonal suffices: it holds the squares of every entry, and no inner product exceeds them (Cauchy-Schwarz).
    if not torch.isfinite(gram.diagonal()).all():
        raise ActivationError(
            "the tensor holds NaN or infinite values (or its squares overflow float64); mask those tokens, "
            "or look for the layer that made them."
        )


def _sparse_gram(matrix: Float[Tensor, "n m"] | TopKLatents) -> Float[Tensor, "n n"] | None:
    """``A A^T`` from the nonzero entries, or None where the dense product is faster."""
    n, m = matrix.shape
    if isinstance(matrix, TopKLatents):
        row, column, values = matrix.entries()
    elif (
        matrix.device.type != "cpu"
        or m < _SPARSE_FROM
        or float(torch.count_nonzero(matrix)) > _SPARSE_BELOW * matrix.numel()
    ):
        return None
    else:
        row, column = matrix.nonzero(as_tuple=True)
        values = matrix[row, column]
    from scipy.sparse import csr_matrix

    values = values.double()
    fires = torch.bincount(column, minlength=m)
    is_common = fires > _COMMON_ABOVE * n
    place = torch.where(is_common, is_common.cumsum(0) - 1, -1)[column]  # among the common latents
    rare = place < 0
    dense = values.new_zeros(n, int(is_common.sum()))
    dense[row[~rare], place[~rare]] = values[~rare]
    starts = np.concatenate([[0], np.cumsum(np.bincount(row[rare].numpy(), minlength=n))])
    sparse = csr_matrix((values[rare].numpy(), column[rare].numpy(), starts), shape=(n, m))
    gram = torch.from_numpy((sparse @ sparse.T).toarray())
    gram.addmm_(dense, dense.T)
    _require_finite(gram)
    return gram


def center_both(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Gram matrix of the rows after subtracting their mean: ``H G H`` with ``H = I - 11^T / n``."""
    mean = gram.mean(0)
    return (gram - mean).sub_(mean[:, None]).add_(mean.mean())


def rounding_floor(energy: float) -> float:
    """Below this an eigenvalue is rounding: ``energy``, the sum of all squares, was accumulated in float64."""
    return 16 * _EPS * energy


def cloud_grams(
    latents: Float[Tensor, "N F"] | TopKLatents, cloud: TokenCloud, modes: Sequence[int]
) -> dict[int, tuple[Float[Tensor, "n n"], float, int]]:
    """For each mode: a matrix with the covariance's positive eigenvalues, its rounding floor, and ``min(I, J)``."""
    latents = _multipliable(latents)
    (n, width), (prompts, positions) = latents.shape, cloud.shape
    found = {}
    gram = gram_of_rows(latents)[0] if n <= width else None
    there = gram.device if gram is not None else latents.device  # the CPU for a device without float64
    energy = float(gram.diagonal().sum()) if gram is not None else float(latents.double().pow(2).sum())
    floor = rounding_floor(energy)  # of the uncentred matrix: it is centred after multiplying
    for mode in modes:
        if mode == 2:
            if gram is not None:
                square = center_both(gram)
            else:
                centred = latents.double() - latents.mean(0, dtype=torch.float64)
                square = centred.T @ centred
            found[mode] = (square / (n - 1), floor / (n - 1), min(n, width))
            continue
        size, others = (prompts, positions) if mode == 0 else (positions, prompts)
        place, across = (cloud.prompt, cloud.position) if mode == 0 else (cloud.position, cloud.prompt)
        place, across = place.to(there), across.to(there)
        columns = others * width
        if columns < 2:
            raise ActivationError(f"mode {mode} has {columns} column; allowed: at least 2. Add prompts or positions.")
        if gram is not None:
            pairs = cloud.same_position if mode == 0 else cloud.same_prompt
            source, target = (part.to(there) for part in pairs)
            chosen = gram.reshape(-1).index_select(0, source)
            square = gram.new_zeros(size * size).index_add_(0, target, chosen).view(size, size)
        else:
            square = torch.zeros(size, size, dtype=torch.float64, device=latents.device)
            for part in range(others):
                here = (across == part).nonzero()[:, 0]
                block = latents[here].double()
                square[place[here][:, None], place[here][None, :]] += block @ block.T
        sums = _row_sums(latents)
        totals = sums.new_zeros(size).index_add_(0, place, sums)
        square = square - torch.outer(totals, totals) / columns
        found[mode] = (square / (columns - 1), floor / (columns - 1), min(size, columns))
    return found


def eigenvalues(grams: Sequence[Float[Tensor, "n n"]], floors: Sequence[float]) -> list[Float[Tensor, " n"]]:
    """Eigenvalues, descending and never negative, of symmetric matrices; equal sizes are solved as one batch."""
    solved: list[Tensor] = [torch.empty(0)] * len(grams)
    sizes: dict[int, list[int]] = {}
    for index, gram in enumerate(grams):
        sizes.setdefault(len(gram), []).append(index)
    for members in sizes.values():
        batch = torch.stack([grams[i] for i in members]) if len(members) > 1 else grams[members[0]][None]
        for i, values in zip(members, _ascending(batch).flip(-1), strict=True):
            solved[i] = torch.where(values > floors[i], values, 0.0)
    return solved


def _ascending(batch: Float[Tensor, "b n n"]) -> Float[Tensor, "b n"]:
    """By NumPy's LAPACK where there is one thread: a quarter faster than torch's on matrices that stay in the caches,
    three times slower on large ones; with more threads, its own and torch's would get in each other's way.
    """
    if batch.device.type == "cpu" and torch.get_num_threads() == 1 and batch.shape[-1] <= _NUMPY_UPTO:
        return torch.from_numpy(np.linalg.eigvalsh(batch.detach().numpy()))
    return torch.linalg.eigvalsh(batch)


@contextlib.contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """Many small eigenproblems run faster side by side than each one split; results then do not depend on threads."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    if device.type != "cpu":
        yield 1
        return
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):  # NumPy's
            yield before
    finally:
        torch.set_num_threads(before)
