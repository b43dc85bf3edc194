"""What is shown: to status, metrics and the landing page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from limiterd.core.model.overrides import Override
from limiterd.core.model.tcobjects import ClassStats
from limiterd.core.model.verdicts import FaultReason, Phase


@dataclass(frozen=True, slots=True)
class Fault:
    """One degraded mode, shown in a metric, a log line and status until it ends. interface "" = the daemon itself."""

    interface: str
    reason: FaultReason
    message: str
    since_wall_ns: int
    warning: bool = False


@dataclass(frozen=True, slots=True)
class LinkView:
    """One watched link as status and metrics show it (an absent one has ifindex 0). Rates in bit/s.

    policy_limit_bps is what a firing would limit it to now, overrides considered; limit_wanted_bps what is decided.
    exempt_bps is what passes the exempt class of a standing limit, bypass_bps what passes beside all classes.
    """

    interface: str
    ifindex: int
    policy: str
    mode: str
    phase: Phase
    rate_bps: int
    tx_bytes: int
    pending_ns: int = 0
    limit_bps: int | None = None
    since_wall_ns: int | None = None
    reason: str = ""
    override: str = ""
    strikes: int = 0
    manual: bool = False
    stats: ClassStats | None = None
    release: str = ""
    limit_wanted_bps: int | None = None
    threshold_bps: int = 0
    window_ns: int = 0
    note: str = ""
    policy_limit_bps: int = 0
    by: str = ""
    altnames: tuple[str, ...] = ()
    counter_refresh_ns: int | None = None
    lower: tuple[str, ...] = ()
    upper: tuple[str, ...] = ()
    exempt_bps: int | None = None
    bypass_bps: int | None = None

    @property
    def applying_limit_bps(self) -> int:
        """The limit in force, else the one that a firing would bring."""
        return self.policy_limit_bps if self.limit_bps is None else self.limit_bps


@dataclass(frozen=True, slots=True)
class Counters:
    """Cumulative counts of the engine, by the metric that shows them. Keys: label values in the metric's order."""

    detections: Mapping[tuple[str, str], int] = field(default_factory=dict)
    limits_applied: Mapping[str, int] = field(default_factory=dict)
    limits_released: Mapping[tuple[str, str], int] = field(default_factory=dict)
    drift_repairs: Mapping[str, int] = field(default_factory=dict)
    kernel_errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    control_requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    missed_ticks: int = 0
    dropped_samples: int = 0
    netlink_resyncs: int = 0
    audit_errors: int = 0


@dataclass(frozen=True, slots=True)
class Histogram:
    """A cumulative histogram as Prometheus shows it: counts[i] observations ≤ bounds[i], then the total and the sum."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    total: int
    sum_s: float


@dataclass(frozen=True, slots=True)
class OverrideView:
    """One override record with its state now: active, pending, expired or other-host; interfaces are those of matching links."""

    record: Override
    state: str
    links: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that status, metrics and the landing page show: built on demand from one published frame, immutable."""

    version: str
    wall_ns: int
    boot_ns: int
    started_wall_ns: int
    host: str
    links: tuple[LinkView, ...]
    faults: tuple[Fault, ...]
    overrides: tuple[OverrideView, ...]
    paused: bool
    config_sha256: str
    config_error: str | None
    config_loaded_wall_ns: int
    requests_pending: int
    counters: Counters
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    source: str = ""
    last_tick_age_ns: int = 0
