"""How a value is written: kinds of values, each from text to value and back.

read() takes a text and raises UnitError, which says what would be right; show() is for people, exactly; write() is YAML that
reads back as the same value; document() is for JSON. Bounds are the kind's own, so that the message that refuses a value and
the documentation cannot differ.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from limiterd.core.errors import UnitError
from limiterd.core.units import (
    PPM,
    exact_duration,
    exact_rate,
    exact_wall,
    format_share,
    format_wall,
    parse_bits,
    parse_duration,
    parse_rate,
    parse_share,
    parse_wall,
)

NULL: Final = "null"
"""YAML's null, or nothing at all, as a word for None."""
MAX_NAME: Final = 64
MAX_LIST: Final = 64
"""Entries in one list of globs or matches; each match costs a filter on every packet."""


class Kind:
    """How a value is written."""

    @property
    def unit(self) -> str:
        """What JSON adds to the key's name: a unit where the value is a bare number."""
        return ""

    @property
    def allowed(self) -> str:
        """What may be written, in a few words; "" where the name says it."""
        return ""

    def prepare(self, text: str) -> str:
        """Fold a text as its kind allows, before anything is asked of its characters."""
        return text

    def read(self, text: str) -> Any:  # noqa: ANN401 - each kind has a type of its own
        """Turn a text into the value. Raises UnitError that says what would be right."""
        return text

    def show(self, value: Any) -> str:  # noqa: ANN401 - likewise
        """Write a value for people, exactly."""
        return str(value)

    def write(self, value: Any) -> str:  # noqa: ANN401 - likewise
        """Write a value as YAML."""
        return plain_or_quoted(self.show(value))

    def document(self, value: Any) -> object:  # noqa: ANN401 - likewise
        """Give a value for JSON."""
        return self.show(value)


_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9._/-]*", re.ASCII)
_WORDS: Final = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Texts that other readers of YAML take for values."""


def quoted(text: str) -> str:
    """Write a text as a YAML scalar in quotation marks."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def plain_or_quoted(text: str) -> str:
    """Write a text as a YAML scalar, without quotation marks where every reader takes it for a text then."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else quoted(text)


def short(text: str) -> str:
    """Quote a text for a message, cut to 40 characters."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def nearest(word: str, known: Collection[str]) -> str:
    """Say which known word may have been meant, or ""."""
    if len(word) > MAX_NAME:
        return ""
    import difflib  # noqa: PLC0415 - 3 ms that only a wrong file pays

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


# ---- values with a unit ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Amount(Kind):
    """A number with a unit, from low to high. zero: a bare 0 is allowed, where it means off or none."""

    parse: Callable[[str], int]
    exact: Callable[[int], str]
    low: int = 0
    high: int | None = None
    zero: bool = False
    unit: str = ""
    advice: str = ""
    absent: str = ""
    """What people read for 0."""

    @property
    def allowed(self) -> str:
        """The bounds in words: "20ms to 1s"."""
        low = (
            f"more than {'0%' if self.exact is format_share else 0}"
            if self.low == 1
            else f"at least {self.exact(self.low)}"
            if self.low
            else ""
        )
        if self.high is None:
            return low
        if self.exact is format_share and self.high == PPM - 1:
            return "less than 100%"
        return f"{self.exact(self.low)} to {self.exact(self.high)}" if self.low > 1 else f"at most {self.exact(self.high)}"

    def read(self, text: str) -> int:
        """Read a number with a unit within the bounds."""
        if self.zero and text.strip() == "0":
            return 0
        value = self.parse(text)
        if value < self.low or (self.high is not None and value > self.high):
            advice = f" ({self.advice})" if self.advice else ""
            raise UnitError(f"{short(text)} is out of range; write {self.allowed}{advice}")
        return value

    def show(self, value: int) -> str:
        """Write the value exactly."""
        return self.absent if self.absent and not value else self.exact(value)

    def write(self, value: int) -> str:
        """Write the value with its unit, or the bare 0 that means off."""
        return "0" if self.zero and self.absent and not value else self.exact(value)

    def document(self, value: int) -> int:
        """The number itself: its unit is in the name."""
        return value


