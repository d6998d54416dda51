"""Clouds of tokens, and codes of them whose rank noise moves by a known effect more than theirs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saema_utils.evidence.claims import Claim
from saema_utils.rulers.worlds import Asked, World, read_backwards, stream
from saema_utils.stratification.movement import LEVELS, mean_over_log

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from saema_utils.rulers.worlds import Curve, Effects

PROMPTS, POSITIONS, D, SIGNAL = 6, 6, 12, 4  # the other dimensions are all but still
STILL = 0.01
GAINS = tuple(2.0**power for power in np.arange(-2, 3.1, 0.5))
N_CLOUDS = 400  # to calibrate on


def draw_clouds(rng: np.random.Generator, n: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, prompts, positions, D] at a root mean square of 1, and noise for them.

    Prompts and positions are ranked by what differs between them: there the tokens have much in common, which noise
    has not.
    """
    sizes = {1: (1, 1), 2: (PROMPTS, 1), 3: (1, POSITIONS), 4: (PROMPTS, POSITIONS)}
    shares = (0.0, 0.5, 0.5, 0.7) if mode == "feature" else (1.0, 0.15, 0.15, 0.15)
    x = STILL * rng.normal(size=(n, PROMPTS, POSITIONS, D))
    x[..., :SIGNAL] = sum(
        share * rng.normal(size=(n, *size, SIGNAL)) for share, size in zip(shares, sizes.values(), strict=True)
    )
    return x / np.sqrt((x**2).mean(axis=(1, 2, 3), keepdims=True)), rng.normal(size=x.shape)


def _amplified(x: np.ndarray, gains: Effects) -> np.ndarray:
    """A linear code that makes the still dimensions larger, and with them the noise there."""
    code = x.copy()
    code[..., SIGNAL:] *= gains[:, None, None, None]
    return code


def spectra(code: Float[np.ndarray, "n P T F"], mode: str) -> Float[np.ndarray, "n m"]:
    """Eigenvalues of the covariance of one mode, of many clouds at once: those of ``stratification.grams``."""
    n, prompts, positions, width = code.shape
    if mode == "feature":
        rows = code.reshape(n, prompts * positions, width).swapaxes(1, 2)
    else:
        rows = code.reshape(n, prompts, -1) if mode == "prompt" else code.swapaxes(1, 2).reshape(n, positions, -1)
    rows = rows - rows.mean(axis=2, keepdims=True)
    return np.linalg.eigvalsh(rows @ rows.swapaxes(1, 2)) / (rows.shape[2] - 1)


def rank_of(values: Float[np.ndarray, "n m"], measure: str) -> Float[np.ndarray, " n"]:
    """A rank of many spectra at once: those of ``stratification.spectra``."""
    from scipy.special import entr

    if measure.startswith("rank@"):
        return (values > float(measure.removeprefix("rank@")) * values.max(axis=1, keepdims=True)).sum(axis=1)
    shares = values / values.sum(axis=1, keepdims=True)
    return np.exp(entr(shares).sum(axis=1)) if measure == "effective_rank" else 1 / (shares**2).sum(axis=1)


def movements(
    x: np.ndarray, noise: np.ndarray, gains: Effects, mode: str, analyses: Sequence[Mapping[str, Any]]
) -> Float[np.ndarray, "A n"]:
    """What :func:`~saema_utils.stratification.movement.rank_movement` finds, of many clouds of one RMS at once."""
    found = [spectra(_amplified(x + level * noise, gains), mode) for level in (0.0, *LEVELS)]
    curves = {}
    for measure in {analysis["measure"] for analysis in analyses}:
        logs = np.log(np.stack([rank_of(values, measure) for values in found], axis=1))
        curves[measure] = logs[:, 1:] - logs[:, :1]
    values = []
    for analysis in analyses:
        curve, n = curves[analysis["measure"]], LEVELS.index(analysis["upto"]) + 1
        curve = np.abs(curve) if analysis["change"] == "absolute" else curve
        values.append(mean_over_log(curve[:, :n], np.array(LEVELS[:n])))
    return np.array(values)


@functools.cache
def moved_by_gains(mode: str, measure: str) -> Curve:
    """Gains of the still dimensions, and how far noise then moves a rank, mean over many clouds."""
    x, noise = draw_clouds(np.random.default_rng(0), N_CLOUDS, mode)
    named = [{"measure": measure, "change": "signed", "upto": LEVELS[-1]}]
    means = [movements(x, noise, np.full(N_CLOUDS, gain), mode, named).mean() for gain in GAINS]
    return np.array(GAINS), np.array(means)


@dataclass(frozen=True, eq=False)
class Ranks(World):
    """Linear codes that amplify what is all but still, and with it the noise there."""

    def values(self, claim: Claim, asked: Sequence[Asked], seed: int) -> pd.DataFrame:
        mode, n = claim.where.get("mode") or claim.primary["mode"], len(asked[0].effects)
        analyses = [{**claim.primary, **analysis} for analysis in self.analyses]
        x, noise = draw_clouds(stream(claim, seed), n, mode)
        curve = moved_by_gains(mode, claim.primary["measure"])
        start = np.interp(1.0, *curve)
        numbers = {claim.baseline: movements(x, noise, np.ones(n), mode, analyses)}
        for one in asked:
            numbers[one.name] = movements(x, noise, read_backwards(curve, start + one.effects), mode, analyses)
        return self.table(claim, numbers)


_OTHERWISE = ({"change": "absolute"}, {"upto": 0.3})
_EFFECTIVE = Ranks(({}, {"measure": "participation_ratio"}, *_OTHERWISE))

RANKS: dict[str, Ranks] = {
    "rank-moves": Ranks(({}, {"measure": "rank@0.001"}, *_OTHERWISE)),
    "rank-moves-more": _EFFECTIVE,
    "rank-moves-prompts": _EFFECTIVE,
    "rank-moves-positions": _EFFECTIVE,
}
