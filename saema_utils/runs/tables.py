"""The registry: every result of a run, what it needs, what it holds, and the function that makes it.

A result is declared once, where it is made; calling it gives the stored value, made first if it is missing,
damaged, or made from anything else than now::

    @table("04_comparison", needs=(geometry_table, merging_table), columns={"change": "log ratio to the residual"})
    def comparison_table(run):
        \"""The SAE against the residual stream and two controls.\"""
        return compare_representations(geometry_table(run), merging_table(run), seed=run.study.seed)

What a result was made from is its *key*: a digest of the study, of the keys of all that it needs, and of the source
behind its module. Keys, stamps of chapters, tasks of sweeps and the page of results all read this registry.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saema_utils.errors import MissingInputError
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.freshness import digest, source_digest
from saema_utils.runtime import a_line

if TYPE_CHECKING:
    import pandas as pd

Keep = Callable[[RunDirectory, str, str, Callable[[], Any]], Any]
RESULTS: dict[str, Result] = {}
"""Every declared result by the place where it is kept, such as ``tables/04_geometry.csv``."""


def _whole_study(run: RunDirectory) -> str:
    return run.study.digest


class Result:
    """One result of a run: a table, tensors, or whatever ``keep`` can store and load.

    Attributes
    ----------
    name
        ``NN_name``, where NN is the chapter that makes it.
    place
        Where it is kept, below the folder of the run.
    needs
        The results that it is made from.
    choices
        What else it is made from, as a function of the run: by default the study as a whole. Files outside the run
        belong here.
    is_ruler
        Whether it says nothing of the model: a world whose answer is known, made of its choices alone. Runs side by
        side that choose the same share it.
    columns
        What its own columns mean; :data:`~saema_utils.chapters.columns.COMMON` explains those that many tables share.
    """

    def __init__(
        self,
        name: str,
        place: str,
        make: Callable[..., Any],
        keep: Keep,
        needs: Iterable[Result] = (),
        choices: Callable[[RunDirectory], Any] = _whole_study,
        columns: Mapping[str, str] | None = None,
        ruler: bool = False,
    ):
        self.name, self.place, self.needs, self.choices = name, place, tuple(needs), choices
        self.columns, self.is_ruler = dict(columns or {}), ruler
        self._make, self._keep = make, keep
        functools.update_wrapper(self, make)
        RESULTS[place] = self

    def __call__(self, run: RunDirectory, **options: Any) -> Any:
        def make() -> Any:
            with a_line(f"making {self.place} ..."):
                return self._make(run, **options)

        key = self.key(run, **options)
        with run.making(self):
            if self.is_ruler:
                run.take_over(self.place, key)
            return self._keep(run, self.name, key, make)

    def __repr__(self) -> str:
        return f"<result {self.name}>"

    def key(self, run: RunDirectory, **options: Any) -> str:
        """Digest of everything that the result is made from."""
        needs = [need.key(run) for need in self.needs]
        return digest([self.name, self.choices(run), needs, source_digest(self.module), options])

    def is_made(self, run: RunDirectory) -> bool:
        """Whether its files are there and whole, and were made from all that it needs as that is now.

        What is kept in a way of its own counts as made: it comes with the first that needs it.
        """
        try:
            key = self.key(run)
        except MissingInputError:  # a table that it takes as it stands is not there
            return False
        return all(run.is_made(file, key) for file in self._files(run))

    def _files(self, run: RunDirectory) -> list[str]:
        return [self.place] if self.place.startswith(("tables/", "tensors/")) else []

    @property
    def module(self) -> str:
        """The module that declares it."""
        return self._make.__module__

    @property
    def chapter(self) -> int:
        """The chapter that makes it."""
        return int(self.name.rpartition("/")[2][:2])

    @property
    def description(self) -> str:
        """What it is, in one sentence: the first line of its docstring."""
        return " ".join((inspect.getdoc(self._make) or "").split("\n\n")[0].split())

    def behind(self) -> set[Result]:
        """Everything that it is made from, directly or not."""
        return {found for need in self.needs for found in (need, *need.behind())}


class Parts(Result):
    """A result made part by part (a concept at a time, say), so that an interrupted run resumes.

    The function gets the parts that are missing and yields each with its tables, by name. What is called gives one of
    these tables, whole.

    Attributes
    ----------
    names
        The parts of a run.
    after
        The other parts that a part is made from.
    """

    def __init__(
        self,
        name: str,
        make: Callable,
        parts: Callable[[RunDirectory], Sequence[str]],
        after: Callable[[RunDirectory, str], Sequence[str]] = lambda run, part: (),
        **facts: Any,
    ):
        super().__init__(name, f"tables/parts/{name}", make, keep=lambda *_: None, **facts)
        self.names, self.after = parts, after
        self._tables: list[str] = []

    def __call__(self, run: RunDirectory, name: str = "") -> pd.DataFrame:
        import pandas as pd

        self.make(run, name=name)
        frames = [run.table(place) for place in self._places(run, name or self.name).values()]
        return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)

    def make(self, run: RunDirectory, parts: Sequence[str] | None = None, name: str = "") -> None:
        """Make those of some parts, by default of all, of which the table of this name (or the first) is missing."""
        key, places = self.key(run), self._places(run, name or self.tables[0])
        asked = [part for part in places if parts is None or part in parts]
        missing = [part for part in asked if not run.is_fresh(f"tables/{places[part]}.csv", key)]
        made: Iterator[tuple[str, dict[str, pd.DataFrame]]] = self._make(run, missing) if missing else iter(())
        with run.making(self):
            for part, tables in made:
                with run.together():  # one of them tells whether the part is there
                    for table_name, frame in tables.items():
                        run.save_table(self._places(run, table_name)[part], frame, key)

    @property
    def tables(self) -> list[str]:
        """The tables that a part is made of, by name: those that were declared whole, or one of its own name."""
        return self._tables or [self.name]

    def _files(self, run: RunDirectory) -> list[str]:
        places = [place for name in self.tables for place in self._places(run, name).values()]
        return [f"tables/{place}.csv" for place in places]

    def whole(self, name: str, description: str, columns: Mapping[str, str]) -> Result:
        """Declare one of its tables, of all parts together, as a table of the run."""

        def make(run: RunDirectory) -> pd.DataFrame:
            return self(run, name)

        make.__doc__, make.__module__ = description, self.__module__
        self._tables.append(name)
        return table(name, needs=(self,), columns=columns)(make)

    def part(self, run: RunDirectory, part: str, name: str = "") -> pd.DataFrame:
        """One part, which has been made."""
        return run.table(self._places(run, name or self.name)[part])

    def _places(self, run: RunDirectory, name: str) -> dict[str, str]:
        return {part: f"parts/{name}_{number:03d}" for number, part in enumerate(self.names(run))}


def table(name: str, **facts: Any) -> Callable[[Callable[..., pd.DataFrame]], Result]:
    """Declare a table, kept as ``tables/<name>.csv``. ``facts`` are those of :class:`Result`."""
    return lambda make: Result(name, f"tables/{name}.csv", make, RunDirectory.cached_table, **facts)


def tensors(name: str, **facts: Any) -> Callable[[Callable], Result]:
    """Declare tensors by name, kept as ``tensors/<name>.safetensors``."""
    return lambda make: Result(name, f"tensors/{name}.safetensors", make, RunDirectory.cached_tensors, **facts)


def parts(name: str, of: Callable[[RunDirectory], Sequence[str]], **facts: Any) -> Callable[[Callable], Parts]:
    """Declare tables made part by part; ``of`` lists the parts of a run."""
    return lambda make: Parts(name, make, of, **facts)


def result(name: str, place: str, keep: Keep, **facts: Any) -> Callable[[Callable], Result]:
    """Declare a result that is kept in a way of its own: ``keep(run, name, key, make)`` stores and loads it."""
    return lambda make: Result(name, place, make, keep, **facts)
