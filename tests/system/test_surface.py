"""What the real daemon shows, against what is promised: every fixed metric, every key of the JSON, every line of the log."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import socket
import subprocess
import sys
import termios
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from limiterd.core.errors import PeerError
from limiterd.core.model import EpochReason
from limiterd.sim.netns import Pair, PrivateNet, inside, join, route_in, run
from tests.faults.harness import LOOP, Held, plant
from tests.netns import wait_for
from tests.prometheus import tool
from tests.rig import FAST, METRICS, Rig, rig

pytestmark = pytest.mark.root

DOCS: Final = Path(__file__).resolve().parent.parent.parent / "docs"
EXCESS_BPS: Final = 150_000_000
FOREIGN: Final = "tc qdisc add dev eth1 root handle 8001: tbf rate 900mbit burst 256k latency 50ms"
PHASES: Final = ("conforming", "pending", "limited", "exempt", "fault")


class Kind(NamedTuple):
    """What a metric is to be: its type, its labels, and whether it is there in a moment."""

    type: str
    labels: frozenset[str]
    when: str


def kinds() -> dict[str, Kind]:
    """The fixed metrics, by name without the prefix."""
    interface, reason = "interface", "reason"
    table: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
        ("always", "gauge", ("version",), "build_info"),
        (
            "always",
            "gauge",
            (),
            "config_last_reload_successful config_last_reload_success_timestamp_seconds paused requests_pending",
        ),
        ("always", "gauge", ("sha256",), "config_info"),
        ("always", "histogram", (), "tick_duration_seconds tick_lateness_seconds enforcement_seconds"),
        ("always", "counter", (), "missed_ticks_total dropped_samples_total netlink_resyncs_total audit_errors_total"),
        ("always", "counter", (reason,), "epochs_total"),
        ("link", "counter", (interface,), "interface_transmit_bytes_total limits_applied_total drift_repairs_total"),
        ("link", "gauge", (interface,), "interface_transmit_bytes_per_second interface_pending_seconds"),
        ("link", "gauge", (interface, "phase"), "interface_phase"),
        ("link", "counter", (interface, reason), "detections_total"),
        ("limited", "gauge", (interface,), "interface_limit_bytes_per_second shaped_backlog_bytes"),
        ("lazy", "gauge", (interface,), "interface_counter_refresh_seconds"),
        ("limited", "counter", (interface,), "shaped_bytes_total shaped_drops_total shaped_overlimits_total"),
        ("released", "counter", (interface, reason), "limits_released_total"),
        ("refused", "counter", ("operation", "errno"), "kernel_errors_total"),
        ("fault", "gauge", (interface, reason), "faults"),
        ("override", "gauge", ("id", interface), "override_active"),
        ("override", "gauge", ("id",), "override_expiry_timestamp_seconds"),
        ("asked", "counter", ("verb", "result"), "control_requests_total"),
    )
    return {name: Kind(kind, frozenset(labels), when) for when, kind, labels, names in table for name in names.split()}


KINDS: Final = kinds()


class Scrape:
    """One scrape as it came."""

    def __init__(self, daemon: Rig) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with inside(daemon.namespace), opener.open(f"http://{METRICS}/metrics", timeout=5) as answer:
            self.text = answer.read().decode()
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """Values of a metric by its labels' values, in the alphabetical order of the labels' names."""
        samples = (s for family in self.families.values() for s in family.samples if s.name == f"limiterd_{name}")
        return {tuple(value for _, value in sorted(s.labels.items())): s.value for s in samples}

    def value(self, name: str, *labels: str) -> float:
        """One series."""
        return self.series(name)[labels]

    def present(self) -> set[str]:
        """The metrics of limiterd's own that have series."""
        return {
            family.name.removeprefix("limiterd_") + ("_total" if family.type == "counter" else "")
            for family in self.families.values()
            if family.name.startswith("limiterd_") and family.samples
        }

    def interfaces(self) -> set[str]:
        """The links that have series of any kind."""
        return {s.labels["interface"] for family in self.families.values() for s in family.samples if s.labels.get("interface")}


