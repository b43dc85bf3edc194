"""The dashboards: well-formed, and every query of theirs, like every alert's, answered by a real Prometheus.

It scrapes three real daemons under real traffic in a namespace, by way of the states that operators fear. The first can do
everything: a link is limited under traffic, one pending, one exempt by an override that ends within a day, one in fault
under a foreign root, one whose limit somebody keeps undoing, one with a foreign root and nothing due, one that was limited
and released again and again; a request waits, a reload was refused, new limits are paused. The second lacks what it needs:
it has not CAP_NET_ADMIN, so that its limit is refused by the kernel; its disk is full; it is stopped for seconds. The
third's loop is blocked. A fourth target is down.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from limiterd.core.errors import NotDurableError, PeerError
from limiterd.sim.netns import End, Flow, PrivateNet, inside, join, run
from tests import needs
from tests.faults.harness import LOOP, Held, problems
from tests.netns import wait_for
from tests.prometheus import Prometheus, prometheus, tool
from tests.rig import METRICS, Rig, rig
from tests.smalldisk import fill
from tests.test_prometheus_rules import RULES, rules

pytestmark = pytest.mark.long

GRAFANA: Final = Path(__file__).resolve().parent.parent / "config" / "grafana"
BOARDS: Final = sorted(GRAFANA.glob("*.json"))
LOOK_BACK_S: Final = 5.0
RATE_INTERVAL: Final = "4s"
EXCESS_BPS: Final = 150_000_000
OBSERVER: Final = "127.0.0.1:9818"
STALLED: Final = "127.0.0.1:9819"
STOP_S: Final = 1.0
FILLS_A_PAGE: Final = 10
"""Pauses and resumptions that are more than the audit trail's last page of 4 KiB on a full disk has room for."""
POLICIES: Final = """\
policies:
  - {name: slow, interfaces: [eth1], detect: {threshold: 50mbit, window: 10m}, limit: {rate: 20mbit}}
  - {name: fair-use, interfaces: ["eth*"], detect: {threshold: 100mbit, window: 2s}, limit: {rate: 20mbit}}
"""


def board(path: Path) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def panels(path: Path) -> list[dict[str, Any]]:
    """All panels of a dashboard, without the rows that group them."""
    return [panel for panel in board(path)["panels"] if panel["type"] != "row"]


QUERIES: Final = [
    pytest.param(target["expr"], target["instant"], id=f"{path.stem}: {panel['title']} {target['refId']}")
    for path in BOARDS
    for panel in panels(path)
    for target in panel["targets"]
]
each_board = pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)


# ---- the machines --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scraped:
    """A Prometheus server that has seen it all, and the instances of the three real daemons."""

    server: Prometheus
    daemons: tuple[str, ...] = (METRICS, OBSERVER, STALLED)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """All machines scraped, from before anything happens until some seconds after."""
    tool("prometheus")
    with PrivateNet() as lab, contextlib.ExitStack() as stack:
        pair = lab.pair()
        near, far = pair.near.namespace, pair.far.namespace
        links = [pair, *(join(near, far, name, name, number=2 + i) for i, name in enumerate(LINKS[1:]))]
        able = stack.enter_context(rig(near, tmp_path_factory.mktemp("able")))
        able.config.write_text(POLICIES + able.config.read_text().partition("\n")[2])
        (able.overrides / "req.yaml").write_text(override())
        # One daemon a namespace: the others are in their own, reached over links that nobody watches.
        beside, behind = join(near, far, "mg0", "mg0", number=20).far, join(near, lab.namespace(), "mg1", "mg1", number=21).far
        unable = stack.enter_context(observer(beside, tmp_path_factory.mktemp("unable")))
        able.start()
        unable.start()
        stack.enter_context(stalled(behind, tmp_path_factory.mktemp("stalled")))
        with inside(near), socket.create_server(("127.0.0.1", 0)) as closed:
            down = "{}:{}".format(*closed.getsockname())
        elsewhere = {OBSERVER: f"{beside.v4}:9817", STALLED: f"{behind.v4}:9817"}
        targets: list[str | Mapping[str, Any]] = [
            METRICS,
            down,
            *({"targets": [at], "labels": {"instance": name}} for name, at in elsewhere.items()),
        ]
        server = stack.enter_context(prometheus(targets, tmp_path_factory.mktemp("prometheus"), RULES, near))
        server.wait_for("count(count_over_time(limiterd_paused[1m]) > 1) == 3")
        flows = [lab.tcp(link.near, link.far, EXCESS_BPS) for link in links[:3]]
        worst(able, unable, flows)
        server.wait_for(f'count_over_time(limiterd_paused{{instance="{METRICS}"}}[5s]) * 0 + limiterd_paused > 0')
        server.wait_for(f'limiterd_audit_errors_total{{instance="{OBSERVER}"}} > 0')
        seen = server.values(f'count_over_time(limiterd_paused{{instance="{METRICS}"}}[5m])')[0]
        server.wait_for(f'count_over_time(limiterd_paused{{instance="{METRICS}"}}[5m]) > {seen + 4:.0f}')
        yield Scraped(server)