def rate(low: int = 0, *, zero: bool = False, absent: str = "", advice: str = "") -> Amount:
    """Make the kind of a rate in bit/s."""
    return Amount(parse_rate, exact_rate, low, zero=zero, absent=absent, advice=advice, unit="_bps")


def bits(low: int = 0, *, advice: str = "") -> Amount:
    """Make the kind of a size in bits."""
    return Amount(parse_bits, exact_rate, low, advice=advice, unit="_bits")


def duration(low: int = 0, high: int | None = None, *, zero: bool = False, advice: str = "") -> Amount:
    """Make the kind of a duration in ns."""
    return Amount(parse_duration, exact_duration, low, high, zero=zero, advice=advice, unit="_ns")


def share(low: int = 0, high: int | None = None, *, zero: bool = False, advice: str = "") -> Amount:
    """Make the kind of a share in parts per million."""
    return Amount(parse_share, format_share, low, high, zero=zero, advice=advice, unit="_ppm")


@dataclass(frozen=True, slots=True)
class Factor(Kind):
    """A plain decimal number from low to high, kept as parts per million."""

    low: int
    high: int

    @property
    def allowed(self) -> str:
        """The bounds in words."""
        return f"a number from {self.low} to {self.high}"

    def read(self, text: str) -> int:
        """Read a number of at most six digits on either side of the point."""
        if re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", text, re.ASCII) is None:
            raise UnitError(f"{short(text)} is not a plain number; write it like 2 or 1.5")
        whole, _, fraction = text.partition(".")
        ppm = int(whole) * PPM + int(fraction.ljust(6, "0"))
        if not self.low * PPM <= ppm <= self.high * PPM:
            raise UnitError(f"{text} is out of range; write {self.allowed}")
        return ppm

    def show(self, value: int) -> str:
        """Write the number exactly."""
        return f"{value // PPM}.{value % PPM:06d}".rstrip("0").rstrip(".")

    def write(self, value: int) -> str:
        """Write the number exactly."""
        return self.show(value)


class Wall(Kind):
    """A wall-clock time, in ns since the epoch."""

    def read(self, text: str) -> int:
        """Read RFC 3339 with a zone, or a bare date."""
        return parse_wall(text)

    def show(self, value: int) -> str:
        """Write the time exactly, in UTC."""
        return exact_wall(value)

    def write(self, value: int) -> str:
        """Write the time exactly, in UTC."""
        return exact_wall(value)

    def document(self, value: int) -> str:
        """Write the time in UTC with milliseconds."""
        return format_wall(value)


