"""`limiterctl history`: the audit trail, newest first; `--verify` checks its chain of hashes."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from limiterd import json_codec as jsonsafe
from limiterd.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_UNREACHABLE, ConfigError, PeerError
from limiterd.core.model import EventKind
from limiterd.core.units import parse_wall
from limiterd.ctl import format as fmt
from limiterd.ctl.connect import APPLY_TIMEOUT_S, Data, ask_for_files, json_argument, number, record, records, texts
from limiterd.ctl.format import PLAIN, Palette, clean
from limiterd.ctl.terminal import complain, say, say_json, terminal
from limiterd.ctl.values import past
from limiterd.serve import messages as msg
from limiterd.store import hash_chain as chain

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1000
HASH_DIGITS: Final = 64
_MOST_BYTES: Final = 64 << 20
_REFUSED: Final = "refused"
"""The directory with the trail of what was refused."""
KINDS: Final = frozenset(EventKind) - {EventKind.EPOCH} | {
    "start",
    "stop",
    "reload",
    "reload_failed",
    "refused",
    "override_added",
    "override_extended",
    "override_revoked",
    "override_pruned",
    "undone",
    "request",
    "request_approved",
    "request_denied",
    "lost",
    "torn",
}
"""Every kind of entry: what the engine tells, and what people do."""
SHORT_HASH: Final = 12
KIND_WIDTH: Final = len("override_expiring")
"""The longest kind there is."""
STYLES: Final[Mapping[str, str]] = {
    "limit": "red",
    "limited": "red",
    "would_limit": "yellow",
    "noted": "yellow",
    "released": "green",
    "fault": "alarm",
    "foreign": "yellow",
    "repair": "magenta",
    "denied": "alarm",
    "refused": "alarm",
    "reload_failed": "alarm",
    "undone": "alarm",
    "override_active": "cyan",
    "override_ended": "yellow",
    "override_expiring": "yellow",
    "paused": "yellow",
}
HIDDEN_FIELDS: Final = frozenset({"samples", "evidence", "conditions", "flows", "policy", "firing"})
"""Long or repeated: --json has them, `explain` shows them."""


def history_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `history`."""
    parser.add_argument("link", nargs="?", metavar="IFACE", help="only what concerns this link")
    parser.add_argument("--interface", metavar="IFACE", help="same as IFACE")
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        metavar="KIND",
        type=_kind,
        help="only entries of this kind (limit, released, override_active, …); may be repeated",
    )
    parser.add_argument("--since", type=past, metavar="TIME", help="not before: 2026-11-23, 2026-11-23T03:00:00Z, or 2h, 7d ago")
    parser.add_argument("--until", type=past, metavar="TIME", help="not after, in the same forms")
    parser.add_argument(
        "--limit", type=_limit, default=DEFAULT_LIMIT, metavar="N", help="the newest N entries (default: %(default)s)"
    )
    parser.add_argument("--verify", action="store_true", help="check the chain instead: was a line altered, removed or moved?")
    parser.add_argument(
        "--head", type=_head, metavar="HASH", help="with --verify: an audit_head from the log, that the trail must hold"
    )
    json_argument(parser)


def _kind(text: str) -> str:
    if text not in KINDS:
        near = get_close_matches(text, KINDS, n=1)
        known = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(KINDS))}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a kind of entry; {known}")
    return text


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_LIMIT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_LIMIT}")
    return int(text)


def _head(text: str) -> str:
    head = text.lower()
    if len(head) != HASH_DIGITS or not set(head) <= set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is no hash of {HASH_DIGITS} hexadecimal digits")
    return head


def history(ns: argparse.Namespace) -> int:
    """Print the trail, or the verdict on it."""
    if ns.verify or ns.head:
        return _verify(ns)
    wanted = msg.GetHistory(
        interface=ns.link or ns.interface or None,
        kinds=ns.kind or None,
        since=ns.since or None,
        until=ns.until or None,
        limit=ns.limit,
    )
    data = _asked(ns, wanted, lambda trail, told: _searched(trail, wanted, told))
    if ns.json:
        say_json(data)
        return EXIT_DONE
    screen = terminal()
    say(render(data, width=screen.width, palette=screen.palette, now=time.time()))
    return EXIT_DONE