def expected(*moments: str) -> set[str]:
    """The metrics that are there in these moments, beside those that always are."""
    return {name for name, kind in KINDS.items() if kind.when in {"always", "link", *moments}}


def until(daemon: Rig, what: str, holds: Callable[[Scrape], object]) -> Scrape:
    """The first scrape of which that holds."""
    found: list[Scrape] = []

    def look() -> bool:
        with contextlib.suppress(OSError):
            found.append(Scrape(daemon))
            return bool(holds(found[-1]))
        return False

    wait_for(look, what, pause_s=0.05)
    return found[-1]


@pytest.fixture
def daemon(pair: Pair, tmp_path: Path) -> Iterator[Rig]:
    """A daemon that is not yet started, with eth0 and eth1."""
    join(pair.near.namespace, pair.far.namespace, "eth1", "eth1", number=2)
    with rig(pair.near.namespace, tmp_path, FAST) as made:
        yield made


# ---- metrics ---------------------------------------------------------------------------------------------


def test_every_fixed_metric_is_there_when_it_should_be_and_only_then(lab: PrivateNet, pair: Pair, daemon: Rig) -> None:
    """Through a limit, its release, a fault, an override and the end of a link: names, types, labels and presence."""
    daemon.start(wait=False)
    scrape = until(daemon, "both links have series", lambda s: len(s.series("interface_phase")) == 2 * len(PHASES))
    assert scrape.present() == expected()
    assert scrape.series("detections_total").keys() == {(i, r) for i in ("eth0", "eth1") for r in ("sustained", "guard")}
    assert {labels[0] for labels in scrape.series("epochs_total")} == {reason.value for reason in EpochReason}
    assert scrape.value("enforcement_seconds_count") == 0

    flow = lab.tcp(pair.near, pair.far, EXCESS_BPS)
    scrape = until(daemon, "eth0 is limited", lambda s: s.value("interface_phase", "eth0", "limited"))
    assert scrape.present() == expected("limited")
    for name in (name for name, kind in KINDS.items() if kind.when == "limited"):
        assert scrape.series(name).keys() == {("eth0",)}
    assert scrape.value("interface_limit_bytes_per_second", "eth0") == 20e6 / 8
    assert scrape.value("detections_total", "eth0", "sustained") == scrape.value("limits_applied_total", "eth0") == 1
    assert scrape.value("enforcement_seconds_count") == 1
    assert sum(scrape.value("interface_phase", "eth0", phase) for phase in PHASES) == 1
    until(daemon, "what the class sends is counted", lambda s: s.value("shaped_bytes_total", "eth0") > 0)

    flow.set_rate(0)
    daemon.ask("release", interface="eth0", reason="enough")
    scrape = until(daemon, "eth0 is released", lambda s: {"limits_released_total", "control_requests_total"} <= s.present())
    assert scrape.present() == expected("released", "asked")
    assert scrape.series("limits_released_total") == {("eth0", "operator"): 1}
    assert scrape.value("control_requests_total", "ok", "release") == 1

    run(pair.near.namespace, FOREIGN.split())
    daemon.ask("limit", interface="eth1", reason="a foreign root is in the way")
    scrape = until(daemon, "eth1 is in fault", lambda s: s.value("interface_phase", "eth1", "fault"))
    assert scrape.present() == expected("released", "asked", "fault")
    assert scrape.series("faults") == {("eth1", "foreign_qdisc"): 1}

    daemon.overrides.joinpath("req.yaml").write_text(
        "overrides: [{id: REQ-1, interfaces: ['eth*'], action: exempt, expires: never, approved_by: ops, reason: test}]\n"
    )
    daemon.ask("reload")
    scrape = until(daemon, "the override is in force", lambda s: s.series("override_active"))
    assert scrape.series("override_active") == {("REQ-1", "eth0"): 1, ("REQ-1", "eth1"): 1}
    assert scrape.series("override_expiry_timestamp_seconds") == {("REQ-1",): float("inf")}
    assert scrape.value("limits_released_total", "eth0", "operator") == 1

    with route_in(pair.near.namespace) as route:
        route.link("del", index=route.link_lookup(ifname="eth1")[0])
    scrape = until(daemon, "the series of eth1 are gone", lambda s: s.interfaces() == {"eth0"})
    assert scrape.present() == expected("released", "asked", "override")


