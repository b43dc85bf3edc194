"""What Prometheus sees: every metric by name, and the server that shows them. The only user of prometheus_client.

Rule: all figures come from one immutable Status, asked for in the server's own thread. Nothing here is ever touched by
the sampling loop, and nothing here can fail it.

Theory of operation. Families whose size does not grow with the number of links are the library's Metric objects and
its exposition. Families with one or more series a link are a table of rows (name, kind, help, values) that is written
out directly: through the library 4 096 links (49 000 series) take six times as long, and a tick beside them up to
ninety milliseconds instead of five (bench/metrics.py). The library is the referee: a test reads both formats with its
parsers. Between blocks of lines the writer rests for an instant, so that a tick that is due gets the interpreter at once.

Rates and limits are bytes per second here, as Prometheus wants them, while the rest of limiterd speaks bits.
"""

from __future__ import annotations

import gzip
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from limiterd.core.model import (
    Counters,
    EpochReason,
    Histogram,
    LinkView,
    MetricsConfig,
    Phase,
    Reason,
    ReleaseReason,
    Snapshot,
    Status,
)
from limiterd.core.policy import host_matches
from limiterd.core.text import shown
from limiterd.core.units import NS_PER_SECOND
from limiterd.serve.http_connections import Limits, Route
from limiterd.serve.http_negotiation import coding, media_type
from limiterd.serve.http_server import Chore, HttpServer
from limiterd.serve.http_wire import Request, Response
from limiterd.serve.index_page import CONTENT_TYPE, HEADERS, SAMPLE_PERIOD_S, History, page
from limiterd.serve.io_thread import IoThread

PREFIX: Final = "limiterd_"
OPENMETRICS: Final = "application/openmetrics-text"
_FORMATS: Final = (("text/plain", "0.0.4"), (OPENMETRICS, "1.0.0"))
"""What a scrape may be; the first where the client does not mind."""
GZIP_FROM_BYTES: Final = 1024
GZIP_LEVEL: Final = 1
LINES_A_BLOCK: Final = 512
REST_S: Final = 20e-6
BITS_A_BYTE: Final = 8

_PHASES: Final = tuple((p, p.value) for p in Phase if p is not Phase.ABSENT)
_DETECTIONS: Final = (Reason.SUSTAINED.value, Reason.GUARD.value)
_RELEASES: Final = tuple(r.value for r in ReleaseReason)
_BUCKETS_S: Final = (0.001, 0.01, 0.1, 1.0)
"""Bounds of a histogram that nobody has handed over yet: the family is present from the first scrape on."""


def _bytes(bits: int) -> int | float:
    whole, rest = divmod(bits, BITS_A_BYTE)
    return bits / BITS_A_BYTE if rest else whole


# ---- families with series for each link --------------------------------------------------------------

_Values = Iterable[tuple[str, int | float]]
"""(value of the family's second label, value of the series); the label is "" where there is only `interface`."""


@dataclass(frozen=True, slots=True)
class LinkFamily:
    """One family of per-link series; values yields nothing for a link that has none now."""

    name: str
    kind: str
    help: str
    values: Callable[[LinkView, Counters], _Values]
    label: str = ""


def _shaped(field: str) -> Callable[[LinkView, Counters], _Values]:
    def values(link: LinkView, _: Counters) -> _Values:
        return (("", getattr(link.stats, field)),) if link.phase is Phase.LIMITED and link.stats is not None else ()

    return values


def _limit(link: LinkView, _: Counters) -> _Values:
    return (("", _bytes(link.limit_bps)),) if link.phase is Phase.LIMITED and link.limit_bps is not None else ()


def _releases(link: LinkView, counters: Counters) -> _Values:
    released, name = counters.limits_released, link.interface
    return [(reason, released[name, reason]) for reason in _RELEASES if (name, reason) in released] if released else ()