# ---- without a daemon --------------------------------------------------------------------------------------


Trail = Path | Sequence[chain.Part]


def _asked(ns: argparse.Namespace, message: msg.Message, read: Callable[[Trail, Data], Data]) -> Data:
    """The daemon's answer; `read` completes it from the files that came along.

    Where there is no daemon `read` makes it of what the files hold, if --config names them.
    """
    try:
        data, descriptors = ask_for_files(ns, message, timeout_s=APPLY_TIMEOUT_S)
    except PeerError as error:
        directory = _state_directory(ns) if error.exit_code == EXIT_UNREACHABLE else None
        if directory is None:
            raise
        complain(f"{str(error).partition(';')[0]}; reading the files in {directory} instead")
        return read(directory, {"head": chain.tail(directory).head})
    return completed(data, descriptors, read)


def completed(data: Data, descriptors: Sequence[int], read: Callable[[Trail, Data], Data]) -> Data:
    """The daemon's answer, with what `read` finds in the trail's files if they came along; they are closed."""
    if not descriptors:
        return data
    parts = [chain.part_of(name, descriptor) for name, descriptor in zip(texts(data.get("files")), descriptors, strict=False)]
    try:
        return read(parts, data)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _state_directory(ns: argparse.Namespace) -> Path | None:
    if ns.socket is not None:  # whose files would they be
        return None
    from limiterd.config import load as config  # noqa: PLC0415 - it brings YAML along

    try:
        directory = Path(config.load(ns.config).state.directory)
    except ConfigError:
        return None
    return directory if (directory / chain.FILE_NAME).exists() else None


def _searched(trail: Trail, asked: msg.GetHistory, told: Data) -> Data:
    """The entries that the daemon told, and older ones of the trail's files, as many as are wanted."""
    before = told.get("before_seq")
    wanted = chain.Filter(
        interface=asked.interface,
        kinds=asked.kinds,
        since_wall_ns=None if asked.since is None else parse_wall(asked.since),
        until_wall_ns=None if asked.until is None else parse_wall(asked.until),
        before_seq=before if isinstance(before, int) else None,
    )
    newer = entries(told)
    lacking = (asked.limit or DEFAULT_LIMIT) - len(newer)
    older = [*chain.read(trail, wanted, waiting={}, limit=lacking, max_bytes=_MOST_BYTES)]
    if isinstance(trail, Path) and (wanted.kinds is None or "refused" in wanted.kinds):
        older += chain.read(trail / _REFUSED, wanted, waiting={}, limit=lacking, max_bytes=_MOST_BYTES)
    found = [*newer, *map(jsonsafe.encode, older)]
    return {"entries": sorted(found, key=_wall, reverse=True)[: len(newer) + lacking], "head": told.get("head")}


def _wall(entry: Data) -> str:
    return str(entry.get("wall"))


def verified(trail: Trail, head: str | None, told: Data) -> Data:
    """Whether the chain of the trail's files is whole and holds the head, and what the daemon says that it wrote last."""
    written = told.get("written")
    expected = chain.expectations(written if isinstance(written, str) else None, head)
    return record(jsonsafe.encode(chain.verify(trail, expected=expected)))


# ---- text --------------------------------------------------------------------------------------------------


def entries(data: Data) -> list[dict[str, object]]:
    """The trail's entries in the daemon's answer."""
    return records(data.get("entries"))


def render(data: Data, *, width: int = 80, palette: Palette = PLAIN, now: float = 0.0) -> list[str]:
    """The entries as lines of at most width columns, grouped by day, each as one sentence."""
    lines: list[str] = []
    day = ""
    for entry, times in _folded(entries(data)):
        at = fmt.moment(entry.get("wall", entry.get("time"))) or 0.0
        then = fmt.local(at)
        if f"{then:%Y-%m-%d}" != day:
            day = f"{then:%Y-%m-%d}"
            lines += ([""] if lines else []) + [palette.paint(f"{then:%A, %Y-%m-%d (%Z)}", "bold")]
        lines += _entry(entry, at, now, width, palette, times)
    lines += [line for problem in texts(data.get("problems")) for line in fmt.wrap(clean(problem), width, first="! ")]
    return lines or ["nothing is recorded that matches"]


