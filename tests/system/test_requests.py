"""Increase requests by real users of real groups, through the real socket: who may ask, who may grant, and what is granted."""

from __future__ import annotations

import grp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from limiterd.core.errors import EXIT_FAILED, EXIT_NOPERM, EXIT_USAGE
from limiterd.sim.netns import Pair, inside
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root

TENANT, STRANGER, ADMIN = 54321, 54322, 54323
"""Users that no password file knows."""

_AS_USER = """
import contextlib, io, json, os, sys
from limiterd import cli
def run(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return code, out.getvalue(), err.getvalue()
uid, gid, groups, commands = json.load(sys.stdin)
run(["requests", "--socket", "/nowhere"])  # loads every module that will be needed
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
json.dump([run(words) for words in commands], sys.stdout)
"""
"""limiterctl, loaded by root and run by somebody who may be unable to read the program's files."""


class Done(NamedTuple):
    """What one limiterctl ended with and said."""

    exit_code: int
    out: str
    err: str


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A directory that everybody may enter: the socket's own mode is what is tested."""
    home = Path(tempfile.mkdtemp(prefix="limiterd-test-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def groups() -> tuple[grp.struct_group, grp.struct_group]:
    """Two groups of this machine that are not root's, with nobody's help: one to look and ask, one to administrate."""
    found = [group for group in grp.getgrall() if group.gr_gid not in {0, 65534}]
    return found[0], found[1]


def as_user(daemon: Rig, uid: int, *commands: Sequence[str], primary: int | None = None, supplementary: int = 0) -> list[Done]:
    """Each limiterctl as that user, with that primary group (default: one of its own) and supplementary one (0: none)."""
    told = [
        uid,
        uid if primary is None else primary,
        [supplementary] if supplementary else [],
        [[*words, "--socket", daemon.socket] for words in commands],
    ]
    with inside(daemon.namespace):
        done = subprocess.run(
            [sys.executable, "-c", _AS_USER], input=json.dumps(told), capture_output=True, text=True, check=True, timeout=60
        )
    return [Done(*one) for one in json.loads(done.stdout)]


def file_request(daemon: Rig, *words: str) -> str:
    """File a request for eth0 as root; its id."""
    asked = daemon.ctl("request", "--interface", "eth0", "--until", "2099-01-01", "--reason", "test", *words, "--json")
    return str(json.loads(asked.stdout)["id"])


def states(daemon: Rig) -> dict[str, str]:
    """Every request's state by its id."""
    return {one["id"]: one["state"] for one in daemon.ask("request.list")["requests"]}


@pytest.mark.usefixtures("real_root")
def test_who_may_do_what(pair: Pair, open_home: Path, groups: tuple[grp.struct_group, grp.struct_group]) -> None:
    """The group looks and asks, the admin group does all, supplementary membership counts, strangers get nothing; all audited."""
    readers, admins = groups
    access = f"control: {{group: {readers.gr_name}, admin_group: {admins.gr_name}, socket: {open_home}/run/control.sock}}"
    with rig(pair.near.namespace, open_home, FAST) as daemon:
        text = [line for line in daemon.config.read_text().splitlines() if not line.startswith("control:")]
        daemon.config.write_text("\n".join([*text, access, ""]))
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        ask = ("request", "--interface", "eth0", "--rate", "300mbit", "--until", "2099-01-01", "--reason", "nightly backup")
        assert as_user(daemon, TENANT, ("status",), primary=readers.gr_gid)[0].exit_code == 0
        looked, filed = as_user(daemon, TENANT, ("status",), (*ask, "--json"), supplementary=readers.gr_gid)
        assert (looked.exit_code, filed.exit_code) == (0, 0), filed.err
        request = json.loads(filed.out)
        assert (request["uid"], request["state"]) == (TENANT, "pending")
        assert request["evidence"]["link"]["limit_bps"] == 20_000_000
        forbidden: tuple[tuple[str, ...], ...] = (
            ("approve", request["id"]),
            ("deny", request["id"], "--reason", "x"),
            ("limit", "eth0", "--reason", "x"),
            ("release", "eth0", "--reason", "x"),
            ("release", "--all", "--reason", "x"),
            ("pause",),
            ("resume",),
            ("reload",),
            ("override", "add", "--id", "A", "--interface", "eth0", "--exempt", "--never", "--reason", "x"),
            ("override", "revoke", "A"),
        )
        for refused in as_user(daemon, TENANT, *forbidden, supplementary=readers.gr_gid):
            assert refused.exit_code == EXIT_NOPERM, refused
            assert f"members of the group {admins.gr_name!r} only" in refused.err
        assert daemon.phase() == "limited"
        assert states(daemon) == {request["id"]: "pending"}
        strange = as_user(daemon, STRANGER, ("status",), ask, ("approve", request["id"]))
        assert [done.exit_code for done in strange] == [EXIT_NOPERM] * 3
        told = daemon.ask("history", kinds=["refused"], limit=100)["entries"]
        assert len(told) == len(forbidden)
        assert {entry["fields"]["verb"] for entry in told} >= {"request.approve", "limit", "release", "pause", "override.add"}
        assert all(entry["fields"]["by"] == f"{TENANT} (uid {TENANT})" for entry in told)
        assert daemon.metrics()['limiterd_control_requests_total{result="denied",verb="request.approve"}'] == 1
        grant = ("approve", request["id"], "--until", "1h")
        (granted,) = as_user(daemon, ADMIN, grant, primary=readers.gr_gid, supplementary=admins.gr_gid)
        assert granted.exit_code == 0, granted.err
        assert "eth0: limit lifted 0." in granted.out
        (override,) = daemon.status()["overrides"]
        assert (override["approved_by"], override["threshold_bps"]) == (f"{ADMIN}@{os.uname().nodename}", 300_000_000)
        approved = daemon.ask("history", kinds=["request_approved"])["entries"][0]
        assert approved["fields"]["by"] == f"{ADMIN} (uid {ADMIN})"
        assert f"approved by {ADMIN}" in as_user(daemon, TENANT, ("requests", "--all"), primary=readers.gr_gid)[0].out


@pytest.mark.parametrize(
    ("wanted", "grant", "action", "threshold_mbit", "limit_mbit"),
    [
        ((), (), "exempt", None, None),
        (("--rate", "500mbit"), (), "limit", 500, None),
        (("--rate", "100mbit"), (), "limit", 100, None),
        (("--rate", "60mbit"), (), "limit", None, 60),
        (("--rate", "500mbit"), ("--exempt",), "exempt", None, None),
        (("--rate", "500mbit"), ("--limit", "50mbit"), "limit", None, 50),
        ((), ("--threshold", "400mbit", "--limit", "300mbit"), "limit", 400, 300),
    ],
)
def test_what_an_approval_grants(
    wanted: tuple[str, ...],
    grant: tuple[str, ...],
    action: str,
    threshold_mbit: int | None,
    limit_mbit: int | None,
    approvals: Rig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default what was asked for (a rate below the policy's threshold becomes a limit), else what the approval says."""
    identifier = file_request(approvals, *wanted)
    monkeypatch.setenv("SUDO_USER", "alice")
    approvals.ctl("approve", identifier, *grant, "--never", "--reason", "granted")
    record = next(one for one in approvals.status()["overrides"] if one["id"] == identifier)
    rates = [None if mbit is None else mbit * 1_000_000 for mbit in (threshold_mbit, limit_mbit)]
    assert [record["action"], record["threshold_bps"], record["limit_bps"]] == [action, *rates]
    assert (record["expires"], record["reason"], record["interfaces"]) == ("never", "granted", ["eth0"])
    assert record["approved_by"] == f"alice@{os.uname().nodename}"
    assert states(approvals)[identifier] == "approved"


@pytest.fixture(scope="module")
def approvals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One daemon for the table of approvals."""
    from limiterd.sim.netns import PrivateNet  # noqa: PLC0415 - this fixture outlives the tests' own netns

    with PrivateNet() as lab, rig(lab.pair().near.namespace, tmp_path_factory.mktemp("approvals"), FAST) as daemon:
        daemon.start()
        yield daemon


def test_what_fails_leaves_the_request_pending(pair: Pair, tmp_path: Path) -> None:
    """A contradiction, a disk that refuses, a past end: refused with a reason; the request waits on; a denial tells why, once."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        identifier = file_request(daemon, "--rate", "300mbit")
        clash = daemon.ctl("approve", identifier, "--limit", "200mbit", check=False)
        assert (clash.returncode, "not below the threshold" in clash.stderr) == (EXIT_FAILED, True)
        both = daemon.ctl("approve", identifier, "--limit", "20mbit", "--exempt", check=False)
        assert both.returncode == EXIT_USAGE
        past = daemon.ctl("approve", identifier, "--until", "2020-01-01", check=False)
        assert (past.returncode, "is past already" in past.stderr) == (EXIT_USAGE, True)
        blocker = daemon.state / "overrides.d" / f".record-{identifier}.yaml.tmp"
        blocker.mkdir(parents=True)
        assert daemon.ctl("approve", identifier, check=False).returncode == EXIT_FAILED
        blocker.rmdir()
        assert states(daemon) == {identifier: "pending"}
        assert daemon.status()["overrides"] == []
        assert daemon.metrics()["limiterd_requests_pending"] == 1
        daemon.ctl("deny", identifier, "--reason", "use the batch network")
        again = daemon.ctl("approve", identifier, check=False)
        assert (again.returncode, "was denied by root" in again.stderr) == (EXIT_FAILED, True)
        assert "use the batch network" in daemon.ctl("requests", "--all").stdout
        assert daemon.metrics()["limiterd_requests_pending"] == 0


def test_an_approval_is_its_override_and_the_decision_is_written_later(pair: Pair, tmp_path: Path) -> None:
    """Where the requests' file refuses, the approval is done all the same: its override is on disk; status shows it, it heals."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        identifier = file_request(daemon)
        blocker = daemon.state / ".requests.json.tmp"
        blocker.mkdir()
        assert daemon.ctl("approve", identifier).returncode == 0
        assert daemon.phase() == "exempt"
        assert states(daemon) == {identifier: "approved"}
        wait_for(lambda: "not yet written to the requests" in str(daemon.status()["faults"]), "the fault in status")
        denied = daemon.ctl("deny", identifier, "--reason", "x", check=False)
        assert "was approved by root" in denied.stderr
        blocker.rmdir()
        wait_for(lambda: not daemon.status()["faults"], "no fault any more")
        daemon.restart()
        assert states(daemon) == {identifier: "approved"}
