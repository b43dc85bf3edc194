"""limiterctl, from the command line to the control socket and back: what is asked, what is shown, how it exits."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd import cli
from limiterd.core.keys import keys_of
from limiterd.core.model import ControlConfig, EventKind, Override
from limiterd.core.units import parse_wall
from limiterd.ctl import connect, effect, history, top, watch
from limiterd.ctl import override as overrides
from limiterd.ctl import request as requests
from limiterd.ctl import show_explain as explain
from limiterd.ctl import show_status as status
from limiterd.ctl.format import PLAIN, display_width
from limiterd.ctl.terminal import CLEAR_SCREEN, Terminal
from limiterd.daemon.verbs import VERBS
from limiterd.serve.control import ControlServer
from limiterd.serve.protocol import Answer, Call
from limiterd.store import audit
from limiterd.store import hash_chain as chain
from limiterd.store.audit import AuditTrail
from tests.ctl_server import ControlStub, Refusal
from tests.netns import wait_for

WALL = "2026-11-23T12:00:00.000Z"
NOW = 1_795_435_200.0
SCREEN = Terminal(is_terminal=True, width=80, palette=PLAIN, unicode=True)
DATA_VERBS = {"status", "top", "explain", "history", "reload", "limit", "release", "pause", "resume", "request", "requests"} | {
    "approve",
    "deny",
    "check",
}


def link(interface: str = "eth0", **changes: Any) -> dict[str, Any]:
    """A row of the status as the daemon gives it."""
    row: dict[str, Any] = {
        "interface": interface,
        "ifindex": 2,
        "policy": "fair-use",
        "mode": "enforce",
        "phase": "conforming",
        "rate_bps": 94_000_000,
        "pending_seconds": 0.0,
        "limit_bps": None,
        "since": None,
        "reason": None,
        "override": None,
        "strikes": 0,
        "tx_bytes": 10**12,
        "threshold_bps": 10**9,
        "window_s": 10.0,
        "limit_wanted_bps": None,
        "manual": False,
        "note": None,
        "release": None,
        "shaped": None,
    }
    return row | changes


LIMITED: dict[str, Any] = {
    "phase": "limited",
    "rate_bps": 199_700_000,
    "limit_bps": 200_000_000,
    "limit_wanted_bps": 200_000_000,
    "since": "2026-11-23T11:55:48.000Z",
    "reason": "sustained",
    "strikes": 2,
    "release": "approval",
    "shaped": {"sent_bytes": 6 * 10**9, "drops": 12_345, "overlimits": 88_888, "backlog_bytes": 248_000},
}


def document(*links: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A whole status."""
    whole: dict[str, Any] = {
        "version": "0.1.0",
        "wall": WALL,
        "started": "2026-11-23T09:00:00.000Z",
        "host": "gpu-7",
        "source": "netlink",
        "paused": False,
        "requests_pending": 0,
        "links": list(links),
        "faults": [],
        "overrides": [],
        "config": {"sha256": "ab" * 32, "error": None, "loaded": WALL},
    }
    return whole | changes


Ctl = Callable[..., int]


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[ControlStub]:
    """A daemon's stand-in with nothing to say but a status of one link."""
    with ControlStub(tmp_path / "control.sock", {"status": document(link())}) as made:
        yield made


@pytest.fixture
def ctl(stub: ControlStub) -> Ctl:
    """Runs limiterctl in this process against the stand-in."""
    return lambda *words: cli.main([*words, "--socket", str(stub.path)])


# ---- the table of verbs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_is_there(verb: str) -> None:
    """What the table names can be imported, takes --config and --socket, and has help for all that it takes."""
    made = cli.build_parser([verb])
    assert callable(cli.resolve(cli.VERBS[verb].run))
    parser = next(a for a in made._actions if isinstance(a, argparse._SubParsersAction)).choices[verb]
    assert {"--config", "--socket", "--help"} <= set(parser._option_string_actions)
    assert ("--json" in parser._option_string_actions) >= (verb in DATA_VERBS)
    assert all(a.help or a.metavar for a in parser._actions)


def test_help_and_version_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    """Asking for help or the version is no error, and every verb is in the help."""
    for words in (["--help"], ["--version"], ["status", "--help"]):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {verb} " in shown or f"\n    {verb}\n" in shown for verb in cli.VERBS)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["no-such-verb"],
        ["status", "--watch", "nan"],
        ["limit", "eth0"],
        ["limit", "eth0", "--rate", "200mbps", "--reason", "x"],
        ["limit", "eth0", "--rate", "0bit", "--reason", "x"],
        ["release", "--reason", "x"],
        ["release", "eth0", "--all", "--reason", "x"],
        ["history", "--limit", "0"],
        ["history", "--since", "yesterday"],
        ["override", "add", "--id", "A", "--interface", "eth0", "--until", "7d", "--reason", "x"],
        ["override", "add", "--id", "A", "--interface", "eth0", "--until", "7d", "--reason", "x", "--exempt", "--limit", "1gbit"],
        ["override", "add", "--id", "A", "--interface", "eth0", "--exempt", "--reason", "x"],
        ["override", "add", "--id", "A", "--interface", "eth0", "--exempt", "--until", "2026-12-31T00:00", "--reason", "x"],
        ["approve", "R-1", "--exempt", "--limit", "1gbit"],
    ],
)
def test_a_wrong_command_line_exits_2(words: list[str], ctl: Ctl) -> None:
    """Usage errors exit 2 before the daemon is told to do anything."""
    with pytest.raises(SystemExit) as end:
        ctl(*words)
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "/etc/x.yaml", "status"], "options come after the verb: limiterctl VERB --config"),
        (["--json", "status"], "options come after the verb: limiterctl VERB --json"),
        (["status", "--bogus"], "usage: limiterctl status"),
        (["override", "list", "--bogus"], "usage: limiterctl override"),
    ],
)
def test_a_misplaced_or_unknown_option_is_explained(
    words: list[str], said: str, ctl: Ctl, capsys: pytest.CaptureFixture[str]
) -> None:
    """The usage shown is the verb's own, and what stands before the verb is told its place."""
    with pytest.raises(SystemExit) as end:
        ctl(*words)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


# ---- reaching the daemon -----------------------------------------------------------------------------------------


