"""Ids of override records: where each stands, so that a second one is told with both places.

A fleet has thousands, most of them of other hosts: while files are read an id costs one number, and afterwards a few bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final, NamedTuple

from limiterd.config.yaml_reader import MAX_BYTES, MAX_NODES
from limiterd.core.errors import Problem

LIST: Final = "overrides"
"""The one key of an override file."""


class Spot(NamedTuple):
    """Where an id stands: what is needed to tell of a second one."""

    id: str
    file: str
    line: int
    column: int
    number: int

    @property
    def path(self) -> str:
        """The record's path in its file."""
        return f"{LIST}[{self.number}]"


class Ids:
    """Every id of a set of files with where it stands first, one number each: a fleet has thousands."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._at: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[Spot]:
        return (self._spot(record_id, at) for record_id, at in self._at.items())

    def _spot(self, record_id: str, at: int) -> Spot:
        at, number = divmod(at, MAX_NODES)
        at, column = divmod(at, MAX_BYTES + 2)
        file, line = divmod(at, MAX_BYTES + 2)
        return Spot(record_id, self._files[file], line, column, number)

    def get(self, record_id: str) -> Spot | None:
        """Where an id stands, if anywhere."""
        at = self._at.get(record_id)
        return None if at is None else self._spot(record_id, at)

    def add(self, spots: Iterable[Spot]) -> Iterator[Problem]:
        """Take ids in; yield a problem for every one that was known, at its later place."""
        for spot in spots:
            before = self.get(spot.id)
            if before is not None:
                yield twice(before, spot)
                continue
            if spot.file not in self._files[-1:]:
                self._files.append(spot.file)
            at = (len(self._files) - 1) * (MAX_BYTES + 2) + spot.line
            self._at[spot.id] = (at * (MAX_BYTES + 2) + spot.column) * MAX_NODES + spot.number


def twice(before: Spot, spot: Spot) -> Problem:
    """Tell that an id stands in two places; at the second one."""
    here, there = (f"{one.file}:{one.line}" for one in (spot, before))
    message = f"{spot.id} is given twice, in {there} and in {here}; rename or remove one"
    return Problem(spot.file, spot.line, spot.column, f"{spot.path}.id", message)


def duplicates(others: Iterable[Spot], ids: Ids) -> Iterator[Problem]:
    """Yield a problem for every id that stands among others too, at its place among `ids`."""
    for spot in others:
        here = ids.get(spot.id)
        if here is not None:
            yield twice(spot, here)


class Taken:
    """Which file has which ids. One text a file: a fleet's thousands of ids cost a few bytes each, for as long as they stand."""

    def __init__(self, spots: Iterable[Spot] = ()) -> None:
        self._texts = {file: "\n".join(["", *(spot.id for spot in group), ""]) for file, group in groupby(spots, _file_of)}

    def file_of(self, record_id: str) -> str | None:
        """The file that has an id, or None."""
        return next((file for file, text in self._texts.items() if f"\n{record_id}\n" in text), None)


def _file_of(spot: Spot) -> str:
    return spot.file
