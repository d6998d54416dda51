"""What is claimed, by which measures, under which choices, and how large an effect must be: ``claims.yaml``.

The file is a registration: its digest stands in the manifest of every run that was judged by it. What was added to its
analyses later stands in ``claims_added.yaml``, so that what was registered stays as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from saema_utils.errors import ClaimError, unknown_name
from saema_utils.plain import check_fields, from_plain
from saema_utils.runs.files import read_yaml

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
ADDED_FILE = Path(__file__).with_name("claims_added.yaml")
RULES_VERSION = 2
ADDED_VERSION = 1


@dataclass(frozen=True)
class Claim:
    """One claim as ``claims.yaml`` states it.

    Attributes
    ----------
    units
        The table of values: one a unit, representation and specification.
    where
        Rows of it that the claim is about, as column and value.
    measures
        By name of a measure, its margin: the smallest effect worth the name, in the unit of the measure.
    choices
        Columns of the table that an analyst may choose in more than one way, with the ways that are defensible.
    primary
        The analysis that was named beforehand: a measure, and a way for each of the choices.
    code, baseline, nothing
        Representations: what is claimed about, what it is compared with (none: zero), and a control that learned
        nothing.
    direction
        On which side of zero the paper expects the effect.
    paper
        How the paper's own measure is read off the replay: the table and its row; empty if the paper gives none.
    """

    id: str
    statement: str
    source: str
    units: str
    measures: Mapping[str, float]
    choices: Mapping[str, tuple[Any, ...]]
    primary: Mapping[str, Any]
    code: str
    direction: Literal["greater", "less"]
    minimum_n: int
    control: str
    margin_source: str
    figure: str
    reads: str
    unit: str = "concept"
    baseline: str = ""
    nothing: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, f"claim {self.id!r}", ClaimError)
        named = {"measure": tuple(self.measures), **self.choices}
        if set(self.primary) != set(named):
            raise ClaimError(
                f"claim {self.id!r} names {', '.join(self.primary)} beforehand; allowed: a way for each of "
                f"{', '.join(named)}. Complete 'primary'."
            )
        for column, ways in named.items():
            if not ways:
                raise ClaimError(f"claim {self.id!r} allows no way for {column!r}; allowed: one or more. Add some.")
            if self.primary[column] not in ways:
                raise ClaimError(
                    f"claim {self.id!r} names {column} {self.primary[column]!r} beforehand, which is none of its "
                    f"ways: {', '.join(map(str, ways))}. Add it or name another."
                )
        if not all(margin > 0 for margin in self.measures.values()):
            raise ClaimError(f"claim {self.id!r} has a margin that is not positive. Give the size of an effect.")

    @property
    def turn(self) -> int:
        """1 where the paper expects more, -1 where it expects less."""
        return 1 if self.direction == "greater" else -1

    @property
    def margin(self) -> float:
        """That of the analysis named beforehand, on the paper's side."""
        return self.turn * self.measures[self.primary["measure"]]


@dataclass(frozen=True)
class Addition:
    """More analyses of a registered claim: further ways of its choices, and choices that it did not have.

    ``primary`` says which way of each new choice the analysis named beforehand took.
    """

    claim: str
    choices: Mapping[str, tuple[Any, ...]]
    primary: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, f"addition to claim {self.claim!r}", ClaimError)

    def to(self, claim: Claim) -> Claim:
        """The claim with these analyses beside its own."""
        if changed := set(self.primary) & set(claim.primary):
            raise ClaimError(
                f"an addition to claim {claim.id!r} names {sorted(changed)[0]!r} anew, which was named "
                "beforehand; allowed: new choices only. Leave it out of 'primary'."
            )
        both = {name: (*claim.choices.get(name, ()), *ways) for name, ways in self.choices.items()}
        return replace(claim, choices={**claim.choices, **both}, primary={**claim.primary, **self.primary})


def load_claims(path: Path | None = None) -> tuple[Claim, ...]:
    """The claims of the book with all analyses of them, or those of another file, as they are registered there.

    A missing or unknown field raises ClaimError.
    """
    if path is not None:
        return _registered(path)
    return with_added(_registered(CLAIMS_FILE), ADDED_FILE)


def _registered(path: Path) -> tuple[Claim, ...]:
    entries = _entries(path, "claims", RULES_VERSION)
    claims = [from_plain(Claim, entry, f"claim {n} in {path.name}", ClaimError) for n, entry in entries]
    if len({claim.id for claim in claims}) != len(claims):
        raise ClaimError(f"{path} holds two claims with one id. Give each its own.")
    return tuple(claims)


def with_added(claims: Sequence[Claim], path: Path) -> tuple[Claim, ...]:
    """Claims with the analyses that a file adds to some of them; ClaimError where it would change one."""
    by_id = {claim.id: claim for claim in claims}
    for n, entry in _entries(path, "added", ADDED_VERSION):
        addition = from_plain(Addition, entry, f"addition {n} in {path.name}", ClaimError)
        if addition.claim not in by_id:
            raise ClaimError(unknown_name("claim", addition.claim, tuple(by_id)))
        by_id[addition.claim] = addition.to(by_id[addition.claim])
    return tuple(by_id.values())


def _entries(path: Path, name: str, version: int) -> Iterator[tuple[int, object]]:
    plain = read_yaml(path, "claims file", ClaimError)
    if not isinstance(plain, Mapping) or set(plain) != {"version", name} or not isinstance(plain[name], list):
        raise ClaimError(f"claims file {path} is no 'version' with a list of {name!r}; allowed: both, nothing else.")
    if plain["version"] != version:
        raise ClaimError(f"claims file {path} has version {plain['version']!r}; allowed: {version}.")
    return enumerate(plain[name], 1)


def rules_text() -> str:
    """All that verdicts hang on: the registered claims, and what was added to them."""
    return CLAIMS_FILE.read_text(encoding="utf-8") + ADDED_FILE.read_text(encoding="utf-8")


def rules_digest(path: Path = CLAIMS_FILE) -> str:
    """SHA-256 of the file of claims, which says by which rules a run was judged."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
