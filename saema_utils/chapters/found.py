"""What the findings of the chapters are made of: a verdict with its line, a count, an effect, and a line of values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from saema_utils.evidence.verdicts import TOO_FEW
from saema_utils.figures import NAMES
from saema_utils.notebook import as_told
from saema_utils.statistics import with_interval, written


class _Found(NamedTuple):
    holds: bool | None
    shows: str


class Found(_Found):
    """Whether a run bears a sentence out, and the numbers in one short line.

    None where it cannot tell: also where the line lacks a number (:func:`~saema_utils.notebook.as_told`).
    """

    __slots__ = ()

    def __new__(cls, holds: object, shows: str) -> Found:
        return super().__new__(cls, *as_told(holds, shows))


NOTHING = "nothing was measured"


def of_rows(find: Callable[..., Found]) -> Callable[..., Found]:
    """Declare that a finding cannot tell where the first table that it is given has no row."""

    @functools.wraps(find)
    def found(table: Any, *given: Any, **options: Any) -> Found:
        return find(table, *given, **options) if len(table) else Found(None, NOTHING)

    return found


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
    """A difference or a ratio, its 95 % interval, and what the rule decides: no verdict where it decides nothing.

    ``reason`` says why it does not, or why the interval alone does not tell the verdict; without one, no verdict reads
    as too few units.
    """

    estimate: float
    low: float
    high: float
    verdict: str | None
    is_ratio: bool = False
    reason: str = ""

    def says(self, verdict: str) -> bool | None:
        """Whether the rule decides so; None where it decides nothing."""
        return None if self.verdict is None else self.verdict == verdict

    def __str__(self) -> str:
        sign, form = ("× ", ".2f") if self.is_ratio else ("", "+.2f")
        reason = self.reason or (TOO_FEW if self.verdict is None else "")
        return sign + with_interval(self.estimate, self.low, self.high, form, reason)


def in_short(values: Mapping[str, object], form: str = "") -> str:
    """Names and what was found for them in one line, each value in the given format."""
    return " · ".join(f"{NAMES.get(name, name)} {written(value, form)}" for name, value in values.items())


def how_many(n: int, unit: str = "concept") -> str:
    """Why there is no interval over so many units; empty where they are enough for one."""
    return {0: f"no {unit}", 1: f"one {unit}"}.get(n, "")
