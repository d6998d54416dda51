"""What the findings of the chapters are made of: a verdict with its line, a count, an effect, and a line of values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from saema_utils.figures import NAMES


class Found(NamedTuple):
    """Whether a run bears a sentence out (None where it cannot tell), and the numbers in one short line."""

    holds: bool | None
    shows: str


@dataclass(frozen=True)
class Count:
    """How many of how many."""

    n: int
    of: int

    @classmethod
    def true(cls, values: Iterable[object]) -> Count:
        values = list(values)
        return cls(sum(map(bool, values)), len(values))

    @property
    def all(self) -> bool:
        return 0 < self.of == self.n

    def __str__(self) -> str:
        return f"{self.n} of {self.of}"


@dataclass(frozen=True)
class Effect:
    """A difference or a ratio, its 95 % interval, and what the rule decides: no verdict where it decides nothing."""

    estimate: float
    low: float
    high: float
    verdict: str | None
    is_ratio: bool = False

    def says(self, verdict: str) -> bool | None:
        """Whether the rule decides so; None where it decides nothing."""
        return None if self.verdict is None else self.verdict == verdict

    def __str__(self) -> str:
        sign, form = ("× ", ".2f") if self.is_ratio else ("", "+.2f")
        return f"{sign}{self.estimate:{form}} ({self.low:{form}} to {self.high:{form}})"


def in_short(values: Mapping[str, object], form: str = "") -> str:
    """Names and what was found for them in one line, each value in the given format."""
    return " · ".join(f"{NAMES.get(name, name)} {value:{form}}" for name, value in values.items())
