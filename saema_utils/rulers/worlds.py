"""Raw data whose effects are known: what the worlds of all claims have in common.

A world is asked for an effect of each representation in each unit, makes raw data that have it, and hands back what
the package's own measures read off them: a table of values as chapter 7 judges it. It holds a few of a claim's
analyses only (the one named beforehand, and one to three others), on clouds much smaller than a language model's.

An effect is exact where a formula gives it. Elsewhere it is calibrated: many units are measured at each of some
parameters, and the curve of their means is read backwards (:func:`read_backwards`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saema_utils.errors import SaemaError
from saema_utils.evidence.claims import Claim

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    Effects = Float[np.ndarray, " U"]
    Curve = tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]

BASE, CODE, NOTHING = -1, 0, 1  # which representation: what is encoded, its code, a code that learned nothing


class Asked(NamedTuple):
    """A representation by its name in the table, whether it is the code or learned nothing, its effect in each unit.

    Effects are in the unit of the claim's named measure, on the table's own side of zero.
    """

    name: str
    side: int
    effects: Effects


@dataclass(frozen=True, eq=False)
class World(ABC):
    """How the values of a claim are made.

    Attributes
    ----------
    analyses
        Each by what it chooses otherwise than the analysis that was named beforehand, which comes first.
    one_sided
        Whether an effect cannot lie on the other side of zero.
    """

    analyses: tuple[Mapping[str, Any], ...]
    one_sided: bool = False

    @abstractmethod
    def values(self, claim: Claim, asked: Sequence[Asked], seed: int) -> pd.DataFrame:
        """The table of values: one a unit, representation and analysis."""

    def table(self, claim: Claim, numbers: Mapping[str, Float[np.ndarray, "A U"]]) -> pd.DataFrame:
        """The same from an array for each representation: a row an analysis, a column a unit."""
        import pandas as pd

        parts = [
            pd.DataFrame({**claim.where, **claim.primary, **analysis, "representation": name, "value": values})
            for name, array in numbers.items()
            for analysis, values in zip(self.analyses, array, strict=True)
        ]
        return pd.concat([part.rename_axis(claim.unit) for part in parts]).reset_index()


def stream(claim: Claim, seed: int, what: str = "raw data") -> np.random.Generator:
    """Random numbers for one purpose of a claim's world."""
    return np.random.default_rng([seed, *f"{claim.id} {what}".encode()])


def read_backwards(curve: Curve, values: Effects) -> Effects:
    """Parameters at which a curve, rising or falling, takes given values; its ends for the few beyond them.

    Raises
    ------
    SaemaError
        If more than a tenth of the values lie beyond: the world does not reach them.
    """
    parameters, means = curve
    order = np.argsort(means)
    low, high = means[order[[0, -1]]]
    slack = 0.05 * (high - low)
    beyond = float(((values < low - slack) | (values > high + slack)).mean())
    if beyond > 0.1:
        raise SaemaError(
            f"{beyond:.0%} of the effects asked of a world lie outside {low:.3g} to {high:.3g}, which is all that it "
            "reaches. Widen its grid of parameters, or make the margin smaller."
        )
    return np.interp(values, means[order], parameters[order])
