"""What can be asked over the control socket: one dataclass a verb, its arguments as fields. Both ends use them. Pure.

On the wire a message is `{"v":1,"verb":…,"args":{…}}` (docs/control.md); a field that has its default value is left out. Rates
are integers in bit/s, times RFC 3339 text with a zone.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Final, TypeVar

from limiterd.core.errors import EXIT_USAGE, PeerError

LONGEST_TEXT: Final = 500
"""Characters of a text."""


class Role(StrEnum):
    """What a peer may do: look and ask, or everything."""

    READ = "read"
    ADMIN = "admin"


class Message:
    """One question; role is the least that may ask it."""

    verb: ClassVar[str]
    role: ClassVar[Role]

    def args(self) -> dict[str, object]:
        """The arguments as they are sent."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every message is a dataclass
        values = {field.name: (getattr(self, field.name), field.default) for field in fields}
        return {name: value for name, (value, default) in values.items() if value != default}


M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class GetStatus(Message):
    """The status, of all links or of one."""

    verb, role = "status", Role.READ
    interface: str | None = None


@dataclass(frozen=True, kw_only=True)
class Explain(Message):
    """Why a link is in its phase."""

    verb, role = "explain", Role.READ
    interface: str


@dataclass(frozen=True, kw_only=True)
class GetHistory(Message):
    """The newest entries of the audit trail."""

    verb, role = "history", Role.READ
    interface: str | None = None
    kinds: Sequence[str] | None = None
    since: str | None = None
    until: str | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyHistory(Message):
    """The trail's files, to be verified by who asks; head: a hash that they should hold."""

    verb, role = "history.verify", Role.READ
    head: str | None = None


@dataclass(frozen=True, kw_only=True)
class ListOverrides(Message):
    """All records."""

    verb, role = "override.list", Role.READ


@dataclass(frozen=True, kw_only=True)
class AddRequest(Message):
    """Ask for more; without a rate for no limit at all."""

    verb, role = "request.add", Role.READ
    interface: str
    until: str | None = None
    reason: str = ""
    rate_bps: int | None = None


@dataclass(frozen=True, kw_only=True)
class ListRequests(Message):
    """All requests."""

    verb, role = "request.list", Role.READ


@dataclass(frozen=True, kw_only=True)
class ApproveRequest(Message):
    """Grant what was asked for, or what the fields say; until may be "never"."""

    verb, role = "request.approve", Role.ADMIN
    id: str
    until: str | None = None
    exempt: bool = False
    threshold_bps: int | None = None
    limit_bps: int | None = None
    reason: str = ""
    approved_by: str = ""


@dataclass(frozen=True, kw_only=True)
class DenyRequest(Message):
    """Turn a request down."""

    verb, role = "request.deny", Role.ADMIN
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Reload(Message):
    """Apply the files as they are now."""

    verb, role = "reload", Role.ADMIN


@dataclass(frozen=True, kw_only=True)
class Limit(Message):
    """Limit a link."""

    verb, role = "limit", Role.ADMIN
    interface: str
    reason: str
    rate_bps: int | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Release(Message):
    """Lift the limit of a link, or of all."""

    verb, role = "release", Role.ADMIN
    reason: str
    interface: str | None = None
    all: bool = False


@dataclass(frozen=True, kw_only=True)
class Pause(Message):
    """Impose no new limits."""

    verb, role = "pause", Role.ADMIN
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Resume(Message):
    """End a pause."""

    verb, role = "resume", Role.ADMIN
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class AddOverride(Message):
    """Add a record, with the keys of one in a YAML file."""

    verb, role = "override.add", Role.ADMIN
    record: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class ExtendOverride(Message):
    """Let a record of the daemon's own end at another time, or (until: "never") not at all."""

    verb, role = "override.extend", Role.ADMIN
    id: str
    until: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RevokeOverride(Message):
    """Take a record of the daemon's own back."""

    verb, role = "override.revoke", Role.ADMIN
    id: str
    reason: str = ""


MESSAGES: Final[Mapping[str, type[Message]]] = {kind.verb: kind for kind in Message.__subclasses__()}
"""Every verb."""


# ---- reading -------------------------------------------------------------------------------------


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_KINDS: Final[Mapping[object, tuple[Callable[[object], bool], str]]] = {
    str: (_is_text, "a non-empty string"),
    int: (_is_number, "a whole number ≥ 0"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    Sequence: (_is_texts, "a list of strings"),
    Mapping: (lambda value: isinstance(value, dict), "an object with the keys of an override"),
}
"""By a field's type: what it may be, in JSON and in words."""


def decode(kind: type[M], args: Mapping[str, object]) -> M:
    """The message with these arguments; null counts as missing, and what it has no field for is left out.

    Raises PeerError(exit_code=2) that names the argument.
    """
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # every message is a dataclass
        value, hint = args.get(field.name), hints[field.name]
        options = [option for option in typing.get_args(hint) if option is not type(None)] if _is_optional(hint) else [hint]
        fits, words = _KINDS[typing.get_origin(options[0]) or options[0]]
        required = field.default is dataclasses.MISSING
        if value is None and not required:
            continue
        if not fits(value) or (value == "" and field.default != ""):
            raise PeerError(f"{field.name} must be {words}", exit_code=EXIT_USAGE)
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise PeerError(f"{field.name} must have at most {LONGEST_TEXT} characters", exit_code=EXIT_USAGE)
        given[field.name] = value
    return kind(**given)


def _is_optional(hint: object) -> bool:
    return type(None) in typing.get_args(hint)
