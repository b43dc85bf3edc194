"""From YAML nodes to checked objects, by the declarations of the keys (core/keys.py).

Rule: a section's defaults are its class's own, so a key that is left out, and a section that is left empty, mean the
default; a key that is written must have a value. Every problem is noted with its place and the reading goes on.

Conditions across keys (conditions.py) are judged on the finished object, and look up where the keys are that they speak of; a
condition that involves an invalid or missing required key is left out, because what takes its place would only confuse.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from limiterd.config.conditions import CONDITIONS, Condition
from limiterd.config.context import INVALID, Context, Invalid
from limiterd.config.yaml_reader import Items, Node, Refused, Scalar, Table
from limiterd.core.errors import UnitError
from limiterd.core.keys import Key, Section, keys_of
from limiterd.core.kinds import MAX_NAME, NULL, Amount, Kind, ListOf, Maybe, nearest

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_SPACES: Final = frozenset(" \u00a0\u202f\u2009\u3000")


def read(kind: Kind, node: Node, path: str, context: Context) -> Any:  # noqa: ANN401 - the kind's own
    """Read a node as a kind of value; INVALID after noting why not."""
    if isinstance(node, Refused):  # noted already
        context.invalid.add(path)
        return INVALID
    match kind:
        case Section():
            return _section(kind.make, node, path, context)
        case ListOf():
            return _list(kind, node, path, context)
        case Maybe() if is_null(node) and NULL in kind.words:
            return None
        case Maybe() if isinstance(kind.kind, Section | ListOf):
            return read(kind.kind, node, path, context)
        case _:
            return _scalar(kind, node, path, context)


def is_null(node: Node) -> bool:
    """Whether a value is left empty, or is YAML's null in plain writing."""
    return isinstance(node, Scalar) and node.plain and node.text in _NULLS


def _scalar(kind: Kind, node: Node, path: str, context: Context) -> Any:  # noqa: ANN401 - the kind's own
    """Read a single value. Refuses empty ones and characters that a terminal could obey."""
    if not isinstance(node, Scalar):
        what = "list" if isinstance(node, Items) else "mapping"
        return context.fail(node.place, path, f"is a {what}; write a single value here")
    text = kind.prepare(node.text)
    if is_null(node) or not text.strip():
        return context.fail(node.place, path, "is empty; write a value (in quotes if a text is meant), or leave the key out")
    odd = None if text.isprintable() else next((c for c in text if not (c.isprintable() or c in _SPACES)), None)
    if odd is not None:
        return context.fail(node.place, path, f"holds the control character U+{ord(odd):04X}; remove it")
    try:
        return kind.read(text)
    except UnitError as error:
        return context.fail(node.place, path, str(error))


def _list(kind: ListOf, node: Node, path: str, context: Context) -> tuple[Any, ...] | Invalid:
    if not isinstance(node, Items):
        given = "is empty" if is_null(node) else "is not a list"
        return context.fail(node.place, path, f"{given}; write a list of {kind.what} entries, like [first, second]")
    if not kind.least <= len(node.items) <= kind.most:
        form = f"at most {kind.most} are allowed" if len(node.items) > kind.most else f"name at least one {kind.what}"
        return context.fail(node.place, path, f"has {len(node.items)} entries; {form}")
    values = []
    for index, item in enumerate(node.items):
        where = f"{path}[{index}]"
        context.places[where] = item.place
        value = (
            context.fail(item.place, where, f"is empty; write a {kind.what}, or remove the dash")
            if is_null(item)
            else read(kind.kind, item, where, context)
        )
        if value is INVALID:
            context.invalid.add(where)
        else:
            values.append(value)
    return tuple(values) if context.is_valid(path) else INVALID


def _section(make: type, node: Node, path: str, context: Context) -> Any:  # noqa: ANN401 - whatever `make` makes
    """Read a mapping into an object; INVALID where a required part is missing or invalid."""
    keys = keys_of(make)
    needed = [key for key in keys.values() if key.required]
    if is_null(node) and not needed:
        return make()
    if not isinstance(node, Table):
        return context.fail(node.place, path, f"is not a mapping; write `key: value` lines (keys: {', '.join(keys)})")
    fields = _fields(keys, node, path, context)
    missing = [key for key in needed if key.name not in node.pairs]
    context.invalid |= {_join(path, key.name) for key in missing}
    lacking = [key.field for key in needed if key.field not in fields]
    made = make(**dict.fromkeys(lacking), **fields)
    if path.endswith("]"):
        context.entries[path] = made
    for condition in CONDITIONS.get(make, ()):  # those of the keys that are there and valid
        _judge(condition, made, path, context)
    for key in missing:
        context.fail(node.place, path, f"the key `{key.name}` is missing; it is required")
    if lacking:
        context.invalid.add(path)
        return INVALID
    return made


def _fields(keys: dict[str, Key], node: Table, path: str, context: Context) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, (name_node, value_node) in node.pairs.items():
        where = _join(path, name[:MAX_NAME])
        key = keys.get(name)
        if key is None:
            context.fail(name_node.place, where, _unknown(name, keys))
            continue
        context.places[where] = value_node.place
        value = read(_unpaced(key) if key.paced and not context.paced else key.kind, value_node, where, context)
        if value is not INVALID:
            fields[key.field] = value
    return fields


def _unpaced(key: Key) -> Kind:
    """The kind of a key whose bounds are a running daemon's: any value above zero."""
    return replace(key.kind, low=1, high=None) if isinstance(key.kind, Amount) else key.kind


def _unknown(name: str, keys: dict[str, Key]) -> str:
    """Say what an unknown key could have been: a near one, one that belongs a level deeper, or which there are."""
    near = nearest(name, keys)
    if near:
        return f"is not a known key{near}"
    for key in keys.values():
        if isinstance(key.kind, Section) and name in keys_of(key.kind.make):
            return f"is not a known key here; it belongs under `{key.name}`"
    return f"is not a known key; known are {', '.join(keys)}"


def _judge(condition: Condition, made: Any, path: str, context: Context) -> None:  # noqa: ANN401 - whatever the section makes
    """Note a problem where a condition does not hold, unless one of its keys is invalid anyway."""
    if condition.of_interval and not context.paced:
        return
    paths = [_join(path, name) for name in condition.keys]
    if all(context.is_valid(one) for one in paths) and not condition.holds(made):
        where = next((one for one in paths if one in context.places), paths[0])
        context.problems.add(context.place_of(where), where, condition.message(made))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
