"""Checks that run inside a throw-away machine with systemd, as root: `python3 checks.py STAGE`. Driven by tests/vm/run.

Nothing but the standard library and what the machine has anyway. Every check is a function whose docstring states what
must hold; it raises AssertionError where it does not. One line a check goes to standard output.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LINK = "lim0"
FAR = "limfar"
MISSING = "late0"
NEAR_IP, FAR_IP = "10.77.0.1", "10.77.0.2"
LIMIT_BPS = 200_000_000
CONFIG = Path("/etc/limiterd/limiterd.yaml")
OVERRIDES = Path("/etc/limiterd/overrides.d")
STATE = Path("/var/lib/limiterd")
DROP_INS = Path("/etc/systemd/system/limiterd.service.d")
OWN_UNIT = Path("/etc/systemd/system/limiterd.service")
VENV = Path("/opt/limiterd")
LINKS_UNIT = Path("/etc/systemd/system/limiterd-vm-links.service")
TRAFFIC = Path("/usr/lib/python3/dist-packages/limiterd/kernel/traffic.py")
HERE = Path(__file__).resolve().parent.parent.parent

POLICY = f"""\
policies:
  - name: fair-use
    interfaces: ["{LINK}"]
"""
"""The default policy on one link. ({LINK} alone: the machine's own links are how we talk to it.)"""

LINKS = f"""\
[Unit]
Description=the links that limiterd is tested on
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'ip netns add {FAR}; \\
  ip link add {LINK} address 02:00:00:00:77:01 type veth peer name lim1 netns {FAR} address 02:00:00:00:77:02; \\
  ip addr add {NEAR_IP}/24 dev {LINK}; ip link set {LINK} up; \\
  ip -n {FAR} addr add {FAR_IP}/24 dev lim1; ip -n {FAR} link set lim1 up; ip -n {FAR} link set lo up'
[Install]
WantedBy=multi-user.target
"""

# ---- tools -----------------------------------------------------------------------------------------


def sh(command: str, *, code: int | None = 0, timeout: float = 120) -> str:
    """Run a shell command, expect its exit code (None: any), return both its outputs."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=timeout)
    said = done.stdout + done.stderr
    assert code is None or done.returncode == code, f"{command[:200]}: exit {done.returncode}, not {code}: {said.strip()[-800:]}"
    return said


def wait_for(condition: Callable[[], Any], what: str, longest_s: float) -> Any:
    """The first true value of condition(). Raises AssertionError after longest_s."""
    deadline = time.monotonic() + longest_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {longest_s:g} s: {what}"
        time.sleep(0.1)
    return value


def status() -> dict[str, Any]:
    """What limiterctl status --json says; {} while there is no daemon to ask."""
    done = subprocess.run(["limiterctl", "status", "--json"], capture_output=True, text=True, check=False, timeout=30)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def row() -> dict[str, Any]:
    """The status of the link under test."""
    return next((link for link in status().get("links", []) if link["interface"] == LINK), {})


def phase() -> str:
    """The phase of the link under test, "" while there is no daemon to ask."""
    return str(row().get("phase", ""))


def show(name: str) -> str:
    """One property of the service."""
    return sh(f"systemctl show limiterd.service --property={name} --value").strip()


def pid() -> int:
    """The daemon's process id, 0 when it is down."""
    return int(show("MainPID"))


def active() -> bool:
    """Whether systemd calls the service active."""
    return show("ActiveState") == "active"


def process_status(name: str) -> str:
    """A field of the daemon's /proc/PID/status."""
    text = Path(f"/proc/{pid()}/status").read_text(encoding="utf-8")
    return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(f"{name}:"))


def journal(since: str = "") -> list[dict[str, Any]]:
    """What the service and systemd said of it in this boot, or since a cursor."""
    span = f"--after-cursor='{since}'" if since else "--boot"
    lines = sh(f"journalctl --unit limiterd.service {span} --output=json --no-pager --quiet").splitlines()
    return [json.loads(line) for line in lines]


def journal_since(cursor: str) -> str:
    """The same as text."""
    return "\n".join(str(entry["MESSAGE"]) for entry in journal(cursor))


def cursor() -> str:
    """The end of the service's journal (after a line of another, systemd 252 would leave out the service's first one)."""
    said = sh("journalctl --unit limiterd.service --lines=1 --show-cursor --no-pager")
    return said.rpartition("-- cursor: ")[2].strip()


