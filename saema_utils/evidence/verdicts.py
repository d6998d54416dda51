"""The one rule by which an interval decides: on which side of what matters does it lie?

Each table of verdicts has words of its own for the answers; where the interval lies is decided here.
"""

from __future__ import annotations

import math


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
