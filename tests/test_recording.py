"""Recordings: three formats in, one out, and what is said of files that are none."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from limiterd.core.model import Link, Snapshot
from limiterd.recording import Recording, RecordingError, Writer, open_recording, query, resolution_ns

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
    assert (recording.host, recording.started_wall_ns) == ("gpu-7", STARTED_NS)
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
    assert recording.started_wall_ns is None


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
        ('{"t":1,"links":[[2,"eth0"]]}', "no [ifindex"),
        ('{"t":1,"links":["abc"]}', "no [ifindex"),
        ('{"t":1,"links":[[-2,"eth0",1]]}', "ifindex"),
        ('{"t":1,"links":[[2,7,1]]}', "interface"),
        ('{"t":1,"links":[[2,"eth0",1],[3,"eth0",1]]}', "twice"),
        ("[1]", "not a JSON object"),
        ('{"t":1,"li', "not a JSON object"),
        (b"\x00\xff\xfe", "not a JSON object"),
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
        ("time,name,bytes", "no recording"),
        (b"\x7fELF\x02\x01\x01", "no recording"),
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
    assert recording.qualified
    assert recording.started_wall_ns == 15 * 10**8
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
    assert resolution_ns([(0, 1), (5, 1)]) is None


def test_a_device_without_a_point_holds_its_value_and_then_is_gone(tmp_path: Path) -> None:
    """Missing points are bridged for three resolutions; beyond them the link was not observed."""
    busy = [(t, str(t)) for t in range(10)]
    sparse = [(t, str(t)) for t in (0, 1, 2, 9)]
    recording = open_recording(write(tmp_path / "r", answer(("a", "eth0", busy), ("a", "eth1", sparse))))
    present = [t // 10**9 for t, counters in rows(recording) if "a/eth1" in counters]
    assert present == [0, 1, 2, 3, 4, 5, 9]


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1.5", "", "18446744073709551616"])
def test_a_bad_point_ends_the_reading_after_what_came_before(tmp_path: Path, value: str) -> None:
    """NaN, infinite, negative and fractional counters are errors with the line; series before it are kept."""
    text = answer(("a", "eth0", [(1, "10"), (2, "20")]), ("b", "eth0", [(1, value)])).replace(']}, {"metric"', ']},\n{"metric"')
    path = write(tmp_path / "r", text)
    count, words = failing(open_recording(path))
    assert count == 2
    assert words.startswith(f"{path}:{2 if value else 1}: ")
    assert "b/eth0" in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"status":"error","errorType":"bad_data","error":"parse error"}', "bad_data: parse error"),
        ('{"status":"success","data":{"resultType":"vector","result":[]}}', "matrix"),
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"device":"a"},"values":[[1,"1"', "cut off"),
        ('{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,"1"]]}]}}', "device"),
        ('{"status":"success","data":{"resultType":"matrix","result":[7]}}', "without metric"),
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


def test_a_server_that_is_down_or_not_http_is_an_error() -> None:
    """A refused connection, another scheme and a page that is no JSON are told in words."""
    with server((200, "<html>")) as (url, _), pytest.raises(RecordingError, match="not JSON"):
        query(url, start_s=0, end_s=60, step_s=Decimal(1))
    with pytest.raises(RecordingError, match="refused"):
        query(url, start_s=0, end_s=60, step_s=Decimal(1))
    with pytest.raises(RecordingError, match="only http"):
        query("file:///etc/passwd", start_s=0, end_s=60, step_s=Decimal(1))
