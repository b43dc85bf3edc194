"""From a YAML node to a checked value: the parsers that the tables in schema.py are made of.

Rule: a section's defaults are its type's own, so a key that is left out, and a section that is left empty, mean the
default; a key that is written must have a value. Every problem is noted with its place and the reading goes on.

A parser takes a node, the path of its key and the Problems to add to, and returns the value, or INVALID after adding
why. `Section` is the parser of a mapping: its table maps keys to (field, parser). The checks across keys run afterwards,
on the finished object, and look up where the keys are that they speak of; a check that involves an invalid or missing
required key is left out, because what takes its place would only confuse.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Final

from limiterd.config.yaml_reader import START, Items, Node, Place, Problems, Refused, Scalar, Table
from limiterd.core.errors import UnitError
from limiterd.core.units import PPM

MAX_LIST: Final = 64
"""Entries in one list of globs or matches; each match costs a filter on every packet."""
MAX_NAME: Final = 64
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


class _Invalid(Enum):
    INVALID = "invalid"


INVALID: Final = _Invalid.INVALID
"""What a parser returns after it noted a problem."""


@dataclass(slots=True)
class Context:
    """One file being read: its problems, where each key stands, and which keys are invalid.

    paced: the file is for a daemon that takes samples itself; for recorded ones no condition on the interval is checked.
    """

    problems: Problems
    paced: bool = True
    places: dict[str, Place] = field(default_factory=dict)
    invalid: set[str] = field(default_factory=set)
    parts: dict[str, Any] = field(default_factory=dict)
    """The valid entries of lists, by path: what can be judged even where another entry is invalid."""

    def fail(self, place: Place, path: str, message: str) -> _Invalid:
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


def _is_within(path: str, section: str) -> bool:
    return path.startswith((f"{section}.", f"{section}["))


Parser = Callable[[Node, str, Context], Any]


def is_null(node: Node) -> bool:
    """Whether a value is left empty, or is YAML's null in plain writing."""
    return isinstance(node, Scalar) and node.plain and node.text in _NULLS


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


# ---- parsers of single values ----------------------------------------------------------------------


def text_of(node: Node, path: str, context: Context) -> str | _Invalid:
    """The text of a scalar. Refuses empty values and characters that a terminal could obey."""
    if isinstance(node, Refused):
        context.invalid.add(path)
        return INVALID
    if not isinstance(node, Scalar):
        kind = "list" if isinstance(node, Items) else "mapping"
        return context.fail(node.place, path, f"is a {kind}; write a single value here")
    if is_null(node) or not node.text.strip():
        return context.fail(node.place, path, "is empty; write a value (in quotes if a text is meant), or leave the key out")
    odd = None if node.text.isprintable() else next((c for c in node.text if not (c.isprintable() or c in _SPACES)), None)
    if odd is not None:
        return context.fail(node.place, path, f"holds the control character U+{ord(odd):04X}; remove it")
    return node.text


_SPACES: Final = frozenset(" \u00a0\u202f\u2009\u3000")


def unit(read: Callable[[str], int], *, low: int = 0, high: int | None = None, zero: bool = False, bounds: str = "") -> Parser:
    """Make the parser of a number with a unit; zero: a bare 0 is allowed, where it means off or none."""

    def parse(node: Node, path: str, context: Context) -> int | _Invalid:
        text = text_of(node, path, context)
        if text is INVALID:
            return INVALID
        if zero and text.strip() == "0":
            return 0
        try:
            value = read(text)
        except UnitError as error:
            return context.fail(node.place, path, str(error))
        if value < low or (high is not None and value > high):
            return context.fail(node.place, path, f"{_short(text)} is out of range; {bounds}")
        return value

    return parse


def one_of(values: type[StrEnum] | tuple[str, ...]) -> Parser:
    """Make the parser of one of a few words."""
    words: dict[str, Any] = {str(word): word for word in values}

    def parse(node: Node, path: str, context: Context) -> Any:  # noqa: ANN401 - a member of whatever was given
        text = text_of(node, path, context)
        if text is INVALID:
            return INVALID
        if text in words:
            return words[text]
        return context.fail(node.place, path, f"{_short(text)} is not known; write {' or '.join(words)}{_nearest(text, words)}")

    return parse


