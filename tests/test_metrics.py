"""The metrics as a scraper sees them: names, types, labels, presence, escaping, and one golden scrape.

Write the golden file anew with LIMITERD_GOLDEN=write in the environment, then read the difference.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from limiterd.core.model import ClassStats, EpochReason, Link, MetricsConfig, Phase, Snapshot, Status
from limiterd.core.text import shown
from limiterd.serve.index_page import MAX_ROWS, POINTS, History, page, rate_text, span_text
from limiterd.serve.metrics import LINES_A_BLOCK, MetricsServer, link_blocks, render
from tests.prometheus import tool
from tests.statuses import GBIT, MBIT, SECOND, link, quiet, rich

GOLDEN: Final = Path(__file__).parent / "data" / "golden_scrape.txt"
LOOPBACK: Final = MetricsConfig("127.0.0.1:0")
OPENMETRICS: Final = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]

ALWAYS: Final = {
    "build_info": "gauge",
    "config_last_reload_successful": "gauge",
    "config_last_reload_success_timestamp_seconds": "gauge",
    "config_info": "gauge",
    "paused": "gauge",
    "requests_pending": "gauge",
    "tick_duration_seconds": "histogram",
    "tick_lateness_seconds": "histogram",
    "enforcement_seconds": "histogram",
    "missed_ticks_total": "counter",
    "dropped_samples_total": "counter",
    "netlink_resyncs_total": "counter",
    "audit_errors_total": "counter",
    "epochs_total": "counter",
}
EACH_LINK: Final = {
    "interface_transmit_bytes_total": "counter",
    "interface_transmit_bytes_per_second": "gauge",
    "interface_pending_seconds": "gauge",
    "interface_phase": "gauge",
    "detections_total": "counter",
    "limits_applied_total": "counter",
    "drift_repairs_total": "counter",
}
WHILE_LIMITED: Final = {
    "interface_limit_bytes_per_second": "gauge",
    "shaped_bytes_total": "counter",
    "shaped_drops_total": "counter",
    "shaped_overlimits_total": "counter",
    "shaped_backlog_bytes": "gauge",
}
SOMETIMES: Final = {
    "interface_counter_refresh_seconds": "gauge",
    "limits_released_total": "counter",
    "kernel_errors_total": "counter",
    "faults": "gauge",
    "override_active": "gauge",
    "override_expiry_timestamp_seconds": "gauge",
    "control_requests_total": "counter",
}


def parse_openmetrics(text: str) -> Iterable[Metric]:
    """The library's strict parser of OpenMetrics."""
    families: Iterable[Metric] = openmetrics_parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return families


def text_of(status: Status) -> str:
    """The text exposition of a status."""
    return render(status)[0].decode()


def series_of(families: Iterable[Metric]) -> Series:
    """All samples of parsed families; a series that is there twice is an error."""
    found: Series = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name.removeprefix("limiterd_"), tuple(sorted(sample.labels.items())))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def scrape(status: Status) -> Series:
    """What the library's own parser reads from the text exposition."""
    return series_of(text_string_to_metric_families(text_of(status)))


def names_of(series: Series, interface: str) -> set[str]:
    """The metrics that exist for an interface."""
    return {name for name, labels in series if ("interface", interface) in labels}


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    """A server on a free port that shows the rich status."""
    running = MetricsServer(LOOPBACK, rich, lambda: True)
    running.start()
    yield running
    running.close()


