"""What the daemon remembers over a restart, kept in <state>/journal.json.

The journal holds decisions, never the kernel's state: losing all of it costs the since, the reason and the strikes of limits
that are then adopted from the kernel. Saving never delays the loop: a thread writes the newest journal handed over and skips
those in between; while the disk refuses, it tries again with back-off and `problem` says so. save_now is for the one case
where the disk must come first: a takeover makes the foreign root durable before it replaces it. It waits for that thread,
and not for long: a disk that hangs is a fault of the takeover, not of the loop.

Saved foreign roots belong to one boot: a reboot takes every qdisc away, so those of an earlier boot are dropped at load.
Decisions outlive a reboot. The file's format, and what becomes of damaged and newer files, is recordfile's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from limiterd import json_codec as jsonsafe
from limiterd.background import RETRY_S, Background
from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Decision, Journal, PendingRelease, SavedQdisc, StrikeRecord
from limiterd.core.units import MAX_RATE_BPS
from limiterd.files import read_bounded
from limiterd.store.crc_store import MAX_BYTES, CrcStore, Record

FILE_NAME: Final = "journal.json"
BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_MAX_TEXT: Final = 1000
_MAX_NAME_BYTES: Final = 15
_MAX_PROBLEMS: Final = 10

Kept = Decision | PendingRelease | StrikeRecord | SavedQdisc
_KINDS: Final[Mapping[str, type[Kept]]] = {
    "decision": Decision,
    "release": PendingRelease,
    "memory": StrikeRecord,
    "saved": SavedQdisc,
}


def _boot_id() -> str:
    """The kernel's name for this boot; "" where it does not tell."""
    try:
        found = read_bounded(BOOT_ID_FILE, 100)
    except EnvironmentFault:
        return ""
    return found[0].decode("ascii", "replace").strip() if found else ""


# ---- records: pure -------------------------------------------------------------------------------


def _shortened(plain: dict[str, object]) -> dict[str, object]:
    def short(key: str, value: object) -> object:
        if isinstance(value, dict):
            return _shortened(value)
        return value[:_MAX_TEXT] if isinstance(value, str) and key in {"note", "by"} else value

    return {key: short(key, value) for key, value in plain.items()}


def to_records(journal: Journal, boot_id: str) -> tuple[Record, ...]:
    """The journal as records of plain JSON."""
    kept: tuple[tuple[str, tuple[Kept, ...]], ...] = (
        ("decision", journal.decisions),
        ("release", journal.releases),
        ("memory", journal.strike_records),
        ("saved", journal.replaced),
    )
    entries = tuple((kind, _shortened(jsonsafe.encode(entry))) for kind, group in kept for entry in group)
    return (("boot", boot_id), ("paused", journal.paused), *entries)


def _sound(entry: Kept) -> Kept:
    """The entry itself. Raises ValueError for what no daemon would have written."""
    if not entry.interface or len(os.fsencode(entry.interface)) > _MAX_NAME_BYTES or "/" in entry.interface:
        raise ValueError(f"interface: {entry.interface[:40]!r} is no interface name")
    if isinstance(entry, Decision) and entry.rate_bps is not None and not 0 < entry.rate_bps <= MAX_RATE_BPS:
        raise ValueError("rate_bps: a rate is out of range")
    return entry


def from_records(records: tuple[Record, ...], boot_id: str) -> tuple[Journal, tuple[str, ...]]:
    """The journal, and a sentence for each record that cannot be used. An empty boot id, here or there, matches every boot."""
    entries: list[Kept] = []
    problems: list[str] = []
    paused = False
    earlier = False
    for kind, value in records:
        if kind == "boot":
            earlier = bool(boot_id and value) and value != boot_id
        elif kind == "paused":
            paused = value is True
        elif kind in _KINDS:
            try:
                entries.append(_sound(jsonsafe.decode(_KINDS[kind], value)))
            except ValueError as error:
                problems.append(f"a {kind} record is not usable ({error}); the rest is kept")
        else:
            problems.append(f"a record of the unknown kind {kind[:40]!r} is left out")
    saved = tuple(entry for entry in entries if isinstance(entry, SavedQdisc))
    if earlier and saved:
        names = ", ".join(sorted(entry.interface for entry in saved)[:_MAX_PROBLEMS])
        problems.append(f"the machine was rebooted: the saved root qdiscs of {names} are gone with that boot and not restored")
        saved = ()
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [f"… and {len(problems) - _MAX_PROBLEMS} more records like these"]
    decisions = tuple(entry for entry in entries if isinstance(entry, Decision))
    releases = tuple(entry for entry in entries if isinstance(entry, PendingRelease))
    strike_records = tuple(entry for entry in entries if isinstance(entry, StrikeRecord))
    return Journal(decisions, strike_records, saved, paused, releases, same_boot=not earlier), tuple(problems)


