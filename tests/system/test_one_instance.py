"""Two real agents that one Prometheus server knows by the same instance, told apart by another label alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from limiterd.sim.netns import PrivateNet
from tests.prometheus import prometheus, tool
from tests.rig import FAST, rig
from tests.test_prometheus_rules import RULES, expressions

pytestmark = [pytest.mark.root, pytest.mark.slow]

RECORD = """overrides:
  - id: REQ-1
    interfaces: ["eth0"]
    action: limit
    limit: 30mbit
    expires: "{expires}"
    approved_by: ops@example.net
    reason: test
"""


def test_alerts_and_queries_tell_two_agents_of_one_instance_apart(tmp_path: Path) -> None:
    """Both have a record of one id that ends soon, one has a limit: no query fails, and each alert is of whom it concerns."""
    tool("prometheus")
    soon = (datetime.now(UTC) + timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    homes = [tmp_path / name for name in ("a", "b", "prometheus")]
    for home in homes:
        home.mkdir()
    with PrivateNet() as net:
        pair = net.pair()
        with rig(pair.near.namespace, homes[0], FAST) as one, rig(pair.far.namespace, homes[1], FAST) as other:
            jobs = []
            for daemon, end, cluster in ((one, pair.near, "a"), (other, pair.far, "b")):
                daemon.configure(extra=f'metrics: {{listen: "{end.v4}:9817"}}')
                (daemon.overrides / "req.yaml").write_text(RECORD.format(expires=soon))
                daemon.start()
                jobs.append({"targets": [f"{end.v4}:9817"], "labels": {"instance": "127.0.0.1:9817", "cluster": cluster}})
            one.ask("limit", interface="eth0", reason="test")
            with prometheus(jobs, homes[2], RULES, pair.near.namespace) as server:
                server.wait_for("count(count_over_time(limiterd_paused[1m]) > 3) == 2")
                assert server.instances("limiterd_paused") == {"127.0.0.1:9817"}
                for expression in expressions():
                    server.values(expression)  # fails with the server's own words where it cannot be evaluated
                server.wait_for('count(ALERTS{alertname="LimiterdOverrideExpiring"}) == 2')
                server.wait_for('count(ALERTS{alertname="LimiterdLinkLimited"}) == 1')
                server.wait_for('ALERTS{alertname="LimiterdLinkLimited", cluster="a"}')
                other.stop()
                server.wait_for('up{cluster="b"} == 0')
                server.wait_for('count(ALERTS{alertname="LimiterdOverrideExpiring"}) == 1')
                server.wait_for('ALERTS{alertname="LimiterdDown", cluster="b"}')
