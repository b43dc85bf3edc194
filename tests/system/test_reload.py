"""Reloads as an operator makes them: what they touch, what they leave alone, and what a bad one leaves behind."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from limiterd.core.errors import EXIT_CONFIG
from limiterd.kernel.events import EventSocket
from limiterd.kernel.links import LinkTable
from limiterd.sim.netns import Pair, PrivateNet, inside, join
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root

MBIT = 1_000_000
SUCCESSFUL = "limiterd_config_last_reload_successful"


def policy(limit_mbit: int, **keys: str) -> str:
    """A policy with this limit, and further keys."""
    return ", ".join([f"limit: {{rate: {limit_mbit}mbit}}", *(f"{key}: {value}" for key, value in keys.items())])


def _reloads(daemon: Rig) -> int:
    return len(daemon.ask("history", kinds=["reload"], limit=100)["entries"])


def _reloaded_since(daemon: Rig, counted: int) -> bool:
    return _reloads(daemon) > counted


def test_a_reload_that_changes_nothing_touches_nothing(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """Ten reloads, by command and signal: no epoch, no timer begun anew, not one tc message, neither limited nor pending."""
    join(pair.near.namespace, lab.namespace(), "eth1", "eth0", number=2)
    keys = policy(20, detect="{threshold: 50mbit, window: 30s, floor: 0%}")
    with rig(pair.near.namespace, tmp_path, keys) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth1", "--reason", "test")
        lab.udp(pair.near, pair.far, 80 * MBIT)
        daemon.wait_phase("pending")
        wait_for(lambda: daemon.link()["pending_seconds"] > 1, "a second of the window")
        epochs = {name: value for name, value in daemon.metrics().items() if "epochs_total" in name}
        since = daemon.link("eth1")["since"]
        pending_s = daemon.link()["pending_seconds"]
        with inside(pair.near.namespace):
            table = LinkTable()
            events = EventSocket(table, lambda: ())
        try:
            for _ in range(5):
                assert daemon.ctl("reload").stdout == "reloaded: nothing changed\n"
                counted = _reloads(daemon)
                daemon.hang_up()
                wait_for(partial(_reloaded_since, daemon, counted), "the signal's reload")
            assert events.drain().tc_ifindexes == set()
        finally:
            events.close()
            table.close()
        assert {name: value for name, value in daemon.metrics().items() if "epochs_total" in name} == epochs
        assert daemon.link()["pending_seconds"] >= pending_s
        assert daemon.link("eth1")["since"] == since
        assert daemon.phase("eth1") == "limited"


@pytest.mark.parametrize("way", ["command", "signal"])
def test_a_bad_reload_changes_nothing_and_shows_until_a_good_one(way: str, pair: Pair, tmp_path: Path) -> None:
    """File, line, column and reason; exit code 78; the metric 0; status shows it; a good reload ends all that."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        sha256 = daemon.status()["config"]["sha256"]
        daemon.configure(policy(30), extra="sampling: {intervall: 50ms}")
        if way == "command":
            refused = daemon.ctl("reload", check=False)
            assert refused.returncode == EXIT_CONFIG
            assert f"{daemon.config}:5:12: sampling.intervall: " in refused.stderr
        else:
            daemon.hang_up()
            wait_for(lambda: daemon.status()["config"]["error"], "the refusal")
        status = daemon.status()
        assert status["config"]["error"].startswith(f"{daemon.config}:5:12: sampling.intervall: ")
        assert status["config"]["sha256"] == sha256
        assert daemon.metrics()[SUCCESSFUL] == 0
        assert daemon.link()["limit_bps"] == 20 * MBIT
        assert "the last reload was refused" in daemon.ctl("status").stdout
        assert daemon.ask("history", kinds=["reload_failed"])["entries"]
        daemon.configure(policy(30), extra="")
        said = daemon.ctl("reload").stdout
        assert "~ policy fair-use limit 20mbit → 30mbit" in said
        assert daemon.status()["config"]["error"] is None
        assert daemon.metrics()[SUCCESSFUL] == 1
        assert daemon.link()["limit_bps"] == 30 * MBIT


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("state: {directory: /nowhere/else}", "needs a restart"),
        ("control: {group: there-is-no-such-group}", "there is no group"),
    ],
)
def test_what_a_running_daemon_cannot_follow(extra: str, reason: str, pair: Pair, tmp_path: Path) -> None:
    """Another state directory or an unknown group: refused as a whole, the limit that would have changed with it too."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        text = daemon.config.read_text().replace("rate: 20mbit", "rate: 30mbit")
        key = extra.partition(":")[0]
        lines = [line for line in text.splitlines() if not line.startswith(f"{key}:")]
        if key == "control":
            extra = extra.replace("{", f"{{socket: {daemon.socket}, ")
        daemon.config.write_text("\n".join([*lines, extra, ""]))
        refused = daemon.ctl("reload", "--socket", daemon.socket, check=False)
        assert (refused.returncode, reason in refused.stderr) == (EXIT_CONFIG, True), refused.stderr
        assert reason in daemon.status()["config"]["error"]
        assert daemon.link()["limit_bps"] == 20 * MBIT
        assert daemon.metrics()[SUCCESSFUL] == 0


def test_a_changed_policy_reaches_standing_limits(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """A new rate in place and without loss; observe lifts what enforce had limited; each line says so."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        daemon.start()
        before = daemon.root()
        daemon.ctl("limit", "eth0", "--reason", "test")
        flow = lab.udp(pair.near, pair.far, 8 * MBIT)
        wait_for(lambda: daemon.class_bytes() > 300_000, "traffic through the class")
        counted = daemon.class_bytes()
        daemon.configure(FAST.replace("20mbit", "12mbit"))
        assert "~ policy fair-use limit 20mbit → 12mbit" in daemon.ctl("reload").stdout
        assert daemon.link()["limit_bps"] == 12 * MBIT
        wait_for(lambda: daemon.class_bytes() > counted + 300_000, "the same class goes on")
        flow.set_rate(0)
        assert flow.stop()["lost_packets"] == 0
        daemon.configure(f"{FAST}, mode: observe")
        said = daemon.ctl("reload").stdout
        assert "~ policy fair-use mode enforce → observe" in said
        wait_for(lambda: daemon.root() == before, "the root as it was", longest_s=2)
        assert daemon.metrics()['limiterd_limits_released_total{interface="eth0",reason="policy"}'] == 1


