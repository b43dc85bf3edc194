"""Evidence: which connections sent what led to a firing, and whose they are.

Rule: what is shown was measured between two readings around the window, and what is not known is said so, never
guessed. Nothing here runs on the tick: readings are taken by a thread of their own, once a second and only while a link
is pending or limited; processes are looked up once, for the few connections shown.

Theory of operation. Each reading is a column of (socket, bytes sent). At the firing one more is taken, and the last one
at or before the window's start is subtracted: sockets rank by what they sent in between. The biggest are asked where they
leave; those that leave by the link, or by something that the link carries, are its flows. Old readings are thinned out,
so a long wait costs resolution, not memory.

Bytes of a socket are payload, with retransmissions; the link's own bytes have the headers too, so that the explained
share of TCP is at most some 95 % to 99 %.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import psutil

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Link
from limiterd.core.ports import SocketsPort, TcpSocket
from limiterd.core.text import MAX_CGROUP, MAX_NAME
from limiterd.core.units import NS_PER_SECOND

_TOP: Final = 5
_EXAMINED: Final = 1024
"""How many of the biggest senders are asked where they leave: bounds the work of one firing."""
_PERIOD_S: Final = 1.0
_WORTH_TELLING_S: Final = 0.5
_LOOKUP_S: Final = 2.0
_LINGER_S: Final = 15.0
"""Readings outlive the wish for them: a firing may end the pending state before its evidence is asked for."""
_READINGS: Final = 64
_ENTRIES: Final = 1_000_000
"""16 bytes each: at most 16 MiB, whatever the number of sockets."""
_KEPT_FRESH: Final = 16
_UNITS: Final = (".service", ".scope", ".socket", ".mount", ".swap")
_UNREADABLE: Final = "not readable"
_NOT_SEEN: Final = "UDP and forwarded traffic, other network namespaces and connections already closed are not in it"
_BY_ROUTE: Final = (
    "by which link a connection leaves is the routing's answer now; it knows no packet marks and no path of several"
)


@dataclass(frozen=True, slots=True)
class _Reading:
    t_ns: int
    sent: array[int]

    def by_cookie(self) -> dict[int, int]:
        return dict(zip(self.sent[::2], self.sent[1::2], strict=True))


class EvidenceSampler:
    """Reads sockets while wanted, and at a firing says who sent. clock is CLOCK_BOOTTIME in ns.

    want() may be called at every tick: it takes no lock and does no I/O. at_firing() blocks for as long as one reading
    and the look-up of processes take: call it off the tick. It never raises for what the machine refuses: the evidence
    then says so, as `problem` does.
    """

    def __init__(self, sockets: SocketsPort, clock: Callable[[], int]) -> None:
        self._sockets = sockets
        self._clock = clock
        self._lock = threading.Lock()
        self._readings: list[_Reading] = []
        self._wanted = False
        self._closed = False
        self._wake = threading.Event()
        self._problem = ""
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="evidence", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def problem(self) -> str:
        """Why sockets cannot be read at present; "" while they can."""
        return self._problem

    def want(self, interfaces: Collection[str]) -> None:
        """Sample from now on while there are any: the names of the links that are pending or limited."""
        wanted = bool(interfaces)
        if wanted != self._wanted:
            self._wanted = wanted
            if not self._thread.is_alive():  # a defect ended it
                self._start()
            self._wake.set()

    def close(self) -> None:
        """End the thread and release the sockets' descriptors."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        with self._lock:
            self._sockets.close()

    def at_firing(self, link: Link, window_start_ns: int, t_ns: int, device_bytes: int) -> dict[str, Any]:
        """The evidence for a firing on the link, fit for JSON; device_bytes is what the link sent in the window.

        Keys: interface, window {from_t_ns, to_t_ns, sampled_from_t_ns, sampled_to_t_ns}, device_bytes, sockets_bytes,
        explained (0 to 1), flows [{remote, remote_port, local, local_port, bytes, share, uid, process}], sockets
        {sent, examined}, notes [sentence], problem. process is {pid, name, uid, cgroup, unit}, or the text "not
        permitted" or "gone"; what /proc does not tell is None.
        """
        with self._lock:
            self._take()
            evidence = _frame(link, window_start_ns, t_ns, device_bytes)
            if self._problem:
                return {**evidence, "problem": self._problem}
            try:
                return {**evidence, **self._found(link, window_start_ns, device_bytes)}
            except EnvironmentFault as error:
                return {**evidence, "problem": str(error)}

    # ---- the thread

    def _run(self) -> None:
        while not self._closed:
            if self._wanted:
                with self._lock:
                    self._take()
            self._wake.wait(_PERIOD_S if self._wanted else _LINGER_S if self._readings else None)
            if not self._wake.is_set() and not self._wanted:
                with self._lock:
                    self._readings.clear()
            self._wake.clear()

    def _take(self) -> None:
        """One reading; a refusal is kept as the problem until a reading succeeds."""
        t_ns = self._clock()
        try:
            sent = self._sockets.read()
        except EnvironmentFault as error:
            self._problem = str(error)
            return
        self._problem = ""
        self._readings.append(_Reading(t_ns, sent))
        thin(self._readings)

    # ---- the firing

    def _found(self, link: Link, window_start_ns: int, device_bytes: int) -> dict[str, Any]:
        first, last = _around(self._readings, window_start_ns)
        grown = _grown(first, last)
        ranked = sorted(grown, key=grown.__getitem__, reverse=True)[:_EXAMINED]
        described = self._sockets.describe(ranked)
        ours = self._leaving_by(link.ifindex, [described[cookie] for cookie in ranked if cookie in described])
        sockets_bytes = sum(grown[found.cookie] for found in ours)
        top = ours[:_TOP]
        processes = processes_of({found.inode for found in top})
        return {
            "window": {**_window(window_start_ns, last.t_ns), "sampled_from_t_ns": first.t_ns, "sampled_to_t_ns": last.t_ns},
            "sockets_bytes": sockets_bytes,
            "explained": _share(sockets_bytes, device_bytes),
            "flows": [_flow(found, grown[found.cookie], device_bytes, processes) for found in top],
            "sockets": {"sent": len(grown), "examined": len(ranked)},
            "notes": _notes(first, last, window_start_ns, len(grown)),
        }

    def _leaving_by(self, ifindex: int, sockets: Sequence[TcpSocket]) -> list[TcpSocket]:
        """Those of the sockets whose traffic leaves by the link, in their order."""
        if not sockets:
            return []
        carried = self._sockets.carried_by(ifindex)
        return [found for found, by in zip(sockets, self._sockets.egress(sockets), strict=True) if by in carried]


