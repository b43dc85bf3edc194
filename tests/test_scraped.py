"""Scraped counters: what Prometheus answers of every shape are judged to be, or why they are refused.

Answers are made as a server makes them: a counter is scraped at instants of its own, and a range query gives at each step
the value of the last scrape.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.config.load import load_rules
from limiterd.core.model import EventKind
from limiterd.recording import METRIC, RecordingError, open_recording
from limiterd.replay.runner import Run
from tests.examples import few

GBIT: Final = 125_000_000
"""Bytes a second."""
START: Final = 1_800_000_000

Answer = dict[str, Any]
Rates = Sequence[tuple[float, float]]
"""(seconds, Gbit/s), one after the other."""


def counter(rates: Rates, first: int = 0) -> Callable[[float], int]:
    """The counter of a link with these rates, s seconds after the start."""

    def at(s: float) -> int:
        total, left = 0.0, max(0.0, s)
        for seconds, gbits in rates:
            total += min(left, seconds) * gbits * GBIT
            left -= min(left, seconds)
        return first + int(total)

    return at


def series(
    count: Callable[[float], int], seconds: float, *, scrape: float = 1.0, step: float = 1.0, offset: float = 0.0, **labels: str
) -> Answer:
    """A series of an answer: scraped every so often from the offset on, asked every step."""
    scrapes = [offset + k * scrape for k in range(int((seconds - offset) / scrape) + 1)]
    points = []
    for k in range(int(seconds / step) + 1):
        seen = bisect_right(scrapes, k * step) - 1
        if seen >= 0:
            points.append([START + k * step, str(count(scrapes[seen]))])
    metric = {"__name__": METRIC, "instance": "10.0.0.1:9100", "device": "eth0"} | labels
    return {"metric": {name: value for name, value in metric.items() if value}, "values": points}


def answer(*result: Answer, **more: object) -> str:
    """A query_range answer."""
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": list(result)}} | more)


class Verdict:
    """What a policy says of an answer: events without epochs, and the notes."""

    def __init__(self, directory: Path, text: str | bytes, label: str | None = None) -> None:
        file = directory / "answer"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        config = directory / "limiterd.yaml"
        config.write_text(
            f"policies: [{{name: fair-use, interfaces: ['eth*'], mode: observe}}]\noverrides: {{directory: {directory}/none}}\n"
            f"state: {{directory: {directory}/state}}\n"
        )
        recording = open_recording(str(file), label=label)
        run = Run(
            load_rules(str(config), host="h", paced=False),
            started_wall_ns=recording.header.started_wall_ns,
            qualified=recording.header.qualified,
        )
        told = [told for source, snapshot in recording for told in run.feed(source, snapshot)] + list(run.close())
        self.events = [
            (one.event.t_ns, one.event.interface, one.event.kind.value) for one in told if one.event.kind is not EventKind.EPOCH
        ]
        self.links = set(run.watched)
        self.notes = [*recording.notes, *run.notes()]

    def of(self, link: str) -> list[tuple[int, str]]:
        """The events of one link."""
        return [(t_ns // 10**9 - START, kind) for t_ns, name, kind in self.events if name == link]


BURST: Final[Rates] = [(20, 0.1), (30, 1.5), (60, 0.1)]
LINK: Final = "10.0.0.1:9100/eth0"


# ---- one verdict, however an answer is put ---------------------------------------------------------


rates = st.lists(st.tuples(st.integers(5, 40), st.sampled_from([0.0, 0.2, 0.9, 1.1, 3.0])), min_size=1, max_size=6)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[Answer], float, float]:
    """Some machines with some devices, and how they were scraped and asked."""
    scrape = draw(st.sampled_from([1.0, 5.0, 15.0]))
    step = draw(st.sampled_from([scrape, scrape / 2, 2 * scrape]))
    found = [
        series(
            counter(draw(rates), first=draw(st.integers(0, 10**6)) * 1000),
            120,
            scrape=scrape,
            step=step,
            offset=draw(st.sampled_from([0.0, 0.25, 0.5])),
            instance=instance,
            cluster=cluster,
            device=device,
        )
        for instance in draw(st.sampled_from([("a:1",), ("a:1", "b:1"), ("",)]))
        for cluster in draw(st.sampled_from([("",), ("x",), ("x", "y")]))
        for device in draw(st.sampled_from([("eth0",), ("eth0", "eth1")]))
    ]
    return found, scrape, step


@few(60)
@given(answers(), st.randoms(use_true_random=False), st.sampled_from(["shuffled", "split", "pieces", "data", "list", "gzip"]))
def test_no_verdict_depends_on_how_an_answer_is_put(
    tmp_path_factory: pytest.TempPathFactory, made: Any, order: Any, how: str
) -> None:
    """In any order, in several answers, in pieces of time, as jq cuts it out, packed: the same events and links."""
    directory = tmp_path_factory.mktemp("answers")
    found, _, _ = made
    whole = Verdict(directory, answer(*found))
    mixed = list(found)
    order.shuffle(mixed)
    half = len(mixed) // 2
    early = [one | {"values": one["values"][:40]} for one in mixed]
    late = [one | {"values": one["values"][39:]} for one in mixed]
    ways: dict[str, str | bytes] = {
        "shuffled": answer(*mixed),
        "split": answer(*mixed[half:]) + answer(*mixed[:half]) + "\n",
        "pieces": answer(*late) + "\n" + answer(*early),
        "data": json.dumps(json.loads(answer(*mixed))["data"]),
        "list": json.dumps(mixed),
        "gzip": gzip.compress(answer(*mixed).encode()),
    }
    other = Verdict(directory, ways[how])
    assert other.events == whole.events
    assert other.links == whole.links


@few(40)
@given(rates, st.sampled_from([(1.0, 1.0), (1.0, 0.5), (15.0, 15.0), (15.0, 5.0)]), st.floats(0.05, 0.9), st.permutations([0, 1]))
def test_a_copy_of_a_machine_changes_no_verdict(
    tmp_path_factory: pytest.TempPathFactory, traffic: Rates, spacing: tuple[float, float], offset: float, order: Sequence[int]
) -> None:
    """A second server scrapes the same machine at other instants: one of the two is judged, as if it were alone, with a note."""
    directory = tmp_path_factory.mktemp("copies")
    scrape, step = spacing
    count = counter(traffic, first=10**9)
    own = series(count, 200, scrape=scrape, step=step, prometheus_replica="r0")
    copy = series(count, 200, scrape=scrape, step=step, offset=offset * scrape, prometheus_replica="r1")
    alone = Verdict(directory, answer(own))
    both = Verdict(directory, answer(*[(own, copy)[k] for k in order]))
    assert both.events == alone.events
    assert both.links == {LINK}
    assert any("2 copies" in note and "prometheus_replica=r1" in note for note in both.notes)


def test_a_copy_with_holes_is_not_the_one_that_is_judged(tmp_path: Path) -> None:
    """Of two copies the one that misses next to nothing is judged: its burst is found though the first server was down."""
    count = counter(BURST)
    whole = series(count, 110, prometheus_replica="r1", offset=0.4)
    down = series(count, 110, prometheus_replica="r0")
    down["values"] = down["values"][:15] + down["values"][60:]
    both = Verdict(tmp_path, answer(down, whole))
    assert [kind for _, kind in both.of(LINK)] == ["would_limit"] * 2
    assert any("judged is prometheus_replica=r1" in note for note in both.notes)


def test_machines_of_several_clusters_stay_apart(tmp_path: Path) -> None:
    """One instance in two clusters is two machines, each with its own verdict, named by the label that tells them apart."""
    busy = series(counter(BURST), 110, cluster="a", job="node", pod="exporter-xyz-7")
    idle = series(counter([(110, 0.3)], first=7 * 10**12), 110, cluster="b", job="node", pod="exporter-abc-1")
    for put in ([busy, idle], [idle, busy]):
        both = Verdict(tmp_path, answer(*put))
        assert both.links == {"10.0.0.1:9100{cluster=a}/eth0", "10.0.0.1:9100{cluster=b}/eth0"}
        assert both.of("10.0.0.1:9100{cluster=a}/eth0") == Verdict(tmp_path, answer(busy)).of(LINK)
        assert both.of("10.0.0.1:9100{cluster=b}/eth0") == []
        assert "10.0.0.1:9100 is 2 machines, told apart by the label cluster" in both.notes


def test_copies_in_each_of_two_clusters(tmp_path: Path) -> None:
    """Both at once: four series, two machines, one verdict each, two notes of copies."""
    busy, idle = counter(BURST), counter([(110, 0.3)], first=7 * 10**12)
    put = [
        series(count, 110, cluster=cluster, replica=replica, offset=0.5 * int(replica))
        for cluster, count in (("a", busy), ("b", idle))
        for replica in ("0", "1")
    ]
    found = Verdict(tmp_path, answer(*put))
    assert found.links == {"10.0.0.1:9100{cluster=a}/eth0", "10.0.0.1:9100{cluster=b}/eth0"}
    assert [kind for _, kind in found.of("10.0.0.1:9100{cluster=a}/eth0")] == ["would_limit"] * 2
    assert sum("2 copies" in note for note in found.notes) == 2


def test_labels_that_differ_by_device_do_not_split_a_machine(tmp_path: Path) -> None:
    """What describes an interface (its index, its alias) is no part of the machine's name."""
    put = [series(counter(BURST), 110, device="", ifName=f"eth{k}", ifIndex=str(k), ifAlias=f"port {k}") for k in range(3)]
    assert Verdict(tmp_path, answer(*put)).links == {f"10.0.0.1:9100/eth{k}" for k in range(3)}