def test_no_daemon_exits_3_and_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon the exit code is 3; one line says where it was looked for and how to find out more, one what goes on."""
    assert cli.main(["status", "--socket", str(tmp_path / "none")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert str(tmp_path / "none") in first
    assert "systemctl status limiterd" in first
    assert "limits in force stay in the kernel" in second


@pytest.mark.parametrize("exit_code", [1, 2, 77, 78])
def test_a_refusal_is_the_daemons_own(exit_code: int, stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon's exit code and words are limiterctl's."""

    def refuse(_: dict[str, Any]) -> dict[str, Any]:
        raise Refusal(exit_code, "a.yaml:3:7: interval: is too long\na.yaml:4:1: polices: unknown key")

    stub.answers["reload"] = refuse
    assert ctl("reload") == exit_code
    prefix = "" if exit_code == 78 else "limiterctl: "
    said = f"{prefix}a.yaml:3:7: interval: is too long\n{prefix}a.yaml:4:1: polices: unknown key"
    assert capsys.readouterr().err.startswith(said)


def test_a_refused_user_hears_of_the_groups() -> None:
    """Who is not permitted is told which groups are."""
    assert "control.admin_group" in connect.advise("you may not use the control socket", 77)


def test_the_configuration_names_the_socket(stub: ControlStub, tmp_path: Path) -> None:
    """Without --socket the path is the one that --config says."""
    config = tmp_path / "limiterd.yaml"
    config.write_text(f"control: {{socket: {stub.path}}}\n")
    config.chmod(0o600)
    assert cli.main(["status", "--config", str(config)]) == 0


def test_a_broken_configuration_does_not_hide_the_daemon(
    stub: ControlStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that cannot be used is noted, and the default socket is asked all the same."""
    config = tmp_path / "limiterd.yaml"
    config.write_text("control: [\nsocket: socket:\n")
    config.chmod(0o600)
    monkeypatch.setattr(connect, "DEFAULT_SOCKET", str(stub.path))
    assert cli.main(["status", "--config", str(config)]) == 0
    said = capsys.readouterr()
    assert "cannot be used" in said.err
    assert "eth0" in said.out


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", connect.DEFAULT_SOCKET),
        ("control: {socket: /a/b.sock, group: null}\n", "/a/b.sock"),
        ("control:\n  group: x\n  socket: '/a/b.sock' # here\n", "/a/b.sock"),
        ('control: {"socket": /a/b.sock}\n', None),
        ("# socket: /old\ncontrol: {socket: /a/b.sock}   # socket: /other\n", "/a/b.sock"),
        ("policies: [ broken\ncontrol: {socket: /a/b.sock}\n", "/a/b.sock"),
        ("control: {socket: /a/b.sock}\ncontrol: {socket: /c}\n", None),
        ("control: {socket: &x /a}\n", None),
        ('control: {socket: "/a\\x20b"}\n', None),
        ("control:\n  socket:\n    /a/b.sock\n", None),
        ("control: {socket: /a b/c}\n", None),
    ],
)
def test_the_sockets_path_is_found_in_plain_text(text: str, path: str | None) -> None:
    """A plainly written path is found without YAML, also in a file that is broken elsewhere; all else is left to the loader."""
    assert connect.socket_in(text) == path


@pytest.mark.parametrize("option", ["--socket", "--config"])
def test_status_loads_only_what_it_needs(option: str, stub: ControlStub, tmp_path: Path) -> None:
    """Status pulls in neither YAML nor rich nor psutil nor the engine: it is to answer at once."""
    config = tmp_path / "limiterd.yaml"
    config.write_text(f"control: {{socket: {stub.path}}}\n")
    script = (
        "import sys; from limiterd import cli; assert cli.main(sys.argv[1:]) == 0; "
        "heavy = {'yaml', 'rich', 'psutil', 'pyroute2', 'prometheus_client', 'limiterd.core.engine', 'limiterd.config.load'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    where = stub.path if option == "--socket" else config
    command = [sys.executable, "-c", script, "status", option, str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- being a good neighbour in a pipe --------------------------------------------------------------------------


def limiterctl(*words: str, **options: Any) -> subprocess.Popen[str]:
    """limiterctl as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "limiterd.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_reader_that_leaves_is_no_error(stub: ControlStub) -> None:
    """`limiterctl … | head` ends quietly when head has seen enough."""
    stub.answers["status"] = document(*(link(f"eth{i}") for i in range(5000)))
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "limiterd.cli", "status", "--socket", str(stub.path)],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_is_quiet(stub: ControlStub) -> None:
    """Ctrl-C ends --watch with 130 and no word."""
    with limiterctl("status", "--watch", "0.1", "--socket", str(stub.path)) as process:
        wait_for(lambda: len(stub.asked) >= 2, "two rounds of --watch")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "")


def test_a_pipe_gets_no_colour(stub: ControlStub) -> None:
    """Without a terminal there is not one escape sequence."""
    with limiterctl("status", "--socket", str(stub.path)) as process:
        shown, _ = process.communicate(timeout=20)
    assert "eth0" in shown
    assert "\x1b" not in shown


def test_a_locale_without_unicode_is_no_error(stub: ControlStub) -> None:
    """In the C locale everything still prints."""
    stub.answers["explain"] = {
        "link": link(),
        "samples": [[0, 0], [10**9, 10**8]],
        "lift": ["écrire à l'exploitant"],
        "wall": WALL,
    }
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with limiterctl("explain", "eth0", "--socket", str(stub.path), env=environment) as process:
        shown, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")
    assert shown.isascii()


# ---- status --------------------------------------------------------------------------------------------------------


def test_status_shows_each_phase_truthfully() -> None:
    """One row a link: what it does, its limit or its timer, since when, and why."""
    lines = status.render(
        document(
            link(),
            link("eth1", **LIMITED),
            link("eth2", phase="pending", rate_bps=1_230_000_000, pending_seconds=6.21),
            link("eth3", phase="exempt", override="REQ-1"),
            link("eth4", phase="fault", limit_wanted_bps=200_000_000, reason="guard", strikes=1),
            link("eth5", phase="absent", ifindex=0),
            link("eth6", mode="observe"),
        )
    )
    fields = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert fields["eth0"] == ["conforming", "94mbit", "-", "-", "-", "-", "-"]
    assert fields["eth1"][:3] == ["limited", "200mbit", "200mbit"]
    assert fields["eth1"][-4:] == ["(4m)", "2", "-", "sustained"]
    assert fields["eth2"][:5] == ["pending", "1.23gbit", "6.2s", "of", "10s"]
    assert fields["eth3"] == ["exempt", "94mbit", "none", "-", "-", "REQ-1", "-"]
    assert fields["eth4"][:4] == ["fault", "94mbit", "due", "200mbit"]
    assert fields["eth5"] == ["absent", "-", "-", "-", "-", "-", "-"]
    assert fields["eth6"][2] == "observe"