def reached_s(unit: str, what: str) -> float:
    """When a unit's process was made (ExecMainStart) or it became ready (ActiveEnter), by the monotonic clock."""
    return int(sh(f"systemctl show {unit} --property={what}TimestampMonotonic --value")) / 1e6


def told_s(event: str) -> float:
    """When the daemon first told of an event in this boot, by the same clock."""
    entries = [entry for entry in journal() if f"event={event} " in str(entry["MESSAGE"])]
    assert entries, f"no event {event} in the journal of this boot"
    return int(entries[0]["__MONOTONIC_TIMESTAMP"]) / 1e6


def patience_s() -> float:
    """Five seconds, or ten bare starts of Python's on a machine where those take longer."""
    began = time.monotonic()
    sh("limiterctl --version")
    return max(5.0, 10 * (time.monotonic() - began))


def qdiscs() -> list[str]:
    """The link's qdiscs as `tc` prints them."""
    return sh(f"tc qdisc show dev {LINK}").splitlines()


def limited() -> bool:
    """Whether our root stands in the kernel."""
    return any("htb 1d1d:" in line for line in qdiscs())


def sent_bytes(device: str = LINK, classid: str = "1d1d:1") -> int:
    """What a class let through, by default the limit's."""
    found = re.search(rf"^class htb {classid} .*\n Sent (\d+) bytes", sh(f"tc -s class show dev {device}"), re.MULTILINE)
    assert found, f"the class {classid} is not there"
    return int(found[1])


def config(text: str) -> None:
    """Write the configuration."""
    CONFIG.write_text(text, encoding="utf-8")


def override(text: str | None) -> None:
    """Write the override file, or take it away."""
    path = OVERRIDES / "vm.yaml"
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(text, encoding="utf-8")


def restart() -> None:
    """Restart and wait for the first answer."""
    sh("systemctl reset-failed limiterd; systemctl restart limiterd")
    wait_for(row, "the daemon answers", 30)


@contextmanager
def traffic(rate_bps: int = 2_000_000_000, host: str = FAR_IP) -> Iterator[None]:
    """TCP from this machine over the link, at most this fast, while the block runs."""
    sink = talker(f"ip netns exec {FAR} python3 {TRAFFIC} tcp-receive", {"host": host})
    source = None
    try:
        port = json.loads(sink.stdout.readline())["port"]  # type: ignore[union-attr]
        wanted = {"host": host, "port": port, "streams": 2, "rate_bps": rate_bps}
        source = talker(f"python3 {TRAFFIC} tcp-send", wanted)
        assert json.loads(source.stdout.readline())["ready"]  # type: ignore[union-attr]
        yield
    finally:
        for program in (source, sink):
            if program is not None:
                program.stdin.close()  # type: ignore[union-attr]  # the tether: its end is the program's
                program.wait(20)


