"""Increase requests: filing, deciding, and what bounds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiterd import json_codec as jsonsafe
from limiterd.core.errors import EnvironmentFault, PeerError
from limiterd.store.request_store import (
    Approval,
    Bounds,
    Request,
    RequestInput,
    RequestState,
    RequestStore,
    check_grant,
    check_increase,
    from_records,
    granted_rates,
)
from tests.smalldisk import fill, on_tmpfs

NOW = 1_795_435_200_000_000_000
DAY = 86_400 * 10**9
WISH = RequestInput("eth0", 2 * 10**9, NOW + DAY, "nightly backup", 1000, "alice", 1000, {"mean_bps": 1_200_000_000})


def store_in(directory: Path, bounds: Bounds | None = None) -> RequestStore:
    """A store that has read its file."""
    store = RequestStore(directory, bounds=bounds or Bounds())
    assert store.load() == ()
    return store


def test_a_request_is_kept_as_filed(tmp_path: Path) -> None:
    """Who asked for what, until when, why and on what evidence is there after a restart."""
    filed = store_in(tmp_path).add(WISH, NOW)
    again = store_in(tmp_path)
    assert again.requests == (filed,)
    assert again.pending == 1
    assert filed.id == "REQ-20261123-1"
    assert (filed.interface, filed.rate_bps, filed.until_wall_ns, filed.reason) == (
        "eth0",
        2 * 10**9,
        NOW + DAY,
        "nightly backup",
    )
    assert (filed.uid, filed.user, filed.filed_wall_ns, filed.state) == (1000, "alice", NOW, RequestState.PENDING)
    assert filed.evidence == {"mean_bps": 1_200_000_000}


@pytest.mark.parametrize(
    ("asked_bps", "grant", "rates"),
    [
        (None, Approval(), {}),
        (5, Approval(), {"threshold": 5}),
        (4, Approval(), {"threshold": 4}),
        (3, Approval(), {"limit": 3}),
        (5, Approval(exempt=True), {}),
        (5, Approval(limit_bps=2), {"limit": 2}),
        (5, Approval(threshold_bps=9, limit_bps=7), {"threshold": 9, "limit": 7}),
        (None, Approval(threshold_bps=9), {"threshold": 9}),
    ],
)
def test_what_a_grant_amounts_to(asked_bps: int | None, grant: Approval, rates: dict[str, int]) -> None:
    """Terms that are named hold; else the rate asked for is the threshold, below the policy's (4) the limit; none: exempt."""
    request = Request("REQ-1", "eth0", asked_bps, NOW + DAY, "why", 1000, "alice", NOW)
    assert granted_rates(request, grant, 4, 1) == rates


def test_a_grant_by_default_is_an_increase() -> None:
    """A rate that is not above the limit in force would slow the link down: refused, unless the approver names it."""
    request = Request("REQ-1", "eth0", 10**6, NOW + DAY, "why", 1000, "alice", NOW)
    for limit_bps in (10**6, 2 * 10**6):
        with pytest.raises(PeerError, match=r"eth0: 1mbit is not above the limit of [12]mbit that applies already") as refused:
            granted_rates(request, Approval(), 10**9, limit_bps)
        assert refused.value.exit_code == 2
    assert granted_rates(request, Approval(limit_bps=10**6), 10**9, 2 * 10**6) == {"limit": 10**6}
    check_increase("eth0", None, 10**6)


@pytest.mark.parametrize(
    "grant", [Approval(exempt=True, limit_bps=1), Approval(exempt=True, threshold_bps=1), Approval(never=True, until_wall_ns=NOW)]
)
def test_a_grant_that_contradicts_itself_is_a_usage_error(grant: Approval) -> None:
    """Exempt and a rate, or an end and never: refused."""
    with pytest.raises(PeerError, match="either") as refused:
        check_grant(grant)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("state", [RequestState.APPROVED, RequestState.DENIED])
def test_a_decision_is_kept(tmp_path: Path, state: RequestState) -> None:
    """Who decided, when and why is there after a restart, and the request waits no longer."""
    store = store_in(tmp_path)
    filed = store.add(WISH, NOW)
    decided = store.decide(filed.id, state, by="root (uid 0)", wall_ns=NOW + 5, reason="as agreed", granted="exempt")
    known = {"decided_by": "root (uid 0)", "decided_wall_ns": NOW + 5, "decision_reason": "as agreed", "granted": "exempt"}
    assert decided == replace(filed, state=state, **known)  # type: ignore[arg-type]  # the fields' own types
    again = store_in(tmp_path)
    assert again.requests == (decided,)
    assert again.pending == 0