def rows_of(lines: list[str]) -> list[str]:
    """The interfaces of the table's rows, in their order."""
    header = next(place for place, line in enumerate(lines) if line.startswith("INTERFACE"))
    return [line.split()[0] for line in lines[header + 1 :] if line and not line.startswith((" ", "…"))]


def test_status_begins_with_what_runs_and_the_policy() -> None:
    """The head says which limiterd, where, since when, how many links are in which phase, and the policy in words."""
    lines = status.render(document(link(policy_limit_bps=200_000_000), link("eth1", **LIMITED), link("eth2")))
    assert lines[0] == "limiterd 0.1.0 on gpu-7, up 3h: 3 links: 1 limited, 2 conforming"
    assert lines[1] == "fair-use: 1gbit or more for more than 10s is limited to 200mbit"


def test_status_shows_problems_first_and_names_in_their_order() -> None:
    """Faults, limits and pending links stand above the rest; eth2 stands before eth10."""
    links = [link("eth10"), link("eth2"), link("eth11", **LIMITED), link("eth3", phase="pending"), link("eth12", phase="fault")]
    assert rows_of(status.render(document(*links))) == ["eth12", "eth11", "eth3", "eth2", "eth10"]


def test_many_conforming_links_are_folded_into_a_line() -> None:
    """Above 20 rows the conforming ones give way to one line that names the fastest; --all and --phase show them."""
    links = [link(f"eth{i}", rate_bps=i * 10**6) for i in range(40)]
    data = document(*links, link("tap7", **LIMITED))
    lines = status.render(data)
    assert rows_of(lines[:-1]) == ["tap7"]
    assert lines[-1] == "40 conforming links not shown, the fastest eth39 at 39mbit (--all)"
    assert len(rows_of(status.render(data, every=True))) == 41
    assert rows_of(status.render(data, phases=["limited"])) == ["tap7"]
    assert len(rows_of(status.render(data, phases=["conforming"]))) == 40
    assert status.render(data, phases=["fault"])[-1] == "No link is in phase fault."
    assert len(rows_of(status.render(document(*links[:20])))) == 20


def test_a_watched_screen_keeps_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    """Under --watch what does not fit on the screen is counted in its last line, and the head stays."""
    ns = argparse.Namespace(watch=1.0, json=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "terminal", lambda: replace(SCREEN, height=10))
        watch.show(ns, {}, lambda _: [f"line {i}" for i in range(30)])
    shown = capsys.readouterr().out.removeprefix(CLEAR_SCREEN).splitlines()
    assert len(shown) == 9
    assert (shown[0], shown[-1]) == ("line 0", "… 22 more lines: make the window taller, or ask for less (--phase, IFACE)")


NAMES = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=15)


@given(
    st.lists(NAMES, max_size=4, unique=True),
    st.sampled_from(["absent", "conforming", "pending", "limited", "exempt", "fault"]),
    st.integers(0, 10**14),
    st.text(max_size=40),
    st.text(max_size=200),
    st.integers(0, 999),
)
def test_status_fits_80_columns_and_cannot_be_used_against_the_terminal(
    names: list[str], phase: str, rate_bps: int, override: str, message: str, strikes: int
) -> None:
    """Whatever names, ids and messages hold, no line has a control character; with plain names none is wider than 80."""
    row = {"phase": phase, "rate_bps": rate_bps, "limit_bps": rate_bps, "override": override, "since": WALL, "strikes": strikes}
    fault = {"interface": "eth0", "reason": "other", "message": message, "since": WALL, "warning": True}
    plain = status.render(document(*(link(f"enp0s31f6np{i}", **row) for i, _ in enumerate(names)), faults=[fault], paused=True))
    assert all(display_width(line) <= 80 for line in plain)
    odd = status.render(document(*(link(name, **row) for name in names), faults=[fault]))
    assert all(line.isprintable() for line in [*plain, *odd])


def test_status_names_everything_that_is_not_well() -> None:
    """Faults, a refused reload, a pause and waiting requests are below the table."""
    fault = {
        "interface": "eth0",
        "reason": "permission",
        "message": "eth0: EPERM",
        "since": "2026-11-23T11:00:00Z",
        "warning": False,
    }
    config = {"sha256": "x", "error": "a.yaml:3:7: bad\na.yaml:4:1: worse", "loaded": WALL}
    data = document(link(), faults=[fault], config=config, paused=True, requests_pending=2)
    shown = " ".join(" ".join(status.render(data)).split())
    assert "fault (permission): eth0: EPERM (since 2026-11-23 11:00:00" in shown
    assert "a.yaml:3:7: bad (and 1 more problem). See: limiterctl check" in shown
    assert "paused: no new limit is imposed" in shown
    assert "2 increase requests wait for an answer" in shown


def test_an_override_that_ended_or_ends_soon_is_told_where_it_is_felt() -> None:
    """A limited link whose override has expired lately says so; so does one that expires within a day; others are silent."""
    item = {"id": "REQ-7", "links": ["eth0"], "effective_on": [], "state": "expired", "expires": NOW - 240}
    assert "REQ-7 expired" in " ".join(status.render(document(link(**LIMITED), overrides=[item])))
    assert "REQ-7" not in " ".join(status.render(document(link(), overrides=[item])))
    assert "REQ-7" not in " ".join(status.render(document(link(**LIMITED), overrides=[item | {"expires": NOW - 8 * 86_400}])))
    soon = item | {"state": "active", "effective_on": ["eth0"], "expires": NOW + 3600}
    exempt = link(phase="exempt", override="REQ-7")
    assert "expires 2" in " ".join(status.render(document(exempt, overrides=[soon])))
    assert "expires 2" not in " ".join(status.render(document(exempt, overrides=[soon | {"expires": NOW + 2 * 86_400}])))


def test_status_of_one_link_is_the_link_in_detail() -> None:
    """`status IFACE` says in a sentence what the phase means, then the facts with both times."""
    lines = status.render(document(link("eth1", **LIMITED)), interface="eth1")
    shown = "\n".join(lines)
    assert lines[0] == "eth1 is limited to 200mbit (read back from the kernel)."
    assert "(4m12s ago)" in shown
    assert "limiterctl explain eth1" in shown
    assert "12.3k packets dropped" in shown


@pytest.mark.parametrize(
    ("mode", "words"), [("enforce", "eth0 will be limited if it goes on"), ("observe", "would be limited, were its policy not")]
)
def test_a_pending_link_says_what_comes_next(mode: str, words: str) -> None:
    """Pending under an enforcing policy is a warning, under an observing one a remark."""
    assert words in status.headline(link(phase="pending", mode=mode, pending_seconds=3.0))