# ---- words and names -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    values: type[StrEnum] | tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words themselves."""
        return tuple(str(value) for value in self.values)

    def read(self, text: str) -> str:
        """Read one of the words."""
        found = next((value for value in self.values if str(value) == text), None)
        if found is None:
            raise UnitError(f"{short(text)} is not known; write {' or '.join(self.words)}{nearest(text, self.words)}")
        return found


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A text of at most so many characters; form says what would be right where a pattern must match the whole of it."""

    most: int
    form: str = "a text"
    pattern: str = r".+"
    folds: bool = False

    def prepare(self, text: str) -> str:
        """Fold it, if it is for people."""
        return " ".join(text.split()) if self.folds else text

    def read(self, text: str) -> str:
        """Read a text that fits."""
        if len(text) > self.most:
            raise UnitError(f"is {len(text)} characters long; at most {self.most} are allowed")
        if re.fullmatch(self.pattern, text, re.ASCII) is None:
            raise UnitError(f"{short(text)} is not {self.form}")
        return text

    def write(self, value: str) -> str:
        """Write a text for people in quotation marks, a name as it is where it can stand so."""
        return quoted(value) if self.folds else plain_or_quoted(value)


@dataclass(frozen=True, slots=True)
class AbsolutePath(Kind):
    """An absolute path of at most so many bytes."""

    most: int = 4000
    allowed: str = "absolute"

    def read(self, text: str) -> str:
        """Read a path that begins with "/"."""
        if not text.startswith("/"):
            raise UnitError(f"{short(text)} is not absolute; begin it with /")
        if len(text.encode("utf-8", "replace")) > self.most:
            raise UnitError(f"is longer than {self.most} bytes; choose a shorter path")
        return text


@dataclass(frozen=True, slots=True)
class Glob(Kind):
    """A shell pattern, with a leading "!" for an exclusion, over names of at most `longest` bytes."""

    what: str
    longest: int
    separators: str = "/,:"
    """Characters that no such name holds, besides spaces."""
    of_instances: bool = False
    """Whether INSTANCE/NAME, as a recording of several machines calls it, may be meant."""

    def read(self, text: str) -> str:
        """Read a pattern that can match something."""
        instance, slash, name = text.removeprefix("!").rpartition("/") if self.of_instances else ("", "", text.removeprefix("!"))
        fault = self._fault(name)
        if slash and (not instance or _open_bracket(instance) or re.search(r"[\s,]", instance)):
            fault = "does not name an instance of a recording before its slash; write it like 10.0.0.1:9100/eth0 or */eth0"
        if fault is not None:
            raise UnitError(f"{short(text)} {fault}")
        return text

    def _fault(self, pattern: str) -> str | None:
        """Tell why a pattern cannot be meant, or None."""
        literal = not re.search(r"[*?\[]", pattern)
        signs, seps = re.escape(self.separators), " ".join(self.separators)
        faults = (
            (not pattern, 'excludes nothing; write what to exclude after the "!"'),
            (pattern.startswith("!"), 'has two "!"; one excludes'),
            (
                re.search(rf"[\s{signs}]", pattern) is not None,
                f"can match no {self.what}: none holds a space or one of {seps} (write one entry a pattern)",
            ),
            (_open_bracket(pattern), 'has a "[" that is never closed; close it with "]"'),
            (
                literal and len(pattern.encode("utf-8", "replace")) > self.longest,
                f"can match no {self.what}: none is longer than {self.longest} bytes",
            ),
            (len(pattern) > 2 * self.longest + MAX_NAME, "is too long for a pattern; shorten it"),
        )
        return next((message for holds, message in faults if holds), None)

    def write(self, value: str) -> str:
        """Write the pattern in quotation marks: it may hold YAML's own signs."""
        return quoted(value)


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


# ---- the network -----------------------------------------------------------------------------------


class Port(Kind):
    """A port number."""

    allowed = "1 to 65535"

    def read(self, text: str) -> int:
        """Read a port number."""
        if not _is_port(text):
            raise UnitError(f"{short(text)} is not a port; write a number from {self.allowed}")
        return int(text)


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII) is not None and int(text) <= 65_535


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


class Protocol(Kind):
    """A protocol's name, or the number that the IP header carries for it."""

    @property
    def allowed(self) -> str:
        """The names."""
        return f"{', '.join(name for name in _PROTOCOLS if not name.isdigit())}, or the number in the IP header"

    def read(self, text: str) -> str:
        """Read a protocol as its canonical name or number."""
        known = _PROTOCOLS.get(text.lower())
        if known is not None:
            return known
        if re.fullmatch(r"0|[1-9][0-9]{0,2}", text, re.ASCII) and int(text) <= 255:
            return text
        names = ", ".join(name for name in _PROTOCOLS if not name.isdigit())
        raise UnitError(f"{short(text)} is no protocol; write one of {names}, or a number from 0 to 255")


class Network(Kind):
    """An address or network of either IP version, as canonical CIDR text."""

    allowed = "an IPv4 or IPv6 network or address, without bits beyond its prefix"

    def read(self, text: str) -> str:
        """Read a network as its canonical text."""
        try:
            wide = ipaddress.ip_network(text, strict=False)
            if "%" in text or re.search(r"/.*\.", text):
                raise ValueError("scope or netmask")  # noqa: TRY301 - one answer for all that is not CIDR
        except ValueError:
            form = "write it like 203.0.113.0/24, 2001:db8::/32 or 203.0.113.7"
            raise UnitError(f"{short(text)} is not a network; {form}") from None
        if ipaddress.ip_address(text.partition("/")[0]) != wide.network_address:
            raise UnitError(f"{short(text)} has bits set beyond its prefix; write {wide}")
        return str(wide)


