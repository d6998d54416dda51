"""Is the representation stratified? Spectra and ranks of the tensor's covariances, and how noise moves them.

A concept's activations form a tensor Z[prompt, position, feature]. Its mode-n unfolding has the
symmetric positive semidefinite (SSPD) covariance S_n. Matrices of one rank form a smooth manifold, and
matrices of different ranks meet at its strata [1]_; a rank that changes under noise has left its stratum.

Two rules hold everywhere below. *Masked tokens*: they are zero in modes 0 and 1, where a prompt or a
position keeps its place, and they are dropped in mode 2, where they would be columns of no meaning.
*Precision*: products are accumulated in float64, and eigenvalues below the rounding error of that
accumulation are exactly zero.

References
----------
.. [1] Shrivastava et al., arXiv 2412.04755 (rank as the test of a stratified space).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import ActivationError, EmptySpectrumError, require
from saema_utils.stratification.grams import eigenvalues, gram_of_rows

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

DEFAULT_RTOL = 1e-6
"""An eigenvalue counts when it exceeds this share of the largest. In singular values that is one part in a
thousand: above the rounding of float16 input (about 3e-4) and far above that of float32 (1e-7). For bfloat16
input (rounding 4e-3) pass ``rtol=1e-4``."""
MODES = ("prompt", "position", "feature")


@any_numbers
def unfold(tensor: Float[Tensor, "*shape"], mode: int) -> Float[Tensor, "rows columns"]:
    """Mode-n matricisation: one row for each index of ``mode``, all other axes in order as columns.

    A view where the memory layout allows it (always for the first and the last mode of a contiguous
    tensor).

    Raises
    ------
    ActivationError
        If the tensor has no such mode.
    """
    if not -1 < mode < tensor.dim():
        allowed = f"0 to {tensor.dim() - 1}" if tensor.dim() else "none, for the tensor has no axes"
        raise ActivationError(f"mode is {mode!r} for a tensor of shape {tuple(tensor.shape)}; allowed: {allowed}.")
    others = math.prod(tensor.shape[:mode] + tensor.shape[mode + 1 :])
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], others)


@any_numbers
def covariance_spectrum(tensor: Float[Tensor, "*shape"], mode: int, center: bool = True) -> Float[Tensor, " n"]:
    r"""Eigenvalues, descending, of the SSPD covariance of a mode-n unfolding.

    .. math:: S_n = \frac{1}{J-1} Z_{(n)} C Z_{(n)}^\top, \qquad C = I - \tfrac{1}{J} 1 1^\top

    with I rows and J columns. :math:`Z^\top Z` has the same positive eigenvalues as :math:`Z Z^\top`, so
    the smaller of the two Gram matrices is solved: with d_sae = 200,000 latents of 20 tokens that is 20 x 20.

    Parameters
    ----------
    tensor
        Any real dtype; computed in float64 block by block. Unit u gives eigenvalues in u squared.
    center
        Subtract each row's mean over the columns (``C`` above); without it ``C = I``.

    Returns
    -------
    ``min(I, J)`` values in float64, none negative; below the rounding error they are exactly 0.

    Raises
    ------
    ActivationError
        If an entry is NaN or infinite, the tensor is empty or complex, or J = 1 (no covariance).
    """
    tensor = torch.as_tensor(tensor).detach()
    if tensor.is_complex():
        raise ActivationError(f"the tensor is {tensor.dtype}; allowed: real numbers. Pass its real part.")
    matrix = unfold(tensor, mode)
    rows, columns = matrix.shape
    if rows == 0 or columns < 2:
        raise ActivationError(
            f"mode {mode} of a tensor of shape {tuple(tensor.shape)} has {rows} row(s) and {columns} column(s); "
            "allowed: at least 1 row and 2 columns. Add prompts or positions, or unmask tokens."
        )
    if rows <= columns:
        gram, floor = gram_of_rows(matrix, center_rows=center)
    else:
        gram, floor = gram_of_rows(matrix.T, center_columns=center)
    return eigenvalues([gram / (columns - 1)], [floor / (columns - 1)])[0]


def _positive(spectrum: Float[Tensor, " n"], what: str) -> Float[Tensor, " n"]:
    spectrum = torch.as_tensor(spectrum).detach()
    if spectrum.dim() != 1 or len(spectrum) == 0:
        raise EmptySpectrumError(
            f"{what} got a spectrum of shape {tuple(spectrum.shape)}; allowed: a flat list of one or more eigenvalues."
        )
    spectrum = spectrum.cpu().double()
    if not torch.isfinite(spectrum).all():
        raise ActivationError(f"{what} got a spectrum with NaN or infinite eigenvalues; check the activations.")
    return spectrum.clamp(min=0)


@any_numbers
def numerical_rank(spectrum: Float[Tensor, " n"], rtol: float | None = None) -> int:
    r"""Eigenvalues above a share ``rtol`` of the largest; 0 for a spectrum of zeros.

    .. math:: r = \#\{i : \lambda_i > \mathrm{rtol}\,\lambda_1\}

    Parameters
    ----------
    spectrum
        Eigenvalues of an SSPD matrix in any order and unit.
    rtol
        Default :data:`DEFAULT_RTOL` = 1e-6, that is 1e-3 in singular values: it recovers a known rank from
        float32 and from float16 input, and calls directions a thousand times weaker than the first absent.

    Raises
    ------
    EmptySpectrumError
        If the spectrum has no entries at all.
    """
    rtol = DEFAULT_RTOL if rtol is None else rtol
    require(0 <= rtol < 1, "rtol", rtol, f"0 up to, not including, 1 (default {DEFAULT_RTOL:g})", ActivationError)
    return _count(_positive(spectrum, "numerical_rank"), rtol)


@any_numbers
def effective_rank(spectrum: Float[Tensor, " n"]) -> float:
    r"""Effective rank: the exponential of the spectrum's entropy [1]_.

    .. math:: \operatorname{erank}(S) = \exp\Bigl(-\sum_i p_i \log p_i\Bigr), \qquad
              p_i = \lambda_i / \textstyle\sum_j \lambda_j

    Between 1 and the rank, continuous in S, without a unit and without a tolerance.

    Raises
    ------
    EmptySpectrumError
        If no eigenvalue is positive (every token masked, or all tokens equal).

    References
    ----------
    .. [1] Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    return _entropy_rank(_shares(_positive(spectrum, "effective_rank"), "effective_rank"))