def test_types_and_labels_are_the_fixed_ones(lab: PrivateNet, pair: Pair, daemon: Rig) -> None:
    """Of a daemon that shows as much as one can: each family's type and labels, no other family, no _created, promtool agrees."""
    daemon.overrides.joinpath("req.yaml").write_text(
        "overrides: [{id: REQ-1, interfaces: [eth9], action: exempt, expires: never, approved_by: ops, reason: test}]\n"
    )
    daemon.start()
    daemon.ask("limit", interface="eth0", reason="seen")
    daemon.wait_phase("limited")
    scrape = Scrape(daemon)
    for family in scrape.families.values():
        name = family.name.removeprefix("limiterd_") + ("_total" if family.type == "counter" else "")
        if name == family.name or not family.name.startswith("limiterd_"):
            assert family.name.startswith("process_")
            continue
        assert family.type == KINDS[name].type, name
        assert all(s.labels.keys() - {"le"} == KINDS[name].labels for s in family.samples), name
        assert family.documentation.endswith(".")
    assert "_created" not in scrape.text
    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=scrape.text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


# ---- peers that only take room ---------------------------------------------------------------------------


def _within(scrape: Scrape, bound_s: float) -> float:
    """How many ticks began at most that late."""
    family = scrape.families["limiterd_tick_lateness_seconds"]
    bounds = {float(s.labels["le"]): s.value for s in family.samples if s.name.endswith("_bucket")}
    return bounds[min(bound for bound in bounds if bound >= bound_s)]