def _folded(items: Iterable[Data]) -> list[tuple[Data, int]]:
    """Each entry, and how many there are of it: reloads in a row that changed nothing are one."""
    found: list[tuple[Data, int]] = []
    for entry in items:
        if found and _is_idle(entry) and _is_idle(found[-1][0]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((entry, 1))
    return found


def _is_idle(entry: Data) -> bool:
    return entry.get("kind") == "reload" and record(entry.get("fields")).get("changes") == []


def _entry(entry: Data, at: float, now: float, width: int, palette: Palette, times: int) -> list[str]:
    kind = clean(entry.get("kind", ""))
    label = fmt.pad(kind, KIND_WIDTH)
    stamp = f"{fmt.local(at):%H:%M:%S}"
    age = fmt.pad(fmt.short_span(max(0.0, now - at)), 4, right=True)
    indent = " " * (16 + KIND_WIDTH)
    text = ": ".join(part for part in (clean(entry.get("interface") or ""), describe(entry)) if part)
    if times > 1:
        text += f" ({times} times in a row)"
    first, *rest = fmt.wrap(text, width, indent)
    head = f"{stamp} {age}  {palette.paint(label, STYLES.get(kind, ''))} "
    return [(head + first[len(indent) :]).rstrip(), *rest]


def describe(entry: Data) -> str:
    """What happened: the sentence that the daemon wrote down, or else the entry's fields as "key value" words."""
    fields = record(entry.get("fields"))
    sentence = clean(fields.get("text") or "")
    if sentence:
        return sentence
    words = [_field(key, value) for key, value in fields.items() if key not in HIDDEN_FIELDS and value not in (None, "", [], {})]
    return ", ".join(word for word in words if word)


_UNITS: Final[tuple[tuple[str, Callable[[float], str]], ...]] = (
    ("_bps", fmt.rate),
    ("_bytes", fmt.size),
    ("_seconds", fmt.span),
    ("_s", fmt.span),
    ("_ns", lambda value: fmt.span(value / 1e9)),
)


def _field(key: str, value: object) -> str:
    known = number(value)
    for suffix, show in _UNITS:
        if key.endswith(suffix) and known is not None:
            if key.endswith("t_ns"):
                return ""
            return f"{clean(key.removesuffix(suffix).replace('_', ' '))} {show(known)}"
    name = clean(key.replace("_", " "))
    if isinstance(value, bool):
        return name if value else f"not {name}"
    if isinstance(value, list | tuple):
        return f"{name} {clean('; '.join(str(item) for item in value))}"
    if isinstance(value, Mapping):
        return f"{name} ({', '.join(filter(None, (_field(str(k), v) for k, v in value.items())))})"
    shown = str(value)[:SHORT_HASH] if key == "sha256" else value
    return f"{name} {clean(shown)}"


# ---- the chain -----------------------------------------------------------------------------------------------


def _verify(ns: argparse.Namespace) -> int:
    data = _asked(ns, msg.VerifyHistory(head=ns.head or None), lambda trail, told: verified(trail, ns.head, told))
    if ns.json:
        say_json(data)
    else:
        width = terminal().width
        say(line for text in verdict(data, ns.head) for line in fmt.wrap(text, width, "  ", first=""))
    return EXIT_DONE if data.get("ok") is True else EXIT_FAILED


def verdict(data: Data, expected: str | None = None) -> list[str]:
    """The outcome of a verification as sentences."""
    notes = [f"note: {clean(note)}" for note in texts(data.get("notes"))]
    if data.get("ok") is not True:
        changed = "NOT intact: the trail was changed after it was written"
        lacking = "NOT complete: the chain is intact, but does not hold a head that it should"
        return [lacking if data.get("intact") is True else changed, *map(clean, texts(data.get("findings"))), *notes]
    entries_seen = fmt.plural(int(number(data.get("entries")) or 0), "entry", "entries")
    return [
        f"intact: {entries_seen}, each carries the hash of the one before",
        f"head {clean(data.get('head', ''))}",
        f"it holds the expected {expected}"
        if expected
        else "a trail cut short while no daemon ran passes all the same; --head HASH with the audit_head of the last limit or "
        "release in the log finds that too",
        *notes,
    ]
