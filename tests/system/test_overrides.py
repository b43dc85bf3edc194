"""An override from its file or its command to its end, on real links under real traffic."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from limiterd.core.errors import EXIT_CONFIG, EXIT_FAILED, EXIT_USAGE
from limiterd.core.units import exact_wall
from limiterd.sim.netns import Flow, Pair, PrivateNet, run
from tests.machine import Control
from tests.netns import wait_for
from tests.rig import FAST, Rig, measured_bps, rig

pytestmark = pytest.mark.root

MBIT = 1_000_000
EXEMPT: Mapping[str, object] = {"action": "exempt"}
BROKEN = "overrides:\n  - id: X\n    interfaces: [eth0]\n    actoin: exempt\n"


def write(daemon: Rig, identifier: str, expires: str, **fields: object) -> None:
    """Put one record for eth0 into the operator's directory."""
    record = {"id": identifier, "interfaces": "[eth0]", "expires": expires, "approved_by": "ops", "reason": "backup"} | fields
    lines = "\n    ".join(f"{key}: {value}" for key, value in record.items())
    (daemon.overrides / f"{identifier}.yaml").write_text(f"overrides:\n  - {lines}\n")


def in_s(seconds: float) -> str:
    """A moment that far from now, as a record writes it."""
    return exact_wall(time.time_ns() + int(seconds * 1e9))


def wall_s(text: object) -> float:
    """An RFC 3339 moment in Unix seconds."""
    return datetime.fromisoformat(str(text)).astimezone(UTC).timestamp()


def trail(daemon: Rig, *kinds: str) -> list[dict[str, Any]]:
    """The audit trail's entries of these kinds, oldest first."""
    entries: list[dict[str, Any]] = daemon.ask("history", kinds=list(kinds), limit=1000)["entries"]
    return entries[::-1]


def _counts_past(daemon: Rig, sent_bytes: int) -> bool:
    return daemon.class_bytes() > sent_bytes


def limited_by_traffic(daemon: Rig, lab: PrivateNet, pair: Pair, rate_bps: int) -> Flow:
    """Start UDP over the threshold and wait for the limit."""
    flow = lab.udp(pair.near, pair.far, rate_bps)
    daemon.wait_phase("limited")
    return flow