def worded(*, most: int, form: str, pattern: str = r".+") -> Parser:
    """Make the parser of a text; form says what would be right, and pattern must match the whole of it."""
    compiled = re.compile(pattern, re.ASCII)

    def parse(node: Node, path: str, context: Context) -> str | _Invalid:
        value = text_of(node, path, context)
        if value is INVALID:
            return INVALID
        if len(value) > most:
            return context.fail(node.place, path, f"is {len(value)} characters long; at most {most} are allowed")
        if compiled.fullmatch(value) is None:
            return context.fail(node.place, path, f"{_short(value)} is not {form}")
        return value

    return parse


def prose(most: int) -> Parser:
    """Make the parser of a text for people; line breaks and runs of spaces become single spaces."""
    parse_line = worded(most=most, form="a text")

    def parse(node: Node, path: str, context: Context) -> str | _Invalid:
        line = Scalar(" ".join(node.text.split()), node.place, node.plain) if isinstance(node, Scalar) else node
        parsed: str | _Invalid = parse_line(line, path, context)
        return parsed

    return parse


def or_none(parser: Parser, *words: str) -> Parser:
    """Make a parser that also takes one of the words for None; without words: YAML's null, or nothing at all."""

    def parse(node: Node, path: str, context: Context) -> Any:  # noqa: ANN401 - the inner parser's
        if is_null(node) and not words:
            return None
        if isinstance(node, Scalar) and node.text in words:
            return None
        return parser(node, path, context)

    return parse


def number(*, low: int, high: int) -> Parser:
    """Make the parser of a plain decimal number, kept as parts per million."""
    form = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", re.ASCII)

    def parse(node: Node, path: str, context: Context) -> int | _Invalid:
        value = text_of(node, path, context)
        if value is INVALID:
            return INVALID
        if form.fullmatch(value) is None:
            return context.fail(node.place, path, f"{_short(value)} is not a plain number; write it like 2 or 1.5")
        whole, _, fraction = value.partition(".")
        ppm = int(whole) * PPM + int(fraction.ljust(6, "0"))
        if not low * PPM <= ppm <= high * PPM:
            return context.fail(node.place, path, f"{value} is out of range; write a number from {low} to {high}")
        return ppm

    return parse


def port(node: Node, path: str, context: Context) -> int | _Invalid:
    """Read a port number."""
    value = text_of(node, path, context)
    if value is INVALID:
        return INVALID
    if re.fullmatch(r"[1-9][0-9]{0,4}", value, re.ASCII) is None or int(value) > 65_535:
        return context.fail(node.place, path, f"{_short(value)} is not a port; write a number from 1 to 65535")
    return int(value)


_PROTOCOLS: Final = {
    **{name: name for name in ("tcp", "udp", "icmp", "icmpv6", "sctp", "arp")},
    "1": "icmp",
    "6": "tcp",
    "17": "udp",
    "58": "icmpv6",
    "132": "sctp",
    "igmp": "2",
    "gre": "47",
    "esp": "50",
    "ah": "51",
    "ospf": "89",
    "vrrp": "112",
    "udplite": "136",
    "ipv6-icmp": "icmpv6",
    "icmp6": "icmpv6",
}
"""Every accepted name with its canonical form; other IP protocol numbers stand for themselves."""


def protocol(node: Node, path: str, context: Context) -> str | _Invalid:
    """Read a protocol's name, or the number that the IP header carries for it."""
    value = text_of(node, path, context)
    if value is INVALID:
        return INVALID
    known = _PROTOCOLS.get(value.lower())
    if known is not None:
        return known
    if re.fullmatch(r"0|[1-9][0-9]{0,2}", value, re.ASCII) and int(value) <= 255:
        return value
    names = ", ".join(name for name in _PROTOCOLS if not name.isdigit())
    return context.fail(node.place, path, f"{_short(value)} is no protocol; write one of {names}, or a number from 0 to 255")