LINK_FAMILIES: Final = (
    LinkFamily(
        "interface_transmit_bytes_total",
        "counter",
        "Bytes that the link has transmitted, as its own counter says.",
        lambda link, _: (("", link.tx_bytes),),
    ),
    LinkFamily(
        "interface_transmit_bytes_per_second",
        "gauge",
        "Transmit rate over about the last second.",
        lambda link, _: (("", _bytes(link.rate_bps)),),
    ),
    LinkFamily(
        "interface_pending_seconds",
        "gauge",
        "Length of the earliest candidate window that is still open; 0 where none is.",
        lambda link, _: (("", link.pending_ns / NS_PER_SECOND),),
    ),
    LinkFamily(
        "interface_phase",
        "gauge",
        "1 for the phase that the link is in, 0 for the others; limited means read back from the kernel.",
        lambda link, _: [(name, 1 if link.phase is phase else 0) for phase, name in _PHASES],
        "phase",
    ),
    LinkFamily(
        "interface_counter_refresh_seconds",
        "gauge",
        "How often the driver refreshes the link's counter; present once it is known to be seldom.",
        lambda link, _: (("", link.counter_refresh_ns / NS_PER_SECOND),) if link.counter_refresh_ns is not None else (),
    ),
    LinkFamily("interface_limit_bytes_per_second", "gauge", "Rate of the limit in the kernel, as read back.", _limit),
    LinkFamily("shaped_bytes_total", "counter", "Bytes that the shaped classes have sent.", _shaped("sent_bytes")),
    LinkFamily("shaped_drops_total", "counter", "Packets that the shaped classes have dropped.", _shaped("drops")),
    LinkFamily("shaped_overlimits_total", "counter", "Times that the shaped classes held a packet back.", _shaped("overlimits")),
    LinkFamily("shaped_backlog_bytes", "gauge", "Bytes queued in the shaped classes.", _shaped("backlog_bytes")),
    LinkFamily(
        "detections_total",
        "counter",
        "Firings of the detector, whatever became of them.",
        lambda link, counters: [(r, counters.detections.get((link.interface, r), 0)) for r in _DETECTIONS],
        "reason",
    ),
    LinkFamily(
        "limits_applied_total",
        "counter",
        "Limits that were put on the link and read back.",
        lambda link, counters: (("", counters.limits_applied.get(link.interface, 0)),),
    ),
    LinkFamily(
        "drift_repairs_total",
        "counter",
        "Repairs of a limit that someone else had changed.",
        lambda link, counters: (("", counters.drift_repairs.get(link.interface, 0)),),
    ),
    LinkFamily("limits_released_total", "counter", "Limits that were lifted, by cause.", _releases, "reason"),
)


def clean(text: str) -> str:
    """A label value that misleads nobody, whatever bytes it came from (an interface name may hold any)."""
    return shown(text)


def escape(text: str) -> str:
    """A label value as the exposition formats write it between quotation marks."""
    return clean(text).replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def watched(status: Status) -> dict[str, LinkView]:
    """The links that have series, by name."""
    return {link.interface: link for link in status.links if link.phase is not Phase.ABSENT}


def link_blocks(status: Status, *, openmetrics: bool, rest: Callable[[float], None] = time.sleep) -> Iterator[bytes]:
    """The exposition of all per-link families, in blocks; `rest` is called between them."""
    links = [(f'{{interface="{escape(name)}"', link) for name, link in watched(status).items()]
    for family in LINK_FAMILIES:
        lines = _header(family, openmetrics=openmetrics)
        for line in _series(family, links, status.counters):
            lines.append(line)
            if len(lines) >= LINES_A_BLOCK:
                yield "".join(lines).encode()
                lines = []
                rest(REST_S)
        yield "".join(lines).encode()


def _header(family: LinkFamily, *, openmetrics: bool) -> list[str]:
    name = PREFIX + (family.name.removesuffix("_total") if openmetrics else family.name)
    return [f"# HELP {name} {family.help}\n", f"# TYPE {name} {family.kind}\n"]


def _series(family: LinkFamily, links: list[tuple[str, LinkView]], counters: Counters) -> Iterator[str]:
    name, values = PREFIX + family.name, family.values
    if family.label:
        between, after = f',{family.label}="', '"} '
        for labels, link in links:
            for second, value in values(link, counters):
                yield f"{name}{labels}{between}{second}{after}{value}\n"
    else:
        for labels, link in links:
            for _, value in values(link, counters):
                yield f"{name}{labels}}} {value}\n"