LINKS: Final = ("eth0", "eth1", "eth2", "eth3", "eth4", "eth5", "eth6", "obs0")
"""Limited, pending, exempt, in fault, fought over, foreign, flapping; the second daemon's."""


def override() -> str:
    """The record that exempts eth2 for an hour, and one of yesterday."""
    now = datetime.now(UTC)
    ends = {"REQ-1": now + timedelta(hours=1), "REQ-0": now - timedelta(days=1)}
    records = [
        f"  - {{id: {name}, interfaces: [eth2], action: exempt, expires: {end:%Y-%m-%dT%H:%M:%SZ}, approved_by: a, reason: b}}"
        for name, end in ends.items()
    ]
    return "\n".join(["overrides:", *records, ""])


@contextlib.contextmanager
def observer(end: End, home: Path) -> Iterator[Rig]:
    """The second daemon: it only observes, without CAP_NET_ADMIN, and its state is on a tiny disk."""
    with rig(end.namespace, home) as made:
        made.state.mkdir()
        made.config.write_text(
            made.config.read_text().replace("['eth*']", "['obs*'], mode: observe") + f"metrics: {{listen: '{end.v4}:9817'}}\n"
        )
        mount = 'mount -t tmpfs -o mode=700,size=128k limiterd-test "$1" && shift && exec "$@"'
        alone = [*needs.private_mounts(), "sh", "-c", mount, "sh", str(made.state)]
        made.prefix = [*alone, "setpriv", "--bounding-set", "-net_admin"]
        yield made


@contextlib.contextmanager
def stalled(end: End, home: Path) -> Iterator[Rig]:
    """The third daemon: its loop is blocked before the first scrape."""
    with rig(end.namespace, home) as made:
        made.config.write_text(
            made.config.read_text().replace("['eth*']", "['lo'], mode: observe") + f"metrics: {{listen: '{end.v4}:9817'}}\n"
        )
        blocked = Held(made, LOOP)
        made.start()
        blocked.on()
        wait_for(lambda: "has not turned" in problems(made), "the stall is seen")
        yield made


def worst(able: Rig, unable: Rig, flows: Sequence[Flow]) -> None:
    """Bring about all that can be wrong, each waited for."""
    unable.ask("limit", interface="obs0", rate_bps=10**7, reason="refused by the kernel", force=True)
    unable.wait_phase("fault", "obs0")
    assert unable.process is not None
    fill(Path(f"/proc/{unable.process.pid}/root{unable.state}"))
    for _ in range(FILLS_A_PAGE):
        for verb in ("pause", "resume"):
            with contextlib.suppress(NotDurableError):  # it says that the disk is full
                unable.ask(verb, reason="for the full disk")
    for name in ("eth3", "eth5"):
        run(able.namespace, shlex.split(f"tc qdisc add dev {name} root handle 8001: tbf rate 900mbit burst 256k latency 50ms"))
    able.ask("limit", interface="eth3", reason="a foreign root is in the way")
    able.ask("limit", interface="eth4", reason="to be fought over")
    able.wait_phase("fault", "eth3")
    for _ in range(5):
        unable.process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        flap(able, "eth6")
        undo(able, "eth4")
        time.sleep(max(0.0, STOP_S - (time.monotonic() - stopped)))  # the trouble itself: a span without the second daemon
        unable.process.send_signal(signal.SIGCONT)
        wait_for(unable.answers, "the second daemon goes on")
    able.wait_phase("pending", "eth1")
    able.wait_phase("exempt", "eth2")
    able.wait_phase("limited", "eth0")
    able.ask("request.add", interface="eth0", rate_bps=10**9, until="2099-12-31", reason="more")
    able.ask("pause", reason="enough")
    able.config.write_text("policies: [{nmae: fair-use}]\n" + able.config.read_text())
    with pytest.raises(PeerError):
        able.ask("reload")


def flap(daemon: Rig, name: str) -> None:
    """Limit a link and release it again."""
    daemon.ask("limit", interface=name, reason="flap")
    daemon.wait_phase("limited", name)
    daemon.ask("release", interface=name, reason="flap")
    wait_for(lambda: "1d1d" not in daemon.root(name), f"{name} is as before")