def thin(readings: list[_Reading]) -> None:
    """Keep the oldest and the newest readings and, of those between, every second one, as often as the bounds ask."""
    while len(readings) > 2 and (len(readings) > _READINGS or sum(len(r.sent) for r in readings) > 2 * _ENTRIES):
        fresh = min(_KEPT_FRESH, len(readings) // 2)
        del readings[1 : len(readings) - fresh : 2]


def _around(readings: Sequence[_Reading], window_start_ns: int) -> tuple[_Reading, _Reading]:
    """The last reading at or before the window's start (the oldest where none is), and the newest."""
    before = [reading for reading in readings[:-1] if reading.t_ns <= window_start_ns]
    return (before[-1] if before else readings[0]), readings[-1]


def _grown(first: _Reading, last: _Reading) -> dict[int, int]:
    """Bytes sent between two readings, by cookie, of every socket that sent; one made in between counts whole."""
    if first is last:
        return {}
    base = first.by_cookie()
    sent = ((cookie, total - base.get(cookie, 0)) for cookie, total in last.by_cookie().items())
    return {cookie: grown for cookie, grown in sent if grown > 0}


def _window(from_t_ns: int, to_t_ns: int) -> dict[str, int]:
    return {"from_t_ns": from_t_ns, "to_t_ns": to_t_ns}


def _frame(link: Link, window_start_ns: int, t_ns: int, device_bytes: int) -> dict[str, Any]:
    """Evidence that knows nothing yet."""
    return {
        "interface": link.name,
        "window": {**_window(window_start_ns, t_ns), "sampled_from_t_ns": None, "sampled_to_t_ns": None},
        "device_bytes": device_bytes,
        "sockets_bytes": 0,
        "explained": None,
        "flows": [],
        "sockets": {"sent": 0, "examined": 0},
        "notes": [_NOT_SEEN],
        "problem": "",
    }


def _share(part_bytes: int, whole_bytes: int) -> float | None:
    """Between 0 and 1 with four decimals, None of nothing. What waits in a queue was sent by the socket, not yet by the link."""
    return None if whole_bytes <= 0 else round(min(1.0, part_bytes / whole_bytes), 4)


def _notes(first: _Reading, last: _Reading, window_start_ns: int, senders: int) -> list[str]:
    notes = [_NOT_SEEN, _BY_ROUTE]
    if first is last:
        notes.append("no reading was taken before the firing: what was sent since is not known")
    elif (late_s := (first.t_ns - window_start_ns) / NS_PER_SECOND) > _WORTH_TELLING_S:
        notes.append(f"the first reading came {late_s:.1f} s after the window's start: what was sent before is not in it")
    if senders > _EXAMINED:
        notes.append(f"of {senders} connections that sent only the {_EXAMINED} biggest were examined")
    return notes


def _flow(found: TcpSocket, sent_bytes: int, device_bytes: int, processes: Mapping[int, dict[str, Any] | str]) -> dict[str, Any]:
    return {
        "remote": found.remote,
        "remote_port": found.remote_port,
        "local": found.local,
        "local_port": found.local_port,
        "bytes": sent_bytes,
        "share": _share(sent_bytes, device_bytes),
        "uid": found.uid,
        "process": processes[found.inode],
    }


# ---- whose they are --------------------------------------------------------------------------------


def processes_of(inodes: Collection[int]) -> dict[int, dict[str, Any] | str]:
    """For each socket inode its process, or why there is none.

    "not permitted": /proc hides some process's descriptors; "gone": no process has it; "not found in time": after 2 s;
    "not readable": /proc could not be read (no descriptor was free).
    """
    missing = set(inodes)
    found: dict[int, dict[str, Any] | str] = {}
    pids = _pids()
    why = "gone" if pids else _UNREADABLE
    deadline = time.monotonic() + _LOOKUP_S
    for pid in pids:
        if not missing:
            break
        if time.monotonic() > deadline:
            why = "not found in time"
            break
        try:
            held = missing & _socket_inodes(pid)
        except PermissionError:
            why = "not permitted"
            continue
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                why = _UNREADABLE
            continue  # else it ended while we looked
        found |= {inode: _process(pid) for inode in held}
        missing -= held
    return found | dict.fromkeys(missing, why)


def _pids() -> list[int]:
    """All processes; none where /proc cannot be read (their files could not be either)."""
    with contextlib.suppress(OSError):
        return list(psutil.pids())
    return []


def _socket_inodes(pid: int) -> set[int]:
    """The inodes of the sockets that a process holds. Raises OSError."""
    held: set[int] = set()
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            try:
                target = os.readlink(entry.path)  # noqa: PTH115 # a Path for each descriptor of the machine would cost most
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                held.add(int(target[8:-1]))
    return held


def _process(pid: int) -> dict[str, Any] | str:
    """What /proc tells of a process."""
    try:
        process = psutil.Process(pid)
        name, uid = process.name(), process.uids().effective
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.AccessDenied:
        return "not permitted"
    except OSError:
        return _UNREADABLE
    cgroup = _cgroup(pid)
    return {
        "pid": pid,
        "name": name[:MAX_NAME],
        "uid": uid,
        "cgroup": None if cgroup is None else cgroup[:MAX_CGROUP],
        "unit": unit_of(cgroup),
    }


def _cgroup(pid: int) -> str | None:
    """The process's cgroup: of version 2, or of systemd's own hierarchy where versions are mixed."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    by_controller = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    paths = (by_controller.get("name=systemd"), by_controller.get(""))
    return next((path for path in paths if path and path != "/"), next((path for path in paths if path), None))


def unit_of(cgroup: str | None) -> str | None:
    """The outermost systemd unit in a cgroup's path, None where there is none.

    What stands further in was named by whoever the unit belongs to: below user@1000.service that is the user.
    """
    return next((part[:MAX_NAME] for part in (cgroup or "").split("/") if part.endswith(_UNITS)), None)