# ---- where the traffic is --------------------------------------------------------------------------


@pytest.mark.parametrize("keepalive_s", [30, 60, 600])
def test_an_idle_link_s_scrapes_are_not_coarse(keepalive_s: int, tmp_path: Path) -> None:
    """A day of rest with a packet now and then, and 30 s at 1.5 Gbit/s: scraped every second, the rule holds as it stands."""
    quiet_s = 6 * 3600
    burst = counter([(quiet_s, 0), (30, 1.5), (quiet_s, 0)])

    def count(s: float) -> int:
        return burst(s) + 90 * int(s / keepalive_s)

    found = Verdict(tmp_path, answer(series(count, 2 * quiet_s)))
    assert found.of(LINK) == [(quiet_s + 12, "would_limit"), (quiet_s + 24, "would_limit")]
    assert found.notes == []


def test_one_busy_scrape_in_an_idle_hour_is_possible(tmp_path: Path) -> None:
    """2.4 GB within one scrape interval of 15 s, nothing else for hours: an excess was possible, and is reported."""
    count = counter([(3600, 0), (15, 1.3), (3600, 0), (15, 1.3), (3600, 0)])
    found = Verdict(tmp_path, answer(series(count, 3 * 3600 + 30, scrape=15, step=15)))
    assert found.of(LINK) == [(3615, "possible"), (7230, "possible")]


