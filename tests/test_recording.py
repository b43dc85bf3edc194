"""Recordings: three formats in, one out, and what is said of files that are none."""

from __future__ import annotations

import gzip
import io
import json
import threading
import tracemalloc
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from limiterd.core.model import Link, Snapshot
from limiterd.recording import Recording, RecordingError, Writer, open_recording, query
from limiterd.recording.prometheus import Series
from limiterd.recording.scraped import spacing_ns

HEADER = '{"limiterd_recording": 1, "host": "gpu-7", "clock": "boottime", "started_at": "2026-11-23T12:00:00Z"}'
STARTED_NS = 1_795_435_200 * 10**9


def write(path: Path, *lines: str | bytes) -> str:
    """A file of these lines."""
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return str(path)


def rows(recording: Recording) -> list[tuple[int, dict[str, int]]]:
    """Every tick as (t, counters by name)."""
    return [
        (snapshot.t_ns, dict(zip((link.name for link in snapshot.links), snapshot.tx_bytes, strict=True)))
        for _, snapshot in recording
    ]


def failing(recording: Recording) -> tuple[int, str]:
    """How many ticks come before the error, and its text."""
    count = 0
    with pytest.raises(RecordingError) as caught:  # noqa: PT012 - the ticks before it matter too
        for _ in recording:
            count += 1
    return count, str(caught.value)


# ---- JSON lines ----------------------------------------------------------------------------------


def test_json_lines_are_read_as_they_stand(tmp_path: Path) -> None:
    """Ticks come in the file's order, with backward clocks and counters; host and start come from the header."""
    path = write(tmp_path / "r", HEADER, '{"t":5,"links":[[2,"eth0",7],[3,"eth1",9]]}', '{"t":4,"links":[[2,"eth0",1]]}', "")
    recording = open_recording(path)
    assert (recording.header.host, recording.header.started_wall_ns) == ("gpu-7", STARTED_NS)
    assert rows(recording) == [(5, {"eth0": 7, "eth1": 9}), (4, {"eth0": 1})]


def test_the_links_tuple_is_the_same_object_while_links_stay(tmp_path: Path) -> None:
    """Consumers compare links by identity, so it changes when, and only when, a link does."""
    ticks = [f'{{"t":{t},"links":[[{2 + t // 3},"eth0",1]]}}' for t in range(6)]
    seen = [snapshot.links for _, snapshot in open_recording(write(tmp_path / "r", HEADER, *ticks))]
    assert seen[0] is seen[1] is seen[2]
    assert seen[3] is seen[4] is seen[5]
    assert seen[0] != seen[3]


def test_a_header_alone_is_a_recording(tmp_path: Path) -> None:
    """No ticks, no error."""
    assert rows(open_recording(write(tmp_path / "r", HEADER))) == []


def test_started_at_may_be_absent(tmp_path: Path) -> None:
    """Without started_at the wall clock is unknown."""
    recording = open_recording(write(tmp_path / "r", '{"limiterd_recording": 1}'))
    assert rows(recording) == []
    assert recording.header.started_wall_ns is None