def test_status_json_is_the_daemons_own(ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints what the daemon said, all of it."""
    assert ctl("status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == document(link())


def test_an_absent_link_shows_the_limit_that_waits_for_it() -> None:
    """A limit outlives a short absence: what it was, since when, and that it will be in force again."""
    row = link(phase="absent", limit_wanted_bps=3_000_000, since=WALL, reason="operator", strikes=1, manual=True)
    shown = " ".join(" ".join(status.render(document(row))).split())
    assert "absent - due 3mbit" in shown
    detail = " ".join(" ".join(status.render(document(row), interface="eth0")).split())
    assert "it was limited, and will be limited to 3mbit again when it returns" in detail
    assert "What lifts the limit that is due" in explain.render({"link": row, "lift": ["a way"]}, SCREEN)


def test_only_the_latest_end_of_an_override_is_told_and_not_for_a_limit_by_hand() -> None:
    """Of the overrides that have ended on a link the last one is news; what a hand has limited no override would free."""
    first = {"id": "REQ-1", "expires": NOW - 5 * 86_400, "state": "expired", "links": ["eth0"]}
    last = first | {"id": "REQ-2", "expires": NOW - 3600}
    shown = " ".join(status.render(document(link(**LIMITED), overrides=[first, last])))
    assert "REQ-2 expired" in shown
    assert "REQ-1" not in shown
    assert "expired" not in " ".join(status.render(document(link(**LIMITED | {"manual": True}), overrides=[first, last])))


def test_an_unwatched_link_exits_1(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for a link that no policy watches, status says so and fails."""
    stub.answers["status"] = document()
    assert ctl("status", "eth9") == 1
    assert "eth9 is not watched" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [("status",), ("explain", "eth0")])
def test_each_round_of_watch_reaches_a_pipe_at_once(verb: tuple[str, ...], stub: ControlStub) -> None:
    """What is printed does not wait in a buffer for later rounds."""
    stub.answers["explain"] = {"link": link(), "wall": WALL}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with limiterctl(*verb, "--watch", "3600", "--socket", str(stub.path), env=environment) as process:
        assert process.stdout is not None
        assert any("eth0" in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_watch_survives_a_daemon_that_goes_away(tmp_path: Path) -> None:
    """--watch goes on asking while the daemon is down, and shows it again when it is back."""
    path = tmp_path / "control.sock"
    with limiterctl("status", "--watch", "0.1", "--json", "--socket", str(path)) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert "systemctl" in process.stderr.readline()
        with ControlStub(path, {"status": document(link())}):
            assert json.loads(process.stdout.readline())["host"] == "gpu-7"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


# ---- top -----------------------------------------------------------------------------------------------------------


def heard(*statuses: dict[str, Any]) -> top.Board:
    """A board that heard these, a second apart."""
    board = top.Board()
    for second, data in enumerate(statuses):
        board.hear(data, 100.0 + second, NOW + second)
    return board


def test_top_fits_an_80x24_terminal() -> None:
    """However many links there are, the frame is at most 24 lines of 80 columns and keeps the keys in sight."""
    board = heard(*[document(*(link(f"eth{i}", **(LIMITED if i % 3 else {})) for i in range(40)), paused=True)] * 90)
    lines = top.frame(board, SCREEN, 24, "r", NOW)
    assert len(lines) <= 24
    assert all(display_width(line) <= 80 for line in lines)
    assert "q quit" in lines[-1]
    assert any("more lines" in line for line in lines)


@pytest.mark.parametrize(("sort", "order"), [("r", ["b", "c", "a"]), ("n", ["a", "b", "c"]), ("p", ["c", "a", "b"])])
def test_top_sorts(sort: str, order: list[str]) -> None:
    """By rate, by name, or the gravest phase first."""
    board = heard(document(link("b", rate_bps=9), link("a", rate_bps=1, phase="pending"), link("c", rate_bps=5, phase="fault")))
    lines = top.frame(board, SCREEN, 0, sort, NOW)
    assert [line.split()[0] for line in lines[3:6]] == order


def test_top_shows_what_waits_behind_a_limit() -> None:
    """A limited link has a second line: the queue, and the drops of the last second."""
    later = LIMITED | {"shaped": LIMITED["shaped"] | {"drops": 12_445}}
    board = heard(document(link(**LIMITED)), document(link(**later)))
    demand = next(line for line in top.frame(board, SCREEN, 24, "r", NOW) if "queued" in line)
    assert "248kB queued, 100 drops/s" in demand


def test_top_survives_a_daemon_restart() -> None:
    """While the daemon is away the last figures stay, marked as old, with a gap in the charts; then it goes on."""
    board = heard(document(link()))
    board.miss("limiterd cannot be reached at /run/x; is limiterd running?")
    shown = " ".join(top.frame(board, SCREEN, 24, "r", NOW + 8))
    assert "are of 8s ago" in shown
    assert "eth0" in shown
    assert list(board.tracks["eth0"].rates) == [94_000_000, None]
    board.hear(document(link()), 110.0, NOW + 10)
    assert list(board.tracks["eth0"].rates) == [94_000_000, None, 94_000_000]
    assert "cannot be reached" not in " ".join(top.frame(board, SCREEN, 24, "r", NOW + 10))


def test_top_starts_a_new_chart_for_a_new_link() -> None:
    """The same name with another ifindex is another link."""
    board = heard(document(link()), document(link(ifindex=7)))
    assert len(board.tracks["eth0"].rates) == 1


def test_top_as_json_is_the_status_once(ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints what `status --json` does, and no live screen."""
    assert ctl("top", "--json") == 0
    assert json.loads(capsys.readouterr().out) == document(link())


def test_top_without_a_terminal_prints_one_frame(ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe top is a single picture."""
    assert ctl("top") == 0
    assert "eth0" in capsys.readouterr().out


# ---- explain, history -----------------------------------------------------------------------------------------------


def explanation(**changes: Any) -> dict[str, Any]:
    """What the daemon says of a limited link."""
    samples = [[i * 10**8, i * 15_000_000] for i in range(104)]
    return {
        "link": link("eth1", **LIMITED),
        "detect": {"threshold_bps": 10**9, "window_s": 10.0, "slice_s": 1.0, "floor_percent": 80.0},
        "samples": samples,
        "conditions": [
            {"name": "flanks", "holds": True, "is": "first interval 1.2gbit, last 1.2gbit", "needs": "both at least 1gbit"},
            {"name": "length", "holds": True, "is": "10.1s", "needs": "at least 10s"},
        ],
        "firing": {
            "at": WALL,
            "reason": "sustained",
            "mean_bps": 1_200_000_000,
            "peak_bps": 1_300_000_000,
            "threshold_bps": 10**9,
        },
        "evidence": None,
        "lift": ["an operator's command: limiterctl release eth1 --reason '…'"],
        "override": None,
        "faults": [],
        "wall": WALL,
    } | changes


def test_explain_answers_in_the_order_of_the_questions() -> None:
    """What it is, what was seen, which conditions held, what lifts it."""
    lines = explain.render(explanation(), SCREEN)
    shown = " ".join(" ".join(lines).split())
    order = [
        "eth1 is limited to 200mbit",
        "What was seen",
        "mean 1.2gbit, peak 1.3gbit",
        "yes length 10.1s",
        "What lifts it",
        "release eth1",
    ]
    assert [shown.index(words) for words in order] == sorted(shown.index(words) for words in order)
    assert all(display_width(line) <= 80 for line in lines)


def test_a_flows_process_has_a_user_with_a_name() -> None:
    """A uid that this machine knows is shown with its name, another one as the number."""
    assert explain.process({"process": {"pid": 7, "name": "rsync", "uid": 0}}) == "rsync (pid 7, user root, uid 0)"
    assert explain.process({"process": "gone", "uid": 4_000_000_000}) == "a process that is gone (uid 4000000000)"


def test_explain_of_a_limit_set_by_hand_blames_no_traffic() -> None:
    """Who set it and why is the explanation; an earlier firing is none, and told as the past."""
    by_hand = LIMITED | {"manual": True, "reason": "operator", "note": "abuse report 77"}
    past = {"at": WALL, "text": "sent 1.2gbit on average"}
    data = explanation(link=link("eth1", **by_hand), samples=[], conditions=[], firing=None, last_firing=past)
    shown = "\n".join(explain.render(data, SCREEN))
    assert "The last firing, which limits nothing now" in shown
    assert "set by hand (abuse report 77)" in shown
    assert "What was seen" not in shown
    assert "What lifts it" in shown


def test_explain_of_a_fault_says_what_stands_there_and_what_to_do() -> None:
    """The fault comes first, then what to do, then why the limit is due."""
    fault = {
        "interface": "eth1",
        "reason": "foreign_qdisc",
        "message": "eth1: root qdisc tbf 8001: is not limiterd's",
        "since": WALL,
    }
    data = explanation(link=link("eth1", **LIMITED | {"phase": "fault"}), faults=[fault], remedies=["tc qdisc del dev eth1 root"])
    lines = explain.render(data, SCREEN)
    places = [next(i for i, line in enumerate(lines) if words in line) for words in ("tbf 8001:", "qdisc del", "seen", "lifts")]
    assert places == sorted(places)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda i: (
            st.lists(i)
            | st.dictionaries(
                st.sampled_from(
                    ["link", "firing", "evidence", "flows", "samples", "lift", "conditions", "interface", "phase", "name"]
                ),
                i,
            )
        ),
        max_leaves=20,
    )
)
def test_explain_shows_whatever_it_gets(data: Any) -> None:
    """Missing, odd or hostile fields never break the text nor reach the terminal as control characters."""
    lines = explain.render(data if isinstance(data, dict) else {"link": data}, SCREEN, now=NOW)
    assert all(line.isprintable() for line in lines)


