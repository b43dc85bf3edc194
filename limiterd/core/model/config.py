"""What the operator writes besides policies: every key of limiterd.yaml once, in the order of the file (core/keys.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from limiterd.core.keys import Section, key
from limiterd.core.kinds import (
    NULL,
    AbsolutePath,
    Choice,
    Listen,
    ListOf,
    Maybe,
    Text,
    duration,
    rate,
)
from limiterd.core.model.clock import HOUR, MINUTE, MS, SECOND
from limiterd.core.model.policies import Policy


class OnExit(StrEnum):
    """What becomes of standing limits when the daemon stops."""

    KEEP = "keep"
    REMOVE = "remove"


class Source(StrEnum):
    """Where samples come from."""

    AUTO = "auto"
    NETLINK = "netlink"
    PSUTIL = "psutil"


MAX_SOCKET_PATH: Final = 107 - len(".admin")
"""sun_path of a Unix socket's address holds 108 bytes with the closing NUL; the administrators' socket has the longer name."""
_GROUP: Final = Text(32, "a group's name; write it as in /etc/group", pattern=r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
_FILE: Final = AbsolutePath()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How counters are read. counter_refresh_ns > 0 for drivers that refresh them slowly; 0 = off for both last."""

    interval_ns: int = field(
        default=100 * MS,
        metadata=key(
            "interval",
            duration(20 * MS, SECOND),
            "how often the counters of all links are read, in one request",
            paced=True,
        ),
    )
    max_gap_ns: int = field(
        default=3 * SECOND,
        metadata=key(
            "max_gap",
            duration(1),
            "samples further apart are no evidence: the window restarts",
            allowed="at least two intervals",
        ),
    )
    source: Source = field(
        default=Source.AUTO,
        metadata=key("source", Choice(Source), "`auto`: netlink, and psutil where netlink is refused"),
    )
    counter_refresh_ns: int = field(
        default=0,
        metadata=key(
            "counter_refresh",
            duration(zero=True),
            "for drivers that update their counters only every so often: a counter that did not move within this time is no "
            "sample; 0: off",
            allowed="less than `max_gap`",
        ),
    )
    max_plausible_bps: int = field(
        default=0,
        metadata=key(
            "max_plausible_rate",
            rate(zero=True, absent="off"),
            "a jump faster than this is treated as a counter error, and the window restarts; 0: off",
        ),
    )


@dataclass(frozen=True, slots=True)
class Enforcement:
    """read_back_ns: period of the check of standing limits; drain_ns: longest wait for an empty queue at a release."""

    read_back_ns: int = field(
        default=1 * SECOND,
        metadata=key(
            "read_back",
            duration(10 * MS, HOUR),
            "how often limits in force are checked, in addition to the kernel's own messages; counters every second at least",
        ),
    )
    drain_ns: int = field(
        default=500 * MS,
        metadata=key("drain", duration(high=MINUTE, zero=True), "how long a release waits for the queue to empty"),
    )


@dataclass(frozen=True, slots=True)
class OverridesConfig:
    """Where the operator's override files are."""

    directory: str = field(
        default="/etc/limiterd/overrides.d",
        metadata=key("directory", _FILE, "`*.yaml` and `*.yml` in it are override files, only read"),
    )


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of the metrics server."""

    certificate: str = field(metadata=key("certificate", _FILE, label="certificate"))
    key: str = field(metadata=key("key", _FILE))


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """listen is "host:port" ("[::1]:9817" for IPv6); None switches the server off."""

    listen: str | None = field(
        default="127.0.0.1:9817",
        metadata=key(
            "listen",
            Maybe(Listen(), words=(NULL, "off")),
            "where the metrics server listens",
            allowed='`host:port`, `"[IPv6 address]:port"`, `"*:port"` (every address), or `null` (no server)',
        ),
    )
    tls: Tls | None = field(
        default=None,
        metadata=key(
            "tls",
            Maybe(Section(Tls), absent="off", words=(NULL,)),
            "PEM, read when the server starts; for client certificates or passwords put a proxy in front",
            allowed="`{certificate: FILE, key: FILE}`",
        ),
    )


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """group may read status and file requests; admin_group (and root) may do everything."""

    socket: str = field(
        default="/run/limiterd/control.sock",
        metadata=key(
            "socket",
            AbsolutePath(MAX_SOCKET_PATH),
            "changed by a restart only",
            allowed=f"absolute, at most {MAX_SOCKET_PATH} bytes",
            restart=True,
        ),
    )
    group: str | None = field(
        default=None,
        metadata=key(
            "group",
            Maybe(_GROUP, words=(NULL,)),
            "may read the status and file requests",
            allowed="a group of this machine",
        ),
    )
    admin_group: str | None = field(
        default=None,
        metadata=key(
            "admin_group",
            Maybe(_GROUP, words=(NULL,)),
            "may do everything, as root may",
            allowed="a group of this machine",
        ),
    )


@dataclass(frozen=True, slots=True)
class StateConfig:
    """Where the daemon keeps what it must remember."""

    directory: str = field(
        default="/var/lib/limiterd",
        metadata=key("directory", _FILE, "what outlives a restart; changed by a restart only", restart=True),
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """level: debug, info, warning or error; format: text or json."""

    level: str = field(default="info", metadata=key("level", Choice(("debug", "info", "warning", "error"))))
    format: str = field(default="text", metadata=key("format", Choice(("text", "json"))))


@dataclass(frozen=True, slots=True)
class Config:
    """The whole of limiterd.yaml, every key with its default."""

    sampling: Sampling = field(default=Sampling(), metadata=key("sampling", Section(Sampling)))
    policies: tuple[Policy, ...] = field(
        default=(Policy(),),
        metadata=key(
            "policies",
            ListOf(Section(Policy), what="policy", most=256),
            "the first that matches a link applies; a link that none matches is not watched",
        ),
    )
    enforcement: Enforcement = field(default=Enforcement(), metadata=key("enforcement", Section(Enforcement)))
    on_exit: OnExit = field(
        default=OnExit.KEEP, metadata=key("on_exit", Choice(OnExit), "what becomes of limits when the daemon stops")
    )
    overrides: OverridesConfig = field(default=OverridesConfig(), metadata=key("overrides", Section(OverridesConfig)))
    metrics: MetricsConfig = field(default=MetricsConfig(), metadata=key("metrics", Section(MetricsConfig)))
    control: ControlConfig = field(default=ControlConfig(), metadata=key("control", Section(ControlConfig)))
    state: StateConfig = field(default=StateConfig(), metadata=key("state", Section(StateConfig)))
    log: LogConfig = field(default=LogConfig(), metadata=key("log", Section(LogConfig)))