def talker(command: str, options: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a traffic program."""
    return subprocess.Popen([*command.split(), json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def rate_over(seconds: float, read: Callable[[], int]) -> float:
    """Bits per second of a byte counter."""
    start, first = time.monotonic(), read()
    time.sleep(seconds)
    return (read() - first) * 8 / (time.monotonic() - start)


def tx_bytes() -> int:
    """The device's own counter."""
    return int(Path(f"/sys/class/net/{LINK}/statistics/tx_bytes").read_text(encoding="utf-8"))


def shaped_rate() -> str:
    """What the limit's class lets through under traffic: never more than 3 % above the limit, and within 3 % of it.

    A machine that is starved of CPU (an emulated one beside other work) stands still for milliseconds, and no shaper reaches
    its rate there. So the least is taken from a yardstick: a plain HTB class of the same rate, with a burst of 1 MB, on a
    link of its own, measured in turns with ours until one span of each was not disturbed.
    """
    sh(
        f"ip link add ref0 type veth peer name ref1 netns {FAR}; ip addr add 10.78.0.1/24 dev ref0; ip link set ref0 up; "
        f"ip -n {FAR} addr add 10.78.0.2/24 dev ref1; ip -n {FAR} link set ref1 up; "
        f"tc qdisc add dev ref0 root handle 1: htb default 1; "
        f"tc class add dev ref0 parent 1: classid 1:1 htb rate {LIMIT_BPS}bit burst 1m cburst 1m quantum 60000"
    )
    ours: list[float] = []
    yardstick: list[float] = []
    enough = False
    try:
        for _ in range(30):
            ours.append(_passed(FAR_IP, LINK, "1d1d:1"))
            yardstick.append(_passed("10.78.0.2", "ref0", "1:1"))
            enough = max(ours) >= 0.97 * min(LIMIT_BPS, max(yardstick))
            if enough and len(ours) >= 3:
                break
    finally:
        sh("ip link del ref0")
    told = " ".join(
        f"{who} {[round(rate / 1e6, 1) for rate in rates]}" for who, rates in (("ours", ours), ("plain HTB", yardstick))
    )
    assert max(ours) <= 1.03 * LIMIT_BPS, told
    assert enough, told
    return f"{told} Mbit/s"


def _passed(host: str, device: str, classid: str) -> float:
    """Bits per second that a class lets through to a host over four seconds."""
    with traffic(host=host):
        time.sleep(1)
        return rate_over(4, lambda: sent_bytes(device, classid))


def be_limited() -> None:
    """Drive traffic until the link is limited."""
    if phase() != "limited":
        with traffic():
            wait_for(lambda: phase() == "limited", "limited", 40)


def scrape(host: str) -> int | None:
    """The HTTP status of the metrics page asked for from the far side; None where nothing answers."""
    code = f"import urllib.request as u; print(u.urlopen('http://{host}:9817/metrics', timeout=4).status)"
    said = sh(f'ip netns exec {FAR} python3 -c "{code}"', code=None)
    return int(said) if said.strip().isdigit() else None


# ---- install ---------------------------------------------------------------------------------------


def packages() -> str:
    """Every package file that came along, ours last."""
    return " ".join(map(str, [*sorted((HERE / "debs").glob("*.deb")), *sorted(HERE.glob("limiterd_*.deb"))]))


def install_package() -> None:
    """The package installs with the distribution's own libraries."""
    sh(f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {packages()}", timeout=600)


def install_starts_nothing() -> None:
    """Installing is not consenting: the service is neither enabled nor running."""
    assert "disabled" in sh("systemctl is-enabled limiterd", code=None)
    assert not active()


def install_makes_the_user() -> None:
    """The daemon's user exists, without a shell."""
    assert re.search(r"nologin|false", sh("getent passwd limiterd"))


def install_unit_is_sound() -> None:
    """This machine's systemd accepts every line of the unit and rates its exposure 1.5 or better."""
    assert sh("systemd-analyze verify --man=no limiterd.service").strip() == ""
    sh("systemd-analyze security --threshold=15 limiterd.service")


def install_links() -> None:
    """The links for the other checks come up (and will again at every boot)."""
    LINKS_UNIT.write_text(LINKS, encoding="utf-8")
    sh("systemctl daemon-reload && systemctl enable --now limiterd-vm-links.service")
    config(POLICY)
    sh("limiterctl check")


# ---- live ------------------------------------------------------------------------------------------


def live_starts() -> None:
    """systemctl start returns once it samples; it runs as its own user with one capability, filtered, without new ones."""
    sh("systemctl start limiterd")
    assert active()
    wait_for(lambda: phase() == "conforming", "the link is watched", 20)
    assert sh(f"stat -c %U /proc/{pid()}").strip() == "limiterd"
    rights = {name: process_status(name) for name in ("CapEff", "CapBnd", "Seccomp", "NoNewPrivs")}
    assert (int(rights["CapEff"], 16), int(rights["CapBnd"], 16)) == (1 << 12, 1 << 12), rights
    assert (rights["Seccomp"], rights["NoNewPrivs"]) == ("2", "1"), rights
    assert show("StatusText").startswith("watching 1 links by netlink, 0 limited"), show("StatusText")


def live_limits_after_ten_seconds() -> None:
    """Traffic above 1 Gbit/s is limited after more than ten seconds and not before, with fq_codel as leaf."""
    with traffic():
        began = time.monotonic()
        wait_for(lambda: limited() and time.monotonic() - began, "our root in the kernel", 40)
        took_s = time.monotonic() - began
        # The machine may be slow, never early: what the daemon measured is what it tells.
        assert took_s >= 10.0, f"limited after {took_s:.2f} s"
        wait_for(lambda: phase() == "limited", "phase limited", 5)
        assert [line for line in qdiscs() if line.startswith("qdisc fq_codel 1d20: parent 1d1d:20")], qdiscs()
    print(f"      limited after {took_s:.1f} s")


def live_holds_the_rate() -> None:
    """The limit's class lets through 200 Mbit/s ± 3 %, and status, metrics and kernel say the same."""
    told = shaped_rate()
    with urllib.request.urlopen("http://127.0.0.1:9817/metrics", timeout=20) as page:
        metrics = page.read().decode()
    value = re.search(rf'^limiterd_interface_limit_bytes_per_second{{interface="{LINK}"}} (\S+)$', metrics, re.MULTILINE)
    assert value, "no limit in the metrics"
    assert float(value[1]) * 8 == row()["limit_bps"] == LIMIT_BPS
    print(f"      {told}")


def live_restart_leaves_no_gap() -> None:
    """Through systemctl restart our root stands at every look and goes on counting; since and strikes stay."""
    before, bytes_before = row(), sent_bytes()
    with traffic():
        restarting = subprocess.Popen(["systemctl", "restart", "limiterd"])
        looks: list[bool] = []
        while restarting.poll() is None or len(looks) < 20:
            looks.append(limited())
        assert restarting.returncode == 0
        assert all(looks), f"{looks.count(False)} of {len(looks)} looks found no limit"
        rate = rate_over(2, tx_bytes)
    wait_for(lambda: phase() == "limited", "limited again in status", 20)
    assert sent_bytes() > bytes_before
    assert rate < 1.1 * LIMIT_BPS, f"{rate / 1e6:.0f} Mbit/s got through"
    assert {key: row()[key] for key in ("since", "reason", "strikes")} == {k: before[k] for k in ("since", "reason", "strikes")}
    print(f"      {len(looks)} looks during the restart")


def live_survives_sigkill() -> None:
    """After kill -9 it is back within five seconds, or ten bare starts of Python's where those take longer; limit adopted."""
    longest_s = patience_s()
    before, old = sent_bytes(), pid()
    os.kill(old, signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: pid() not in {0, old} and active(), "restarted", 60)
    took_s = time.monotonic() - began
    longest_s = max(longest_s, patience_s())  # the machine may have become slower meanwhile
    assert took_s <= longest_s, f"back after {took_s:.1f} s, not {longest_s:.1f} s"
    wait_for(lambda: phase() == "limited", "limited in status", 20)
    assert sent_bytes() >= before
    print(f"      back after {took_s:.1f} s (of {longest_s:.1f} s)")


def live_watchdog_restarts_a_stalled_loop() -> None:
    """A stopped process misses its pings and is aborted and restarted; the limit stands all the while."""
    old, mark = pid(), cursor()
    os.kill(old, signal.SIGSTOP)
    wait_for(lambda: pid() not in {0, old} and active(), "restarted by the watchdog", 60)
    assert limited()
    assert "atchdog" in journal_since(mark)
    wait_for(lambda: phase() == "limited", "limited in status", 20)


def live_bad_reload_changes_nothing() -> None:
    """systemctl reload with a bad file fails with file, line and column in the journal; the daemon and its rules stay."""
    before, mark, old = status(), cursor(), pid()
    override("overrides:\n  - id: X\n    interfaces: [lim0]\n    action: exampt\n")
    try:
        sh("systemctl reload limiterd", code=1)
        said = journal_since(mark)
        assert re.search(r"vm\.yaml:4:\d+: .*exampt", said), said
        after = status()
        assert (pid(), row()["phase"], after["config"]["sha256"]) == (old, "limited", before["config"]["sha256"])
        assert after["config"]["error"], "the failure does not show in status"
    finally:
        override(None)
    sh("systemctl reload limiterd")
    assert not status()["config"]["error"]


def live_override_releases() -> None:
    """An override and systemctl reload lift the limit; the root qdisc from before is back."""
    override(
        f"overrides:\n  - id: VM-1\n    interfaces: [{LINK}]\n    action: exempt\n"
        "    expires: 2099-01-01T00:00:00Z\n    approved_by: vm\n    reason: check\n"
    )
    sh("systemctl reload limiterd")
    wait_for(lambda: not limited(), "our root is gone", 10)
    wait_for(lambda: phase() == "exempt", "phase exempt", 10)
    override(None)
    sh("systemctl reload limiterd")
    wait_for(lambda: phase() == "conforming", "watched again", 10)


def live_takeover_restores_single_qdiscs() -> None:
    """Under takeover fq, fq_codel, tbf and pfifo roots are replaced by the limit, and come back as they were, twice over."""
    config(POLICY + "    foreign_qdisc: takeover\n")
    sh("systemctl reload limiterd")
    for kind in (
        "fq flow_limit 50 maxrate 5gbit",
        "fq_codel target 7ms ce_threshold 777us",
        "tbf rate 5gbit burst 1m limit 2m",
        "pfifo limit 77",
    ):
        sh(f"tc qdisc add dev {LINK} root handle 5: {kind}")
        before = qdiscs()
        for _ in range(2):
            sh(f"limiterctl limit {LINK} --reason check")
            wait_for(limited, "our root is there", 20)
            sh(f"limiterctl release {LINK} --reason check")
            wait_for(lambda: not limited(), "our root is gone", 20)
            wait_for(lambda before=before: qdiscs() == before, f"{kind} is back: {before}, now {qdiscs()}", 10)  # type: ignore[misc]
        sh(f"tc qdisc del dev {LINK} root")
    config(POLICY)
    sh("systemctl reload limiterd")


def live_strangers_may_not_release() -> None:
    """A user without rights is refused with exit code 77 and changes nothing."""
    be_limited()
    for words in (f"release {LINK} --reason x", "status", f"limit {LINK} --reason x", "reload"):
        sh(f"runuser -u nobody -- limiterctl {words}", code=77)
    assert limited()


def live_second_daemon_is_refused() -> None:
    """A second daemon, of the same user or of root, ends with one line; the first one's socket and limit stay."""
    as_its_user = "systemd-run --quiet --pipe --wait --property=User=limiterd --property=AmbientCapabilities=CAP_NET_ADMIN"
    for how in (as_its_user, ""):
        said = sh(f"{how} limiterd --config {CONFIG}", code=1, timeout=60)
        assert len(said.strip().splitlines()) == 1, said
        assert "another limiterd is running in this network namespace: PID" in said
        print(f"      {said.strip()}")
    assert phase() == "limited"
    assert limited()


def live_stop_does_as_configured() -> None:
    """systemctl stop leaves the limit in the kernel by default, and releases it for good with `on_exit: remove`."""
    be_limited()
    sh("systemctl stop limiterd")
    assert limited()
    config(POLICY + "on_exit: remove\n")
    try:
        restart()
        wait_for(lambda: phase() == "limited", "adopted", 20)
        sh("systemctl stop limiterd")
        assert not limited(), qdiscs()
    finally:
        config(POLICY)
        restart()
    wait_for(lambda: phase() == "conforming", "a released link begins afresh", 20)


# ---- errors ----------------------------------------------------------------------------------------


@contextmanager
def drop_in(text: str) -> Iterator[None]:
    """A drop-in for the service while the block runs; restores and restarts after it."""
    path = DROP_INS / "check.conf"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    sh("systemctl daemon-reload")
    try:
        yield
    finally:
        path.unlink()
        sh("systemctl daemon-reload")
        restart()


def failed_start() -> tuple[int, str]:
    """Start the service where it cannot: its exit status and the journal, in which the daemon says one line, as an error."""
    sh("systemctl stop limiterd; systemctl reset-failed limiterd", code=None)
    mark = cursor()
    sh("systemctl start limiterd", code=None)
    wait_for(lambda: int(show("ExecMainStatus")) != 0, "an exit status", 20)
    code = int(show("ExecMainStatus"))
    said = journal_since(mark)
    own = [(entry["PRIORITY"], entry["MESSAGE"]) for entry in journal(mark) if entry["SYSLOG_IDENTIFIER"] == "limiterd"]
    sh("systemctl stop limiterd")
    assert [priority for priority, _ in own] == ["3"] * (code < 200), said  # from 200 on, systemd itself could not start it
    print(*(f"      exit {code}: {line}" for _, line in own), sep="\n", end="\n" * len(own))
    return code, said


def errors_missing_configuration() -> None:
    """Without its configuration the service fails with exit 78 and one line that names the file; systemd does not retry."""
    CONFIG.rename(CONFIG.with_suffix(".away"))
    try:
        restarts = show("NRestarts")
        code, said = failed_start()
        assert code == 78, said
        assert str(CONFIG) in said
        assert show("NRestarts") in {"0", restarts}
    finally:
        CONFIG.with_suffix(".away").rename(CONFIG)
        restart()


def errors_invalid_configuration() -> None:
    """An invalid configuration is exit 78 with file, line and column; standing limits stay in the kernel."""
    be_limited()
    config(POLICY + "sampling: {interval: 5}\n")
    try:
        code, said = failed_start()
        assert code == 78, said
        assert re.search(rf"{CONFIG}:4:\d+: ", said), said
        assert limited()
    finally:
        config(POLICY)
        restart()
    wait_for(lambda: phase() == "limited", "adopted", 20)


def errors_missing_user() -> None:
    """A unit whose user is missing fails with systemd's own status for that, and says which."""
    with drop_in("[Service]\nUser=limiterd-nobody-here\n"):
        code, said = failed_start()
        assert code == 217, said
        assert "user" in said.lower()


def errors_missing_capability() -> None:
    """Without CAP_NET_ADMIN an enforcing policy is exit 77, and the line names the capability."""
    with drop_in("[Service]\nAmbientCapabilities=\nCapabilityBoundingSet=\n"):
        code, said = failed_start()
        assert code == 77, said
        assert "CAP_NET_ADMIN" in said


def errors_read_only_state() -> None:
    """With a state directory that cannot be written it enforces on, and says so in the journal and in status."""
    mark = cursor()
    with drop_in("[Service]\nStateDirectory=\nReadOnlyPaths=/var/lib/limiterd\n"):
        restart()
        wait_for(lambda: phase() == "limited", "the limit stands", 20)
        sh(f"limiterctl release {LINK} --reason check", code=None)
        be_limited()
        faults = json.dumps(status()["faults"])
        assert "Read-only file system" in journal_since(mark), journal_since(mark)[-2000:]
        assert "Read-only file system" in faults, faults


def errors_wrong_socket_group() -> None:
    """A control group that does not exist is exit 78 and a line with its place that names it; systemd does not retry."""
    config(POLICY + "control: {group: no-such-group}\n")
    try:
        restarts = show("NRestarts")
        code, said = failed_start()
        assert code == 78, said
        assert re.search(rf"{CONFIG}:4:\d+: control\.group: .*no-such-group", said), said
        assert show("NRestarts") in {"0", restarts}
    finally:
        config(POLICY)
        restart()


def errors_port_taken() -> None:
    """With the metrics port taken it enforces on, says so, and serves the page once the port is free."""
    mark = cursor()
    sh("systemctl stop limiterd")
    thief = subprocess.Popen(
        [sys.executable, "-c", "import socket,time; s=socket.create_server(('127.0.0.1',9817)); time.sleep(600)"]
    )
    try:
        time.sleep(2)
        restart()
        wait_for(lambda: "9817" in journal_since(mark), "a line about the port", 20)
        assert "9817" in json.dumps(status()), "the port does not show in status"
        assert active()
    finally:
        thief.kill()
        thief.wait()
    wait_for(metrics_answer, "the page", 60)


def metrics_answer() -> bool:
    """Whether the metrics page answers on this machine."""
    try:
        with urllib.request.urlopen("http://127.0.0.1:9817/metrics", timeout=10) as page:
            return bool(page.status == 200)
    except (urllib.error.URLError, OSError):
        return False


# ---- drop-ins --------------------------------------------------------------------------------------


def dropins_remote_prometheus() -> None:
    """The metrics page is closed to other machines even when it listens to them; the drop-in opens it to one network."""
    config(POLICY + 'metrics: {listen: "0.0.0.0:9817"}\n')
    try:
        restart()
        wait_for(metrics_answer, "the page on this machine", 30)
        assert scrape(NEAR_IP) is None
        text = (HERE / "systemd/drop-ins/remote-prometheus.conf").read_text(encoding="utf-8")
        with drop_in(text.replace("192.0.2.0/24", "10.77.0.0/24")):
            restart()
            wait_for(metrics_answer, "the page on this machine", 30)
            assert scrape(NEAR_IP) == 200
    finally:
        config(POLICY)
        restart()


def dropins_process_names() -> None:
    """With the drop-in, explain names the process of another user that sent the traffic."""
    with drop_in((HERE / "systemd/drop-ins/process-names.conf").read_text(encoding="utf-8")):
        restart()
        assert int(process_status("CapEff"), 16) == 1 << 12 | 1 << 19 | 1 << 2
        sh(f"limiterctl release {LINK} --reason check", code=None)
        wait_for(lambda: not limited(), "released", 10)
        be_limited()
        flows = json.loads(sh(f"limiterctl explain {LINK} --json"))["evidence"]["flows"]
        assert flows[0]["process"]["name"] == "python3", flows
        assert flows[0]["process"]["pid"] > 0, flows


def dropins_socket_group() -> None:
    """With the drop-in a member of the group may ask for status, and not release."""
    sh(
        "groupadd --force netops; groupadd --force netadmin; id operator1 || useradd --no-create-home --groups netops operator1",
        code=None,
    )
    config(POLICY + "control: {group: netops, admin_group: netadmin}\n")
    try:
        with drop_in((HERE / "systemd/drop-ins/socket-group.conf").read_text(encoding="utf-8")):
            restart()
            sh("runuser -u operator1 -- limiterctl status")
            sh(f"runuser -u operator1 -- limiterctl release {LINK} --reason x", code=77)
            sh("runuser -u nobody -- limiterctl status", code=77)
            config(POLICY)
    finally:
        config(POLICY)
        restart()


# ---- reboot, power loss ----------------------------------------------------------------------------


def before_reboot_enabled_and_limited() -> None:
    """The service is enabled, one of its links will be missing, and a decision stands to be put back."""
    sh("systemctl enable limiterd")
    config(POLICY.replace(f'"{LINK}"', f'"{LINK}", "{MISSING}"'))
    sh("systemctl reload limiterd")
    be_limited()
    with (HERE / "since").open("w", encoding="utf-8") as file:
        file.write(str(row()["since"]))
        file.flush()
        os.fsync(file.fileno())


def decision_is_put_back() -> None:
    """After the boot the link is limited again, in the kernel, by the decision from before."""
    wait_for(lambda: phase() == "limited", "limited", 60)
    assert limited()
    assert str(row()["since"]) == (HERE / "since").read_text(encoding="utf-8")
    print(f"      {shaped_rate()}")


def limit_came_with_the_link() -> None:
    """The limit is read back with the first sample, which makes the service ready, or as soon after its link as after kill -9."""
    unit, sampling = reached_s("limiterd", "ExecMainStart"), reached_s("limiterd", "ActiveEnter")
    link, limit = reached_s(LINKS_UNIT.stem, "ActiveEnter"), told_s("restored")
    longest_s = patience_s()
    began = time.monotonic()
    sh("python3 -c 'import limiterd.daemon.daemon'")
    imports_s = time.monotonic() - began
    told = (
        f"read back {limit - unit:.2f} s after the service's start ({sampling - unit:.2f} s to its first sample, of which "
        f"Python and its imports take {imports_s:.2f} s on the machine at rest), {limit - link:.2f} s after the link came up"
    )
    assert limit - max(sampling, link) <= longest_s, f"{told}; allowed: {longest_s:.1f} s"
    print(f"      {told}")


def boot_was_not_held_up() -> None:
    """Nothing failed at boot or waits for the link that is missing, and the audit trail is whole."""
    assert "limiterd" not in sh("systemctl --failed --plain --no-legend")
    assert active()
    assert {link["interface"]: link["phase"] for link in status()["links"]} == {LINK: "limited", MISSING: "absent"}
    sh("limiterctl history --verify")


# ---- upgrade, removal ------------------------------------------------------------------------------


def upgrade_leaves_limits_standing() -> None:
    """Upgrading the package restarts the running daemon; our root stands at every look and is adopted."""
    be_limited()
    before, old = row()["since"], pid()
    sh(
        f"rm -rf /tmp/next && dpkg-deb -R {max(HERE.glob('limiterd_*.deb'))} /tmp/next && "
        "sed -i 's/^Version: .*/&+next1/' /tmp/next/DEBIAN/control && dpkg-deb -b /tmp/next /tmp/limiterd-next.deb"
    )
    upgrading = subprocess.Popen(
        ["bash", "-c", "DEBIAN_FRONTEND=noninteractive dpkg -i /tmp/limiterd-next.deb"], stdout=subprocess.DEVNULL
    )
    looks = []
    while upgrading.poll() is None:
        looks.append(limited())
    assert upgrading.returncode == 0
    assert looks
    assert all(looks), f"{looks.count(False)} of {len(looks)} looks found no limit"
    wait_for(lambda: pid() not in {0, old} and phase() == "limited", "adopted by the new daemon", 30)
    assert row()["since"] == before
    print(f"      {len(looks)} looks during the upgrade")


def upgrade_refuses_a_newer_state() -> None:
    """A journal of a newer format is kept as it is beside, and one line says so; the limit is adopted from the kernel."""
    sh("systemctl stop limiterd")
    journal = STATE / "journal.json"
    newer = re.sub(r'"(limiterd_journal\w*)":\s*1\b', r'"\1":999', journal.read_text(encoding="utf-8"), count=1)
    assert "999" in newer, newer[:200]
    journal.write_text(newer, encoding="utf-8")
    mark = cursor()
    restart()
    assert "newer" in journal_since(mark), journal_since(mark)
    kept = [path for path in STATE.glob("journal.json.newer*") if path.read_text(encoding="utf-8") == newer]
    assert kept, list(STATE.iterdir())
    wait_for(lambda: phase() == "limited", "adopted from the kernel", 20)


def remove_lifts_the_limit() -> None:
    """apt remove stops the daemon and lifts what stands; configuration and state stay."""
    be_limited()
    sh("DEBIAN_FRONTEND=noninteractive apt-get remove -y limiterd", timeout=300)
    assert not limited(), qdiscs()
    assert not Path("/run/limiterd").exists()
    assert CONFIG.exists()
    assert (STATE / "journal.json").exists()


def remove_purges() -> None:
    """apt purge takes configuration and state."""
    sh("DEBIAN_FRONTEND=noninteractive apt-get purge -y limiterd", timeout=300)
    assert not CONFIG.parent.exists()
    assert not STATE.exists()


# ---- without a package manager ---------------------------------------------------------------------


def wheel_installs_the_service() -> None:
    """From the wheel, install-service --dry-run changes nothing; in earnest it installs a sound unit and starts nothing."""
    sh(f"python3 -m venv --system-site-packages {VENV}", timeout=600)
    sh(f"{VENV}/bin/pip install --no-index --no-deps {max(HERE.glob('limiterd-*.whl'))}", timeout=600)
    assert f"ExecStart={VENV}/bin/limiterd " in sh(f"{VENV}/bin/limiterctl install-service --dry-run")
    assert not OWN_UNIT.exists()
    assert not CONFIG.parent.exists()
    sh(f"{VENV}/bin/limiterctl install-service")
    assert "disabled" in sh("systemctl is-enabled limiterd", code=None)
    assert not active()
    assert sh("systemd-analyze verify --man=no limiterd.service").strip() == ""
    sh("systemd-analyze security --threshold=15 limiterd.service")


def wheel_serves() -> None:
    """The service that install-service wrote runs as its own user, limits, and reloads."""
    config(POLICY)
    sh("systemctl start limiterd")
    assert sh(f"stat -c %U /proc/{pid()}").strip() == "limiterd"
    sh(f"{VENV}/bin/limiterctl limit {LINK} --reason check")
    wait_for(limited, "our root is there", 20)
    sh("systemctl reload limiterd")


def wheel_uninstalls() -> None:
    """uninstall-service --purge stops the service, lifts its limit and leaves neither unit, configuration nor state."""
    sh(f"{VENV}/bin/limiterctl uninstall-service --purge")
    assert not limited(), qdiscs()
    left = [str(path) for path in (OWN_UNIT, CONFIG.parent, STATE, Path("/run/limiterd")) if path.exists()]
    assert not left, left
    assert "not-found" in sh("systemctl show limiterd --property=LoadState")


STAGES: dict[str, tuple[Callable[[], None], ...]] = {
    "install": (install_package, install_starts_nothing, install_makes_the_user, install_unit_is_sound, install_links),
    "live": (
        live_starts,
        live_limits_after_ten_seconds,
        live_holds_the_rate,
        live_restart_leaves_no_gap,
        live_survives_sigkill,
        live_watchdog_restarts_a_stalled_loop,
        live_bad_reload_changes_nothing,
        live_override_releases,
        live_takeover_restores_single_qdiscs,
        live_strangers_may_not_release,
        live_second_daemon_is_refused,
        live_stop_does_as_configured,
    ),
    "errors": (
        errors_missing_configuration,
        errors_invalid_configuration,
        errors_missing_user,
        errors_missing_capability,
        errors_read_only_state,
        errors_wrong_socket_group,
        errors_port_taken,
    ),
    "dropins": (dropins_remote_prometheus, dropins_process_names, dropins_socket_group),
    "before-reboot": (before_reboot_enabled_and_limited,),
    "after-reboot": (decision_is_put_back, limit_came_with_the_link, boot_was_not_held_up),
    "before-power-loss": (before_reboot_enabled_and_limited,),
    "after-power-loss": (decision_is_put_back, limit_came_with_the_link, boot_was_not_held_up),
    "upgrade": (upgrade_leaves_limits_standing, upgrade_refuses_a_newer_state),
    "remove": (remove_lifts_the_limit, remove_purges),
    "wheel": (wheel_installs_the_service, wheel_serves, wheel_uninstalls),
}


def main(stage: str, only: list[str]) -> int:
    """Run a stage's checks in order; one that fails does not keep the others from running."""
    failed = 0
    for check in STAGES[stage]:
        if only and check.__name__ not in only:
            continue
        began = time.monotonic()
        try:
            check()
        except (AssertionError, OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1].lineno
            print(f"FAIL  {check.__name__}: line {where}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"ok    {check.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]) != 0)
