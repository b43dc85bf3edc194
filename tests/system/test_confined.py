"""Under the unit's system call filter, as every daemon of these tests is: what the others touch least, in one story."""

from __future__ import annotations

import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, PrivateNet, inside, run
from tests import needs
from tests.rig import FAST, METRICS, rig
from tests.seccomp import unit_filter

pytestmark = pytest.mark.root


def test_the_units_filter_suffices(lab: PrivateNet, pair: Pair, tmp_path: Path) -> None:
    """Takeover, firing with evidence, TLS, override, reload and the exit's clean-up: nothing is refused to the daemon."""
    if unit_filter() is None:
        needs.missing("needs systemd-analyze and libseccomp (Debian packages systemd and libseccomp2)")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    self_signed = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x"
    subprocess.run([*self_signed.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    extra = f"metrics: {{tls: {{certificate: {certificate}, key: {key}}}}}\non_exit: remove\n"
    run(pair.near.namespace, ["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "5:", "pfifo", "limit", "77"])
    with rig(pair.near.namespace, tmp_path, f"{FAST}, foreign_qdisc: takeover", extra) as daemon:
        daemon.start()
        assert daemon.process is not None
        assert "Seccomp:\t2\n" in Path(f"/proc/{daemon.process.pid}/status").read_text()
        lab.tcp(pair.near, pair.far, rate_bps=200_000_000)
        daemon.wait_phase("limited")
        assert daemon.ask("explain", interface="eth0")
        trust = ssl.create_default_context()
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        with inside(pair.near.namespace):
            page = urllib.request.urlopen(f"https://{METRICS}/metrics", timeout=5, context=trust).read()
        assert b"process_resident_memory_bytes" in page
        grant = "override add --id X --interface eth0 --exempt --until 1h --reason test"
        daemon.ctl(*grant.split())
        daemon.wait_phase("exempt")
        daemon.ctl("override", "revoke", "X")
        daemon.ctl("reload")
        daemon.wait_phase("limited")
        daemon.ctl("history", "--verify")
        assert "permitted" not in str(daemon.status()["faults"])
        assert daemon.stop() == 0
        assert daemon.root() == "pfifo 5:"
        assert "permitted" not in daemon.log()
