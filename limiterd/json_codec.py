"""JSON from hands that we do not trust, and values as JSON whatever they are.

parse: only ValueError escapes, whatever the bytes; what comes back is bounded in depth, holds finite numbers only, and every
string in it can be written as UTF-8. dump: always one line of ASCII, so no value can break a line-oriented file, forge a
second line or reach a terminal with control characters. decode: plain JSON into the frozen dataclasses of the model,
with every type checked against the annotations.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar

MAX_DEPTH: Final = 32
_INT_LIMIT: Final = 1 << 63
_PIECE_ITEMS: Final = 64

T = TypeVar("T")


# ---- in ------------------------------------------------------------------------------------------


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _too_deep(value: object, max_depth: int) -> bool:
    level = [value]
    while level and max_depth:
        max_depth -= 1
        level = [entry for item in level for entry in _entries(item) if isinstance(entry, dict | list)]
    return bool(level)


def _check_text(value: object, errors: str) -> None:
    """A lone surrogate raises UnicodeEncodeError, a ValueError."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            item.encode(errors=errors)
        elif isinstance(item, dict):
            todo.extend(item)
        todo.extend(_entries(item))


def _entries(item: object) -> Iterable[object]:
    return item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def parse(data: bytes, *, max_depth: int = MAX_DEPTH, errors: str = "strict") -> object:
    """One JSON value. Raises ValueError, and nothing else, for whatever is not one that can be kept and shown.

    errors="surrogateescape" lets the names pass that os.fsdecode gives to bytes which are not UTF-8.
    """
    text = data.decode()
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"nested deeper than {max_depth} levels") from None
    if _too_deep(value, max_depth):
        raise ValueError(f"nested deeper than {max_depth} levels")
    if "\\u" in text:  # the only way to a lone surrogate
        _check_text(value, errors)
    return value


# ---- out -----------------------------------------------------------------------------------------


def _default(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    return str(value)


def plain(value: object, max_depth: int = MAX_DEPTH) -> object:
    """The value as plain JSON that `parse` takes back: text as valid UTF-8, what lies deeper than max_depth as "…"."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if value is None or isinstance(value, bool | int | float):
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    if max_depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {str(plain(str(key))): plain(entry, max_depth - 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, max_depth - 1) for entry in value]
    return plain(_default(value), max_depth - 1)


def dump(value: object) -> str:
    """The value as one line of ASCII JSON; never raises for what the value holds.

    Mappings, sets, bytes (base64) and dataclasses are written as what they are; anything else as its text, a number that
    is not finite too, and what is nested too deep as "…".
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, default=_default)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(plain(value), separators=(",", ":"), allow_nan=False)


def pieces(value: object) -> Iterator[str]:
    """The same text as dump gives, in pieces: other threads get a turn between them, however large the whole is."""
    if isinstance(value, Mapping) and value:
        mark = "{"
        for key, entry in value.items():
            yield f"{mark}{dump(str(key))}:"
            yield from pieces(entry)
            mark = ","
        yield "}"
    elif isinstance(value, list | tuple) and len(value) > _PIECE_ITEMS:
        for start in range(0, len(value), _PIECE_ITEMS):
            yield ("," if start else "[") + dump(value[start : start + _PIECE_ITEMS])[1:-1]
        yield "]"
    else:
        yield dump(value)


# ---- dataclasses ---------------------------------------------------------------------------------


@cache
def _hints(cls: Hashable) -> Mapping[str, object]:
    return typing.get_type_hints(cls)


def encode(value: object) -> dict[str, object]:
    """A dataclass as a dictionary that `decode` reads back: fields by name, bytes as base64, nested ones likewise."""
    return {
        field.name: _encode_value(getattr(value, field.name))
        for field in dataclasses.fields(value)  # type: ignore[arg-type]  # the caller's word that it is one
    }


def _encode_value(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.value if isinstance(value, Enum) else value


def decode(cls: type[T], value: object) -> T:
    """Make a dataclass from plain JSON. A missing field takes its default, an unknown one is ignored.

    Raises ValueError with the field's name for a wrong type, an unknown enum word, an integer outside 0 … 2^63−1 (no value
    that is kept is negative), bad base64, or a missing field that has no default.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{_name_of(value)} where {cls.__name__} is expected")  # noqa: TRY004  # one error type for all input
    known = _hints(typing.cast("Hashable", cls))
    given: dict[str, Any] = {name: _decode_value(hint, value[name], name) for name, hint in known.items() if name in value}
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # likewise
        if field.name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    return cls(**given)


def _decode_value(hint: Any, value: object, name: str) -> object:  # noqa: ANN401  # a type as typing hands it out
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    try:
        return _decode_plain(typing.get_origin(hint) or hint, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _decode_plain(hint: type, value: object) -> object:
    if dataclasses.is_dataclass(hint):
        return decode(hint, value)
    if issubclass(hint, bytes):
        return base64.b64decode(_exactly(str, value), validate=True)
    if issubclass(hint, Enum):
        return hint(_exactly(str, value))
    if issubclass(hint, Mapping):
        return _exactly(dict, value)
    if hint is int:
        number = _exactly(int, value)
        if not 0 <= number < _INT_LIMIT:
            raise ValueError("a number is out of range")
        return number
    return _exactly(hint, value)


def _exactly(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise ValueError(f"{_name_of(value)} where {_JSON_NAMES.get(kind, kind.__name__)} is expected")
    return value


_JSON_NAMES: Final[Mapping[type, str]] = {
    str: "text",
    int: "an integer",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    float: "a decimal",
    types.NoneType: "null",
}


def _name_of(value: object) -> str:
    return _JSON_NAMES.get(type(value), type(value).__name__)