@pytest.mark.slow
def test_a_file_and_a_reload_lift_a_limit_and_its_end_begins_afresh(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """Under traffic: lifted within a second of the reload; at its expiry, within a second of it, a whole window begins anew."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        before = daemon.root()
        daemon.start()
        flow = limited_by_traffic(daemon, lab, pair, 150 * MBIT)
        write(daemon, "REQ-1", "2099-01-01", **EXEMPT)
        assert "+ override REQ-1 eth0 exempt until" in daemon.ctl("reload").stdout
        wait_for(lambda: daemon.root() == before, "the root as it was", longest_s=1)
        assert daemon.phase() == "exempt"
        wait_for(lambda: measured_bps(lambda: int(flow.stats()["received_bytes"]), 0.3) > 60 * MBIT, "thrice the limit again")
        with Control() as control:
            write(daemon, "REQ-1", expires := in_s(1), **EXEMPT)
            daemon.ask("reload")
            (ended,) = wait_for(
                lambda: [end for end in trail(daemon, "override_ended") if end["fields"]["cause"] == "expired"], "it"
            )
            assert 0 <= wall_s(ended["wall"]) - wall_s(expires) <= 1 + control.stolen_s()
        again = wait_for(lambda: trail(daemon, "limit")[1:], "the second limit")[-1]
        assert wall_s(again["wall"]) - wall_s(ended["wall"]) > 2
        daemon.wait_phase("limited")
        assert daemon.link()["strikes"] == 1


def test_a_limit_only_record_changes_the_rate_in_place(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """The class's rate changes up and back with not one of the numbered datagrams lost, and the class goes on counting."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        flow = lab.udp(pair.near, pair.far, 10 * MBIT)
        wait_for(lambda: daemon.class_bytes() > 500_000, "traffic through the class")
        add = ("add", "--id", "A", "--interface", "eth0", "--limit", "60mbit", "--until", "1h", "--reason", "test")
        for words, mbit, said in ((add, 60, "20mbit to 60mbit"), (("revoke", "A"), 20, "60mbit to 20mbit")):
            counted = daemon.class_bytes()
            assert f"eth0: limit changed from {said}" in daemon.ctl("override", *words).stdout
            assert daemon.link()["limit_bps"] == mbit * MBIT
            shown = run(pair.near.namespace, ["tc", "class", "show", "dev", "eth0"]).stdout
            assert f"class htb 1d1d:1 root rate {mbit}Mbit ceil {mbit}Mbit" in shown
            wait_for(partial(_counts_past, daemon, counted + 500_000), "the class goes on")
        flow.set_rate(0)
        assert flow.stop()["lost_packets"] == 0
        assert len(trail(daemon, "rate_changed")) == 2
        assert not trail(daemon, "released", "repair", "fault")


@pytest.mark.long
@pytest.mark.slow
def test_a_threshold_record_lets_twice_the_policy_pass_and_catches_six_times(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """With five times the threshold, twice the policy's runs free for many windows; six times is limited after one."""
    policy = "detect: {threshold: 30mbit, window: 1s, slice: 500ms}, limit: {rate: 5mbit}"
    with rig(pair.near.namespace, tmp_path, policy) as daemon:
        daemon.start()
        flow = limited_by_traffic(daemon, lab, pair, 60 * MBIT)
        write(daemon, "REQ-5", "2099-01-01", action="limit", threshold="150mbit")
        daemon.ctl("reload")
        daemon.wait_phase("conforming", longest_s=1)
        sent = daemon.link()["tx_bytes"]
        wait_for(lambda: daemon.link()["tx_bytes"] > sent + 4 * 60 * MBIT // 8, "four windows of twice the policy's rate")
        assert daemon.phase() == "conforming"
        assert len(trail(daemon, "limit", "noted", "would_limit")) == 1
        flow.set_rate(180 * MBIT)
        row = daemon.wait_phase("limited")
        assert (row["override"], row["limit_bps"], row["threshold_bps"]) == ("REQ-5", 5 * MBIT, 150 * MBIT)


def test_a_record_begins_on_time(pair: Pair, tmp_path: Path) -> None:
    """A not_before in the near future: pending until then, in force within a second of it, without any reload."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        write(daemon, "REQ-2", "never", not_before="2099-01-01", **EXEMPT)
        daemon.ctl("reload")
        assert daemon.status()["overrides"][0]["state"] == "pending"
        assert daemon.phase() == "limited"
        with Control() as control:
            write(daemon, "REQ-2", "never", not_before=(begins := in_s(1)), **EXEMPT)
            daemon.ask("reload")
            daemon.wait_phase("exempt")
            begun = wait_for(lambda: trail(daemon, "override_active"), "the begin in the trail")[-1]
            assert 0 <= wall_s(begun["wall"]) - wall_s(begins) <= 1 + control.stolen_s()


def test_added_listed_revoked(pair: Pair, tmp_path: Path) -> None:
    """`override add` says what it did and how soon, survives a restart, is listed with its place; `revoke` takes it away."""
    words = ("--interface", "eth0", "--exempt", "--until", "1h", "--reason", "night run")
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        said = daemon.ctl("override", "add", "--id", "REQ-7", *words).stdout
        assert "+ override REQ-7 eth0 exempt until" in said
        assert "eth0: limit lifted 0." in said
        warned = daemon.ctl("override", "add", "--id", "LAN", "--interface", "lan0", *words[2:]).stdout
        assert "override LAN names lan0, which no policy watches" in warned
        write(daemon, "FILE-1", "2099-01-01", **EXEMPT)
        daemon.restart()
        listed = {one["id"]: one for one in daemon.ask("override.list")["overrides"]}
        assert listed["REQ-7"]["source"] == "state"
        assert listed["FILE-1"]["source"] == f"{daemon.overrides}/FILE-1.yaml:2"
        listing = " ".join(daemon.ctl("override", "list").stdout.split())
        assert "night run; approved by" in listing
        assert "in force on eth0; kept by the daemon" in listing
        assert "another record goes before it on eth0;" in listing
        for identifier, exit_code in (("REQ-7", EXIT_FAILED), ("FILE-1", EXIT_FAILED)):
            refused = daemon.ctl("override", "add", "--id", identifier, *words, check=False)
            assert (refused.returncode, "exists already" in refused.stderr) == (exit_code, True)
        refused = daemon.ctl("override", "revoke", "FILE-1", check=False)
        assert "only its owner changes" in refused.stderr
        assert "- override REQ-7" in daemon.ctl("override", "revoke", "REQ-7", "--reason", "over").stdout
        assert [path.name for path in (daemon.state / "overrides.d").glob("record-*")] == ["record-LAN.yaml"]
        revoked = trail(daemon, "override_revoked")[-1]
        assert revoked["fields"]["text"] == "root (uid 0) revoked override REQ-7: over"


def test_a_refused_record_changes_nothing(pair: Pair, tmp_path: Path) -> None:
    """Past, contradicting, on a disk that refuses: the exit code says so; disk, rules and trail stay."""
    add = ("override", "add", "--id", "A", "--interface", "eth0", "--reason", "x")
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        past = daemon.ctl(*add, "--exempt", "--until", "2020-01-01", check=False)
        assert (past.returncode, "is past already" in past.stderr) == (EXIT_USAGE, True)
        odd = daemon.ctl(*add[:3], "an id", *add[4:], "--exempt", "--until", "1h", check=False)
        assert (odd.returncode, "'an id' is not an id" in odd.stderr) == (EXIT_USAGE, True)
        clash = daemon.ctl(*add, "--limit", "100mbit", "--until", "1h", check=False)
        assert (clash.returncode, "not below the threshold" in clash.stderr) == (EXIT_FAILED, True)
        own = daemon.state / "overrides.d"
        own.mkdir()
        (own / ".record-A.yaml.tmp").mkdir()
        full = daemon.ctl(*add, "--exempt", "--until", "1h", check=False)
        assert (full.returncode, "cannot be written" in full.stderr) == (EXIT_FAILED, True)
        (own / ".record-A.yaml.tmp").rmdir()
        assert not list(own.iterdir())
        assert daemon.status()["overrides"] == []
        assert daemon.status()["config"]["error"] is None
        assert not trail(daemon, "override_added", "reload", "reload_failed")


def test_broken_files_are_no_obstacle(pair: Pair, tmp_path: Path) -> None:
    """Records come and go beside files that would not load; where one was the cause (an id given twice) its going mends them."""
    words = ("override", "add", "--id", "A", "--interface", "eth0", "--exempt", "--until", "1h", "--reason", "x")
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        (daemon.overrides / "x.yaml").write_text(BROKEN)
        assert daemon.ctl(*words).returncode == 0
        assert daemon.phase() == "exempt"
        assert daemon.ctl("override", "revoke", "A").returncode == 0
        assert daemon.phase() == "conforming"
        assert daemon.ctl(*words).returncode == 0
        assert daemon.ctl("reload", check=False).returncode == EXIT_CONFIG
        (daemon.overrides / "x.yaml").unlink()
        assert daemon.ctl("reload").returncode == 0
        assert daemon.phase() == "exempt"
        write(daemon, "A", "2099-01-01", **EXEMPT)
        refused = daemon.ctl("reload", check=False)
        assert (refused.returncode, "given twice" in refused.stderr) == (EXIT_CONFIG, True)
        assert daemon.ctl("override", "revoke", "A").returncode == 0
        assert daemon.status()["config"]["error"] is None
        assert [one["source"] for one in daemon.status()["overrides"]] == [f"{daemon.overrides}/A.yaml:2"]
