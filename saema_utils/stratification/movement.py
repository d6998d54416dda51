"""How far noise moves each rank of a representation's covariances, under every defensible choice.

With :math:`r(s)` a rank at noise of s times the stream's RMS, the movement up to u is the mean of
:math:`\\log r(s) / r(0)` over :math:`\\log s`, from the lowest level to u: an area, which no single level decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saema_utils.errors import ActivationError, require
from saema_utils.stratification.anatomy import covariance_root, only_distinct
from saema_utils.stratification.noise import Encode, sweep_clouds
from saema_utils.stratification.spectra import MODES, ranks_at
from saema_utils.stratification.token_cloud import TokenCloud

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

LEVELS = (0.03, 0.1, 0.3, 1.0)  # of the stream's RMS
FLOORS = (1e-3, 1e-2)  # share of the largest eigenvalue below which another counts as noise
MEASURES = ("effective_rank", "participation_ratio", "rank", *(f"rank@{floor:g}" for floor in FLOORS))
NOISES = ("isotropic", "shaped")
DISTINCT = "/distinct"
COLUMNS = ["concept", "representation", "measure", "mode", "noise", "tokens", "change", "upto", "value", "reason"]
_KEYS = ["concept", "representation", "measure", "mode"]
_FEW = "fewer than two distinct tokens"
_FLAT = "at some level of noise nothing varies, so the rank has no value"


def mean_over_log(values: Float[np.ndarray, "... L"], levels: Float[np.ndarray, " L"]) -> Float[np.ndarray, ...]:
    """Mean of a curve over the logarithm of its places (trapezoids); the value itself at a single place."""
    from scipy.integrate import trapezoid

    if len(levels) == 1:
        return values[..., 0]
    places = np.log(levels)
    return trapezoid(values, places, axis=-1) / (places[-1] - places[0])


def rank_movement(
    clouds: Sequence[TokenCloud],
    encoders: Mapping[str, Encode],
    *,
    seeds: Sequence[int],
    levels: Sequence[float] = LEVELS,
    description: str = "",
) -> pd.DataFrame:
    """Movement of every rank under isotropic noise, of all tokens and of one a distinct context; and of these under
    noise that is shaped like them.

    Parameters
    ----------
    levels
        Noise in multiples of each cloud's RMS, ascending, none zero.

    Returns
    -------
    Columns concept, representation, measure (:data:`MEASURES`), mode (prompt, position, feature), noise
    (:data:`NOISES`), tokens (all, distinct), change (``signed``: mean of the log ratio; ``absolute``: of its size),
    upto (largest level that counts: the second lowest and above), value (seeds averaged; NaN where one has none),
    reason.

    Raises
    ------
    ActivationError
        If there is no cloud, or levels are not two or more positive numbers, ascending.
    """
    import pandas as pd

    require(clouds, "clouds", clouds, "at least one", ActivationError)
    ascending = len(levels) > 1 and levels[0] > 0 and list(levels) == sorted(set(levels))
    require(ascending, "levels", levels, "two or more numbers above 0, ascending", ActivationError)
    measure = ranks_at(FLOORS)
    derived = {name + DISTINCT: (name, only_distinct) for name in encoders}
    alone = {name + DISTINCT: encode for name, encode in encoders.items()}
    parts = []
    for cloud in clouds:
        for noise, points, named, more in (
            ("isotropic", cloud, encoders, {"derived": derived}),
            ("shaped", cloud.distinct, alone, {}),
        ):
            if len(cloud.distinct) < 2:
                places = [[cloud.concept], [*named, *more.get("derived", {})], MEASURES, range(len(MODES)), seeds]
                nowhere = pd.MultiIndex.from_product(places, names=[*_KEYS, "seed"])
                ranks, why = pd.DataFrame(np.nan, nowhere, [0.0, *levels]), _FEW
            else:
                shape = covariance_root(points.points) if noise == "shaped" else None
                options = {"seeds": seeds, "noise_shape": shape, "measure": measure, "description": description}
                noises = (0.0, *(level * points.rms for level in levels))
                table = sweep_clouds([points], named, noise_levels=noises, **options, **more)
                long = table.melt([*_KEYS[:2], "mode", "seed", "noise"], MEASURES, "measure")
                ranks, why = long.pivot(index=[*_KEYS, "seed"], columns="noise", values="value"), _FLAT
            parts.append(_movements(ranks, levels, why).assign(noise=noise))
    found = pd.concat(parts, ignore_index=True)
    found["mode"] = found["mode"].map(dict(enumerate(MODES)))
    found["tokens"] = np.where(found["representation"].str.endswith(DISTINCT), "distinct", "all")
    found["representation"] = found["representation"].str.removesuffix(DISTINCT)
    return found[COLUMNS]


def _movements(ranks: pd.DataFrame, levels: Sequence[float], why: str) -> pd.DataFrame:
    """Movements of ranks with a row for each of ``_KEYS`` and seed, and a column for no noise and for each level."""
    import pandas as pd

    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(ranks.to_numpy(dtype=float))
        ratios = logs[:, 1:] - logs[:, :1]
    ratios[~np.isfinite(ratios)] = np.nan
    parts = []
    for n, upto in enumerate(levels[1:], 2):
        for change, curve in (("signed", ratios), ("absolute", np.abs(ratios))):
            by_seed = pd.Series(mean_over_log(curve[:, :n], np.array(levels[:n])), ranks.index).unstack("seed")
            # A mean over those seeds that have a value would be a number of another noise than the others'.
            values = by_seed.mean(axis=1, skipna=False)
            parts.append(values.rename("value").reset_index().assign(change=change, upto=upto))
    found = pd.concat(parts, ignore_index=True)
    return found.assign(reason=np.where(found["value"].isna(), why, ""))