def test_a_request_is_decided_once(tmp_path: Path) -> None:
    """A second decision is refused with the first one's maker and time, and changes nothing."""
    store = store_in(tmp_path)
    filed = store.add(WISH, NOW)
    first = store.decide(filed.id, RequestState.DENIED, by="ops", wall_ns=NOW, reason="no")
    with pytest.raises(PeerError, match=r"denied by ops at 2026-11-23T12:00:00\.000Z"):
        store.decide(filed.id, RequestState.APPROVED, by="root", wall_ns=NOW)
    assert store.requests == (first,)


def test_a_denial_needs_a_reason(tmp_path: Path) -> None:
    """A denial without a word of why is refused; an approval needs none."""
    store = store_in(tmp_path)
    filed = store.add(WISH, NOW)
    with pytest.raises(PeerError, match="reason is missing"):
        store.decide(filed.id, RequestState.DENIED, by="ops", wall_ns=NOW, reason="  ")
    assert store.decide(filed.id, RequestState.APPROVED, by="ops", wall_ns=NOW).decision_reason == ""


def test_an_unknown_id_is_refused(tmp_path: Path) -> None:
    """Deciding what does not exist names the id and where to look."""
    with pytest.raises(PeerError, match=r"no request 'REQ-7'.*limiterctl requests"):
        store_in(tmp_path).decide("REQ-7", RequestState.APPROVED, by="ops", wall_ns=NOW)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"interface": ""}, "interface is missing"),
        ({"interface": "e" * 16}, "16 characters"),
        ({"interface": "ü" * 8}, "no interface name"),
        ({"interface": "../x"}, "no interface name"),
        ({"interface": "eth0\n"}, "control characters"),
        ({"reason": " "}, "reason is missing"),
        ({"reason": "x" * 501}, "501 characters"),
        ({"reason": "first\nsecond"}, "one line"),
        ({"reason": "\x1b[2J"}, "control characters"),
        ({"rate_bps": 0}, "out of range; use 1kbit to 1000tbit"),
        ({"rate_bps": 999}, "out of range"),
        ({"rate_bps": 10**16}, "out of range"),
        ({"until_wall_ns": NOW}, "in the past"),
    ],
)
def test_a_senseless_wish_is_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    """Empty, overlong, multi-line or impossible wishes are usage errors that say what is wrong; nothing is filed."""
    store = store_in(tmp_path)
    with pytest.raises(PeerError, match=complaint) as raised:
        store.add(replace(WISH, **change), NOW)  # type: ignore[arg-type]  # the table's values fit their keys
    assert raised.value.exit_code == 2
    assert store.requests == ()


def test_pending_requests_are_bounded_for_one_user_and_for_all(tmp_path: Path) -> None:
    """One user cannot crowd out others, all together cannot fill the disk; a decision makes room."""
    store = store_in(tmp_path, Bounds(pending_per_account=2, pending=3))
    first = store.add(WISH, NOW)
    store.add(WISH, NOW)
    with pytest.raises(PeerError, match="you have 2 pending"):
        store.add(WISH, NOW)
    store.add(replace(WISH, uid=1001, account=1001), NOW)
    with pytest.raises(PeerError, match="3 requests are pending"):
        store.add(replace(WISH, uid=1001, account=1001), NOW)
    store.decide(first.id, RequestState.DENIED, by="ops", wall_ns=NOW, reason="no")
    store.add(WISH, NOW)
    assert store.pending == 3


def test_only_the_latest_decided_ones_are_remembered(tmp_path: Path) -> None:
    """Decided requests beyond the bound are forgotten, oldest decision first; their numbers are not used again."""
    store = store_in(tmp_path, Bounds(decided=2))
    for number in range(5):
        filed = store.add(WISH, NOW)
        store.decide(filed.id, RequestState.APPROVED, by="ops", wall_ns=NOW + number)
    assert [request.id for request in store.requests] == ["REQ-20261123-4", "REQ-20261123-5"]
    assert store_in(tmp_path).add(WISH, NOW).id == "REQ-20261123-6"


