"""What was answered "done" is durable: it outlives a SIGKILL at the answer and a power cut, its entry of the trail as well."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from limiterd.core.errors import NotDurableError, PeerError
from limiterd.sim.netns import Pair, run
from tests.netns import LONG, wait_for
from tests.powercut import arm, cut, places
from tests.rig import FAST, Rig, rig

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROUNDS: Final = 12 if LONG else 1
"""So often each verb is killed at its answer, on each disk: with LONG 324 kills."""


def _override(daemon: Rig, identifier: str) -> bool:
    return identifier in {one["id"] for one in daemon.ask("override.list")["overrides"]}


def _request(daemon: Rig, identifier: str) -> str:
    return next((str(one["state"]) for one in daemon.ask("request.list")["requests"] if one["id"] == identifier), "none")


@dataclass(frozen=True)
class Verb:
    """One act: how it is asked for, the kind of its entry in the trail, and what must be seen after a restart."""

    ask: Callable[[Rig, str], Any]
    kind: str
    holds: Callable[[Rig, str, Any], bool]
    before: Callable[[Rig, str], Any] = lambda _daemon, _mark: None


def _add(daemon: Rig, mark: str) -> Any:
    record = {"id": mark, "interfaces": ["eth9"], "action": "exempt", "expires": "never", "reason": mark}
    return daemon.ask("override.add", record=record)


def _file(daemon: Rig, mark: str) -> Any:
    return daemon.ask("request.add", interface="eth0", until="2099-01-01", reason=mark)


def _tidy(daemon: Rig, mark: str) -> None:
    """Make room: an account may have eight that wait."""
    for one in daemon.ask("request.list")["requests"]:
        if one["state"] == "pending":
            daemon.ask("request.deny", id=one["id"], reason=mark)


def _deny(daemon: Rig, mark: str) -> Any:
    waiting = next(one["id"] for one in daemon.ask("request.list")["requests"] if one["state"] == "pending")
    return daemon.ask("request.deny", id=waiting, reason=mark)["id"]


def _approve(daemon: Rig, mark: str) -> Any:
    waiting = next(one["id"] for one in daemon.ask("request.list")["requests"] if one["state"] == "pending")
    return daemon.ask("request.approve", id=waiting, threshold_bps=500_000_000, reason=mark)["request"]["id"]


def _reload(daemon: Rig, mark: str) -> Any:
    daemon.configure(extra=f"# {mark}\nlog: {{level: {'debug' if mark[-1] in '02468' else 'info'}}}")
    return daemon.ask("reload")


VERBS: Final[Mapping[str, Verb]] = {
    "limit": Verb(
        lambda d, mark: d.ask("limit", interface="eth0", reason=mark, force=True),
        "limit",
        lambda d, _mark, _data: d.phase() == "limited" and bool(d.link()["reason"] == "operator"),
    ),
    "release": Verb(
        lambda d, mark: d.ask("release", interface="eth0", reason=mark),
        "releasing",
        lambda d, _mark, _data: d.phase() == "conforming",
        before=lambda d, _: None if d.phase() == "limited" else d.ask("limit", interface="eth0", reason="before", force=True),
    ),
    "pause": Verb(lambda d, mark: d.ask("pause", reason=mark), "paused", lambda d, _mark, _data: bool(d.status()["paused"])),
    "resume": Verb(
        lambda d, mark: d.ask("resume", reason=mark),
        "resumed",
        lambda d, _mark, _data: not d.status()["paused"],
        before=lambda d, _: None if d.status()["paused"] else d.ask("pause", reason="before"),
    ),
    "override.add": Verb(_add, "override_added", lambda d, mark, _data: _override(d, mark)),
    "override.revoke": Verb(
        lambda d, mark: d.ask("override.revoke", id=f"B{mark}", reason=mark),
        "override_revoked",
        lambda d, mark, _data: not _override(d, f"B{mark}"),
        before=lambda d, mark: _add(d, f"B{mark}"),
    ),
    "request.add": Verb(_file, "request", lambda d, _mark, data: _request(d, data["id"]) == "pending", before=_tidy),
    "request.deny": Verb(_deny, "request_denied", lambda d, _mark, data: _request(d, data) == "denied", before=_file),
    "request.approve": Verb(
        _approve,
        "request_approved",
        lambda d, _mark, data: _request(d, data) == "approved" and _override(d, data),
        before=_file,
    ),
    "reload": Verb(_reload, "reload", lambda _d, _mark, _data: True),
}


def _end(daemon: Rig, how: Callable[[Rig], object]) -> None:
    """End the daemon and the kernel's own memory of limits: what comes back comes from the disk."""
    how(daemon)
    run(daemon.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"], check=False)
    daemon.start()


def _kill(daemon: Rig) -> None:
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL, daemon.log()[-2000:]


def _entries(daemon: Rig, kind: str) -> int:
    return len(daemon.ask("history", kinds=[kind], limit=1000)["entries"])


def _lost(daemon: Rig, name: str, mark: str, how: Callable[[Rig], object]) -> list[str]:
    """Carry out the verb, end the daemon at its answer, start it: what is not there any more."""
    verb = VERBS[name]
    verb.before(daemon, mark)
    before = _entries(daemon, verb.kind)
    data = verb.ask(daemon, mark)
    _end(daemon, how)
    lost = [] if verb.holds(daemon, mark, data) else [f"{name} {mark}: its effect"]
    return lost + ([] if _entries(daemon, verb.kind) == before + 1 else [f"{name} {mark}: its entry"])


@pytest.mark.parametrize("fsync_s", [0.0, 0.02, 0.1])
@pytest.mark.timeout(60 + 60 * ROUNDS)
def test_sigkill_at_the_answer(pair: Pair, tmp_path: Path, fsync_s: float) -> None:
    """A SIGKILL as soon as the answer is read loses no effect and no entry of the trail, on a quick disk and on a slow one."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        arm(daemon, delay_s=fsync_s)
        daemon.start()
        verbs = VERBS if LONG or fsync_s == 0.02 else ("pause", "release", "request.approve")
        lost = [_lost(daemon, name, f"M{number}", _kill) for number, name in enumerate(itertools.chain(*[verbs] * ROUNDS))]
        print(f"{len(lost)} kills at fsync {1000 * fsync_s:g} ms, lost {sum(map(len, lost))}")  # noqa: T201
        assert not list(itertools.chain(*lost)), daemon.log()[-3000:]
        assert daemon.ctl("history", "--verify").returncode == 0


PLACES: Final[Mapping[str, tuple[str, ...]]] = {
    "journal journal.json": ("pause", "limit"),
    "journal state": ("resume", "release"),
    "audit audit.jsonl": ("request.add",),
    "audit state": ("reload",),
    "serve record": ("override.add", "request.approve"),
    "serve overrides.d": ("override.add", "override.revoke"),
    "serve requests.json": ("request.add",),
    "serve state": ("override.add", "request.deny"),
    "MainThread home": ("reload",),
}
"""Every place that fsyncs before an answer, and verbs that lose something without it."""
LATER: Final = frozenset({"requests requests.json", "requests state", "MainThread run"})
"""Places that no answer waits for: that a request is approved is durable as its override."""


def test_a_power_cut_at_the_answer(pair: Pair, tmp_path: Path) -> None:
    """Where only what was fsynced is left, no verb loses its effect or entry; every place that fsyncs is known."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        arm(daemon)
        daemon.start()
        lost: list[str] = []
        seen: set[str] = set()

        def how(ended: Rig) -> None:
            seen.update(places(ended))
            cut(ended)

        for number, name in enumerate(VERBS):
            lost += _lost(daemon, name, f"M{number}", how)
        assert not lost, daemon.log()[-3000:]
        assert seen - LATER == set(PLACES)


@pytest.mark.parametrize(("place", "name"), [(place, name) for place, names in PLACES.items() for name in names])
def test_no_fsync_is_dispensable(pair: Pair, tmp_path: Path, place: str, name: str) -> None:
    """Without any one of the fsyncs a power cut at the answer loses the effect or the entry: the test above would see it."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        first = place in {"audit state", "MainThread home", "serve state"}  # matters for what is made, so from the beginning
        if first:
            arm(daemon, missing={place})
        daemon.start()
        verb = VERBS[name]
        verb.before(daemon, "M")
        if not first:
            daemon.stop()
            arm(daemon, missing={place})
            daemon.start()
        before = _entries(daemon, verb.kind)
        data = verb.ask(daemon, "M")
        _end(daemon, cut)
        assert not verb.holds(daemon, "M", data) or _entries(daemon, verb.kind) <= before


def test_a_disk_that_hangs_is_waited_for_two_seconds(pair: Pair, tmp_path: Path) -> None:
    """The limit stands at once; the answer says after 2 s that it is not durable, and the effect is not taken back."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        arm(daemon, delay_s=1.2)
        daemon.start()
        with pytest.raises(NotDurableError, match="this took effect, but it is not on the disk yet") as caught:
            daemon.ask("limit", interface="eth0", reason="test")
        assert caught.value.exit_code == 1
        assert daemon.phase() == "limited"
        wait_for(lambda: "operator" in (daemon.state / "journal.json").read_text(), "it reaches the disk later", longest_s=15)


def test_no_disk_no_record(pair: Pair, tmp_path: Path) -> None:
    """Where the trail or the file refuses, no record, request or decision changes; commands take effect and say so."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        waiting = _file(daemon, "before")["id"]
        trail, aside = daemon.state / "audit.jsonl", daemon.state / "aside"
        trail.rename(aside)
        trail.mkdir()
        for act in (_add, _file, _deny, _approve):
            with pytest.raises(PeerError, match="audit"):
                act(daemon, "X")
        assert {one["id"]: one["state"] for one in daemon.ask("request.list")["requests"]} == {waiting: "pending"}
        assert daemon.status()["overrides"] == []
        assert not list((daemon.state / "overrides.d").glob("*"))
        with pytest.raises(NotDurableError):
            daemon.ask("pause", reason="X")
        assert daemon.status()["paused"]
        trail.rmdir()
        aside.rename(trail)
        _kill(daemon)
        daemon.start()
        assert {one["id"]: one["state"] for one in daemon.ask("request.list")["requests"]} == {waiting: "pending"}
