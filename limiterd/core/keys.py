"""What a configuration key is: its name, how its value is written, and what people read about it.

A key is declared once, as a field of a class in core/model/rules.py:

    interval_ns: int = field(default=100 * MS, metadata=key("interval", duration(20 * MS, SECOND), "how often …"))

The reader of files (config/), the text of a reload (core/rule_changes.py), JSON, override files, docs/configuration.md and
config/limiterd.yaml all follow that declaration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from functools import cache
from typing import Any, Final

from limiterd.core.kinds import Kind


class _Required(Enum):
    REQUIRED = "required"


REQUIRED: Final = _Required.REQUIRED
"""Stands for the default of a key that has none."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a class, declared by key()."""

    name: str
    kind: Kind
    meaning: str = ""
    allowed: str = ""
    label: str = ""
    restart: bool = False
    paced: bool = False
    option: str = ""
    field: str = ""
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        """Whether the key must be written."""
        return self.default is REQUIRED


def key(
    name: str,
    kind: Kind,
    meaning: str = "",
    *,
    allowed: str = "",
    label: str | None = None,
    restart: bool = False,
    paced: bool = False,
    option: str = "",
) -> dict[str, Key]:
    """Declare a key, as the metadata of the dataclass field that holds its value; the field's default is the key's.

    meaning: one text for docs/configuration.md and for the comment in limiterd.yaml. allowed: what may be written in words,
    where a condition with other keys narrows what the kind allows. label: what a reload calls the key behind its section's
    label; "" leaves it out. restart: a running daemon cannot follow a change of it. paced: the bounds hold for a daemon that
    takes its samples itself; recorded ones may have any interval. option: limiterctl's word for it.
    """
    words = name if label is None else label
    declared = Key(name, kind, meaning, allowed or kind.allowed, words, restart, paced, option or f"--{name.replace('_', '-')}")
    return {"key": declared}


@cache
def keys_of(owner: type) -> dict[str, Key]:
    """Every key of a class by its name, in the order of the class, with the field that holds it and its default."""
    declared = ((one.metadata["key"], one) for one in fields(owner) if "key" in one.metadata)
    return {
        key.name: replace(key, field=one.name, default=REQUIRED if one.default is MISSING else one.default)
        for key, one in declared
    }


def given(value: Any) -> Iterator[tuple[Key, Any]]:  # noqa: ANN401 - any class with keys
    """Yield the keys that must be written for an object to read back the same, with their values."""
    for key in keys_of(value.__class__).values():
        part = getattr(value, key.field)
        if part != key.default:
            yield key, part


def document(value: Any) -> dict[str, object]:  # noqa: ANN401 - likewise
    """Give an object's keys as JSON; the unit of a bare number is in its name."""
    return {key.name + key.kind.unit: key.kind.document(getattr(value, key.field)) for key in keys_of(value.__class__).values()}


@dataclass(frozen=True, slots=True)
class Section(Kind):
    """A mapping whose keys are the fields of a class."""

    make: type

    def show(self, value: Any) -> str:  # noqa: ANN401 - whatever class it is
        """Write what is given, key by key."""
        return " ".join(f"{key.name} {key.kind.show(part)}" for key, part in given(value))

    def write(self, value: Any) -> str:  # noqa: ANN401 - likewise
        """Write what is given as a YAML mapping."""
        return "{" + ", ".join(f"{key.name}: {key.kind.write(part)}" for key, part in given(value)) + "}"