def test_history_asks_for_what_was_wanted(stub: ControlStub, ctl: Ctl) -> None:
    """Filters go to the daemon; times may be written as ages."""
    stub.answers["history"] = {"entries": []}
    words = ["eth0", "--kind", "limit", "--kind", "released", "--since", "2026-11-23T03:00:00Z", "--limit", "5"]
    assert ctl("history", *words) == 0
    assert stub.asked == [
        ("history", {"limit": 5, "interface": "eth0", "kinds": ["limit", "released"], "since": "2026-11-23T03:00:00Z"})
    ]


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_fits_its_column(kind: EventKind) -> None:
    """The longest kind of event leaves the sentences aligned and within 80 columns."""
    entry = {"wall": WALL, "kind": str(kind), "interface": "", "fields": {"text": "override REQ-1 expires soon; renew it " * 3}}
    _, *lines = history.render({"entries": [entry]}, now=NOW + 86_400)
    assert all(display_width(line) <= 80 for line in lines)
    assert {line[: 16 + history.KIND_WIDTH].strip() for line in lines[1:]} == {""}
    assert lines[0].index("override REQ-1") == 16 + history.KIND_WIDTH


def test_history_tells_each_entry_in_the_daemons_words() -> None:
    """An entry shows its time, its age, its kind, its link and the sentence that was written down, or else its fields."""
    entries = [
        {
            "wall": "2026-11-23T11:58:20Z",
            "kind": "limit",
            "interface": "eth1",
            "fields": {"text": "sent too much", "mean_bps": 1},
        },
        {"wall": "2026-11-22T11:00:00Z", "kind": "config", "interface": "", "fields": {"by": "root", "rate_bps": 2 * 10**9}},
    ]
    lines = history.render({"entries": entries}, now=NOW)
    assert "limit             eth1: sent too much" in lines[1]
    assert "1m" in lines[1]
    assert "by root, rate 2gbit" in lines[-1]


def test_idle_reloads_in_a_row_are_one_line() -> None:
    """A thousand signals that changed nothing hide nothing else; reloads that changed something are all shown."""

    def reloaded(second: int, *changes: str) -> dict[str, Any]:
        text = f"SIGHUP reloaded: {'; '.join(changes) or 'nothing changed'}"
        wall = f"2026-11-23T11:58:{second:02d}Z"
        return {"wall": wall, "kind": "reload", "interface": "", "fields": {"text": text, "changes": list(changes)}}

    entries = [*(reloaded(second) for second in range(9, 5, -1)), reloaded(5, "~ a"), reloaded(4, "~ b"), reloaded(3)]
    shown = [line.split("reload ", 1)[1].strip() for line in history.render({"entries": entries}, width=200, now=NOW)[1:]]
    assert shown == [
        "SIGHUP reloaded: nothing changed (4 times in a row)",
        "SIGHUP reloaded: ~ a",
        "SIGHUP reloaded: ~ b",
        "SIGHUP reloaded: nothing changed",
    ]


