"""Refusals are audited, and cannot wash the audit trail away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from limiterd.daemon.denials import AT_ONCE, BOUNDS, DIRECTORY, MOST_ACCOUNTS, Denials
from limiterd.serve.messages import Role
from limiterd.serve.protocol import Call, Peer
from limiterd.store.audit import AuditTrail


class Told:
    """A clock in hand, and every line that was told."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.lines: list[tuple[str, str, Mapping[str, object]]] = []
        self.refusals = Denials(self._tell, lambda: self.now_s)

    def _tell(self, kind: str, interface: str, text: str, fields: Mapping[str, object], level: str) -> None:
        assert (kind, level) == ("refused", "warning")
        self.lines.append((interface, text, fields))

    def refuse(self, verb: str = "release", uid: int = 33, account: int | None = None, **args: object) -> None:
        """One refused question."""
        self.refusals.note(
            Call(verb, args, Peer(1, uid, frozenset(), f"user{uid}", uid if account is None else account), Role.READ)
        )


def test_each_refusal_is_told_with_what_was_asked() -> None:
    """Who, which verb, which link, which request or override; text that a terminal could obey is left out."""
    told = Told()
    told.refuse("release", interface="eth0")
    told.refuse("request.approve", id="REQ-1")
    told.refuse("override.add", record={"id": "A"})
    told.refuse("override.revoke", id="\x1b[2J", interface="x" * 40)
    assert [(interface, text) for interface, text, _ in told.lines] == [
        ("eth0", "user33 (uid 33) was refused release"),
        ("", "user33 (uid 33) was refused request.approve of REQ-1"),
        ("", "user33 (uid 33) was refused override.add of A"),
        ("x" * 15, "user33 (uid 33) was refused override.revoke"),
    ]
    assert told.lines[1][2] == {"by": "user33 (uid 33)", "verb": "request.approve", "id": "REQ-1"}


def test_a_flood_becomes_one_line_a_minute() -> None:
    """Beyond the first few of a minute they are counted by verb; another user's are told all the same."""
    told = Told()
    for _ in range(1000):
        told.refuse("release")
    told.refuse("pause")
    told.refuse("limit", uid=34)
    assert len(told.lines) == AT_ONCE + 1
    told.now_s = 59.9
    told.refusals.reconcile()
    assert len(told.lines) == AT_ONCE + 1
    told.now_s = 60.0
    told.refusals.reconcile()
    count = 1001 - AT_ONCE
    (_, text, fields) = told.lines[-1]
    assert text == f"user33 (uid 33): refused {count} more times within 60 s: release {count - 1}, pause 1"
    assert (fields["count"], fields["verbs"]) == (count, {"release": count - 1, "pause": 1})
    told.refuse("release")
    assert told.lines[-1][1].endswith("was refused release")


def test_what_was_counted_is_told_at_the_end() -> None:
    """A daemon that stops within the minute keeps nothing to itself."""
    told = Told()
    for _ in range(AT_ONCE + 2):
        told.refuse()
    told.refusals.reconcile(everything=True)
    assert "2 more times" in told.lines[-1][1]
    told.refusals.reconcile(everything=True)
    assert "2 more times" in told.lines[-1][1]
    assert len(told.lines) == AT_ONCE + 1


def test_a_crowd_of_users_is_bounded() -> None:
    """Users beyond the bound share one count."""
    told = Told()
    for uid in range(MOST_ACCOUNTS + 50):
        told.refuse(uid=uid)
    assert len(told.lines) == MOST_ACCOUNTS + AT_ONCE
    told.refusals.reconcile(everything=True)
    assert told.lines[-1][1].startswith(f"further users: refused {50 - AT_ONCE} more times")


def test_ids_of_one_account_share_its_bound() -> None:
    """65 536 subordinate ids are told as one account: no more lines than a single id has."""
    told = Told()
    for uid in range(100_000, 165_536):
        told.refuse(uid=uid, account=1000)
    assert len(told.lines) == AT_ONCE


def test_what_an_account_can_write_a_minute(tmp_path: Path) -> None:
    """With the longest names that there can be, an account's refusals take less than 32 KiB of the trail of refusals a minute."""
    trail = AuditTrail(tmp_path, bounds=BOUNDS)
    clock = iter(range(10**9))

    def tell(kind: str, interface: str, text: str, fields: Mapping[str, object], _level: str) -> None:
        trail.append(kind, interface, {"text": text, **fields})

    denials = Denials(tell, lambda: next(clock) * 1e-4)
    longest = "\u20ac" * 64
    for number in range(600_000 // 50):
        peer = Peer(1, 100_000 + number, frozenset(), longest, 1000)
        denials.note(Call("request.approve", {"interface": longest, "id": longest}, peer, Role.READ))
    denials.reconcile(everything=True)
    assert trail.close(20)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 0 < written < 32 << 10, written


def test_no_flood_moves_a_decision_out_of_the_trail(tmp_path: Path) -> None:
    """However many are refused, their files stay within their own bound and the audit trail has every decision."""
    decisions, refusals = AuditTrail(tmp_path), AuditTrail(tmp_path / DIRECTORY, bounds=BOUNDS)
    for number in range(50):
        decisions.append("limit", "eth0", {"number": number})
    for _ in range(20):
        for _ in range(500):
            refusals.append("refused", "eth0", {"text": "x" * 1000})
        refusals.wait(20)
    assert refusals.close(20)
    assert decisions.close(20)
    size = sum(path.stat().st_size for path in (tmp_path / DIRECTORY).iterdir())
    assert size <= BOUNDS.file_bytes * (BOUNDS.kept_files + 1)
    assert len(decisions.read(limit=100)) == 50