def network(node: Node, path: str, context: Context) -> str | _Invalid:
    """Read an address or network of either IP version as canonical CIDR text."""
    value = text_of(node, path, context)
    if value is INVALID:
        return INVALID
    try:
        wide = ipaddress.ip_network(value, strict=False)
        if "%" in value or re.search(r"/.*\.", value):
            raise ValueError("scope or netmask")  # noqa: TRY301 - one answer for all that is not CIDR
    except ValueError:
        form = "write it like 203.0.113.0/24, 2001:db8::/32 or 203.0.113.7"
        return context.fail(node.place, path, f"{_short(value)} is not a network; {form}")
    if ipaddress.ip_address(value.partition("/")[0]) != wide.network_address:
        return context.fail(node.place, path, f"{_short(value)} has bits set beyond its prefix; write {wide}")
    return str(wide)


def listen(node: Node, path: str, context: Context) -> str | _Invalid:
    """Read "host:port", "[IPv6]:port" or ":port" (every address)."""
    value = text_of(node, path, context)
    if value is INVALID:
        return INVALID
    host, colon, number_text = value.rpartition(":")
    form = 'write it like "127.0.0.1:9817", "[::1]:9817", or null for no server'
    if not colon or re.fullmatch(r"[1-9][0-9]{0,4}", number_text, re.ASCII) is None or int(number_text) > 65_535:
        return context.fail(node.place, path, f"{_short(value)} has no port from 1 to 65535; {form}")
    if not _is_host(host):
        return context.fail(node.place, path, f"{_short(host)} is no address to listen on; {form}")
    return value


def _is_host(host: str) -> bool:
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        return ipaddress.ip_address(host[1:-1] if bracketed else host).version == (6 if bracketed else 4)
    except ValueError:
        labels = [] if bracketed or not host else host.split(".")
        return not host or (
            len(host) <= 253
            and any(not label.isdigit() for label in labels)
            and all(_HOST_LABEL.fullmatch(label) is not None for label in labels)
        )


_HOST_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})", re.ASCII)


def absolute_path(most: int) -> Parser:
    """Make the parser of an absolute path of at most so many bytes."""

    def parse(node: Node, path: str, context: Context) -> str | _Invalid:
        value = text_of(node, path, context)
        if value is INVALID:
            return INVALID
        if not value.startswith("/"):
            return context.fail(node.place, path, f"{_short(value)} is not absolute; begin it with /")
        if len(value.encode("utf-8", "replace")) > most:
            return context.fail(node.place, path, f"is longer than {most} bytes; choose a shorter path")
        return value

    return parse


def glob(longest: int, what: str) -> Parser:
    """Make the parser of one shell pattern, with a leading "!" for an exclusion, over names of at most `longest` bytes."""

    def parse(node: Node, path: str, context: Context) -> str | _Invalid:
        value = text_of(node, path, context)
        if value is INVALID:
            return INVALID
        fault = _glob_fault(value.removeprefix("!"), longest, what)
        return value if fault is None else context.fail(node.place, path, f"{_short(value)} {fault}")

    return parse


def _glob_fault(pattern: str, longest: int, what: str) -> str | None:
    """Tell why a pattern cannot be meant, or None."""
    literal = not re.search(r"[*?\[]", pattern)
    faults = (
        (not pattern, 'excludes nothing; write what to exclude after the "!"'),
        (pattern.startswith("!"), 'has two "!"; one excludes'),
        (
            re.search(r"[\s/,:]", pattern) is not None,
            f"can match no {what}: none holds a space or one of / , : (write one entry a pattern)",
        ),
        (_open_bracket(pattern), 'has a "[" that is never closed; close it with "]"'),
        (
            literal and len(pattern.encode("utf-8", "replace")) > longest,
            f"can match no {what}: none is longer than {longest} bytes",
        ),
        (len(pattern) > 2 * longest + MAX_NAME, "is too long for a pattern; shorten it"),
    )
    return next((message for holds, message in faults if holds), None)


def _open_bracket(pattern: str) -> bool:
    """Whether fnmatch would take a "[" for itself because its "]" is missing."""
    at = pattern.find("[")
    while at >= 0:
        inner = at + 1 + pattern.startswith("!", at + 1)
        end = pattern.find("]", inner + pattern.startswith("]", inner))
        if end < 0:
            return True
        at = pattern.find("[", end)
    return False