def test_an_unknown_kind_is_a_usage_error(ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error must not look like an empty history; the nearest kind is named."""
    with pytest.raises(SystemExit) as refused:
        ctl("history", "--kind", "relased")
    assert refused.value.code == 2
    assert "'relased' is not a kind of entry; did you mean released?" in capsys.readouterr().err


def test_every_kind_that_is_written_is_known() -> None:
    """No part of the program writes an entry of a kind that `history --kind` would refuse."""
    package = Path(cli.__file__).parent
    sources = [package / "store" / "audit.py", package / "store" / "hash_chain.py", *(package / "daemon").glob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    written = set(re.findall(r'(?:\.append|tell|body_of|\bAct)\((?:[^"()]|\(\))*"([a-z_]+)",\s', text)) | set(
        re.findall(r'kind="([a-z_]+)"', text)
    )
    assert {"start", "override_added", "request_denied", "lost"} <= written
    assert written <= history.KINDS


def test_history_without_a_daemon_reads_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When the daemon is down its trail is still read and verified, if --config names it; elsewhere the exit code is 3."""
    state = tmp_path / "state"
    trail = AuditTrail(state)
    trail.append("start", "", {"text": "limiterd started"})
    head = trail.append("limit", "eth0", {"text": "sent too much"})
    assert trail.close()
    config = tmp_path / "limiterd.yaml"
    config.write_text(f"state: {{directory: {state}}}\ncontrol: {{socket: {tmp_path}/none.sock}}\n")
    config.chmod(0o600)
    assert cli.main(["history", "eth0", "--since", "2020-01-01", "--config", str(config)]) == 0
    said = capsys.readouterr()
    assert "eth0: sent too much" in said.out
    assert "started" not in said.out
    assert f"reading the files in {state} instead" in said.err
    assert cli.main(["history", "--head", head, "--config", str(config)]) == 0
    assert "intact: 2 entries" in capsys.readouterr().out
    assert cli.main(["history", "--head", "0a" * 32, "--config", str(config)]) == 1
    assert "the chain is intact, but does not hold a head that it should" in capsys.readouterr().out
    assert cli.main(["history", "--socket", str(tmp_path / "none.sock"), "--config", str(config)]) == 3
    (state / "audit.jsonl").unlink()
    assert cli.main(["history", "--config", str(config)]) == 3


def test_history_searches_at_its_own_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the daemon's look leaves open is found in the files that it passes, in order and once; so is a verdict."""
    monkeypatch.setattr(audit, "NEWEST", chain.Look(lines=10, size_bytes=1 << 20))
    trail = AuditTrail(tmp_path / "state")
    heads = [trail.append("limit" if number % 7 == 0 else "noted", "eth0", {"text": f"entry {number}"}) for number in range(50)]
    assert trail.close()
    daemon = types.SimpleNamespace(audit=trail, refusals=AuditTrail(tmp_path / "refused", name="refusals"))

    def answer(asked: Call) -> Answer:
        found = VERBS[asked.verb](daemon, asked.args, asked.peer)
        return found if isinstance(found, Answer) else Answer(ok=True, data=found)

    server = ControlServer(ControlConfig(str(tmp_path / "control.sock")), answer)
    server.start()
    to = ["--socket", str(tmp_path / "control.sock")]
    assert cli.main(["history", "--kind", "limit", "--json", *to]) == 0
    told = [entry["fields"]["text"] for entry in json.loads(capsys.readouterr().out)["entries"]]
    assert told == [f"entry {number}" for number in range(49, -1, -7)]
    assert cli.main(["history", "--kind", "limit", "--limit", "3", "--json", *to]) == 0
    assert len(json.loads(capsys.readouterr().out)["entries"]) == 3
    assert cli.main(["history", "--head", heads[20], *to]) == 0
    assert "intact: 50 entries" in capsys.readouterr().out
    (tmp_path / "state" / chain.FILE_NAME).write_bytes(b"")
    assert cli.main(["history", "--verify", *to]) == 1
    assert "what this daemon wrote last" in " ".join(capsys.readouterr().out.split())
    server.close()


@pytest.mark.parametrize("code", [0, 1])
def test_verify_exits_by_the_verdict(code: int, stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """An intact trail is 0 and shows its head; a changed one is 1 and shows where."""
    intact = code == 0
    findings = [] if intact else ["audit.jsonl:3: altered"]
    stub.answers["history.verify"] = {"ok": intact, "entries": 7, "head": "abc", "findings": findings, "notes": []}
    assert ctl("history", "--verify") == code
    assert ("head abc" if intact else "audit.jsonl:3: altered") in capsys.readouterr().out


def test_verify_asks_for_the_expected_head(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """--head alone verifies too, in either case of letters, and is shown where the trail holds it; no hash is a usage error."""
    head = "0a" * 32
    stub.answers["history.verify"] = {"ok": True, "entries": 7, "head": "abc", "findings": [], "notes": []}
    assert ctl("history", "--head", head.upper()) == 0
    assert stub.asked == [("history.verify", {"head": head})]
    assert f"it holds the expected {head}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as refused:
        ctl("history", "--head", "abc")
    assert refused.value.code == 2


# ---- an operator's hand ----------------------------------------------------------------------------------------------


def test_limit_waits_until_the_kernel_shows_it(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends when the status says limited, and says how soon that was."""
    rows = iter([link(), link(), link(**LIMITED), link(**LIMITED)])
    stub.answers |= {"status": lambda _: document(next(rows)), "limit": {"link": link()}}
    assert ctl("limit", "eth0", "--rate", "200mbit", "--reason", "abuse") == 0
    assert ("limit", {"interface": "eth0", "reason": "abuse", "rate_bps": 200_000_000}) in stub.asked
    assert "eth0: limited to 200mbit" in capsys.readouterr().out


def test_a_limit_at_another_rate_is_told(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an override makes it another rate than the one asked for, that is said and the exit code is 1."""
    stub.answers |= {"status": document(link(**LIMITED | {"override": "REQ-9"})), "limit": {}}
    assert ctl("limit", "eth0", "--rate", "10mbit", "--reason", "abuse") == 1
    assert "limited to 200mbit, not to 10mbit: override REQ-9 sets the limit" in capsys.readouterr().err


def test_a_limit_that_becomes_a_fault_exits_1(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit that the kernel refuses is no success."""
    rows = iter([link(), link(phase="fault"), link(phase="fault")])
    stub.answers |= {"status": lambda _: document(next(rows)), "limit": {}}
    assert ctl("limit", "eth0", "--reason", "abuse") == 1
    assert "limiterctl explain eth0" in capsys.readouterr().out


def test_release_waits_until_the_limit_is_gone(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """Releasing all ends when nothing is limited any more; each link is named."""
    limited, free = document(link("a", **LIMITED), link("b", **LIMITED)), document(link("a"), link("b"))
    answers = iter([limited, limited, free, free])
    stub.answers |= {"status": lambda _: next(answers), "release": {}}
    assert ctl("release", "--all", "--reason", "maintenance") == 0
    shown = capsys.readouterr().out
    assert "a: limit lifted" in shown
    assert "b: limit lifted" in shown


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_pause_and_resume_carry_the_reason(verb: str, stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """What is paused or resumed is said in a sentence, and why goes along."""
    stub.answers[verb] = {"paused": verb == "pause"}
    assert ctl(verb, "--reason", "drill") == 0
    assert stub.asked == [(verb, {"reason": "drill"})]
    assert capsys.readouterr().out.startswith(f"{verb}d:")


def test_reload_prints_what_changed(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """Every change is a line; none is said as such."""
    stub.answers["reload"] = {
        "changes": ["+ override REQ-1 eth0 exempt until 2026-12-31", "~ policy fair-use limit 200mbit → 300mbit"]
    }
    assert ctl("reload") == 0
    assert capsys.readouterr().out.splitlines() == stub.answers["reload"]["changes"]  # type: ignore[index]
    stub.answers["reload"] = {"changes": []}
    assert ctl("reload") == 0
    assert "nothing changed" in capsys.readouterr().out


# ---- overrides and requests --------------------------------------------------------------------------------------------


def test_override_add_sends_the_record_as_a_file_would_have_it(
    stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags become the record's keys; what follows on the links is watched and told."""
    rows = iter([link(**LIMITED), link(phase="exempt", override="REQ-1")])
    answer = {"changes": ["+ override REQ-1 eth* exempt"], "warnings": ["eth1: goes before override A"], "in_force_on": ["eth0"]}
    stub.answers |= {"status": lambda _: document(next(rows)), "override.add": answer}
    words = [
        "--id",
        "REQ-1",
        "--interface",
        "eth*",
        "--exempt",
        "--until",
        "2026-12-31",
        "--approved-by",
        "me",
        "--reason",
        "why",
    ]
    assert ctl("override", "add", *words) == 0
    (record,) = [args["record"] for verb, args in stub.asked if verb == "override.add"]
    assert record == {
        "id": "REQ-1",
        "interfaces": ["eth*"],
        "action": "exempt",
        "expires": "2026-12-31",
        "approved_by": "me",
        "reason": "why",
    }
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["+ override REQ-1 eth* exempt", "eth1: goes before override A"]
    assert shown[2].startswith("eth0: limit lifted")


def test_a_record_that_does_not_come_true_is_told(
    stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link on which it is in force and that stays as it was is named; one on which it is not in force is not waited for."""
    monkeypatch.setattr(effect, "PATIENCE_S", 0.0)
    words = ("--id", "A", "--interface", "eth*", "--limit", "1gbit", "--until", "1h", "--reason", "x")
    stub.answers |= {"status": document(link(**LIMITED)), "override.add": {"in_force_on": ["eth0"]}}
    assert ctl("override", "add", *words) == 0
    assert capsys.readouterr().out == "eth0: still limited to 200mbit after 2 s; see: limiterctl explain eth0\n"
    stub.answers["override.add"] = {"in_force_on": [], "changes": ["+ override A"]}
    assert ctl("override", "add", *words) == 0
    assert capsys.readouterr().out == "+ override A\n"


def test_override_add_with_rates(stub: ControlStub, ctl: Ctl) -> None:
    """A threshold and a limit keep the words that they were written in; never is an expiry."""
    stub.answers["override.add"] = {}
    words = [
        "--id",
        "A",
        "--interface",
        "eth0",
        "--host",
        "gpu-*",
        "--threshold",
        "5gbit",
        "--limit",
        "1gbit",
        "--never",
        "--reason",
        "x",
    ]
    assert ctl("override", "add", *words) == 0
    (record,) = [args["record"] for verb, args in stub.asked if verb == "override.add"]
    assert record["action"] == "limit"
    assert (record["threshold"], record["limit"], record["expires"], record["hosts"]) == ("5gbit", "1gbit", "never", ["gpu-*"])


def test_until_counts_from_the_begin(stub: ControlStub, ctl: Ctl) -> None:
    """A duration after --from counts from there, whatever the order of the options; a date stays the date."""
    stub.answers["override.add"] = {}
    words = ["--id", "A", "--interface", "eth0", "--exempt", "--reason", "x"]
    for times in ("--from 2999-12-20 --until 1w1d", "--until 8d --from 2999-12-20", "--from 2999-12-20 --until 2999-12-28"):
        assert ctl("override", "add", *words, *times.split()) == 0
    ends = [parse_wall(str(args["record"]["expires"])) for verb, args in stub.asked if verb == "override.add"]
    assert ends == [parse_wall("2999-12-28")] * 3


def test_wrong_times_name_the_options(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """What limiterctl sees itself, and what the daemon refuses, is told with the names of the options."""
    words = ["--id", "A", "--interface", "eth0", "--exempt", "--reason", "x"]
    with pytest.raises(SystemExit) as caught:
        ctl("override", "add", *words, "--from", "2999-12-20", "--until", "2999-12-19")
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert "--until 2999-12-19T00:00:00Z must come after --from 2999-12-20T00:00:00Z" in err
    with pytest.raises(SystemExit):
        ctl("override", "add", *words, "--until", "2999-12-19T00:00:00+0100")
    assert "lacks its colon; write +01:00" in capsys.readouterr().err
    assert not [verb for verb, _ in stub.asked if verb == "override.add"]


def test_a_refusal_names_options_for_keys() -> None:
    """The daemon speaks of keys, as files have them."""
    refused = "expires: is past\ninterfaces[0]: can match no interface\noverride A: not_before: x\nreason: too long"
    assert overrides.by_option(refused) == (
        "--until: is past\n--interface: can match no interface\noverride A: --from: x\n--reason: too long"
    )


def test_every_key_of_a_record_has_its_option() -> None:
    """A new key of a record needs no other place to be given on the command line."""
    parser = argparse.ArgumentParser()
    overrides.override_arguments(parser)
    add = parser._subparsers._group_actions[0].choices["add"]  # type: ignore[union-attr,index]
    options = {option for action in add._actions for option in action.option_strings}
    assert {key.option for key in keys_of(Override).values()} <= options


def test_extend_asks_the_daemon(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """The end as a time, or never; what changed is printed."""
    stub.answers["override.extend"] = {"changes": ["~ override REQ-1 expires a → b"]}
    assert ctl("override", "extend", "REQ-1", "--until", "2999-12-31") == 0
    assert ctl("override", "extend", "REQ-1", "--never", "--reason", "x") == 0
    asked = [args for verb, args in stub.asked if verb == "override.extend"]
    assert asked == [{"id": "REQ-1", "until": "2999-12-31"}, {"id": "REQ-1", "until": "never", "reason": "x"}]
    assert "~ override REQ-1 expires a → b" in capsys.readouterr().out


def test_socket_may_stand_before_or_after_the_action(stub: ControlStub) -> None:
    """`override --socket X list` and `override list --socket X` ask the same daemon."""
    stub.answers["override.list"] = {"overrides": []}
    assert cli.main(["override", "--socket", str(stub.path), "list"]) == 0
    assert cli.main(["override", "list", "--socket", str(stub.path)]) == 0


def test_override_revoke_tells_what_became_of_its_links(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate that the record had changed goes back, which is awaited and said after what the daemon says."""
    wide = LIMITED | {"override": "REQ-1", "limit_bps": 10**9}
    rows = iter([link(**wide), link(**wide), link(**LIMITED)])
    stub.answers |= {"status": lambda _: document(next(rows)), "override.revoke": {"changes": ["- override REQ-1 eth0"]}}
    assert ctl("override", "revoke", "REQ-1") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "- override REQ-1 eth0"
    assert said[1].startswith("eth0: limit changed from 1gbit to 200mbit 0.")


def test_a_request_shows_the_limit_that_it_was_filed_under() -> None:
    """The approver sees what the tenant met: the limit that stood and what had led to it."""
    evidence = {"link": {"limit_bps": 2 * 10**8}, "firing": {"mean_bps": 12 * 10**8, "span_ns": 10**10}}
    item = {"id": "REQ-1", "state": "pending", "interface": "eth0", "reason": "move", "user": "alice", "evidence": evidence}
    assert "move; filed under a limit of 200mbit after 10s at 1.2gbit" in " ".join(
        requests.render({"requests": [item]})[-1].split()
    )


def test_override_list_shows_source_and_state() -> None:
    """Each record with what it allows, its state, when it ends, who approved it and where it lives."""
    record = {
        "id": "REQ-1",
        "state": "active",
        "interfaces": ["eth0"],
        "action": "limit",
        "threshold_bps": 5 * 10**9,
        "limit_bps": None,
        "expires": "2026-11-24T12:00:00Z",
        "approved_by": "ops",
        "reason": "backup",
        "source": "/etc/limiterd/overrides.d/a.yaml:3",
    }
    later = record | {"id": "B", "expires": "never", "state": "pending", "not_before": "2026-12-01T00:00:00Z"}
    lines = overrides.render({"overrides": [record | {"not_before": "2026-11-01T00:00:00Z"}, later]}, now=NOW)
    shown = "\n".join(lines)
    assert "up to 5gbit" in shown
    assert "(in 1d)" in shown
    assert re.search(r"2026-11-2[345] \d\d:\d\d \S+ \(in 1d\)", shown)  # with its zone
    assert "backup; approved by ops; /etc/limiterd/overrides.d/a.yaml:3" in shown
    assert shown.count("from 2026-") == 1
    assert "approved by ops; from 2026-12-01 00:00 UTC;" in " ".join(shown.split())
    assert lines[-1] == "never expires: B"


def test_a_request_goes_to_the_daemon(stub: ControlStub, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """A tenant's request carries link, rate, end and reason, and its id is printed."""
    stub.answers["request.add"] = {"request": {"id": "R-7"}}
    assert ctl("request", "--interface", "eth0", "--rate", "2gbit", "--until", "2026-12-31", "--reason", "sync") == 0
    assert stub.asked == [("request.add", {"interface": "eth0", "until": "2026-12-31", "reason": "sync", "rate_bps": 2 * 10**9})]
    assert "R-7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "grant"),
    [
        ([], {}),
        (["--exempt"], {"exempt": True}),
        (["--limit", "1gbit"], {"limit_bps": 10**9}),
        (["--threshold", "5gbit", "--limit", "1gbit"], {"threshold_bps": 5 * 10**9, "limit_bps": 10**9}),
    ],
)
def test_approving_says_what_is_granted(flags: list[str], grant: dict[str, Any], stub: ControlStub, ctl: Ctl) -> None:
    """The grant's flags become the daemon's arguments."""
    stub.answers["request.approve"] = {"request": {"id": "R-7", "interface": "eth0"}}
    assert ctl("approve", "R-7", *flags, "--until", "2026-12-31") == 0
    assert ("request.approve", {"id": "R-7", "until": "2026-12-31", **grant}) in stub.asked


def test_requests_lists_those_that_wait() -> None:
    """Answered requests are left out unless asked for; reasons are shown whole."""
    reason = "migration of the archive to the other site, agreed with the network team"
    waiting = {
        "id": "R-1",
        "interface": "eth0",
        "rate_bps": None,
        "until_wall_ns": 1_798_675_200 * 10**9,
        "filed_wall_ns": int(NOW - 500) * 10**9,
        "reason": reason,
        "user": "alice",
        "state": "pending",
    }
    answered = waiting | {"id": "R-2", "state": "denied", "decided_by": "root", "decision_reason": "too long"}
    granted = answered | {"state": "approved", "granted": "limit 400mbit until 2026-12-01T00:00:00Z", "decision_reason": ""}
    lines = requests.render({"requests": [waiting, answered]}, now=NOW)
    assert any(reason in line for line in lines)
    assert lines[1].split() == ["R-1", "pending", "eth0", "no", "limit", "2026-12-31", "11:51", "(8m)", "alice"]
    assert not any("R-2" in line for line in lines)
    shown = " ".join(" ".join(requests.render({"requests": [answered, granted]}, everything=True, now=NOW)).split())
    assert "denied by root: too long" in shown
    assert "approved by root: limit 400mbit until 2026-12-01T00:00:00Z" in shown


# ---- check -----------------------------------------------------------------------------------------------------------


def test_check_prints_every_problem_and_exits_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All problems of all files, with their places, on standard error; the code is 78."""
    config = tmp_path / "limiterd.yaml"
    config.write_text("sampling: {interval: 5}\npolices: []\n")
    config.chmod(0o600)
    assert cli.main(["check", str(config)]) == 78
    said = capsys.readouterr().err
    assert f"{config}:1:" in said
    assert f"{config}:2:1: polices: " in said
    assert cli.main(["check", "--json", str(config)]) == 78
    assert len(json.loads(capsys.readouterr().out)["problems"]) >= 2


def test_check_of_a_good_file_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with none of the keys is valid."""
    config = tmp_path / "limiterd.yaml"
    config.write_text("policies: []\n")
    config.chmod(0o600)
    assert cli.main(["check", str(config)]) == 0
    assert "ok" in capsys.readouterr().out