@pytest.mark.parametrize(
    ("tick", "words"),
    [
        ('{"t":1,"links":[[2,"eth0",NaN]]}', "tx_bytes"),
        ('{"t":1,"links":[[2,"eth0",-1]]}', "tx_bytes"),
        ('{"t":1,"links":[[2,"eth0",1.0]]}', "tx_bytes"),
        ('{"t":1,"links":[[2,"eth0",true]]}', "tx_bytes"),
        ('{"t":1,"links":[[2,"eth0","7"]]}', "tx_bytes"),
        ('{"t":1.5,"links":[]}', "t is 1.5"),
        ('{"t":-1,"links":[]}', "t is -1"),
        ('{"t":true,"links":[]}', "t is true"),
        ('{"links":[]}', "t is null"),
        ('{"t":1}', "links"),
        ('{"t":1,"links":{"a":1}}', "links"),
        ('{"t":1,"links":{}}', "links is {}"),
        ('{"t":1,"links":null}', "links is null"),
        ('{"t":1,"links":0}', "links is 0"),
        ('{"t":1,"links":""}', "links is"),
        ('{"t":1,"links":false}', "links is false"),
        ('{"t":1,"links":[[2,"eth0"]]}', "not [ifindex"),
        ('{"t":1,"links":["abc"]}', "not [ifindex"),
        ('{"t":1,"links":[[-2,"eth0",1]]}', "ifindex"),
        ('{"t":1,"links":[[2,7,1]]}', "interface"),
        ('{"t":1,"links":[[2,"eth0",1],[3,"eth0",1]]}', "interface appears twice"),
        ('{"t":1,"links":[[2,"eth0",1],[2,"eth1",1]]}', "ifindex appears twice"),
        ("[1]", "not a JSON object"),
        ('{"t":1,"li', "not a JSON object"),
        (b"\x00\xff\xfe", "not UTF-8 text"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_a_bad_tick_is_named_by_file_and_line(tmp_path: Path, tick: str | bytes, words: str) -> None:
    """The error gives file, line and what is wrong, after the ticks before it were handed out."""
    path = write(tmp_path / "r", HEADER, '{"t":0,"links":[[2,"eth0",0]]}', tick)
    count, text = failing(open_recording(path))
    assert count == 1
    assert text.startswith(f"{path}:3: ")
    assert words in text


def test_a_truncated_recording_says_so(tmp_path: Path) -> None:
    """A last line without its end is an error that speaks of the file's end."""
    path = tmp_path / "r"
    path.write_text(f'{HEADER}\n{{"t":0,"links":[]}}\n{{"t":1,"lin')
    count, text = failing(open_recording(str(path)))
    assert count == 1
    assert "the file ends" in text


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("", "empty"),
        ('{"limiterd_recording": 2}', "version 2"),
        ('{"limiterd_recording": true}', "version True"),
        ('{"limiterd_recording": 1, "started_at": "yesterday"}', "started_at"),
        ('{"limiterd_recording": 1, "started_at": "2026-11-23T12:00:00"}', "zone"),
        ('{"limiterd_recording": 1', "not a JSON object"),
        ('{"t":1,"links":[]}', "header is missing"),
        ('{"t":1,"links":[]}\n{"t":2,"links":[]}', "header is missing"),
        ("time,name,bytes", "not a recording"),
        (b"\x7fELF\x02\x01\x01", "not a recording"),
        ('{"a": 1}', "neither a recording nor"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, first: str | bytes, words: str) -> None:
    """A file without a header that we know is refused at its first line, in words."""
    path = write(tmp_path / "r", first) if first else str((tmp_path / "r").write_bytes(b"") or tmp_path / "r")
    with pytest.raises(RecordingError, match=words) as caught:
        rows(open_recording(path))
    assert str(caught.value).startswith(f"{path}:1: ")


def test_a_missing_file_is_an_error_in_words(tmp_path: Path) -> None:
    """No traceback for a name that does not exist or is a directory."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(RecordingError, match=str(path)):
            open_recording(str(path))


def test_what_the_writer_writes_the_reader_reads() -> None:
    """Header and ticks survive the round trip, odd names and 64-bit counters too."""
    stream = io.StringIO()
    writer = Writer(stream, host="h", started_wall_ns=STARTED_NS + 5000)
    links = (Link(2, 'e"th\\0'), Link(3, "naïve"))
    writer.write(Snapshot(7, links, [0, 2**64 - 1]))
    writer.write(Snapshot(8, links[:1], [1]))
    writer.write(Snapshot(9, (), []))
    header, *ticks = (json.loads(line) for line in stream.getvalue().splitlines())
    assert header["started_at"] == "2026-11-23T12:00:00.000005Z"
    assert ticks == [
        {"t": 7, "links": [[2, 'e"th\\0', 0], [3, "naïve", 2**64 - 1]]},
        {"t": 8, "links": [[2, 'e"th\\0', 1]]},
        {"t": 9, "links": []},
    ]


# ---- CSV -----------------------------------------------------------------------------------------

CSV = "t_seconds,interface,tx_bytes"


def test_csv_decimals_are_exact_to_the_nanosecond(tmp_path: Path) -> None:
    """Seconds are read digit by digit, never through a float."""
    path = write(tmp_path / "r", CSV, "0.1,eth0,1", "1700000000.123456789,eth0,2", "5.,eth0,3", "7,eth0,18446744073709551615")
    assert [t for t, _ in rows(open_recording(path))] == [10**8, 1_700_000_000_123_456_789, 5 * 10**9, 7 * 10**9]


@pytest.mark.parametrize("odd", ["{},eth0,1", "1,eth0,{}"])
def test_csv_numbers_of_thousands_of_digits_are_refused(odd: str, tmp_path: Path) -> None:
    """Python itself refuses to read them: the file and the line are named all the same."""
    recording = open_recording(write(tmp_path / "r", CSV, "0,eth0,1", odd.format("9" * 5000)))
    with pytest.raises(RecordingError, match=r"r:3: .* ≥ 0 is needed"):
        rows(recording)


def test_csv_rows_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    """With spaces, quotes, another number of decimals, another line end; within one instant too."""
    plain = write(tmp_path / "p", CSV, "1.5,a,1", "1.5,b,2", "2.5,a,3", "2.5,b,4")
    odd = tmp_path / "o"
    odd.write_bytes(f'{CSV}\r\n1.5,a,1\r\n 1.50 ,"b", 2\n2.5,"a",3\n2.500000000,b,4\n'.encode())
    assert rows(open_recording(plain)) == rows(open_recording(str(odd)))


def test_csv_rows_of_one_instant_are_one_tick(tmp_path: Path) -> None:
    """Interfaces with the same stamp come in one snapshot, a repeated one in another."""
    path = write(tmp_path / "r", CSV, "1,a,1", "1,b,2", "2,a,3", "2,b,4", "2,a,5")
    assert rows(open_recording(path)) == [
        (10**9, {"a": 1, "b": 2}),
        (2 * 10**9, {"a": 3, "b": 4}),
        (2 * 10**9, {"a": 5}),
    ]


def test_csv_interfaces_sampled_at_different_instants_are_lanes_of_their_own(tmp_path: Path) -> None:
    """A link is not gone because the next row is another one's."""
    path = write(tmp_path / "r", CSV, "1.0,a,1", "1.5,b,1", "2.0,a,2", "2.5,b,2")
    lanes = [(lane.key, [link.name for link in snapshot.links]) for lane, snapshot in open_recording(path)]
    assert len({key for key, _ in lanes}) == 2
    assert [names for _, names in lanes] == [["a"], ["b"], ["a"], ["b"]]


def test_csv_interfaces_that_start_together_may_tick_apart(tmp_path: Path) -> None:
    """Who first appears together is one lane; a row that is missing at an instant does not mean that its link is gone."""
    path = write(tmp_path / "r", CSV, "0,a,1", "0,b,1", "1,a,2", "1.5,b,2", "2,a,3", "2,b,3", "3,c,1")
    ticks = list(open_recording(path))
    assert [[link.name for link in snapshot.links] for _, snapshot in ticks] == [["a", "b"], ["a"], ["b"], ["a", "b"], ["c"]]
    lane = ticks[0][0]
    assert [other is lane for other, _ in ticks] == [True, True, True, True, False]
    assert lane.links is ticks[0][1].links is ticks[3][1].links


def test_csv_patterns_of_rows_are_remembered_within_bounds(tmp_path: Path) -> None:
    """However rows are grouped, each tick has its own links, and the lane all of them."""
    names = [f"e{i}" for i in range(12)]
    instants = [[name for i, name in enumerate(names) if k == 0 or k >> i & 1] for k in range(200)]
    path = write(tmp_path / "r", CSV, *(f"{k},{name},{k}" for k, chosen in enumerate(instants) for name in chosen))
    ticks = list(open_recording(path))
    assert [[link.name for link in snapshot.links] for _, snapshot in ticks] == [chosen for chosen in instants if chosen]
    assert {len(lane.links or ()) for lane, _ in ticks} == {12}


def test_a_csv_whose_last_line_has_no_end_is_noted(tmp_path: Path) -> None:
    """The row is taken, with a note: a file that was cut off within a number looks just like it."""
    path = tmp_path / "r"
    path.write_text(f"{CSV}\n1,a,100\n2,a,20")
    recording = open_recording(str(path))
    assert rows(recording) == [(10**9, {"a": 100}), (2 * 10**9, {"a": 20})]
    assert [note.partition(": ")[0] for note in recording.notes] == [f"{path}:3"]
    path.write_text(f"{CSV}\n1,a,100\n")
    recording = open_recording(str(path))
    assert len(rows(recording)) == 1
    assert recording.notes == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1,eth0", "2 fields"),
        ("1,eth0,1.5", "tx_bytes"),
        ("1,eth0,NaN", "tx_bytes"),
        ("1,eth0,-1", "tx_bytes"),
        ("1,eth0,", "tx_bytes"),
        ("1,,1", "name"),
        ("-1,eth0,1", "t_seconds"),
        ("nan,eth0,1", "t_seconds"),
        ("1e3,eth0,1", "t_seconds"),
        ("1.0000000001,eth0,1", "finer than a nanosecond"),
        (b"1,\xff\xfe,1", "UTF-8"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: str | bytes, words: str) -> None:
    """The error gives file, line and what is wrong, after the rows before it were handed out."""
    path = write(tmp_path / "r", CSV, "0,eth0,1", row)
    count, text = failing(open_recording(path))
    assert count == 1
    assert text.startswith(f"{path}:3: ")
    assert words in text


# ---- Prometheus ----------------------------------------------------------------------------------


def answer(*series: tuple[str, str, Sequence[tuple[float, str]]]) -> str:
    """A query_range answer."""
    result = [
        {
            "metric": {"__name__": "node_network_transmit_bytes_total", "instance": i, "device": d},
            "values": [list(v) for v in values],
        }
        for i, d, values in series
    ]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def test_prometheus_series_are_named_instance_and_device(tmp_path: Path) -> None:
    """Each instance is a lane of its own host; times and counters are exact."""
    text = answer(("a:9100", "eth0", [(1.5, "10"), (2.5, "20")]), ("b:9100", "eth0", [(1.5, "1e3")]))
    recording = open_recording(write(tmp_path / "r", text))
    assert recording.header.qualified
    assert recording.header.started_wall_ns == 15 * 10**8
    seen = [(lane.host, snapshot.t_ns, snapshot.links[0].name, snapshot.tx_bytes[0]) for lane, snapshot in recording]
    assert seen == [
        ("a", 15 * 10**8, "a:9100/eth0", 10),
        ("b", 15 * 10**8, "b:9100/eth0", 1000),
        ("a", 25 * 10**8, "a:9100/eth0", 20),
    ]


def test_the_real_resolution_is_found_behind_repeats(tmp_path: Path) -> None:
    """A scrape every 15 s asked every 5 s: values repeat, and the lane's resolution is 15 s."""
    points = [(t, str(t // 15 * 1000)) for t in range(0, 300, 5)]
    recording = open_recording(write(tmp_path / "r", answer(("a", "eth0", points))))
    assert [dict(lane.resolution_ns) for lane, _ in recording] == [{"a/eth0": 15 * 10**9}] * len(points)
    still = Series({}, array("q", [0, 5]), array("Q", [1, 1]))
    assert spacing_ns([still]) == 5, "where nothing moves nothing shows the scrapes"


def test_a_device_without_a_point_holds_its_value_and_then_is_gone(tmp_path: Path) -> None:
    """Missing points are no samples; after three spacings without one the link was not observed."""
    busy = [(t, str(t)) for t in range(10)]
    sparse = [(t, str(t)) for t in (0, 1, 2, 9)]
    recording = open_recording(write(tmp_path / "r", answer(("a", "eth0", busy), ("a", "eth1", sparse))))
    seen = [(snapshot.t_ns // 10**9, source.links or (), snapshot.links) for source, snapshot in recording]
    assert [t for t, links, _ in seen if "a/eth1" in {link.name for link in links}] == [0, 1, 2, 3, 4, 5, 9]
    assert [t for t, _, links in seen if "a/eth1" in {link.name for link in links}] == [0, 1, 2, 9]


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1.5", "", "18446744073709551616"])
def test_a_bad_point_ends_the_reading_after_what_came_before(tmp_path: Path, value: str) -> None:
    """NaN, infinite, negative and fractional counters are errors with the line; series before it are kept."""
    text = answer(("a", "eth0", [(1, "10"), (2, "20")]), ("b", "eth0", [(1, value)])).replace(']}, {"metric"', ']},\n{"metric"')
    path = write(tmp_path / "r", text)
    count, words = failing(open_recording(path))
    assert count == 2
    assert words.startswith(f"{path}:2: ")
    assert "b/eth0" in words


def test_a_bad_point_costs_nothing_before_it(tmp_path: Path) -> None:
    """The points of the very series that holds it are handed out first, and the line is the bad figure's."""
    path = tmp_path / "r"
    path.write_text(json.dumps(json.loads(answer(("a", "eth0", [(1, "7"), (2, "8"), (3, "-8")]))), indent=1))
    line = 1 + next(k for k, text in enumerate(path.read_text().splitlines()) if "-8" in text)
    count, words = failing(open_recording(str(path)))
    assert count == 2
    assert words.startswith(f"{path}:{line}: a/eth0: ")


def test_an_answer_s_text_may_be_laid_out_in_any_way(tmp_path: Path) -> None:
    """Members in another order, indented, beyond ASCII; cut off, the series before the cut are replayed and the cut is told."""
    series = {"values": [[k + 0.125, str(10**k)] for k in range(19)], "metric": {"instance": "ä:1", "device": "naïve"}}
    head = {"data": {"result": [series], "stats": [1.5, {}], "resultType": "matrix"}, "status": "success"}
    path = write(tmp_path / "r", "\ufeff" + json.dumps(head, ensure_ascii=False, indent=1))
    assert rows(open_recording(path)) == [(k * 10**9 + 125_000_000, {"ä:1/naïve": 10**k}) for k in range(19)]
    both = answer(("a", "eth0", [(k, str(k)) for k in range(19)]), ("b", "eth0", [(k, str(k)) for k in range(19)]))
    cut = write(tmp_path / "cut", both[: both.rindex("[17,") - 1])
    count, words = failing(open_recording(cut))
    assert count == 19
    assert words.startswith(f"{cut}:2: not JSON")
    assert "cut off" in words


def test_an_answer_takes_memory_for_its_text_and_its_points(tmp_path: Path) -> None:
    """Beside the text there are two numbers a point and the objects of one series: never those of the whole answer."""
    series = [(f"a{k}:9100", "eth0", [(1_800_000_000 + t, str(10**12 + t * 10**6)) for t in range(2_000)]) for k in range(20)]
    path = write(tmp_path / "r", answer(*series))
    size = Path(path).stat().st_size
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_recording(path)) == 40_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * size, "json alone would need ten times the text"


def test_an_answer_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger answer is refused, also one that is only large once unpacked."""
    monkeypatch.setattr("limiterd.recording.prometheus.MAX_ANSWER_BYTES", 1 << 20)
    (tmp_path / "r").write_bytes(gzip.compress(b'{"status":"' + b"x" * (2 << 20)))
    with pytest.raises(RecordingError, match="larger than 1 MiB; ask for less"):
        open_recording(str(tmp_path / "r"))


def test_points_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    """A series that was joined by hand is sorted by time; a point that is there twice counts once."""
    path = write(tmp_path / "r", answer(("", "eth0", [(3, "30"), (1, "10"), (2, "20"), (2, "20")])))
    assert rows(open_recording(path)) == [(t * 10**9, {"eth0": 10 * t}) for t in (1, 2, 3)]


def test_two_counters_at_one_instant_are_refused(tmp_path: Path) -> None:
    """No order of the file decides which of them is right."""
    path = write(tmp_path / "r", answer(("", "eth0", [(1, "10"), (2, "19"), (2, "20")])))
    with pytest.raises(RecordingError, match=r"two counters, 19 and 20, at 2.000: .* replay each by itself"):
        open_recording(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"status":"error","errorType":"bad_data","error":"parse error"}', "bad_data: parse error"),
        ('{"status":"success","data":{"resultType":"vector","result":[]}}', "matrix"),
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"device":"a"},"values":[[1,"1"', "cut off"),
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,"1"]]}]}}', "device"),
        ('{"status":"success","data":{"resultType":"matrix","result":[7]}}', "without metric"),
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"device":"a"}}]}}', "without metric or values"),
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":7,"values":[]}]}}', "device"),
        ('{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"1"]}]}}', "matrix"),
        ('{"status":"success","data":{"resultType":"matrix","result":{}}}', "matrix"),
        ('{"status":"success","data":{"resultType":"matrix"}} x', "matrix"),
        ('{"status":"success","data":{"resultType":"matrix","result":[]}} x', "extra data"),
        ('{"status":"success","data":}', "not JSON"),
        ('{"status" "success"}', "Expecting ':'"),
        ('{"status":"' + "x" * (2 << 20), "not JSON"),
        ('{"status":' + "[" * 100_000, "not JSON"),
    ],
)
def test_an_answer_that_is_no_range_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """Errors of the server, other result types and truncation are told in words, with the line."""
    path = write(tmp_path / "r", text)
    with pytest.raises(RecordingError, match=words) as caught:
        open_recording(path)
    assert str(caught.value).startswith((f"{path}:1: ", f"{path}:2: not JSON"))


@contextmanager
def server(*answers: tuple[int, str], stall: threading.Event | None = None) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server on loopback that gives these answers in turn (the last one for ever), and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if stall is not None:
                stall.wait(10)
            code, text = answers[min(len(asked), len(answers)) - 1]
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}", asked
        finally:
            if stall is not None:
                stall.set()
            http.shutdown()
            thread.join()


def test_a_live_server_is_asked_in_pieces() -> None:
    """More points than a server allows are asked for in several queries, and joined by series."""
    first = answer(("a:9100", "eth0", [(0, "1"), (9_999, "2")]))
    second = answer(("a:9100", "eth0", [(10_000, "3"), (15_000, "4")]))
    with server((200, first), (200, second)) as (url, asked):
        recording = query(url, start_s=0, end_s=15_000, step_s=Decimal(1))
        assert [counters["a:9100/eth0"] for _, counters in rows(recording)] == [1, 2, 3, 4]
    assert len(asked) == 2
    assert all(path.startswith("/api/v1/query_range?query=node_network_transmit_bytes_total&start=") for path in asked)


def test_a_server_s_error_is_told_in_its_own_words() -> None:
    """A status of 400 with Prometheus' JSON gives its type and text."""
    with (
        server((400, '{"status":"error","errorType":"bad_data","error":"exceeded maximum resolution"}')) as (url, _),
        pytest.raises(RecordingError, match="HTTP 400: bad_data: exceeded maximum resolution"),
    ):
        query(url, start_s=0, end_s=60, step_s=Decimal(1))


def test_a_server_that_does_not_answer_is_given_up() -> None:
    """A silent server ends in an error after the time-out, not in a hang."""
    with (
        server((200, ""), stall=threading.Event()) as (url, _),
        pytest.raises(RecordingError, match="timed out"),
    ):
        query(url, start_s=0, end_s=60, step_s=Decimal(1), timeout_s=0.2)


def test_what_a_server_answered_before_its_failure_is_kept() -> None:
    """Of three pieces the second fails: the first is replayed, then the failure is told."""
    first = answer(("a:9100", "eth0", [(0, "1"), (9_999, "2")]))
    with server((200, first), (503, "overloaded")) as (url, _):
        told: list[tuple[int, int]] = []
        recording = query(
            url, start_s=0, end_s=25_000, step_s=Decimal(1), progress=lambda done, total: told.append((done, total))
        )
        count, words = failing(recording)
    assert count == 2
    assert "HTTP 503: overloaded" in words
    assert told == [(0, 3), (1, 3)]


def test_a_server_that_drips_is_given_up() -> None:
    """An answer that comes byte by byte ends with the time-out, not with the answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # until the client has had enough
                while True:
                    self.wfile.write(b" ")
                    gone.wait(0.02)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Keep quiet."""

    gone = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            with pytest.raises(RecordingError, match="too slow"):
                query(f"http://127.0.0.1:{http.server_address[1]}", start_s=0, end_s=60, step_s=Decimal(1), timeout_s=0.3)
        finally:
            gone.set()
            http.shutdown()
            thread.join()


def test_a_server_that_is_down_or_not_http_is_an_error() -> None:
    """A refused connection, another scheme and a page that is no JSON are told in words."""
    with server((200, "<html>")) as (url, _), pytest.raises(RecordingError, match="not JSON"):
        query(url, start_s=0, end_s=60, step_s=Decimal(1))
    with pytest.raises(RecordingError, match="refused"):
        query(url, start_s=0, end_s=60, step_s=Decimal(1))
    with pytest.raises(RecordingError, match="only http"):
        query("file:///etc/passwd", start_s=0, end_s=60, step_s=Decimal(1))