def many(parser: Parser, *, least: int = 0, most: int = MAX_LIST, what: str) -> Parser:
    """Make the parser of a list, as a tuple. `what` says what one entry is."""

    def parse(node: Node, path: str, context: Context) -> tuple[Any, ...] | _Invalid:
        if isinstance(node, Refused):
            context.invalid.add(path)
            return INVALID
        if not isinstance(node, Items):
            given = "is empty" if is_null(node) else "is not a list"
            return context.fail(node.place, path, f"{given}; write a list of {what} entries, like [first, second]")
        if not least <= len(node.items) <= most:
            form = f"at most {most} are allowed" if len(node.items) > most else f"name at least one {what}"
            return context.fail(node.place, path, f"has {len(node.items)} entries; {form}")
        values = []
        for index, item in enumerate(node.items):
            where = f"{path}[{index}]"
            context.places[where] = item.place
            value = (
                context.fail(item.place, where, f"is empty; write a {what}, or remove the dash")
                if is_null(item)
                else parser(item, where, context)
            )
            if value is INVALID:
                context.invalid.add(where)
            else:
                context.parts[where] = value
                values.append(value)
        return tuple(values) if context.is_valid(path) else INVALID

    return parse


# ---- the parser of a mapping -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Section:
    """The parser of a mapping into `make(**fields)`.

    keys: key → (field, parser); required keys must be there; where nothing is required an empty value means all defaults.
    checks run on the finished object.
    """

    make: Callable[..., Any]
    keys: Mapping[str, tuple[str, Parser]]
    required: frozenset[str] = frozenset()
    checks: tuple[Check, ...] = ()

    def __call__(self, node: Node, path: str, context: Context) -> Any:  # noqa: ANN401 - whatever `make` makes
        """Parse a node; INVALID where a required part is missing or invalid."""
        if is_null(node) and not self.required:
            return self.make()
        if isinstance(node, Refused):
            context.invalid.add(path)
            return INVALID
        if not isinstance(node, Table):
            known = ", ".join(self.keys)
            return context.fail(node.place, path, f"is not a mapping; write `key: value` lines (keys: {known})")
        fields = self._fields(node, path, context)
        missing = self.required - node.pairs.keys()
        context.invalid |= {_join(path, key) for key in missing}
        lacking = {self.keys[key][0] for key in self.required} - fields.keys()
        made = self.make(**dict.fromkeys(lacking), **fields)
        for check in self.checks:  # those of the keys that are there and valid
            check.run(made, path, context)
        for key in missing:
            context.fail(node.place, path, f"the key `{key}` is missing; it is required")
        if lacking:
            context.invalid.add(path)
            return INVALID
        return made

    def _fields(self, node: Table, path: str, context: Context) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, (key_node, value_node) in node.pairs.items():
            where = _join(path, key[:MAX_NAME])
            if key not in self.keys:
                context.fail(key_node.place, where, self._unknown(key))
                continue
            context.places[where] = value_node.place
            name, parser = self.keys[key]
            value = parser(value_node, where, context)
            if value is not INVALID:
                fields[name] = value
        return fields

    def _unknown(self, key: str) -> str:
        """Say what an unknown key could have been: a near one, one that belongs a level deeper, or which there are."""
        near = _nearest(key, self.keys)
        if near:
            return f"is not a known key{near}"
        for name, (_, parser) in self.keys.items():
            if isinstance(parser, Section) and key in parser.keys:
                return f"is not a known key here; it belongs under `{name}`"
        return f"is not a known key; known are {', '.join(self.keys)}"


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    if len(word) > MAX_NAME:
        return ""
    import difflib  # noqa: PLC0415 - 3 ms that only a wrong file pays

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


@dataclass(frozen=True, slots=True)
class Check:
    """A condition across keys of one section: `holds` of the finished object, else `message` at the first key that is written."""

    keys: tuple[str, ...]
    holds: Callable[[Any], bool]
    message: Callable[[Any], str]
    of_interval: bool = False
    """Whether it speaks of the sampling interval, which recorded samples do not have."""

    def run(self, made: Any, path: str, context: Context) -> None:  # noqa: ANN401 - whatever the section makes
        """Note the problem where the condition does not hold, unless one of its keys is invalid anyway."""
        if self.of_interval and not context.paced:
            return
        paths = [_join(path, key) for key in self.keys]
        if all(context.is_valid(one) for one in paths) and not self.holds(made):
            where = next((one for one in paths if one in context.places), paths[0])
            context.problems.add(context.place_of(where), where, self.message(made))