@any_numbers
def participation_ratio(spectrum: Float[Tensor, " n"]) -> float:
    r"""Participation ratio :math:`(\sum \lambda_i)^2 / \sum \lambda_i^2`: a rank that strong directions dominate.

    Raises
    ------
    EmptySpectrumError
        If no eigenvalue is positive.
    """
    return _participation(_shares(_positive(spectrum, "participation_ratio"), "participation_ratio"))


def _count(values: Float[Tensor, " n"], rtol: float) -> int:
    return int((values > rtol * values.max()).sum())


def _entropy_rank(shares: Float[Tensor, " m"]) -> float:
    return float(torch.exp(-(shares * shares.log()).sum()))


def _participation(shares: Float[Tensor, " m"]) -> float:
    return float(1 / shares.square().sum())


def _shares(values: Float[Tensor, " n"], what: str) -> Float[Tensor, " m"]:
    if not (values > 0).any():
        raise EmptySpectrumError(f"{what} got a spectrum without a positive eigenvalue; is every position masked?")
    values = values / values.max()  # first, so that the sum of tiny or huge values neither vanishes nor overflows
    values = values[values > 0]
    return values / values.sum()


@any_numbers
def measure_spectrum(spectrum: Float[Tensor, " n"]) -> dict[str, float]:
    """The three ranks of the contract; a spectrum of zeros has rank 0 and no effective rank (NaN)."""
    rank = _count(spectrum, DEFAULT_RTOL)  # not checked again: eigenvalues() gives finite ones, none negative
    if not rank:
        return {"rank": 0, "effective_rank": math.nan, "participation_ratio": math.nan}
    shares = _shares(spectrum, "measure_spectrum")
    return {"rank": rank, "effective_rank": _entropy_rank(shares), "participation_ratio": _participation(shares)}


def ranks_at(tolerances: Sequence[float]) -> Callable[[Float[Tensor, " n"]], dict[str, float]]:
    """A measure for a sweep: :func:`measure_spectrum`, and the numerical rank at each tolerance (``rank@``)."""

    def measure(spectrum: Float[Tensor, " n"]) -> dict[str, float]:
        extra = {f"rank@{rtol:g}": numerical_rank(spectrum, rtol) for rtol in tolerances}
        return {**measure_spectrum(spectrum), **extra}

    return measure
