"""The dashboards: well-formed, and every query of theirs, like every alert's, answered by a real Prometheus.

Where the figures come from is the fixture `targets`: the first of them is the machine that the dashboards show. It has
to be a machine with everything: one link limited, one pending, one exempt by an override, one in fault, a refused
reload, a pause, a waiting request, and counts that go on counting.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from limiterd.core.model import MetricsConfig
from limiterd.metrics import MetricsServer
from tests.prometheus import Prometheus, prometheus
from tests.statuses import Machine, rich
from tests.test_prometheus_rules import RULES, rules

GRAFANA: Final = Path(__file__).resolve().parent.parent / "config" / "grafana"
BOARDS: Final = sorted(GRAFANA.glob("*.json"))
LOOK_BACK_S: Final = 5.0
RATE_INTERVAL: Final = "4s"


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


@pytest.fixture(scope="module")
def targets() -> Iterator[Sequence[str]]:
    """host:port of what is scraped: a busy machine, one whose loop stands still, and one that is down."""
    servers = [MetricsServer(MetricsConfig("127.0.0.1:0"), status, lambda: True) for status in (Machine().status, rich)]
    try:
        for server in servers:
            server.start()
        with socket.create_server(("127.0.0.1", 0)) as closed:
            down = f"127.0.0.1:{closed.getsockname()[1]}"
        yield [*("{}:{}".format(*server.address) for server in servers if server.address), down]
    finally:
        for server in servers:
            server.close()


@pytest.fixture(scope="module")
def scraped(targets: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, str]]:
    """A Prometheus server that has scraped the targets for some seconds, and the name of the first one."""
    with prometheus(targets, tmp_path_factory.mktemp("prometheus"), RULES) as server:
        server.wait_for(f'count_over_time(limiterd_paused{{instance="{targets[0]}"}}[1m]) > 16')
        yield server, targets[0]


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


def test_prometheus_takes_every_sample(scraped: tuple[Prometheus, str]) -> None:
    """The scraper can read all targets but the one that is down."""
    server, down = scraped[0], 'up{job="limiterd"} == 0'
    server.wait_for(f"(count({down}) == 1) and on () count(up) == 3")
    assert [error.rpartition(": ")[2] for error in server.target_errors().values() if "refused" in error] == [
        "connection refused"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("expression", "instant"), QUERIES)
def test_every_query_has_data(scraped: tuple[Prometheus, str], expression: str, *, instant: bool) -> None:
    """A panel's query is answered with at least one number."""
    server, instance = scraped
    # The fleet is asked for all of its machines, as "All" in Grafana does.
    shown = ".*" if 'instance=~"$instance"' in expression else instance
    assert server.values(filled_in(expression, shown), last_s=0.0 if instant else LOOK_BACK_S)


@pytest.mark.slow
@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_finds_what_it_looks_for(scraped: tuple[Prometheus, str], rule: dict[str, Any]) -> None:
    """On machines on which everything is wrong every alert's expression has a result."""
    server, _ = scraped
    server.wait_for(rule["expr"])


@pytest.mark.slow
def test_the_server_raises_the_alerts(scraped: tuple[Prometheus, str]) -> None:
    """Loaded into the server, the rules make alerts that name the machine and fire or count down to it."""
    server, _ = scraped
    server.wait_for('ALERTS{alertname="LimiterdLinkLimited", alertstate="firing", instance!=""}')
    assert {rule["alert"] for rule in rules()} >= server.firing() >= {"LimiterdLinkLimited", "LimiterdFault", "LimiterdDown"}
