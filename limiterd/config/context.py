"""One file being read: its problems, where each key stands, and which keys are invalid."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from limiterd.config.yaml_reader import START, Place, Problems


class Invalid(Enum):
    """The type of INVALID."""

    INVALID = "invalid"


INVALID: Final = Invalid.INVALID
"""What reading a value returns after it noted a problem."""


@dataclass(slots=True)
class Context:
    """What is known of a file while it is read, and afterwards.

    paced: the file is for a daemon that takes samples itself; for recorded ones no condition on the interval is checked.
    """

    problems: Problems
    paced: bool = True
    places: dict[str, Place] = field(default_factory=dict)
    invalid: set[str] = field(default_factory=set)
    entries: dict[str, Any] = field(default_factory=dict)
    """The entries of lists, by path; of one with invalid keys what could be read: is_valid() tells what counts."""

    def fail(self, place: Place, path: str, message: str) -> Invalid:
        """Note a problem and return INVALID."""
        self.invalid.add(path)
        self.problems.add(place, path or "file", message)
        return INVALID

    def place_of(self, path: str) -> Place:
        """Where a key stands, or the nearest section around it that does."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path.rpartition(".")[0]
        return START

    def is_valid(self, path: str) -> bool:
        """Whether neither this key nor a section around it or a part of it is invalid."""
        return not any(path == bad or _is_within(path, bad) or _is_within(bad, path) for bad in self.invalid)

    def is_read(self, path: str) -> bool:
        """Whether neither this key nor a part of it is invalid, whatever is wrong beside it in its section."""
        return not any(path == bad or _is_within(bad, path) for bad in self.invalid)


def _is_within(path: str, section: str) -> bool:
    return path.startswith((f"{section}.", f"{section}["))
