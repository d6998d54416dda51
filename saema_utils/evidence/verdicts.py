"""The one rule by which an interval decides, and the words for what is decided.

Everything here is in units of a claim's margin and turned so that the paper expects the positive side: at 1 an effect
is as large as a reader would act on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from saema_utils.statistics import NO_INTERVAL, written
from saema_utils.wording import in_prose

SUPPORTED = "supported"
NOT_LEARNED = "reproduced, not learned"
NO_EFFECT = "no effect of size m"
CONTRADICTED = "contradicted"
DEPENDS = "depends on the analysis"
TOO_FEW = "too few units"
VERDICTS = (SUPPORTED, NOT_LEARNED, NO_EFFECT, CONTRADICTED, DEPENDS, TOO_FEW)
ALPHA = 0.05


def lies(low: float, high: float, least: float = -math.inf, most: float = math.inf) -> str:
    """Where an interval lies with respect to the values from ``least`` to ``most`` that make no difference.

    Returns
    -------
    ``above`` or ``below`` when it holds none of them, ``within`` when it holds nothing else, otherwise (or without
    bounds, NaN) ``across``.
    """
    if low > most:
        return "above"
    if high < least:
        return "below"
    return "within" if low >= least and high <= most else "across"


def judge_alone(low: float, high: float, margin: float = 0.0, p_value: float = 0.0) -> str:
    """The verdict (one of :data:`VERDICTS`) of one interval by itself: one analysis, and no lead over a control.

    Parameters
    ----------
    low, high
        The interval, turned so that the claim expects the positive side; NaN where there is none.
    margin
        The least effect that counts. At 0 nothing can be *no effect*: an interval that holds 0 is *too few units*.
    p_value
        Corrected for all that is read together; an effect needs it below :data:`ALPHA`.
    """
    where = lies(low, high, -margin, margin)
    if where == "within":
        return NO_EFFECT
    return {"above": SUPPORTED, "below": CONTRADICTED}.get(where if p_value < ALPHA else "across", TOO_FEW)


@dataclass(frozen=True)
class Evidence:
    """What all analyses together say of one contrast, in margins.

    ``low`` and ``high`` bound the 95 % interval of the analysis that was named beforehand, over ``n`` units;
    ``median`` is over all analyses, ``joint_p`` from the sign flips of whole units across all of them.
    """

    low: float
    high: float
    n: int
    median: float
    joint_p: float

    def __str__(self) -> str:
        bounded = math.isfinite(self.low) and math.isfinite(self.high)
        interval = f"{self.low:.2f} to {self.high:.2f}" if bounded else NO_INTERVAL
        return in_prose(f"{interval}; median {written(self.median, '.2f')}, p = {written(self.joint_p, '.3f')}")

    @property
    def where(self) -> str:
        """Of the interval: ``above``, ``below``, ``within`` the margins (equivalence), or ``across`` one of them."""
        return lies(self.low, self.high, -1, 1)

    @property
    def agrees(self) -> bool:
        """Whether the median of all analyses, and their joint test, say what the interval says."""
        if self.where == "within":
            return abs(self.median) < 1
        side = {"above": 1, "below": -1}.get(self.where, 0)
        return bool(side and side * self.median >= 1 and self.joint_p < ALPHA)

    @property
    def decided_elsewhere(self) -> bool:
        """Whether all analyses together show an effect that the named one, which does not tell, leaves out."""
        apart = self.median < self.low or self.median > self.high
        return self.where == "across" and abs(self.median) >= 1 and self.joint_p < ALPHA and apart


def judge(own: Evidence, lead: Evidence | None, minimum_n: int) -> str:
    """The verdict (one of :data:`VERDICTS`) on an effect, and on its lead over a control that learned nothing.

    The two are one-sided statements that must both hold (intersection-union): an effect that the control shows as well
    is *reproduced, not learned*. Whatever is said needs the median of all analyses and their joint test to agree.
    """
    if own.n < minimum_n:
        return TOO_FEW
    if own.where == "across":
        return DEPENDS if own.decided_elsewhere else TOO_FEW
    if not own.agrees:
        return DEPENDS
    if own.where != "above":
        return NO_EFFECT if own.where == "within" else CONTRADICTED
    if lead is None:
        return SUPPORTED
    if lead.n < minimum_n:
        return TOO_FEW
    if lead.high <= 1:
        return NOT_LEARNED
    if lead.where == "across":
        return DEPENDS if lead.decided_elsewhere else TOO_FEW
    return SUPPORTED if lead.agrees else DEPENDS