@pytest.mark.long
def test_a_thousand_silent_peers_delay_no_tick(daemon: Rig) -> None:
    """500 silent control clients and 500 idle HTTP connections: ticks keep within an interval; status goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard != resource.RLIM_INFINITY else 4096, hard))
    try:
        daemon.start()
        alone = _prompt_share(daemon)
        with contextlib.ExitStack() as held:
            for _ in range(500):
                client = held.enter_context(socket.socket(socket.AF_UNIX))
                with contextlib.suppress(OSError):  # too many are turned away: that is the bound
                    client.connect(daemon.socket)
                with inside(daemon.namespace):
                    held.enter_context(socket.create_connection(tuple(METRICS.split(":")), 5))  # type: ignore[arg-type]
            beside = _prompt_share(daemon)
            wait_for(lambda: _answers(daemon), "status beside silent clients", longest_s=15)
        assert beside >= 0.9 * alone
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _prompt_share(daemon: Rig) -> float:
    """The share of at least 20 ticks that came within an interval of their time, beside scrape after scrape."""
    before = after = Scrape(daemon)
    while (ticks := after.value("tick_lateness_seconds_count") - before.value("tick_lateness_seconds_count")) < 20:
        after = Scrape(daemon)
    return (_within(after, 0.1) - _within(before, 0.1)) / ticks


def _answers(daemon: Rig) -> bool:
    try:
        return bool(daemon.status()["links"])
    except PeerError:
        return False


# ---- JSON --------------------------------------------------------------------------------------------------


def _section(text: str, title: str) -> str:
    """A section of cli.md, from its heading to the next of its level."""
    return re.split(r"(?m)^###? ", text.split(title, 1)[1], maxsplit=1)[0]


def _listed(section: str) -> set[str]:
    """Every name that a section has in backticks."""
    return {word.removesuffix("[]") for word in re.findall(r"`([.\w\[\]]+)`", section)}


def test_every_key_of_the_json_is_documented(lab: PrivateNet, pair: Pair, daemon: Rig) -> None:
    """status, explain and override list of a daemon with a limit, a fault, an override: each key has its word in docs/cli.md."""
    daemon.overrides.joinpath("req.yaml").write_text(
        "overrides: [{id: REQ-1, interfaces: [eth9], action: exempt, expires: never, approved_by: ops, reason: test}]\n"
    )
    daemon.start()
    lab.tcp(pair.near, pair.far, EXCESS_BPS)
    run(pair.near.namespace, FOREIGN.split())
    daemon.ask("limit", interface="eth1", reason="a foreign root is in the way")
    daemon.wait_phase("limited")
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    shown = json.loads(daemon.ctl("status", "--json").stdout)
    words = _listed(_section(text, "### `status"))
    assert shown.keys() <= words
    limited = next(link for link in shown["links"] if link["phase"] == "limited")
    assert {f".{key}" for key in limited} == {word for word in words if word.startswith(".")}
    for part in (limited["shaped"], shown["faults"][0], shown["config"]):
        assert part.keys() <= words
    assert shown["overrides"][0].keys() <= {
        word.removesuffix("[]") for word in _listed(_section(text, "## Overrides and requests"))
    }
    why = json.loads(daemon.ctl("explain", "eth0", "--json").stdout)
    words = _listed(_section(text, "### `explain"))
    assert why.keys() <= words
    for part in (why["detect"], why["conditions"][0], why["evidence"]["flows"][0]):
        assert part.keys() <= words


# ---- explain -----------------------------------------------------------------------------------------------


def test_a_limit_is_explained_by_its_own_cause(lab: PrivateNet, pair: Pair, daemon: Rig) -> None:
    """By policy: its firing, with evidence. By hand afterwards: no firing, and the earlier one as what was before."""
    daemon.start()
    flow = lab.tcp(pair.near, pair.far, EXCESS_BPS)
    daemon.wait_phase("limited")
    fired = wait_for(lambda: daemon.ask("explain", interface="eth0")["firing"], "the firing is on record")
    assert fired["evidence"]["flows"][0]["share"] > 0.5
    flow.set_rate(0)
    daemon.ask("release", interface="eth0", reason="enough")
    daemon.ask("limit", interface="eth0", reason="by hand")
    daemon.wait_phase("limited")
    why = daemon.ask("explain", interface="eth0")
    assert (why["firing"], why["evidence"], why["conditions"], why["samples"]) == (None, None, [], [])
    assert why["last_firing"]["at"] == fired["at"]
    assert (why["link"]["by"], why["link"]["note"]) == ("root (uid 0)", "by hand")
    daemon.restart()
    assert daemon.ask("explain", interface="eth0")["firing"] is None


def test_a_firing_still_explains_its_limit_after_a_restart(lab: PrivateNet, pair: Pair, daemon: Rig) -> None:
    """The decision is in the journal and its firing in the audit trail: they find each other again."""
    daemon.start()
    lab.tcp(pair.near, pair.far, EXCESS_BPS)
    daemon.wait_phase("limited")
    fired = wait_for(lambda: daemon.ask("explain", interface="eth0")["firing"], "the firing is on record")
    daemon.restart()
    daemon.wait_phase("limited")
    assert daemon.ask("explain", interface="eth0")["firing"]["at"] == fired["at"]


def test_a_fault_is_told_once_with_what_to_do(pair: Pair, daemon: Rig) -> None:
    """A foreign root: one fault, no warning beside it, and the steps that end it; they do end it."""
    daemon.start()
    run(pair.near.namespace, FOREIGN.split())
    daemon.ask("limit", interface="eth1", reason="a foreign root is in the way")
    why = daemon.ask("explain", interface="eth1")
    assert [(fault["reason"], fault["warning"]) for fault in why["faults"]] == [("foreign_qdisc", False)]
    assert "tbf 8001:" in why["faults"][0]["message"]
    step = next(way for way in why["remedies"] if "tc qdisc del" in way).partition(": ")[2]
    run(pair.near.namespace, step.split())
    daemon.wait_phase("limited", "eth1")
    assert daemon.ask("explain", interface="eth1")["remedies"] == []


# ---- top ---------------------------------------------------------------------------------------------------


class Screen:
    """limiterctl top on a terminal of its own; what it draws is collected."""

    def __init__(self, daemon: Rig) -> None:
        self._near, far = pty.openpty()
        termios.tcsetwinsize(self._near, (24, 80))
        os.set_blocking(self._near, False)
        command = [sys.executable, "-m", "limiterd.cli", "top", "--config", str(daemon.config)]
        self._process = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, env={**os.environ, "TERM": "xterm"})
        os.close(far)
        self._drawn = ""

    def shows(self, words: str) -> None:
        """Wait until it draws that, from now on."""
        self._read()
        self._drawn = ""
        wait_for(lambda: words in self._read(), f"top shows {words!r}", longest_s=20)

    def _read(self) -> str:
        with contextlib.suppress(BlockingIOError, OSError):
            self._drawn += os.read(self._near, 1 << 16).decode(errors="replace")
        return self._drawn

    def quit(self) -> int:
        """Type q; its exit status."""
        os.write(self._near, b"q")
        try:
            return self._process.wait(10)
        finally:
            self._process.kill()
            os.close(self._near)


def test_top_outlives_the_daemon(daemon: Rig) -> None:
    """On a real terminal: links, then that the daemon is away, then the new daemon's links; q ends it with 0."""
    daemon.start()
    screen = Screen(daemon)
    screen.shows("eth1")
    daemon.stop()
    screen.shows("Trying again")
    daemon.start()
    screen.shows("up ")
    assert screen.quit() == 0


