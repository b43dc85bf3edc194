"""Statuses for tests of what is shown: one rich fixed instant, and an uneventful one."""

from __future__ import annotations

import math
from dataclasses import replace

from limiterd.core.model import (
    ClassStats,
    Counters,
    Fault,
    FaultReason,
    Histogram,
    LinkView,
    Override,
    OverrideAction,
    OverrideView,
    Phase,
    Status,
)

GBIT = 10**9
MBIT = 10**6
SECOND = 10**9
WALL_NS = 1_795_446_000 * SECOND
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


def link(interface: str, phase: Phase = Phase.CONFORMING, **fields: object) -> LinkView:
    """A link view with everyday figures."""
    view = LinkView(interface, 2, "fair-use", "enforce", phase, 80 * MBIT, 123_456_789)
    return replace(view, **fields)  # type: ignore[arg-type]  # field by field, checked by the dataclass


def override(record_id: str, *, expires_s: int | None, state: str, links: tuple[str, ...]) -> OverrideView:
    """An override with its state; expires_s is relative to WALL_NS."""
    expires = None if expires_s is None else WALL_NS + expires_s * SECOND
    record = Override(record_id, links, OverrideAction.EXEMPT, expires, "ops@example.net", "nightly backup")
    return OverrideView(record, state, links, links if state == "active" else ())


def histogram(values_s: tuple[float, ...]) -> Histogram:
    """A histogram of these observations."""
    counts = tuple(sum(v <= bound for v in values_s) for bound in BOUNDS_S)
    return Histogram(BOUNDS_S, counts, len(values_s), math.fsum(values_s))


def rich() -> Status:
    """One instant with every phase, odd interface names, faults, overrides and counts: the golden scrape's."""
    links = (
        link("eth0", Phase.LIMITED, ifindex=2, rate_bps=199_600_000, tx_bytes=2**40 + 1, limit_bps=200 * MBIT, strikes=1,
             since_wall_ns=WALL_NS - 754 * SECOND, stats=ClassStats(1_250_000_000, 900_000, 42, 123_456, 65_536)),
        link("eth1", Phase.PENDING, ifindex=3, rate_bps=1_200_000_000, pending_ns=6_300_000_000),
        link("eth2", Phase.EXEMPT, ifindex=4, rate_bps=3_000_000_001, override="REQ-1"),
        link("eth3", Phase.FAULT, ifindex=5, rate_bps=1_500_000_000, limit_bps=200 * MBIT, stats=ClassStats(1, 1, 1, 1, 1)),
        link('od"d\\é✓', Phase.CONFORMING, ifindex=6, rate_bps=0, tx_bytes=0),
        link("raw\udcff", Phase.CONFORMING, ifindex=7),
        LinkView("eth9", 0, "fair-use", "enforce", Phase.ABSENT, 0, 0),
    )  # fmt: skip
    counters = Counters(
        detections={("eth0", "sustained"): 3, ("eth1", "guard"): 1, ("gone0", "sustained"): 9},
        limits_applied={"eth0": 2, "gone0": 9},
        limits_released={("eth0", "override"): 1, ("gone0", "operator"): 4},
        drift_repairs={"eth0": 5, "gone0": 9},
        kernel_errors={("install", "EEXIST"): 2, ("dump", "EBUSY"): 1},
        epochs={"new": 7, "counter": 1},
        control_requests={("status", "ok"): 12, ("limit", "denied"): 1},
        missed_ticks=4,
        dropped_samples=3,
        netlink_resyncs=2,
        audit_errors=1,
    )
    return Status(
        version="1.2.3",
        wall_ns=WALL_NS,
        boot_ns=86_400 * SECOND,
        started_wall_ns=WALL_NS - 3 * 86_400 * SECOND,
        host="gpu-7.example.net",
        links=links,
        faults=(
            Fault("eth3", FaultReason.FOREIGN_QDISC, "a tbf root that is not ours", WALL_NS - 60 * SECOND),
            Fault("eth3", FaultReason.FOREIGN_QDISC, "the same, said twice", WALL_NS - 60 * SECOND, warning=True),
            Fault("", FaultReason.OTHER, "the audit trail cannot be written", WALL_NS - 5 * SECOND),
        ),
        overrides=(
            override("REQ-1", expires_s=3600, state="active", links=("eth2", "eth9")),
            override("REQ-0", expires_s=-3600, state="expired", links=("eth2",)),
            override("FOR-EVER", expires_s=None, state="pending", links=()),
        ),
        paused=True,
        config_sha256="ab" * 32,
        config_error="limiterd.yaml:3:5: policies[0]: unknown key",
        config_loaded_wall_ns=WALL_NS - 7200 * SECOND,
        requests_pending=2,
        counters=counters,
        histograms={
            "tick_duration_seconds": histogram((0.0004, 0.0007, 0.003)),
            "tick_lateness_seconds": histogram((0.0001, 0.0002, 0.3)),
            "enforcement_seconds": histogram((0.04,)),
        },
        source="netlink",
        last_tick_age_ns=40_000_000,
    )


def quiet(links: int = 1) -> Status:
    """An uneventful machine with that many links."""
    views = tuple(link(f"eth{i}", ifindex=i + 2) for i in range(links))
    return replace(
        rich(), links=views, faults=(), overrides=(), paused=False, config_error=None, counters=Counters(), requests_pending=0
    )