def test_ids_taken_by_overrides_are_left_out(tmp_path: Path) -> None:
    """A new request never gets the id of an override that exists."""
    store = store_in(tmp_path)
    assert store.add(WISH, NOW, taken={"REQ-20261123-1", "REQ-20261123-2"}).id == "REQ-20261123-3"
    assert store.add(WISH, NOW - 30 * DAY).id == "REQ-20261024-4"  # a stepped clock makes no number come twice


def test_evidence_is_bounded_and_always_writable(tmp_path: Path) -> None:
    """Evidence beyond its bound is replaced by a note; odd values are written as text."""
    store = store_in(tmp_path)
    large = store.add(replace(WISH, evidence={"samples": list(range(10_000))}), NOW)
    assert "omitted" in large.evidence
    odd = store.add(replace(WISH, evidence={"name": "\udc80", "rate": float("inf"), "flows": (1, {2})}), NOW)
    assert odd.evidence == {"name": "\\udc80", "rate": "inf", "flows": [1, ["2"]]}
    assert store_in(tmp_path).requests == store.requests


def test_truncation_at_every_offset_keeps_whole_requests(tmp_path: Path) -> None:
    """A file cut anywhere gives back only requests that were filed, and goes on with numbers not used before."""
    store = store_in(tmp_path)
    for _ in range(3):
        store.add(WISH, NOW)
    path = tmp_path / "requests.json"
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        cut = RequestStore(tmp_path)
        assert len(cut.load()) == 1
        assert all(request in store.requests for request in cut.requests)
        added = cut.add(WISH, NOW)
        assert added.id not in {request.id for request in cut.requests[:-1]}


def test_a_damaged_file_is_written_anew_once_a_copy_is_kept(tmp_path: Path) -> None:
    """The damage is reported by one start, not by every start until somebody files the next request."""
    filed = store_in(tmp_path).add(WISH, NOW)
    path = tmp_path / "requests.json"
    path.write_bytes(path.read_bytes()[:-2])
    damaged = RequestStore(tmp_path)
    assert len(damaged.load()) == 1
    assert (tmp_path / "requests.json.damaged").exists()
    assert store_in(tmp_path).requests == damaged.requests == (filed,)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["request", "last_number", "other"]),
            st.recursive(
                st.none() | st.integers() | st.text(),
                lambda i: st.dictionaries(st.sampled_from(["id", "uid", "interface", "evidence"]), i),
            ),
        )
    )
)
def test_any_records_are_taken_without_an_exception(records: list[tuple[str, object]]) -> None:
    """Whatever a sound file holds, only requests and sentences come out."""
    requests, number, problems = from_records(records)
    assert requests == ()
    assert number >= 0
    assert all(isinstance(problem, str) for problem in problems)


def test_one_bad_record_costs_itself_alone(tmp_path: Path) -> None:
    """A request with a wrong type is named and left out; the others are kept."""
    good = store_in(tmp_path).add(WISH, NOW)
    plain = jsonsafe.encode(good)
    requests, number, problems = from_records(
        [("request", {**plain, "uid": "root"}), ("request", plain), ("request", {**plain, "state": "?"})]
    )
    assert requests == (good,)
    assert number == 1
    assert len(problems) == 2


def _on_a_full_disk(directory: Path) -> tuple[str, int, int]:
    store = store_in(directory)
    filed = store.add(WISH, NOW)
    ballast = fill(directory)
    errors = []
    try:
        store.add(WISH, NOW)
    except EnvironmentFault as error:
        errors.append(str(error))
    try:
        store.decide(filed.id, RequestState.APPROVED, by="ops", wall_ns=NOW)
    except EnvironmentFault as error:
        errors.append(str(error))
    during = store.pending
    assert store_in(directory).requests == store.requests == (filed,)
    ballast.unlink()
    store.add(WISH, NOW)
    return " ".join(errors), during, store.pending


@pytest.mark.root
def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """When the disk refuses, filing and deciding raise a fault and nothing has changed, in memory or on disk."""
    errors, during, after = on_tmpfs(tmp_path, _on_a_full_disk)
    assert errors.count("No space left") == 2
    assert (during, after) == (1, 2)