def undo(daemon: Rig, name: str) -> None:
    """Delete a limit behind the daemon's back, twice, as soon as it stands; nothing where limiterd has given way for now."""
    for _ in range(2):
        if daemon.phase(name) == "limited":
            run(daemon.namespace, ["tc", "qdisc", "del", "dev", name, "root"], check=False)
            wait_for(lambda: "1d1d" in daemon.root(name) or daemon.phase(name) == "fault", f"{name} is seen to")


# ---- the files -----------------------------------------------------------------------------------------


def test_there_is_one_for_a_machine_and_one_for_the_fleet() -> None:
    """Two dashboards, each with a fixed uid that links can rely on."""
    assert [(path.name, board(path)["uid"]) for path in BOARDS] == [
        ("limiterd-fleet.json", "limiterd-fleet"),
        ("limiterd.json", "limiterd-machine"),
    ]


@each_board
def test_each_dashboard_is_well_formed(path: Path) -> None:
    """Panels have unique ids, titles, descriptions and places within 24 columns, and ask the chosen data source."""
    loaded = board(path)
    assert loaded["schemaVersion"] >= 38
    assert len({panel["id"] for panel in loaded["panels"]}) == len(loaded["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in loaded["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in panels(path):
        assert panel["title"]
        assert panel["description"]
        for thing in (panel, *panel["targets"]):
            assert thing["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@each_board
def test_each_dashboard_can_be_narrowed(path: Path) -> None:
    """Data source and machine are variables, one machine's interfaces too, and queries use no variable that is not there."""
    loaded = board(path)
    variables = {variable["name"] for variable in loaded["templating"]["list"]}
    assert {"datasource", "instance"} <= variables
    used = set(re.findall(r"\$(?!__)(\w+)", " ".join(target["expr"] for panel in panels(path) for target in panel["targets"])))
    assert used <= variables
    assert used >= variables - {"datasource"}


def test_the_provisioning_examples_are_valid() -> None:
    """Both example files are YAML of the one API version that there is, and the provider reads files."""
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "limiterd.yaml").read_text(encoding="utf-8"))
    providers = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "limiterd.yaml").read_text(encoding="utf-8"))
    assert sources["apiVersion"] == providers["apiVersion"] == 1
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
    assert [provider["type"] for provider in providers["providers"]] == ["file"]


# ---- against a real server -----------------------------------------------------------------------------


def filled_in(expression: str, instance: str) -> str:
    """A query as Grafana would send it for this machine and all of its interfaces."""
    values = {"$__rate_interval": RATE_INTERVAL, "$instance": instance, "$interface": ".*"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression


@pytest.mark.root
def test_prometheus_takes_every_sample(scraped: Scraped) -> None:
    """The scraper can read all targets but the one that is down."""
    scraped.server.wait_for('(count(up{job="limiterd"} == 0) == 1) and on () count(up) == 4')
    assert [error.rpartition(": ")[2] for error in scraped.server.target_errors().values() if error] == ["connection refused"]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize(("expression", "instant"), QUERIES)
def test_every_query_has_data(scraped: Scraped, expression: str, *, instant: bool) -> None:
    """A panel's query is answered with at least one number, on one of the real daemons."""
    # The fleet is asked for all of its machines, as "All" in Grafana does.
    instances = ("|".join(scraped.daemons),) if 'instance=~"$instance"' in expression else scraped.daemons
    last_s = 0.0 if instant else LOOK_BACK_S
    assert any(scraped.server.values(filled_in(expression, instance), last_s=last_s) for instance in instances)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_finds_what_it_looks_for(scraped: Scraped, rule: dict[str, Any]) -> None:
    """Every alert's expression finds its trouble, on the real daemons where a short run can make it."""
    scraped.server.wait_for(rule["expr"])
    found = scraped.server.instances(rule["expr"])
    assert rule["alert"] == "LimiterdDown" or found & set(scraped.daemons)


@pytest.mark.root
@pytest.mark.slow
def test_the_server_raises_the_alerts(scraped: Scraped) -> None:
    """Loaded into the server, the rules make alerts that name the machine and fire or count down to it."""
    scraped.server.wait_for('ALERTS{alertname="LimiterdLinkLimited", alertstate="firing", instance!=""}')
    assert (
        {rule["alert"] for rule in rules()} >= scraped.server.firing() >= {"LimiterdLinkLimited", "LimiterdFault", "LimiterdDown"}
    )