# ---- the other families --------------------------------------------------------------------------------


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _by_labels(family: GaugeMetricFamily | CounterMetricFamily, series: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    for labels, value in series:
        family.add_metric([clean(label) for label in labels], value)
    return family


def _config_families(status: Status) -> Iterator[Metric]:
    yield InfoMetricFamily(PREFIX + "build", "The version that runs.", value={"version": status.version})
    yield _gauge(
        "config_last_reload_successful",
        "1 if the configuration and overrides on disk are the ones in force, 0 if the last reload was refused.",
        float(status.config_error is None),
    )
    yield _gauge(
        "config_last_reload_success_timestamp_seconds",
        "When the configuration in force was loaded.",
        status.config_loaded_wall_ns / NS_PER_SECOND,
    )
    yield InfoMetricFamily(
        PREFIX + "config", "Hash of the configuration and overrides in force.", value={"sha256": status.config_sha256}
    )
    yield _gauge("paused", "1 while an operator has paused all new limits.", float(status.paused))


def _fault_families(status: Status) -> Iterator[Metric]:
    yield _by_labels(
        CounterMetricFamily(PREFIX + "kernel_errors", "Operations that the kernel refused.", labels=["operation", "errno"]),
        sorted(status.counters.kernel_errors.items()),
    )
    yield _by_labels(
        GaugeMetricFamily(PREFIX + "faults", "1 for each degraded mode while it lasts.", labels=["interface", "reason"]),
        (((interface, reason), 1.0) for interface, reason in sorted({(f.interface, f.reason.value) for f in status.faults})),
    )


def _override_families(status: Status) -> Iterator[Metric]:
    absent = {link.interface for link in status.links if link.phase is Phase.ABSENT}
    ours = [view for view in status.overrides if host_matches(view.record.hosts, status.host)]
    yield _by_labels(
        GaugeMetricFamily(
            PREFIX + "override_active",
            "1 while the override record is valid now, for each link it matches.",
            labels=["id", "interface"],
        ),
        (
            ((view.record.id, interface), float(view.state == "active"))
            for view in ours
            for interface in view.links
            if interface not in absent
        ),
    )
    yield _by_labels(
        GaugeMetricFamily(
            PREFIX + "override_expiry_timestamp_seconds", "When the override record expires; +Inf for never.", labels=["id"]
        ),
        (((view.record.id,), _expiry(view.record.expires_wall_ns)) for view in ours),
    )
    yield _gauge("requests_pending", "Increase requests that wait for an answer.", status.requests_pending)


def _expiry(wall_ns: int | None) -> float:
    return math.inf if wall_ns is None else wall_ns / NS_PER_SECOND


_HISTOGRAMS: Final = (
    ("tick_duration_seconds", "Time that one turn of the sampling loop took."),
    ("tick_lateness_seconds", "How late a turn of the sampling loop began."),
    ("enforcement_seconds", "From the firing sample to the limit read back from the kernel."),
)


def _histogram_families(status: Status) -> Iterator[Metric]:
    empty = Histogram(_BUCKETS_S, (0,) * len(_BUCKETS_S), 0, 0.0)
    for name, text in _HISTOGRAMS:
        shown = status.histograms.get(name, empty)
        buckets = [(repr(float(b)), float(n)) for b, n in zip(shown.bounds_s, shown.counts, strict=True)]
        yield HistogramMetricFamily(PREFIX + name, text, buckets=[*buckets, ("+Inf", float(shown.total))], sum_value=shown.sum_s)


def _loop_families(status: Status) -> Iterator[Metric]:
    counters = status.counters
    yield _counter(
        "missed_ticks",
        "Turns of the sampling loop that were skipped because the one before took too long.",
        counters.missed_ticks,
    )
    yield _counter(
        "dropped_samples",
        "Samples that were no evidence: a stamp too uncertain, or a counter not refreshed.",
        counters.dropped_samples,
    )
    yield _counter(
        "netlink_resyncs", "Times that kernel events were lost and everything was read again.", counters.netlink_resyncs
    )
    yield _counter("audit_errors", "Audit records that could not be written.", counters.audit_errors)
    yield _by_labels(
        CounterMetricFamily(PREFIX + "epochs", "Times that a link's evidence began again, by cause.", labels=["reason"]),
        (((reason.value,), counters.epochs.get(reason, 0)) for reason in EpochReason),
    )
    yield _by_labels(
        CounterMetricFamily(
            PREFIX + "control_requests", "Requests on the control socket, by verb and result.", labels=["verb", "result"]
        ),
        sorted(counters.control_requests.items()),
    )


class StatusFamilies(Collector):
    """Everything that is not per link, and the process's own figures, as the library's families."""

    def __init__(self, status: Status, process: Collector | None = None) -> None:
        self._status = status
        self._process = process

    def collect(self) -> Iterator[Metric]:
        """Families in the order in which they are shown."""
        yield from _config_families(self._status)
        yield from _fault_families(self._status)
        yield from _override_families(self._status)
        yield from _histogram_families(self._status)
        yield from _loop_families(self._status)
        if self._process is not None:
            yield from self._process.collect()


def render(status: Status, accept: str = "", process: Collector | None = None) -> tuple[bytes, str]:
    """A whole scrape and its content type: OpenMetrics 1.0 where the client takes it, the text format 0.0.4 otherwise."""
    openmetrics = media_type(accept, _FORMATS) == 1
    encode, content_type = choose_encoder(f"{OPENMETRICS}; version=1.0.0" if openmetrics else "")
    blocks = list(link_blocks(status, openmetrics=openmetrics))
    # The library's part comes last: in OpenMetrics it ends with the end mark.
    return b"".join([*blocks, encode(StatusFamilies(status, process))]), content_type


# ---- the server ----------------------------------------------------------------------------------------


def _variant(request: Request) -> tuple[int, str]:
    """Requests that get the same scrape."""
    return media_type(request.headers.get("accept", ""), _FORMATS), coding(request.headers.get("accept-encoding", ""))


class MetricsServer:
    """/metrics, /healthz and the landing page on config.listen; never in the way of the sampling loop.

    status and newest are called in the server's worker thread, alive in its loop thread: all from outside the sampling
    loop. newest gives the latest snapshot, for the landing page's history; without it there is none.
    """

    def __init__(
        self,
        config: MetricsConfig,
        status: Callable[[], Status],
        alive: Callable[[], bool],
        thread: IoThread | None = None,
        *,
        newest: Callable[[], Snapshot | None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Name what is served. Without a thread to share it has its own."""
        self._status = status
        self._alive = alive
        self._process = ProcessCollector(registry=None)
        self._history = History()
        routes: Mapping[str, Route] = {
            "/": Route(self._landing),
            "/metrics": Route(self._metrics, variant=_variant),
            "/healthz": Route(self._healthz, quick=True),
        }
        chore = None
        if newest is not None:
            chore = Chore("the periodic sample of the landing page", partial(self._remember, newest), SAMPLE_PERIOD_S)
        self._http = HttpServer(config, routes, thread, chore=chore, limits=limits)

    def start(self) -> None:
        """Serve from now on; a port that is taken is a `problem`, retried, and no exception."""
        self._http.start()

    def reconfigure(self, config: MetricsConfig) -> None:
        """Follow a reload: another address, another certificate, off (listen None) or on."""
        self._http.reconfigure(config)

    def close(self) -> None:
        """End the threads and drop every connection."""
        self._http.close()

    @property
    def problem(self) -> str | None:
        """What is wrong now, for a log line and for status; None where all is well."""
        return self._http.problem

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens now, with the real port; None where it does not."""
        return self._http.address

    def _remember(self, newest: Callable[[], Snapshot | None]) -> None:
        snapshot = newest()
        if snapshot is not None:
            self._history.add(snapshot)

    def _landing(self, _: Request) -> Response:
        return Response(page(self._status(), self._history), CONTENT_TYPE, headers=HEADERS)

    def _metrics(self, request: Request) -> Response:
        body, content_type = render(self._status(), request.headers.get("accept", ""), self._process)
        headers: tuple[tuple[str, str], ...] = (("Vary", "Accept, Accept-Encoding"),)
        if len(body) >= GZIP_FROM_BYTES and coding(request.headers.get("accept-encoding", "")) == "gzip":
            body = gzip.compress(body, GZIP_LEVEL, mtime=0)
            headers += (("Content-Encoding", "gzip"),)
        return Response(body, content_type, headers=headers)

    def _healthz(self, _: Request) -> Response:
        if self._alive():
            return Response(b"ok\n")
        return Response(b"the sampling loop has stalled\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