class Listen(Kind):
    """Where a server listens: "host:port", "[IPv6]:port", or "*:port" (also ":port") for every address of both versions."""

    allowed = '"host:port", "[IPv6 address]:port", or "*:port" for every address'

    def read(self, text: str) -> str:
        """Read an address with its port."""
        host, colon, port = text.rpartition(":")
        form = 'write it like "127.0.0.1:9817", "[::1]:9817" or "*:9817", or null for no server'
        if not colon or not _is_port(port):
            raise UnitError(f"{short(text)} has no port from 1 to 65535; {form}")
        if not _is_host(host):
            raise UnitError(f"{short(host)} is no address to listen on; {form}")
        mapped = ipaddress.IPv6Address(host[1:-1]).ipv4_mapped if host.startswith("[") else None
        if mapped is not None:
            raise UnitError(
                f'{short(host)} is an IPv4 address in IPv6 writing, which takes no connection; write "{mapped}:{port}"'
            )
        return text

    def write(self, value: str) -> str:
        """Write the address in quotation marks: it holds YAML's own signs."""
        return f'"{value}"'


def _is_host(host: str) -> bool:
    if host in {"", "*"}:
        return True
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        return ipaddress.ip_address(host[1:-1] if bracketed else host).version == (6 if bracketed else 4)
    except ValueError:
        labels = [] if bracketed else host.split(".")
        return (
            bool(labels)
            and len(host) <= 253
            and any(not label.isdigit() for label in labels)
            and all(_HOST_LABEL.fullmatch(label) is not None for label in labels)
        )


_HOST_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})", re.ASCII)


# ---- kinds made of others --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Maybe(Kind):
    """A value or None. words: what is written for None; without any it is None only where the key is left out."""

    kind: Kind
    absent: str = "none"
    """What people read for None."""
    words: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """The value's own."""
        return self.kind.unit

    @property
    def allowed(self) -> str:
        """What may be written, with the words for None."""
        return ", or ".join(part for part in (self.kind.allowed, *self.words[:1]) if part)

    def prepare(self, text: str) -> str:
        """Fold as the value is."""
        return self.kind.prepare(text)

    def read(self, text: str) -> Any:  # noqa: ANN401 - the inner kind's
        """Read the value, or a word for None."""
        return None if text in self.words else self.kind.read(text)

    def show(self, value: Any) -> str:  # noqa: ANN401 - likewise
        """Write the value, or what people read for None."""
        return self.absent if value is None else self.kind.show(value)

    def write(self, value: Any) -> str:  # noqa: ANN401 - likewise
        """Write the value, or the word for None."""
        return self.words[0] if value is None else self.kind.write(value)

    def document(self, value: Any) -> object:  # noqa: ANN401 - likewise
        """Give the value; for None its word, where that is no null."""
        if value is None:
            return next((word for word in self.words if word != NULL), None)
        return self.kind.document(value)


@dataclass(frozen=True, slots=True)
class ListOf(Kind):
    """A list of one kind, kept as a tuple. what: one entry in words."""

    kind: Kind
    what: str
    least: int = 0
    most: int = MAX_LIST
    empty: str = "none"
    """What people read for an empty list."""
    between: str = " "

    def show(self, value: Sequence[Any]) -> str:
        """Write the entries for people."""
        return self.between.join(self.kind.show(one) for one in value) or self.empty

    def write(self, value: Sequence[Any]) -> str:
        """Write the entries as a YAML list."""
        return "[" + ", ".join(self.kind.write(one) for one in value) + "]"

    def document(self, value: Sequence[Any]) -> object:
        """Give the entries as a list."""
        return [self.kind.document(one) for one in value]