def test_a_new_threshold_begins_afresh_on_its_own_links_only(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """Of two policies one gets another window: a fresh epoch there alone; the other link's window goes on."""
    join(pair.near.namespace, lab.namespace(), "lan1", "eth0", number=2)
    other = "  - {name: other, interfaces: ['lan*'], detect: {window: %s}}"
    with rig(pair.near.namespace, tmp_path, policy(5, detect="{threshold: 20mbit, window: 30s}")) as daemon:

        def configure(window: str) -> None:
            daemon.configure()
            text = daemon.config.read_text()
            first, _, rest = text.partition("\n")
            one = first.removeprefix("policies: [").removesuffix("]")
            daemon.config.write_text(f"policies:\n  - {one}\n{other % window}\n{rest}")

        configure("10s")
        daemon.start()
        lab.udp(pair.near, pair.far, 40 * MBIT)
        wait_for(lambda: daemon.link()["pending_seconds"] > 1, "a second of the window")
        before = daemon.metrics()['limiterd_epochs_total{reason="reload"}']
        configure("12s")
        assert "~ policy other window 10s → 12s" in daemon.ctl("reload").stdout
        wait_for(lambda: daemon.metrics()['limiterd_epochs_total{reason="reload"}'] == before + 1, "one fresh epoch")
        assert daemon.link()["pending_seconds"] > 1