def get(server: MetricsServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One GET: status, headers in lower case, body."""
    assert server.address is not None, server.problem
    host, port = server.address
    request = urllib.request.Request(f"http://{host}:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  (it is always http)
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


# ---- the exposition ------------------------------------------------------------------------------------


def test_a_whole_scrape_is_the_golden_file(server: MetricsServer) -> None:
    """Every byte that a scraper gets is known, but for the process's own figures."""
    _, _, body = get(server, "/metrics")
    shown = re.sub(r"(?m)^((?:process_)\S+) \S+$", r"\1 …", body.decode())
    if os.environ.get("LIMITERD_GOLDEN") == "write":
        GOLDEN.write_text(shown, encoding="utf-8")
    assert shown == GOLDEN.read_text(encoding="utf-8")


def test_every_metric_has_its_name_and_type() -> None:
    """The families are exactly the documented ones, with their types and a help line each."""
    text = text_of(rich())
    types = dict(re.findall(r"(?m)^# TYPE limiterd_(\S+) (\S+)$", text))
    assert types == ALWAYS | EACH_LINK | WHILE_LIMITED | SOMETIMES
    assert set(re.findall(r"(?m)^# HELP limiterd_(\S+) .+$", text)) == set(types)


def test_promtool_finds_nothing_to_say() -> None:
    """`promtool check metrics` is silent on a scrape with everything in it, and on one of a quiet machine."""
    for status in (rich(), quiet()):
        done = subprocess.run([tool("promtool"), "check", "metrics"], input=render(status)[0], capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_both_formats_say_the_same() -> None:
    """OpenMetrics, read by the library's strict parser, carries the same series as the text format."""
    body, content_type = render(rich(), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=")
    assert body.endswith(b"# EOF\n")
    assert series_of(parse_openmetrics(body.decode())) == scrape(rich())


def test_no_created_series() -> None:
    """Neither format carries `_created` series."""
    for accept in ("", OPENMETRICS):
        assert b"_created" not in render(rich(), accept)[0]


def test_values_are_those_of_the_status() -> None:
    """Bits become bytes, nanoseconds seconds, and the counts arrive as they are."""
    series = scrape(rich())
    eth0 = ("interface", "eth0")
    assert series["interface_transmit_bytes_total", (eth0,)] == 2**40 + 1
    assert series["interface_transmit_bytes_per_second", (eth0,)] == 199_600_000 / 8
    assert series["interface_limit_bytes_per_second", (eth0,)] == 25_000_000
    assert series["interface_pending_seconds", (("interface", "eth1"),)] == 6.3
    assert series["interface_transmit_bytes_per_second", (("interface", "eth2"),)] == 3_000_000_001 / 8
    assert series["shaped_bytes_total", (eth0,)] == 1_250_000_000
    assert series["shaped_drops_total", (eth0,)] == 42
    assert series["shaped_overlimits_total", (eth0,)] == 123_456
    assert series["shaped_backlog_bytes", (eth0,)] == 65_536
    assert series["detections_total", (eth0, ("reason", "sustained"))] == 3
    assert series["limits_released_total", (eth0, ("reason", "override"))] == 1
    assert series["kernel_errors_total", (("errno", "EEXIST"), ("operation", "install"))] == 2
    assert series["faults", (("interface", "eth3"), ("reason", "foreign_qdisc"))] == 1
    assert series["faults", (("interface", ""), ("reason", "other"))] == 1
    assert series["config_last_reload_successful", ()] == 0
    assert series["paused", ()] == 1
    assert series["requests_pending", ()] == 2
    assert series["control_requests_total", (("result", "denied"), ("verb", "limit"))] == 1
    assert series["missed_ticks_total", ()] == 4
    assert series["epochs_total", (("reason", "new"),)] == 7
    assert series["tick_lateness_seconds_bucket", (("le", "0.25"),)] == 2
    assert series["tick_lateness_seconds_bucket", (("le", "+Inf"),)] == 3
    assert series["tick_lateness_seconds_count", ()] == 3
    assert series["tick_lateness_seconds_sum", ()] == pytest.approx(0.3003)


def test_each_watched_link_has_its_series_from_the_start() -> None:
    """A link on which nothing has happened yet has every counter, at 0, and all five phases."""
    series = scrape(quiet())
    assert names_of(series, "eth0") == set(EACH_LINK)
    phases = {dict(labels)["phase"]: value for (name, labels), value in series.items() if name == "interface_phase"}
    assert phases == {"conforming": 1, "pending": 0, "limited": 0, "exempt": 0, "fault": 0}
    detections = {dict(labels)["reason"]: value for (name, labels), value in series.items() if name == "detections_total"}
    assert detections == {"sustained": 0, "guard": 0}
    assert all(series[name, (("interface", "eth0"),)] == 0 for name in ("limits_applied_total", "drift_repairs_total"))


def test_what_has_not_happened_has_no_series() -> None:
    """Counters by cause appear with their first event; what is always there stays, and every epoch reason is at 0."""
    series = scrape(quiet())
    assert {name for name, _ in series} & set(SOMETIMES) == set()
    bare = scrape(replace(quiet(0), histograms={}))
    assert {re.sub("_(bucket|count|sum)$", "", name) for name, _ in bare} == set(ALWAYS)
    reasons = {dict(labels)["reason"]: value for (name, labels), value in bare.items() if name == "epochs_total"}
    assert reasons == dict.fromkeys((r.value for r in EpochReason), 0)


@pytest.mark.parametrize("phase", list(Phase))
def test_the_limit_shows_only_while_limited(phase: Phase) -> None:
    """Limit and shaped classes are shown for a limited link alone; an absent link has no series at all."""
    view = link("eth0", phase, limit_bps=200 * MBIT, stats=ClassStats(1, 2, 3, 4, 5))
    names = names_of(scrape(replace(quiet(), links=(view,))), "eth0")
    expected = {Phase.LIMITED: set(EACH_LINK) | set(WHILE_LIMITED), Phase.ABSENT: set[str]()}
    assert names == expected.get(phase, set(EACH_LINK))


def test_series_of_a_link_that_is_gone_vanish() -> None:
    """Counts that the engine still holds for a link that is gone are not shown."""
    text = text_of(rich())
    assert "gone0" not in text
    assert "eth9" not in text


def test_overrides_show_state_and_expiry() -> None:
    """A record is 1 for each link it matches while it is valid, 0 otherwise; one without an end expires at +Inf."""
    series = scrape(rich())
    assert series["override_active", (("id", "REQ-1"), ("interface", "eth2"))] == 1
    assert series["override_active", (("id", "REQ-0"), ("interface", "eth2"))] == 0
    assert series["override_expiry_timestamp_seconds", (("id", "FOR-EVER"),)] == math.inf
    assert series["override_expiry_timestamp_seconds", (("id", "REQ-1"),)] == 1_795_446_000 + 3600


def test_records_of_other_hosts_have_no_series() -> None:
    """Neither valid nor expired ones: they can never apply here."""
    status = rich()
    elsewhere = tuple(replace(view, record=replace(view.record, hosts=("elsewhere",))) for view in status.overrides)
    assert elsewhere
    assert not [name for name, _ in scrape(replace(status, overrides=elsewhere)) if name.startswith("override")]


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=15))
def test_any_interface_name_survives(name: str) -> None:
    """Whatever name an interface has, the parser reads it back; bytes that are no UTF-8 come back escaped, not lost."""
    status = replace(quiet(), links=(link(name, Phase.LIMITED, limit_bps=MBIT, stats=ClassStats()),))
    for accept, parse in (("", text_string_to_metric_families), (OPENMETRICS, parse_openmetrics)):
        body = render(status, accept)[0].decode()
        family = next(f for f in parse(body) if f.name == "limiterd_interface_transmit_bytes_per_second")
        assert [sample.labels for sample in family.samples] == [{"interface": shown(name)}]


def test_two_views_of_one_name_make_one_series() -> None:
    """While a link is made anew under its name, a scrape shows the newer one and stays valid."""
    status = replace(quiet(), links=(link("eth0", tx_bytes=1), link("eth0", tx_bytes=2)))
    assert scrape(status)["interface_transmit_bytes_total", (("interface", "eth0"),)] == 2


def test_rendering_pauses_between_blocks() -> None:
    """With many links the writer offers the interpreter to others again and again."""
    rests: list[float] = []
    blocks = list(link_blocks(quiet(1000), openmetrics=False, rest=rests.append))
    lines = b"".join(blocks).count(b"\n")
    assert len(rests) >= lines // LINES_A_BLOCK - len(blocks) // 2
    assert max(block.count(b"\n") for block in blocks) <= LINES_A_BLOCK


# ---- over HTTP -----------------------------------------------------------------------------------------


def test_gzip_where_the_client_takes_it(server: MetricsServer) -> None:
    """Accept-Encoding: gzip shrinks the scrape and changes nothing in it but the figures of the process."""
    _, headers, body = get(server, "/metrics", **{"Accept-Encoding": "gzip"})
    _, plain_headers, plain = get(server, "/metrics")
    assert headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain_headers
    assert gzip.decompress(body).startswith(plain[: plain.index(b"# HELP process_")])


def test_the_process_shows_itself(server: MetricsServer) -> None:
    """Memory, descriptors and CPU of the daemon are in the scrape."""
    text = get(server, "/metrics")[2].decode()
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total", "process_start_time_seconds"):
        assert re.search(rf"(?m)^{name} [1-9]", text), name


def test_healthz_follows_the_loop() -> None:
    """/healthz is 503 only while the sampling loop has stalled, whatever else is wrong."""
    alive = [True]
    running = MetricsServer(LOOPBACK, rich, lambda: alive[0])
    running.start()
    try:
        assert get(running, "/healthz")[0] == 200
        alive[0] = False
        assert get(running, "/healthz")[0] == 503
        assert get(running, "/metrics")[0] == 200
        alive[0] = True
        assert get(running, "/healthz")[0] == 200
    finally:
        running.close()


def test_a_status_that_fails_is_a_500_and_a_problem() -> None:
    """An error while the answer is made reaches neither the server's threads nor the other pages."""
    broken = [True]

    def status() -> Status:
        if broken[0]:
            raise KeyError("eth0")
        return rich()

    running = MetricsServer(LOOPBACK, status, lambda: True)
    running.start()
    try:
        assert get(running, "/metrics")[0] == 500
        assert "/metrics" in (running.problem or "")
        assert get(running, "/healthz")[0] == 200
        broken[0] = False
        assert get(running, "/metrics")[0] == 200
        assert "/metrics" not in (running.problem or "")
    finally:
        running.close()


# ---- the landing page ----------------------------------------------------------------------------------


def test_the_page_shows_the_table_and_no_reasons(server: MetricsServer) -> None:
    """Links, phases, rates and limits are on the page; reasons, people, records and fault texts are not."""
    status, headers, body = get(server, "/")
    html = body.decode()
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    for seen in (
        "eth0",
        "od&quot;d\\é✓",
        "limited",
        "200 Mbit/s",
        "1.20 Gbit/s",
        "6.3 s",
        "gpu-7.example.net",
        "Paused",
        "reload was refused",
    ):
        assert seen in html, seen
    for hidden in ("REQ-1", "ops@example.net", "nightly", "tbf", "foreign", "audit trail", "sustained", "policies[0]"):
        assert hidden not in html, hidden


def test_the_page_loads_nothing_and_is_locked_down(server: MetricsServer) -> None:
    """The page refers to nothing elsewhere, and its policy admits only its own style and script."""
    _, headers, body = get(server, "/")
    html = body.decode()
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", html)
    assert "style=" not in html
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_the_page_is_bounded() -> None:
    """With thousands of links the page shows the ones that matter, and says how many it leaves out."""
    views = tuple(link(f"v{i:04}", ifindex=i + 2) for i in range(4096))
    hot = link("zzz", Phase.LIMITED, ifindex=9999, limit_bps=200 * MBIT)
    status = replace(quiet(), links=(*views, hot))
    html = page(status, History()).decode()
    assert html.count("<tr>") == MAX_ROWS + 1
    assert ">zzz<" in html
    assert f"and {4097 - MAX_ROWS} more links" in html


def test_history_keeps_mean_rates_and_forgets() -> None:
    """A rate is the mean from point to point; points are bounded, a link that is gone, new or falls back starts afresh."""
    history = History()
    here, other = Link(2, "eth0"), Link(3, "eth0")
    old, new = link("eth0", ifindex=2), link("eth0", ifindex=3)
    for tick in range(POINTS + 5):
        history.add(Snapshot((tick + 1) * 5 * SECOND, (here,), [tick * 625_000_000]))
    assert list(history.rates_bps(old)) == [GBIT] * POINTS
    history.add(Snapshot(500 * SECOND, (other,), [5]))
    assert list(history.rates_bps(new)) == []
    assert list(history.rates_bps(old)) == []
    history.add(Snapshot(501 * SECOND, (other,), [130]))
    assert list(history.rates_bps(new)) == [1000]
    history.add(Snapshot(502 * SECOND, (other,), [0]))
    history.add(Snapshot(504 * SECOND, (other,), [500]))
    assert list(history.rates_bps(new)) == [2000]


def test_the_history_is_sampled_by_the_server() -> None:
    """The server takes a point by itself, before anybody has asked for the page, and builds no status for it."""
    asked = threading.Event()

    def newest() -> Snapshot:
        asked.set()
        return Snapshot(SECOND, (Link(2, "eth0"),), [1])

    def status() -> Status:
        raise AssertionError("nobody has asked for a status")

    running = MetricsServer(LOOPBACK, status, lambda: True, newest=newest)
    running.start()
    try:
        assert asked.wait(10)
        assert running.problem is None
    finally:
        running.close()


@pytest.mark.parametrize(
    ("rate_bps", "text"),
    [
        (0, "0 bit/s"),
        (999, "999 bit/s"),
        (1000, "1.00 kbit/s"),
        (199_600_000, "200 Mbit/s"),
        (99_960_000, "100 Mbit/s"),
        (9_996_000_000, "10.0 Gbit/s"),
        (999_600_000, "1.00 Gbit/s"),
        (2 * 10**15, "2000 Tbit/s"),
    ],
)
def test_rates_have_three_digits(rate_bps: int, text: str) -> None:
    """A rate for people has three significant digits and never reads 1000 of a unit that has a next one."""
    assert rate_text(rate_bps) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (754, "12 min 34 s"), (3725, "1 h 2 min"), (90_000, "1 d 1 h"), (-5, "0 s")],
)
def test_spans_have_two_units(seconds: int, text: str) -> None:
    """A duration for people has at most two units."""
    assert span_text(seconds * SECOND) == text