@pytest.mark.parametrize(("scrape", "step"), [(15, 15), (15, 5), (12, 5), (30, 15), (60, 15), (15, 60), (120, 15)])
@pytest.mark.parametrize(("gbits", "kinds"), [(0.7, set()), (0.8, set()), (1.2, {"possible"})])
def test_steady_traffic_is_judged_by_its_rate(scrape: int, step: int, gbits: float, kinds: set[str], tmp_path: Path) -> None:
    """However scrapes and steps fall on each other: below the threshold nothing is possible, above it is."""
    found = Verdict(tmp_path, answer(series(counter([(3600, gbits)]), 3600, scrape=scrape, step=step)))
    assert {kind for _, kind in found.of(LINK)} == kinds


def test_a_missing_point_of_one_device_is_no_idle_second(tmp_path: Path) -> None:
    """eth0 lacks a point at which eth1 has one: its counter keeps the bytes, and the firing comes as without eth1."""
    own = series(counter(BURST), 110)
    own["values"] = [point for k, point in enumerate(own["values"]) if k not in {26, 29}]
    other = series(counter([(110, 0.1)]), 110, device="eth1")
    alone = Verdict(tmp_path, answer(own))
    assert alone.of(LINK)[0] == (32, "would_limit")
    assert Verdict(tmp_path, answer(own, other)).of(LINK) == alone.of(LINK)