# ---- the store -----------------------------------------------------------------------------------


class JournalStore:
    """The journal's file and the thread that writes it. Every method may be called from any thread."""

    def __init__(
        self,
        directory: str | Path,
        *,
        retry_s: tuple[float, float] = RETRY_S,
        boot_id: str | None = None,
        max_bytes: int = MAX_BYTES,
        keep_owner: bool = False,
    ) -> None:
        """Name the state directory; retry_s is the first and the longest pause between attempts.

        keep_owner: somebody else writes in the daemon's place, and the file stays the daemon's.
        """
        self._file = CrcStore(Path(directory) / FILE_NAME, "limiterd_journal", max_bytes=max_bytes, keep_owner=keep_owner)
        self._boot_id = _boot_id() if boot_id is None else boot_id
        self._writer = Background("journal", self._write_newest, retry_s)
        self._disk = threading.Lock()
        self._lock = threading.Lock()
        self._wanted: Journal | None = None
        self._written: Journal | None = None
        self._ticket = 0
        self._fault: EnvironmentFault | None = None

    @property
    def problem(self) -> str | None:
        """Why the newest journal is not on disk; None once a write has succeeded again."""
        return None if self._fault is None else str(self._fault)

    @property
    def durable(self) -> int:
        """The highest ticket of `save` whose journal, or a newer one, is safely on disk."""
        return min(self._writer.done, self._ticket)

    def load(self) -> tuple[Journal, tuple[str, ...]]:
        """What was kept, and what was wrong as sentences. Raises nothing: what cannot be read is a problem."""
        with self._disk:
            contents = self._file.read()
        journal, problems = from_records(contents.records, self._boot_id)
        return journal, contents.problems + tuple(f"{self._file.path}: {problem}" for problem in problems)

    def save(self, journal: Journal) -> int:
        """Hand over the newest journal; returns at once with a ticket to compare with `durable`."""
        with self._lock:
            if journal != self._wanted:
                self._wanted = journal
                self._ticket = self._writer.poke()
            return self._ticket

    def save_now(self, journal: Journal, timeout_s: float = 0.3) -> None:
        """Write this journal and return when it is durable.

        Raises EnvironmentFault(operation="write") when the disk refuses, or does not answer in that time; the journal is then
        still the one that the thread goes on trying to write.
        """
        self.save(journal)
        self.wait(timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Return when the journal that was handed over last is durable. Raises EnvironmentFault as save_now does."""
        if self._writer.wait(self._ticket, timeout_s):
            return
        if (fault := self._fault) is not None:
            raise EnvironmentFault(str(fault), operation=fault.operation, errno_name=fault.errno_name)
        raise EnvironmentFault(f"{self._file.path} is not written after {timeout_s:g} s: the disk hangs", operation="write")

    def _write_newest(self) -> bool:
        """Write the newest journal unless it is durable already; whether it is now."""
        journal = self._wanted
        if journal is None or journal is self._written:
            return True
        try:
            with self._disk:
                self._file.write(to_records(journal, self._boot_id))
        except EnvironmentFault as error:
            self._fault = error
            return False
        self._fault, self._written = None, journal
        return True

    def close(self, timeout_s: float = 2.0) -> bool:
        """Try to write what is not durable yet, for at most that long; whether everything is."""
        self._writer.close(timeout_s)
        return self.durable == self._ticket
