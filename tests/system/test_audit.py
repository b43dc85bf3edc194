"""The audit trail as a whole: everything that happens is in it, with who did it, and what was changed afterwards shows."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from limiterd.core.errors import EXIT_CONFIG, EXIT_FAILED
from limiterd.sim.netns import Pair, PrivateNet, run
from tests.machine import MachineTooSlow
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root

MBIT = 1_000_000
ROOT = "root (uid 0)"


def entries(daemon: Rig, **wanted: object) -> list[dict[str, Any]]:
    """The trail's entries, oldest first."""
    found: list[dict[str, Any]] = daemon.ask("history", limit=1000, **wanted)["entries"]
    return found[::-1]


def lines(daemon: Rig) -> list[str]:
    """The trail's file, line by line."""
    return (daemon.state / "audit.jsonl").read_text().splitlines()


@pytest.mark.slow
def test_everything_that_happens_is_in_it(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """Loads, firings, limits, repairs, releases, overrides, requests, every command with its uid: in order, in one chain."""
    add = ("override", "add", "--interface", "eth0", "--reason", "test", "--id")
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        flow = lab.udp(pair.near, pair.far, 150 * MBIT)
        daemon.wait_phase("limited")
        flow.set_rate(0)
        run(pair.near.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"])
        wait_for(lambda: entries(daemon, kinds=["repair"]), "the repair")
        daemon.wait_phase("limited")
        daemon.ctl("request", "--interface", "eth0", "--rate", "60mbit", "--until", "1h", "--reason", "more")
        identifier = daemon.ask("request.list")["requests"][0]["id"]
        daemon.ctl("approve", identifier)
        daemon.ctl("override", "revoke", identifier, "--reason", "over")
        daemon.ctl("request", "--interface", "eth0", "--until", "1h", "--reason", "all")
        daemon.ctl("deny", daemon.ask("request.list")["requests"][1]["id"], "--reason", "no")
        daemon.ctl(*add, "SHORT", "--exempt", "--until", "1s")
        wait_for(lambda: daemon.phase() == "conforming", "the end of the short override")
        daemon.ctl("limit", "eth0", "--reason", "by hand")
        daemon.ctl("release", "eth0", "--reason", "enough")
        daemon.ctl("release", "--all", "--reason", "to be sure")
        daemon.ctl("pause", "--reason", "maintenance")
        daemon.ctl("resume")
        (daemon.overrides / "x.yaml").write_text("overrides: [")
        assert daemon.ctl("reload", check=False).returncode == EXIT_CONFIG
        daemon.stop()
        daemon.overrides.joinpath("x.yaml").unlink()
        daemon.start()
        told = entries(daemon)
        assert Counter(entry["kind"] for entry in told) == Counter(
            [
                *("start", "limit", "limited", "repair"),
                *("request", "override_added", "override_active", "rate_changed", "request_approved"),
                *("override_revoked", "override_ended", "rate_changed"),
                *("request", "request_denied"),
                *("override_added", "override_active", "released", "override_ended"),
                *(
                    "limit",
                    "limited",
                    "releasing",
                    "released",
                    "releasing",
                    "paused",
                    "resumed",
                    "reload_failed",
                    "stop",
                    "start",
                ),
            ]
        )
        by = {entry["kind"]: entry["fields"]["by"] for entry in told if "by" in entry["fields"]}
        commands = {"override_added", "override_revoked", "request", "request_approved", "request_denied", "releasing"}
        assert {kind: by.get(kind) for kind in commands | {"paused", "resumed", "reload_failed"}} == dict.fromkeys(
            commands | {"paused", "resumed", "reload_failed"}, ROOT
        )
        causes = [entry["fields"]["cause"] for entry in told if entry["kind"] == "override_ended"]
        assert causes == ["withdrawn", "expired"]
        assert all(entry["fields"].get("text") for entry in told)
        assert daemon.ask("history.verify")["ok"]


def test_the_log_holds_the_head_of_each_limit_and_release(pair: Pair, tmp_path: Path) -> None:
    """What the log says is the head is found by --head; once the tail is cut while no daemon runs, only --head tells."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        daemon.ctl("release", "eth0", "--reason", "test")
        wait_for(lambda: len(re.findall(r"audit_head=(\w{64})", daemon.log())) == 2, "two heads in the log")
        limit, release = re.findall(r"audit_head=(\w{64})", daemon.log())
        for head in (limit, release):
            said = daemon.ctl("history", "--verify", "--head", head)
            assert "intact: " in said.stdout
            assert f"it holds the expected {head}" in " ".join(said.stdout.split())
        daemon.stop()
        cut = next(number for number, line in enumerate(lines(daemon)) if '"kind":"released"' in line)
        (daemon.state / "audit.jsonl").write_text("".join(f"{line}\n" for line in lines(daemon)[:cut]))
        daemon.start()
        assert daemon.ctl("history", "--verify").returncode == 0
        assert daemon.ctl("history", "--verify", "--head", limit).returncode == 0
        missed = daemon.ctl("history", "--verify", "--head", release, check=False)
        assert (missed.returncode, "NOT complete: the chain is intact" in missed.stdout) == (EXIT_FAILED, True)
        assert "the end was cut off" in " ".join(missed.stdout.split())


def test_an_end_that_no_daemon_saw_is_in_it(pair: Pair, tmp_path: Path) -> None:
    """A record expires while the daemon is down: the next start says so, once, before anything else."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        until = time.time() + 3  # time enough for a stop before it
        daemon.ctl("override", "add", "--id", "A", "--interface", "eth0", "--exempt", "--until", "3s", "--reason", "test")
        daemon.stop()
        if time.time() >= until:
            raise MachineTooSlow("the daemon was to be stopped within 3 s")
        wait_for(lambda: time.time() > until, "the end")
        daemon.start()
        daemon.restart()
        ends = [number for number, entry in enumerate(entries(daemon)) if entry["kind"] == "override_ended"]
        (told,) = (entries(daemon)[number] for number in ends)
        assert told["fields"]["text"] == "override A has expired while limiterd was not running"
        assert entries(daemon)[ends[0] + 1]["kind"] == "start"


@pytest.mark.parametrize("harm", ["alter", "remove", "swap"])
def test_a_trail_that_was_changed_is_found_out(harm: str, pair: Pair, tmp_path: Path) -> None:
    """A line altered, removed or moved behind the running daemon's back: exit 1 and the place; the trail goes on."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        daemon.ctl("release", "eth0", "--reason", "test")
        wait_for(lambda: any('"kind":"released"' in line for line in lines(daemon)), "the release on disk")
        was = lines(daemon)
        changed = {
            "alter": [line.replace(ROOT, "mallory (uid 0)") for line in was],
            "remove": [*was[:1], *was[2:]],
            "swap": [was[0], was[2], was[1], *was[3:]],
        }[harm]
        assert changed != was
        (daemon.state / "audit.jsonl").write_text("".join(f"{line}\n" for line in changed))
        found = daemon.ctl("history", "--verify", check=False)
        assert found.returncode == EXIT_FAILED
        assert "NOT intact" in found.stdout
        assert re.search(r"audit\.jsonl:\d+: ", found.stdout)
        daemon.ctl("limit", "eth0", "--reason", "again")
        wait_for(lambda: '"note":"again"' in (daemon.state / "audit.jsonl").read_text(), "the next entry")


def test_an_unwritable_trail_hinders_nothing_and_loses_nothing(pair: Pair, tmp_path: Path) -> None:
    """Its file is in the way: limits come, but nothing is called done; status and a metric tell; afterwards all is on disk."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        file = daemon.state / "audit.jsonl"
        wait_for(file.exists, "the trail")
        aside = file.rename(daemon.state / "aside")
        file.mkdir()
        limited = daemon.ctl("limit", "eth0", "--reason", "test", "--json", check=False)
        assert (limited.returncode, json.loads(limited.stdout)["durable"]) == (EXIT_FAILED, False)
        assert "this took effect, but it is not on the disk yet" in limited.stderr
        assert daemon.phase() == "limited"
        asked = daemon.ctl("request", "--interface", "eth0", "--until", "1h", "--reason", "more", check=False)
        assert (asked.returncode, daemon.ask("request.list")["requests"]) == (EXIT_FAILED, [])
        wait_for(lambda: any("audit.jsonl" in fault["message"] for fault in daemon.status()["faults"]), "the fault")
        assert daemon.metrics()["limiterd_audit_errors_total"] > 0
        file.rmdir()
        aside.rename(file)
        wait_for(lambda: not daemon.status()["faults"], "no fault any more", longest_s=15)
        verdict = daemon.ask("history.verify")
        assert (verdict["ok"], verdict["entries"]) == (True, len(lines(daemon)))
        assert {"start", "limit", "limited"} <= {json.loads(line)["kind"] for line in lines(daemon)}


def test_damaged_state_is_told_and_costs_no_more_than_it_hit(pair: Pair, tmp_path: Path) -> None:
    """Requests, an own record and the trail are garbage at a start: the limit is adopted, each damage shows, the rest stays."""
    add = ("override", "add", "--interface", "lan9", "--exempt", "--never", "--reason", "test", "--id")
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl(*add, "WHOLE")
        daemon.ctl(*add, "TORN")
        daemon.ctl("request", "--interface", "eth0", "--until", "1h", "--reason", "more")
        daemon.ctl("limit", "eth0", "--reason", "test")
        daemon.stop()
        (daemon.state / "overrides.d" / "record-TORN.yaml").write_bytes(b"overrides:\n  - id: TORN\n    inter\xff")
        (daemon.state / "requests.json").write_bytes(b"\0" * 100)
        with (daemon.state / "audit.jsonl").open("ab") as file:
            file.write(b'{"seq": 99, "kin')
        daemon.start()
        assert daemon.wait_phase("limited")["note"] == "test"
        assert [one["id"] for one in daemon.status()["overrides"]] == ["WHOLE"]
        faults = " ".join(fault["message"] for fault in daemon.status()["faults"])
        assert "record-TORN.yaml" in faults
        assert "requests.json" in faults
        daemon.ctl("request", "--interface", "eth0", "--until", "1h", "--reason", "more")
        daemon.ctl("override", "revoke", "TORN")
        assert "record-TORN.yaml" not in str(daemon.status()["faults"])
        verdict = daemon.ask("history.verify")
        assert (verdict["ok"], "torn by a crash" in str(verdict["notes"])) == (True, True)