def test_a_reset_is_an_epoch_not_a_rate(tmp_path: Path) -> None:
    """A machine that reboots begins at 0: nothing is joined over it, and no rate is made of it."""
    first, second = counter([(25, 1.2)], first=10**12), counter([(25, 1.2)])
    own = series(lambda s: first(s) if s < 20 else second(s - 20), 40)
    assert Verdict(tmp_path, answer(own)).of(LINK) == [(12, "would_limit"), (32, "would_limit")]


# ---- refused, or noted -----------------------------------------------------------------------------


def refusal(directory: Path, text: str | bytes, label: str | None = None) -> str:
    """The one sentence that reading this ends with."""
    with pytest.raises(RecordingError) as caught:
        Verdict(directory, text, label)
    return str(caught.value)


def rate_of(one: Answer, *, whole: bool) -> Answer:
    """The answer of rate() over such a series."""
    metric = {name: value for name, value in one["metric"].items() if name != "__name__"}
    points = [(t, int(v)) for t, v in one["values"]]
    values = [[t, str((v - u) // (t - s) if whole else (v - u) / (t - s) + 1 / 3)] for (s, u), (t, v) in pairwise(points)]
    return {"metric": metric, "values": values}


def test_the_result_of_rate_is_refused(tmp_path: Path) -> None:
    """Fractions give it away, or values that fall under no metric's name."""
    for whole in (True, False):
        words = refusal(tmp_path, answer(rate_of(series(counter(BURST), 110), whole=whole)))
        assert "rate()" in words
        assert METRIC in words


@pytest.mark.parametrize(
    "name",
    [
        "node_network_transmit_packets_total",
        "node_network_receive_bytes_total",
        "instance_device:node_network_transmit_bytes_total:rate5m",
        "limiterd_interface_transmit_bytes_per_second",
        "ifHCInOctets",
        "node_network_transmit_drop_total",
        "net_kilobits_persec",
        "up",
    ],
)
def test_a_metric_that_counts_no_bytes_sent_is_refused(name: str, tmp_path: Path) -> None:
    """Packets, received bytes, rates and rules are named, with the metric to query."""
    words = refusal(tmp_path, answer(series(counter(BURST), 110, __name__=name)))
    assert words == f"{name} does not count the bytes that a link sent; query {METRIC}"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("limiterd_interface_transmit_bytes_total", "interface"),
        ("ifHCOutOctets", "ifName"),
        ("windows_net_bytes_sent_total", "nic"),
        ("container_network_transmit_bytes_total", "interface"),
    ],
)
def test_other_exporters_names_and_labels_are_known(name: str, label: str, tmp_path: Path) -> None:
    """The interface is in the label that the exporter uses."""
    one = series(counter(BURST), 110, device="", __name__=name)
    one["metric"][label] = "eth0"
    assert Verdict(tmp_path, answer(one)).of(LINK)[0] == (32, "would_limit")


def test_any_label_can_name_the_interface(tmp_path: Path) -> None:
    """--label NAME; without it the labels that there are are shown."""
    text = answer(series(counter(BURST), 110, device="", port="eth0"))
    words = refusal(tmp_path, text)
    assert 'without the label "device" (nor interface, ifName, nic)' in words
    assert 'port="eth0"' in words
    assert "--label NAME" in words
    assert Verdict(tmp_path, text, label="port").of(LINK)[0] == (32, "would_limit")
    assert 'without the label "slot"' in refusal(tmp_path, text, label="slot")


def test_what_was_sent_is_told_from_what_was_received(tmp_path: Path) -> None:
    """A query for both gives both: what was received is left out, with a note."""
    sent = series(counter(BURST), 110)
    received = series(counter([(110, 9.0)]), 110, __name__="node_network_receive_bytes_total")
    found = Verdict(tmp_path, answer(received, sent))
    assert found.events == Verdict(tmp_path, answer(sent)).events
    assert found.notes == ["left out, for they do not count the bytes sent: node_network_receive_bytes_total"]


def test_several_metrics_of_bytes_sent_are_refused(tmp_path: Path) -> None:
    """Nobody can tell which one is meant."""
    words = refusal(tmp_path, answer(series(counter(BURST), 110), series(counter(BURST), 110, __name__="ifHCOutOctets")))
    assert words == f"series of several metrics (ifHCOutOctets, {METRIC}); query one of them"


def test_a_machine_s_sum_is_left_out(tmp_path: Path) -> None:
    """The daemon's own metric has series of sums beside those of links."""
    name = "limiterd_interface_transmit_bytes_total"
    link = series(counter(BURST), 110, __name__=name, device="", interface="eth0")
    total = series(counter(BURST), 110, __name__=name, device="", interface="machine/fair-use")
    found = Verdict(tmp_path, answer(link, total))
    assert found.links == {LINK}
    assert found.notes == ["left out, for they are sums of links: machine/fair-use"]


def test_series_without_a_name_are_noted(tmp_path: Path) -> None:
    """A rising counter whose name was cut off is judged, with a note that it is taken for one."""
    found = Verdict(tmp_path, answer(series(counter(BURST), 110, __name__="")))
    assert found.of(LINK)[0] == (32, "would_limit")
    assert "no metric name" in found.notes[0]


def test_what_the_server_warns_of_is_noted(tmp_path: Path) -> None:
    """A partial answer says so."""
    found = Verdict(tmp_path, answer(series(counter(BURST), 110), warnings=["partial response: store-2 is down"]))
    assert found.notes == ["the server's answer says: partial response: store-2 is down"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (answer(), "the answer holds no series; see that the query finds some"),
        (answer({"metric": {"device": "eth0"}, "values": [[START * 1000, "1"]]}), "a time in milliseconds; a Prometheus answer"),
        ('{"metric":{"device":"eth0"},"values":[1,2],"timestamps":[1,2]}', "ask /api/v1/query_range"),
        (answer(series(counter(BURST), 110)) + "[1", "not JSON"),
        (gzip.compress(answer(series(counter(BURST), 110)).encode())[:-20], "the gzip file is cut off"),
        (b"\x28\xb5\x2f\xfd....", "zstd -dc FILE | limiterctl replay -"),
        ("t_seconds,interface,tx_bytes\n1800000000000,eth0,1\n", "a time in milliseconds; divide it by 1000"),
        ("t_seconds;interface;tx_bytes\n", "docs/recordings.md"),
        (
            '{"limiterd_recording": 1}\n{"t":1,"links":[]}\n{"limiterd_recording": 1}\n',
            "head -n 2 FILE | limiterctl replay -, then",
        ),
    ],
)
def test_what_cannot_be_judged_says_what_to_do(text: str | bytes, words: str, tmp_path: Path) -> None:
    """One sentence each."""
    assert words in refusal(tmp_path, text)


def test_a_second_header_of_csv_is_passed_over(tmp_path: Path) -> None:
    """Files put together by cat go on, with a note; a quoted header is a header."""
    rows = [f"{k},eth0,{k * 150_000_000}\n" for k in range(14)]
    head = '"t_seconds","interface","tx_bytes"\n'
    found = Verdict(tmp_path, head + "".join(rows[:7]) + head + "".join(rows[7:]))
    assert found.of("eth0") == [(12 - START, "would_limit")]
    assert ":9: a second header" in found.notes[0]