# ---- the log -----------------------------------------------------------------------------------------------


def life(lab: PrivateNet, pair: Pair, daemon: Rig) -> list[str]:
    """A whole life: limit, release, reload, a refused one, an override, a fault, a repair, a stop; the log's lines."""
    daemon.start()
    flow = lab.tcp(pair.near, pair.far, EXCESS_BPS)
    daemon.wait_phase("limited")
    flow.set_rate(0)
    run(pair.near.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"])
    wait_for(lambda: daemon.metrics()['limiterd_drift_repairs_total{interface="eth0"}'], "the limit is repaired")
    daemon.ask("release", interface="eth0", reason="enough")
    daemon.configure(FAST.replace("20mbit", "30mbit"))
    daemon.ask("reload")
    good = daemon.config.read_text()
    daemon.config.write_text("polices: []\n")
    with pytest.raises(PeerError):
        daemon.ask("reload")
    daemon.config.write_text(good)
    record = {
        "id": "REQ-1",
        "interfaces": ["eth0"],
        "action": "exempt",
        "expires": "never",
        "approved_by": "ops",
        "reason": "test",
    }
    daemon.ask("override.add", record=record)
    daemon.ask("override.revoke", id="REQ-1")
    run(pair.near.namespace, FOREIGN.split())
    daemon.ask("limit", interface="eth1", reason="a foreign root is in the way")
    daemon.wait_phase("fault", "eth1")
    run(pair.near.namespace, ["tc", "qdisc", "del", "dev", "eth1", "root"])
    daemon.wait_phase("limited", "eth1")
    assert daemon.stop() == 0
    return daemon.log().splitlines()


HAPPENED: Final = """
started limit limited repair releasing released reload reload_failed override_active override_ended foreign fault
fault_cleared stopped
"""


def _told(events: list[Mapping[str, Any]]) -> None:
    """Every event of the life is one line with a sentence; nothing is told twice, nothing at every tick."""
    names = [event["event"] for event in events]
    assert set(HAPPENED.split()) <= set(names)
    assert names.count("limit") == 2
    assert names[0] == "started"
    assert names[-1] == "stopped"
    assert all(" " in event["text"] and not event["text"].startswith(f"{event.get('interface')}:") for event in events)
    assert len(events) < 40


@pytest.mark.long
def test_the_log_as_json(lab: PrivateNet, pair: Pair, daemon: Rig) -> None:
    """With format json each line is one object with time, level, event and text."""
    daemon.configure(extra="log: {format: json}")
    lines = life(lab, pair, daemon)
    events = [json.loads(line) for line in lines]
    assert all(event.keys() >= {"time", "level", "event", "text"} for event in events)
    _told(events)


def test_the_log_as_text_for_the_journal(lab: PrivateNet, pair: Pair, daemon: Rig) -> None:
    """Where standard error is the journal each line has its priority in front and leaves the time to the journal."""
    daemon.prefix = ["sh", "-c", 'JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr) exec "$@"', "sh"]
    lines = life(lab, pair, daemon)
    assert all(re.match(r"<[3-7]>level=\w+ event=\w+ ", line) for line in lines)
    assert {line[1] for line in lines if "event=fault " in line} == {"3"}
    _told(
        [{"event": _field(line, "event"), "interface": _field(line, "interface"), "text": _field(line, "text")} for line in lines]
    )


def _field(line: str, name: str) -> str:
    found = re.search(rf' {name}=("(?:[^"\\]|\\.)*"|\S+)', line) or re.search(rf'{name}=("(?:[^"\\]|\\.)*"|\S+)', line)
    if found is None:
        return ""
    return str(json.loads(found[1])) if found[1].startswith('"') else found[1]


# ---- a stalled loop --------------------------------------------------------------------------------------


def page(daemon: Rig, path: str) -> tuple[int, str]:
    """Status and body of one page of the metrics server."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with inside(daemon.namespace):
        try:
            with opener.open(f"http://{METRICS}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


_LATE: Final = """
import time
from limiterd.daemon.loop import Loop
run = Loop.run
def late(self):
    time.sleep(0.5)
    run(self)
Loop.run = late
"""


def test_a_loop_that_is_about_to_begin_is_not_stalled(daemon: Rig) -> None:
    """Who asks before the first tick waits for it."""
    plant(daemon, _LATE)
    daemon.start(wait=False)
    assert "faults" not in until(daemon, "the first scrape", lambda _: True).present()


def test_a_stalled_loop_takes_no_answer_with_it(daemon: Rig) -> None:
    """The loop blocked for real: everything that only looks goes on from the last frame, and says how old it is."""
    blocked = Held(daemon, LOOP)
    daemon.start()
    daemon.ask("limit", interface="eth0", rate_bps=5_000_000, reason="test")
    daemon.wait_phase("limited")
    blocked.on()
    wait_for(lambda: page(daemon, "/healthz")[0] == 503, "the stall is seen")
    first = daemon.status()
    assert first["faults"][0]["reason"] == "no_answer"
    assert "has not turned for" in first["faults"][0]["message"]
    scrape = Scrape(daemon)
    assert scrape.value("faults", "", "no_answer") == 1
    assert scrape.value("interface_limit_bytes_per_second", "eth0") == 625_000
    assert page(daemon, "/")[0] == 200
    assert "The sampling loop has not turned for" in page(daemon, "/")[1]
    shown = daemon.ctl("status")  # raises where the exit code is not 0
    assert "fault (no_answer)" in shown.stdout
    assert "limited" in shown.stdout
    assert "operator: set by hand" in daemon.ctl("explain", "eth0").stdout
    assert "limited to 5mbit" in daemon.ctl("history", "eth0").stdout
    assert "eth1" in daemon.ctl("top").stdout
    second = daemon.status()
    assert second["last_tick_age_s"] > first["last_tick_age_s"] >= 3
    ticks = "tick_duration_seconds_count"
    assert scrape.value(ticks) == Scrape(daemon).value(ticks)  # what LimiterdStalled goes by
    blocked.off()
    wait_for(lambda: page(daemon, "/healthz")[0] == 200, "the loop turns again")
    wait_for(lambda: "event=stalled" in daemon.log(), "the log has the gap")
    after = daemon.status()
    assert not after["faults"]
    assert after["last_tick_age_s"] < 3


def test_a_limit_that_waits_for_an_absent_link_shows_and_can_be_lifted(daemon: Rig) -> None:
    """The limited link is deleted: status and explain have its decision, and release says that it is not limited any more."""
    daemon.start()
    daemon.ask("limit", interface="eth1", rate_bps=3_000_000, reason="INC-1")
    run(daemon.namespace, ["ip", "link", "del", "eth1"])
    row = daemon.wait_phase("absent", "eth1")
    assert (row["limit_wanted_bps"], row["reason"], row["note"], row["ifindex"]) == (3_000_000, "operator", "INC-1", 0)
    explained = " ".join(daemon.ctl("explain", "eth1").stdout.split())
    assert "will be limited to 3mbit again when it returns" in explained
    assert "limiterctl release eth1" in explained
    assert "eth1: not limited any more when it returns" in daemon.ctl("release", "eth1", "--reason", "over").stdout
    assert daemon.phase("eth1") == "gone"
