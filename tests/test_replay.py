"""Replay: what a policy would have done, told as events and for people."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path

import pytest

from limiterd.cli import main
from limiterd.config.load import load_rules
from limiterd.core.model import Detect, Event, EventKind, Link, Phase, Reason, Snapshot
from limiterd.ctl.format import PLAIN
from limiterd.recording import open_recording
from limiterd.replay import plot
from limiterd.replay.curves import MAX_POINTS, Curves
from limiterd.replay.plot import Curve, Level, Mark, Shade
from limiterd.replay.possible import Possible
from limiterd.replay.report import Clock, Report, Side, table
from limiterd.replay.runner import LOOK_AHEAD, Look, Run, Told

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
HEADER = '{"limiterd_recording": 1, "host": "gpu-7", "started_at": "2026-11-23T12:00:00Z"}'
TENTH = 10**8
GBIT_TENTH = 12_500_000


def config(path: Path, text: str = "", *, overrides: str = "") -> str:
    """A configuration for eth*, with these lines under the policy and these override records."""
    (path / "overrides.d").mkdir(exist_ok=True)
    if overrides:
        (path / "overrides.d" / "a.yaml").write_text(overrides)
    file = path / "limiterd.yaml"
    file.write_text(
        f"policies:\n  - name: fair-use\n    interfaces: ['eth*']\n{text}"
        f"overrides: {{directory: {path}/overrides.d}}\nstate: {{directory: {path}/state}}\n"
    )
    return str(file)


def recording(path: Path, rates: Sequence[tuple[int, int]], *, header: str = HEADER, apart_ns: int = TENTH) -> str:
    """A recording of eth0, at 10 Hz, from (Mbit/s, ticks) pieces."""
    lines, t_ns, counter = [header], 10**9, 0
    lines.append(json.dumps({"t": t_ns, "links": [[2, "eth0", counter]]}))
    for mbps, ticks in rates:
        for _ in range(ticks):
            t_ns += apart_ns
            counter += mbps * apart_ns // 8000
            lines.append(json.dumps({"t": t_ns, "links": [[2, "eth0", counter]]}))
    file = path / "recording.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> list[dict[str, object]]:
    """The events of `replay --json`."""
    assert main(["replay", *arguments, "--json"]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def told(events: Sequence[dict[str, object]]) -> list[tuple[object, object, object]]:
    """(seconds since 1 s, event, reason)."""
    return [((event["t"] - 10**9) / 1e9, event["event"], event["reason"]) for event in events if isinstance(event["t"], int)]


def test_enforce_limits_once_and_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A steady excess fires at 10.2 s; by approval the limit stands to the recording's end, and the link is not judged on."""
    events = replayed(capsys, recording(tmp_path, [(1200, 400)]), "--config", config(tmp_path))
    assert told(events) == [(0.0, "epoch", "new"), (10.2, "limit", "sustained"), (10.2, "limited", "sustained")]
    assert {(event["interface"], event["policy"]) for event in events} == {("eth0", "fair-use")}
    assert set(events[0]) == {"t", "interface", "event", "reason", "policy"}


def test_observe_tells_would_limit_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In observe mode the same traffic would have been limited three times, 10.2 s apart."""
    events = replayed(capsys, recording(tmp_path, [(1200, 400)]), "--config", config(tmp_path, "    mode: observe\n"))
    assert told(events)[1:] == [
        (10.2, "would_limit", "sustained"),
        (20.4, "would_limit", "sustained"),
        (30.6, "would_limit", "sustained"),
    ]


def test_an_observing_guard_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On-off traffic that the rule never sees overflows the guard, which notes it."""
    traffic = [(3000, 50), (0, 50)] * 18
    events = replayed(capsys, recording(tmp_path, traffic), "--config", config(tmp_path))
    assert told(events)[1:] == [(172.6, "noted", "guard")]


AUTO = "    release: {mode: auto, min_hold: 5s, quiet_for: 2s}\n"


def test_auto_release_sees_the_modelled_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While more is recorded than the limit lets through there is demand; its end lifts the limit after quiet_for."""
    rates = [(1200, 300), (50, 60), (1200, 120)]
    events = told(replayed(capsys, recording(tmp_path, rates), "--config", config(tmp_path, AUTO)))
    kinds = [(kind, reason) for _, kind, reason in events]
    assert kinds == [
        ("epoch", "new"),
        ("limit", "sustained"),
        ("limited", "sustained"),
        ("released", "demand_ended"),
        ("epoch", "released"),
        ("limit", "sustained"),
        ("limited", "sustained"),
    ]
    released_s = events[3][0]
    assert isinstance(released_s, float)
    assert 32.0 <= released_s <= 33.2
    assert events[5][0] == 46.2


@pytest.mark.parametrize("apart_ms", [100, 250, 600, 700, 800, 950, 990, 1000, 1010, 1400])
def test_quiet_is_judged_as_in_the_daemon_whatever_the_samples(
    apart_ms: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit ends within a slice of when its hold and its quiet are over, with samples up to 1.5 s apart."""
    busy, silent = 20_000 // apart_ms, 20_000 // apart_ms
    file = recording(tmp_path, [(1200, busy), (0, silent)], apart_ns=apart_ms * 10**6)
    (released,) = [at for at, kind, _ in told(replayed(capsys, file, "--config", config(tmp_path, AUTO))) if kind == "released"]
    assert isinstance(released, float)
    assert 2 - 1.5 <= released - busy * apart_ms / 1000 <= 2 + 2 * 1.5


def test_seconds_of_silence_between_loud_ones_are_no_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """110 of 200 Mbit/s in every other sample, 0.99 s apart: no two make a quiet slice, and the limit stays."""
    file = recording(tmp_path, [(1200, 15), *[(110, 1), (0, 1)] * 20], apart_ns=990 * 10**6)
    events = replayed(capsys, file, "--config", config(tmp_path, AUTO))
    assert [event["event"] for event in events] == ["epoch", "limit", "limited"]


def test_samples_too_far_apart_prove_no_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples 2 s apart can fire, and no limit of theirs ends by itself, which a note says."""
    file = recording(tmp_path, [(1200, 20), (0, 30)], apart_ns=2 * 10**9)
    assert main(["replay", file, "--config", config(tmp_path, AUTO)]) == 0
    captured = capsys.readouterr()
    shown = " ".join((captured.out + captured.err).split())
    assert "released" not in shown
    assert "further than the 1.5 s that quiet can be judged by: no limit ends by itself here (release: auto)" in shown


def test_below_the_limit_but_above_quiet_is_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """150 of 200 Mbit/s is above quiet_rate: the limit stays."""
    events = replayed(capsys, recording(tmp_path, [(1200, 150), (150, 300)]), "--config", config(tmp_path, AUTO))
    assert [event["event"] for event in events] == ["epoch", "limit", "limited"]


OVERRIDE = """overrides:
  - id: REQ-1
    interfaces: [eth0]
    {hosts}
    action: exempt
    not_before: 2026-11-23T12:00:15Z
    expires: 2026-11-23T12:00:20Z
    approved_by: ops
    reason: test
"""


def test_overrides_follow_the_recording_s_wall_clock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """started_at anchors the first tick: the limit is lifted at the override's begin, and the policy holds after its end."""
    path = config(tmp_path, overrides=OVERRIDE.format(hosts="hosts: ['gpu-*']"))
    events = told(replayed(capsys, recording(tmp_path, [(1200, 400)]), "--config", path))
    assert (15.0, "released", "override") in events
    assert [t for t, kind, _ in events if kind == "limit"] == [10.2, 30.2]


def test_an_override_of_another_host_does_not_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recording's host counts, not the machine that replays."""
    path = config(tmp_path, overrides=OVERRIDE.format(hosts="hosts: ['web-*']"))
    events = told(replayed(capsys, recording(tmp_path, [(1200, 400)]), "--config", path))
    assert [kind for _, kind, _ in events] == ["epoch", "limit", "limited"]


def test_without_started_at_overrides_are_ignored_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording of unknown date meets the bare policy, and says so."""
    path = config(tmp_path, overrides=OVERRIDE.format(hosts=""))
    file = recording(tmp_path, [(1200, 400)], header='{"limiterd_recording": 1}')
    assert main(["replay", file, "--config", path, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["epoch", "limit", "limited"]
    assert "overrides are ignored" in err


def test_what_came_before_an_error_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A truncated recording is replayed up to the cut, then the error names file and line, with exit code 1."""
    file = Path(recording(tmp_path, [(1200, 110)]))
    file.write_text(file.read_text()[:-9])
    assert main(["replay", str(file), "--config", config(tmp_path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["epoch", "limit", "limited"]
    assert f"{file}:112: " in err


@pytest.mark.parametrize("packed", ["plain", "gzip"])
def test_standard_input_is_a_recording(packed: str, tmp_path: Path) -> None:
    """`replay -` reads a pipe, also a packed one, and tells what it tells of the file."""
    file = recording(tmp_path, [(1200, 110)])
    data = Path(file).read_bytes()
    command = [sys.executable, "-m", "limiterd.cli", "replay", "-", "--config", config(tmp_path), "--json"]
    given = gzip.compress(data) if packed == "gzip" else data
    done = subprocess.run(command, input=given, capture_output=True, cwd=ROOT, check=True)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["epoch", "limit", "limited"]
    assert done.stderr == b""
    closed = subprocess.run(["sh", "-c", 'exec "$0" "$@" <&-', *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (closed.returncode, closed.stdout) == (1, "")
    assert closed.stderr == "limiterctl: standard input: Bad file descriptor\n"


def test_a_clock_that_steps_back_is_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reboot in the recording opens an epoch at the stamps as they stand; firings after it carry those stamps."""
    lines = [HEADER]
    for start_ns in (10**15, 10**9):
        lines += [json.dumps({"t": start_ns + k * TENTH, "links": [[2, "eth0", k * GBIT_TENTH]]}) for k in range(104)]
    file = tmp_path / "r"
    file.write_text("\n".join(lines) + "\n")
    events = replayed(capsys, str(file), "--config", config(tmp_path, "    mode: observe\n"))
    assert [(event["t"], event["event"], event["reason"]) for event in events] == [
        (10**15, "epoch", "new"),
        (10**15 + 102 * TENTH, "would_limit", "sustained"),
        (10**9, "epoch", "counter"),
        (10**9 + 102 * TENTH, "would_limit", "sustained"),
    ]


def prometheus(path: Path, points: Sequence[tuple[float, int]]) -> str:
    """A saved query_range answer of one device."""
    values = [[t, str(c)] for t, c in points]
    series = {"metric": {"instance": "10.0.0.1:9100", "device": "eth0"}, "values": values}
    file = path / "answer.json"
    file.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [series]}}))
    return str(file)


def test_coarse_samples_are_possible_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scrapes every 15 s, asked every 5: a mean above the threshold is `possible`, never a firing, with a sentence why."""
    points = [(t, t // 15 * 15 * 150_000_000) for t in range(1_800_000_000, 1_800_000_120, 5)]
    assert main(["replay", prometheus(tmp_path, points), "--config", config(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert {event["event"] for event in events} == {"possible"}
    assert {event["interface"] for event in events} == {"10.0.0.1:9100/eth0"}
    assert events[0]["t"] == 1_800_000_015 * 10**9
    assert "15 s apart" in err


def test_fine_scrapes_meet_the_rule_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scrapes every second are as fine as the slice: the rule holds at 12 s, whatever repeats the query's step adds."""
    points = [(t, t // 2 * 2 * 150_000_000) for t in range(40)]
    halves = [(t / 2, c // 2) for t, c in points]
    events = replayed(capsys, prometheus(tmp_path, halves), "--config", config(tmp_path, "    mode: observe\n"))
    assert [(event["t"], event["event"]) for event in events] == [(0, "epoch"), (12 * 10**9, "would_limit")]


def test_a_coarse_csv_says_possible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples further apart than max_gap open an epoch each; that an excess was possible is told beside them."""
    file = tmp_path / "r.csv"
    file.write_text("t_seconds,interface,tx_bytes\n" + "".join(f"{t},eth0,{t * 150_000_000}\n" for t in range(0, 120, 30)))
    events = replayed(capsys, str(file), "--config", config(tmp_path))
    assert [event["t"] for event in events if event["event"] == "possible"] == [30 * 10**9, 60 * 10**9, 90 * 10**9]
    assert "limit" not in {event["event"] for event in events}


def test_possible_needs_the_window_and_an_unbroken_chain() -> None:
    """Resets, backward clocks and holes restart the chain; repeats of a scrape are passed over."""
    gbit_s = 125_000_000
    chain = Possible(Detect(), 4 * 10**9, scraped=True)
    assert [chain.add(t * 10**9, t * gbit_s) for t in (0, 4, 8, 12)] == [None, None, None, 10**9]
    chain = Possible(Detect(), 4 * 10**9, scraped=True)
    samples = [(0, 0), (4, 4), (4, 4), (6, 4), (8, 8), (8, 3), (12, 7), (16, 11), (13, 12), (40, 90)]
    assert [chain.add(t * 10**9, c * gbit_s) for t, c in samples] == [None] * len(samples)


def test_the_shipped_recording_fires_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real traffic: the 2.5 Gbit/s burst and the last 3 s do not fire, the 14 s at 1.37 Gbit/s do, 10 s to 10.5 s in."""
    events = replayed(capsys, str(DATA / "mixed.jsonl"), "--config", config(tmp_path, "    mode: observe\n"))
    assert [event["event"] for event in events] == ["epoch", "would_limit"]
    first, fired = (event["t"] for event in events)
    assert isinstance(first, int)
    assert isinstance(fired, int)
    assert 20.0 < (fired - first) / 1e9 < 21.0


def test_people_get_a_summary_then_the_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Per link and policy: firings, when, time limited and bytes over; then one line an event."""
    rates = [(1200, 300), (50, 60)]
    assert main(["replay", recording(tmp_path, rates), "--config", config(tmp_path, AUTO)]) == 0
    out = capsys.readouterr().out
    header, row = out.splitlines()[1:3]
    assert header.split()[:3] == ["link", "policy", "limits"]
    assert row.split()[:3] == ["eth0", "fair-use", "1"]
    assert "2.48GB" in row or "2.47GB" in row
    assert "2026-11-23 12:00:10.200Z  eth0 limit        sustained mean 1.2gbit" in out
    assert "demand_ended" in out


def test_two_policies_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--compare runs both over one reading of the recording; JSON events name their configuration."""
    other = tmp_path / "other"
    other.mkdir()
    strict = config(other, "    detect: {window: 5s}\n")
    file = recording(tmp_path, [(1200, 200)])
    mild = config(tmp_path)
    events = replayed(capsys, file, "--config", mild, "--compare", strict)
    limits = [(event["config"], event["t"]) for event in events if event["event"] == "limit"]
    assert sorted(limits) == sorted([(mild, 11_200_000_000), (strict, 6_200_000_000)])
    assert main(["replay", file, "--config", mild, "--compare", strict]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert [line[:4] for line in lines if line and line[0] == "eth0"] == [
        ["eth0", "A", "fair-use", "1"],
        ["eth0", "B", "fair-use", "1"],
    ]
    assert "the two differ on eth0" in out
    shown = [line[2:5] for line in lines if len(line) > 4 and line[0] == "2026-11-23"]
    assert shown == [["B", "eth0", "limit"], ["B", "eth0", "limited"], ["A", "eth0", "limit"], ["A", "eth0", "limited"]]
    assert main(["replay", file, "--config", mild, "--compare", mild]) == 0
    out = capsys.readouterr().out
    assert "the two differ nowhere" in out
    assert out.count(" AB  eth0 limit ") == 1, "what both do is told once"


def test_a_plot_without_matplotlib_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optional extra is named, before any work is done."""
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    file = recording(tmp_path, [(1200, 10)])
    assert main(["replay", file, "--config", config(tmp_path), "--plot", str(tmp_path / "out.png")]) == 1
    assert "limiterd[plot]" in capsys.readouterr().err


def test_a_progress_bar_takes_no_line_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a terminal on standard error and a file on standard output, the file gets what it gets without a terminal."""
    arguments = [recording(tmp_path, [(1200, 300)]), "--config", config(tmp_path, "    mode: observe\n")]
    plain = replayed(capsys, *arguments)
    monkeypatch.setattr("limiterd.replay.LONG_BYTES", 1)
    monkeypatch.setattr("limiterd.replay._BAR_EVERY_TICKS", 16)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as screen, os.fdopen(ours, "rb", buffering=0) as seen:
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        os.set_blocking(ours, False)
        assert replayed(capsys, *arguments) == plain
        assert b"replay" in b"".join(iter(lambda: seen.read(4096), None))
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        assert replayed(capsys, *arguments) == plain
        assert seen.read(4096) is None, "no bar among the events"


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    """Output that cannot be written is one sentence and exit code 1."""
    command = [sys.executable, "-m", "limiterd.cli", "replay", recording(tmp_path, [(1200, 150)]), "--config", config(tmp_path)]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run([*command, "--json"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr == "limiterctl: the output cannot be written: No space left on device\n"


def test_times_go_on_over_a_reboot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clock that runs back shortens nothing: durations and the instants shown are by a clock that runs on."""
    lines = [HEADER]
    for start_ns in (10**15, 10**9):
        lines += [json.dumps({"t": start_ns + k * TENTH, "links": [[2, "eth0", k * 15_000_000]]}) for k in range(201)]
    file = tmp_path / "r"
    file.write_text("\n".join(lines) + "\n")
    assert main(["replay", str(file), "--config", config(tmp_path, "    mode: observe\n")]) == 0
    out = capsys.readouterr().out
    assert "402 ticks over 40s" in out
    assert "2026-11-23 12:00:30.200Z  eth0 would_limit" in out
    assert main(["replay", str(file), "--config", config(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[-2] == "30s"


def test_a_rate_that_an_override_changes_is_shown_to_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list of events has the new rate; JSON keeps to its vocabulary."""
    path = config(tmp_path, overrides=OVERRIDE.format(hosts="limit: 500mbit").replace("action: exempt", "action: limit"))
    file = recording(tmp_path, [(1200, 250)])
    assert [event["event"] for event in replayed(capsys, file, "--config", path)] == ["epoch", "limit", "limited"]
    assert main(["replay", file, "--config", path]) == 0
    out = capsys.readouterr().out
    assert "2026-11-23 12:00:15.000Z  eth0 rate_changed sustained at 500mbit" in out
    assert "2026-11-23 12:00:20.000Z  eth0 rate_changed sustained at 200mbit" in out


def test_possible_comes_in_its_place_among_the_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is only known once the spacing is known is told at its own tick, not behind later ones."""
    file = tmp_path / "r.csv"
    file.write_text("t_seconds,interface,tx_bytes\n" + "".join(f"{t},eth0,{t * 150_000_000}\n" for t in range(0, 200, 5)))
    stamps = [event["t"] for event in replayed(capsys, str(file), "--config", config(tmp_path))]
    assert stamps == sorted(stamps, key=lambda t: int(str(t)))
    assert len(stamps) > 2 * LOOK_AHEAD


def test_samples_between_slice_and_max_gap_are_judged_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every 2 s the rule still holds by the samples as they stand; that each slice is one interval is said once for all links."""
    lines = [HEADER]
    for k in range(30):
        links = [[2 + i, name, k * 300_000_000] for i, name in enumerate(("eth0", "eth1", "eth2", "eth3", "eth4", "eth5", "lo"))]
        lines.append(json.dumps({"t": k * 2 * 10**9, "links": links}))
    file = tmp_path / "r"
    file.write_text("\n".join(lines) + "\n")
    assert main(["replay", str(file), "--config", config(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert sum(json.loads(line)["event"] == "limit" for line in out.splitlines()) == 6
    assert err.count("note: ") == 1
    assert "eth0, eth1, eth2, eth3 and 2 more: its samples are 2 s apart, further than the slice of 1 s" in err


def test_csv_interfaces_that_tick_apart_do_not_disturb_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """eth0 is judged, limited and released as if it were alone, though eth1's rows fall between its own."""
    rows, counter = [], 0
    for k in range(500):
        rows.append((k * 100, "eth0", counter))
        counter += 15_000_000 if k < 300 else 1_000
    alone, both = tmp_path / "alone.csv", tmp_path / "both.csv"
    head = "t_seconds,interface,tx_bytes"
    others = [(0, "eth1", 0), *((k * 250 + 30, "eth1", k) for k in range(1, 190))]

    def text(some: Sequence[tuple[int, str, int]]) -> str:
        return "\n".join([head, *(f"{t // 1000}.{t % 1000:03d},{name},{count}" for t, name, count in sorted(some))]) + "\n"

    alone.write_text(text(rows))
    both.write_text(text([*rows, *others]))
    policy = config(tmp_path, AUTO)
    expected = replayed(capsys, str(alone), "--config", policy)
    assert [event["event"] for event in expected] == ["epoch", "limit", "limited", "released", "epoch"]
    found = [event for event in replayed(capsys, str(both), "--config", policy) if event["interface"] == "eth0"]
    assert [(event["event"], event["reason"]) for event in found] == [(event["event"], event["reason"]) for event in expected]
    for (one_s, *_), (other_s, *_) in zip(told(found), told(expected), strict=True):
        assert isinstance(one_s, float)
        assert isinstance(other_s, float)
        assert abs(one_s - other_s) <= 0.1, "a limit may be looked after at the other's ticks, too"


def test_events_of_several_lanes_come_in_the_recording_s_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interfaces sampled at instants of their own, one of them seldom: no event is told after one of a later tick."""
    step = {"eth0": 100, "eth1": 130, "eth2": 61_000}
    rows = sorted((t, name, t * 150_000) for name, ms in step.items() for t in range(ms // 2, 200_000, ms))
    file = tmp_path / "r.csv"
    lines = [f"{t // 1000}.{t % 1000:03d},{name},{count}" for t, name, count in rows]
    file.write_text("\n".join(["t_seconds,interface,tx_bytes", *lines]) + "\n")
    events = replayed(capsys, str(file), "--config", config(tmp_path, "    mode: observe\n"))
    assert {(event["interface"], event["event"]) for event in events if event["event"] != "epoch"} == {
        ("eth0", "would_limit"),
        ("eth1", "would_limit"),
        ("eth2", "possible"),
    }
    stamps = [event["t"] for event in events]
    assert stamps == sorted(stamps, key=lambda t: int(str(t)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{HEADER}\n{{"t":1,"links":[[2,"eth0",5]]}}\n', "eth0  fair-use       -"),
        (f'{HEADER}\n{{"t":1,"links":[[2,"lo",5]]}}\n', "no link of the recording is watched by a policy"),
        (f"{HEADER}\n", "the recording holds no ticks"),
    ],
)
def test_a_recording_without_events_is_summed_up_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    """A watched link at rest has its row; an unwatched one, and no ticks at all, are told apart."""
    file = tmp_path / "r"
    file.write_text(text)
    assert main(["replay", str(file), "--config", config(tmp_path)]) == 0
    assert words in capsys.readouterr().out


def test_an_override_s_threshold_judges_coarse_samples_too() -> None:
    """Another threshold begins another chain; the same one does not."""
    gbit_s = 125_000_000
    chain = Possible(Detect(), 4 * 10**9, scraped=False)
    raised = Detect(threshold_bps=2 * 10**9)
    told = []
    for t in range(0, 44, 4):
        chain.judge_by(raised if t < 20 else Detect())
        told.append(chain.add(t * 10**9, t * gbit_s))
    assert [t * 4 for t, mean in enumerate(told) if mean is not None] == [32]


def looks(tmp_path: Path, overrides: str, rates: Sequence[tuple[int, int]]) -> list[tuple[float, Look]]:
    """When what is true of eth0 changes, and to what."""
    changes: list[tuple[float, Look]] = []

    def watcher(at_ns: int, _snapshot: Snapshot, there: Mapping[str, Look | None]) -> None:
        look = there["eth0"]
        if look is not None and (not changes or changes[-1][1] != look):
            changes.append((at_ns / 1e9, look))

    rules = load_rules(config(tmp_path, overrides=overrides), host="gpu-7", paced=False)
    run = Run(rules, started_wall_ns=1_795_435_200 * 10**9, qualified=False, watcher=watcher)
    for lane, snapshot in open_recording(recording(tmp_path, rates)):
        run.feed(lane, snapshot)
    run.close()
    return changes


def test_phases_thresholds_and_limits_are_followed(tmp_path: Path) -> None:
    """What a plot draws: each phase, the threshold with its overrides and the limit with its own, tick by tick."""
    gbit, mbit = 10**9, 10**6
    assert looks(tmp_path, OVERRIDE.format(hosts=""), [(1200, 320)]) == [
        (0.0, Look(Phase.CONFORMING, gbit, None)),
        (0.1, Look(Phase.PENDING, gbit, None)),
        (10.2, Look(Phase.LIMITED, gbit, 200 * mbit)),
        (15.0, Look(Phase.EXEMPT, gbit, None)),
        (20.0, Look(Phase.CONFORMING, gbit, None)),
        (20.1, Look(Phase.PENDING, gbit, None)),
        (30.2, Look(Phase.LIMITED, gbit, 200 * mbit)),
    ]
    limit_only = OVERRIDE.format(hosts="limit: 500mbit").replace("action: exempt", "action: limit")
    assert looks(tmp_path, limit_only, [(1200, 220)])[2:] == [
        (10.2, Look(Phase.LIMITED, gbit, 200 * mbit)),
        (15.0, Look(Phase.LIMITED, gbit, 500 * mbit)),
        (20.0, Look(Phase.LIMITED, gbit, 200 * mbit)),
    ]
    threshold = OVERRIDE.format(hosts="threshold: 5gbit").replace("action: exempt", "action: limit")
    assert looks(tmp_path, threshold, [(1200, 160)])[2:] == [
        (10.2, Look(Phase.LIMITED, gbit, 200 * mbit)),
        (15.0, Look(Phase.CONFORMING, 5 * gbit, None)),
    ]


def test_an_absent_link_has_no_curve(tmp_path: Path) -> None:
    """While a link is gone there is no rate, no phase and no limit; its return goes on with what is then true."""
    links = [[[2, "eth0", k * 15_000_000]] if not 200 <= k < 300 else [] for k in range(400)]
    lines = [HEADER, *(json.dumps({"t": k * TENTH, "links": there}) for k, there in enumerate(links))]
    file = tmp_path / "r"
    file.write_text("\n".join(lines) + "\n")
    curves = Curves()
    rules = load_rules(config(tmp_path), host="gpu-7", paced=False)
    run = Run(rules, started_wall_ns=None, qualified=False, watcher=curves.tick)
    for lane, snapshot in open_recording(str(file)):
        run.feed(lane, snapshot)
    curve = curves.curves()[0]
    assert curve.limits == (Level(102 * TENTH, 200 * TENTH, 200 * 10**6), Level(300 * TENTH, 399 * TENTH, 200 * 10**6))
    assert [(shade.phase, shade.since_ns // TENTH, shade.until_ns // TENTH) for shade in curve.phases] == [
        ("pending", 1, 102),
        ("limited", 102, 200),
        ("limited", 300, 399),
    ]
    assert not [t0 for t0, t1, _ in curve.stretches if t0 < 250 * TENTH < t1]


def test_a_plot_has_the_phases_and_steps(tmp_path: Path) -> None:
    """Every phase is shaded once in the legend, threshold and limit are lines with steps, and a $ in a name is no formula."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axis = figure.subplots()
    curve = Curve(
        "a$b_$c",
        ((0, 10**9, 125_000_000),),
        (Level(0, 5 * 10**9, 10**9), Level(5 * 10**9, 9 * 10**9, 2 * 10**9)),
        (Level(2 * 10**9, 3 * 10**9, 7), Level(4 * 10**9, 5 * 10**9, 8)),
        tuple(Shade(k * 10**9, (k + 1) * 10**9, phase) for k, phase in enumerate(["pending", "limited", "exempt", "fault"] * 2)),
        (Mark(10**9, "limit"), Mark(2 * 10**9, "limit"), Mark(3 * 10**9, "rate_changed")),
    )
    plot._panel(axis, curve)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["pending", "limited", "exempt", "fault", "recorded", "passes", "limit", "threshold", "fires"]
    drawn = {line.get_label(): line for line in axis.get_lines()}
    assert list(drawn["threshold"].get_ydata()) == [10**9, 10**9, 2 * 10**9, 2 * 10**9]
    assert list(drawn["limit"].get_xdata()) == [2, 3, 3, 4, 5]
    assert [rate for rate in drawn["limit"].get_ydata() if not isnan(rate)] == [7, 7, 8, 8], "a hole where no limit stood"
    plot.draw([curve], str(tmp_path / "out.svg"), title="a$b_$c.jsonl")


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_a_plot_is_drawn(tmp_path: Path, suffix: str) -> None:
    """With matplotlib a picture of the recording is written."""
    pytest.importorskip("matplotlib")
    out = tmp_path / f"out{suffix}"
    file = recording(tmp_path, [(1200, 300), (50, 60)])
    assert main(["replay", file, "--config", config(tmp_path, AUTO), "--plot", str(out)]) == 0
    assert out.stat().st_size > 1000


def test_curves_stay_bounded_and_keep_every_byte() -> None:
    """A long recording is thinned by merging neighbours: few points, and the bytes of all of them."""
    curves, links = Curves(), (Link(2, "eth0"),)
    ticks = 5 * MAX_POINTS
    for k in range(ticks):
        phase = Phase.EXEMPT if k > ticks // 2 else Phase.PENDING if k % 2 else Phase.CONFORMING
        look = Look(phase, 10**9, 7 if k > ticks // 2 else None)
        curves.tick(k * TENTH, Snapshot(k * TENTH, links, [k * 1000]), {"eth0": look})
    curves.event(Told(5, Event(EventKind.LIMIT, 5, "eth0")))
    curve = curves.curves()[0]
    end_ns = (ticks - 1) * TENTH
    assert len(curve.stretches) <= MAX_POINTS
    assert sum(size for _, _, size in curve.stretches) > 0.99 * ticks * 1000
    assert len(curve.phases) <= MAX_POINTS, "flicker that nobody could see is dropped"
    assert curve.phases[-1] == Shade(end_ns // 2 + TENTH // 2 + TENTH, end_ns, "exempt")
    assert curve.thresholds == (Level(0, end_ns, 10**9),)
    assert curve.limits == (Level(curve.phases[-1].since_ns, end_ns, 7),)
    assert curve.marks == (Mark(5, "limit"),)


def test_bad_arguments_are_usage_errors(tmp_path: Path) -> None:
    """A picture of another kind, a step of nothing and a time that is none end with exit code 2."""
    for arguments in (["--plot", "a.gif"], ["--step", "0"], ["--from", "soon"]):
        with pytest.raises(SystemExit) as ended:
            main(["replay", str(tmp_path / "r"), *arguments])
        assert ended.value.code == 2


def test_a_span_belongs_to_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--from with a file, and a server without --from, are refused in words."""
    file = recording(tmp_path, [(0, 1)])
    assert main(["replay", file, "--from", "1h", "--config", config(tmp_path)]) == 1
    assert main(["replay", file, "--step", "15s", "--query", "up", "--timeout", "1s", "--config", config(tmp_path)]) == 1
    assert main(["replay", "http://127.0.0.1:1", "--config", config(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "--from: only for the URL of a Prometheus server" in err
    assert "--step, --query, --timeout: only for the URL" in err
    assert "--from is needed" in err


def test_a_bad_configuration_is_not_replayed(tmp_path: Path) -> None:
    """An invalid policy ends with 78 before anything is read."""
    (tmp_path / "bad.yaml").write_text("policies: 7\n")
    assert main(["replay", str(tmp_path / "none"), "--config", str(tmp_path / "bad.yaml")]) == 78


@pytest.mark.parametrize("days", [0, 3, 400])
def test_the_table_fits_80_columns_with_whole_times(days: int) -> None:
    """Whatever is in it, first and last keep their times; columns in which no row says anything are left out."""
    report = Report("new.yaml")
    start_ns, end_ns = 1_795_435_200 * 10**9, (days * 86_400 + 3600) * 10**9
    for at_ns, kind in ((10**9, EventKind.LIMIT), (2 * 10**9, EventKind.LIMITED), (end_ns - 10**9, EventKind.LIMIT)):
        report.add(Told(at_ns, Event(kind, at_ns, "10.123.45.67:9100/enp129s0f1", Reason.SUSTAINED, "fair-use-of-the-uplink")))
    watched = dict.fromkeys(["10.123.45.67:9100/enp129s0f1", "10.123.45.67:9100/enp129s0f0"], "fair-use-of-the-uplink")
    side = Side("A", report, watched, {"10.123.45.67:9100/enp129s0f1": 123_456_789_012}, end_ns)
    clock = Clock(start_ns, end_ns)
    head, first, idle = table([side], clock, 80, PLAIN)
    assert max(map(len, (head, first, idle))) <= 80
    assert head.split() == ["link", "policy", "limits", "first", "last", "limited", "over"]
    assert clock.brief(10**9) in first
    assert clock.brief(end_ns - 10**9) in first
    assert "~" not in first.split("fair")[1].partition(" ")[2]
    assert {0: "12:00:01", 3: "11-23 12:00:01", 400: "2026-11-23 12:00:01"}[days] == clock.brief(10**9)
    assert [word for word in idle.split()[2:] if word != "-"] == []


def test_what_passes_a_limit_is_drawn() -> None:
    """Up to the limit while it stands, all of it before and after."""
    second, gbit = 10**9, 125_000_000
    stretches = tuple((k * second, (k + 1) * second, gbit) for k in range(4))
    curve = Curve("eth0", stretches, (), (Level(second, 2 * second, 2 * 10**8), Level(3 * second, 4 * second, 5 * 10**9)))
    assert plot.passing(curve)[::2] == [10**9, 2 * 10**8, 10**9, 10**9]


@pytest.mark.parametrize(
    ("seconds", "started_s", "labels", "name"),
    [
        (90, 1_795_435_203.5, ["12:00:10", "12:00:20", "12:00:30", "12:00:40"], "UTC, 2026-11-23"),
        (3 * 86_400, 1_795_435_200, ["11-23 12:00", "11-24 00:00"], "UTC, 2026-11-23 to 2026-11-26"),
        (90, None, ["0", "10", "20", "30"], "seconds since the recording's first tick"),
    ],
)
def test_the_time_axis_is_the_time_of_day(seconds: int, started_s: float | None, labels: list[str], name: str) -> None:
    """Round times in UTC where the recording's beginning is known, else round seconds."""
    axis = pytest.importorskip("matplotlib.figure").Figure().subplots()
    plot._time_axis(axis, seconds * 10**9, None if started_s is None else int(started_s * 10**9))
    assert [text.get_text() for text in axis.get_xticklabels()][: len(labels)] == labels
    assert axis.get_xlabel() == name


def test_the_rate_axis_has_a_unit_and_the_legend_is_beside_the_data() -> None:
    """Gbit/s for a gigabit threshold; the legend's left edge is right of the axes."""
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    axis = figure.subplots()
    plot._panel(axis, Curve("eth0", ((0, 10**9, 125_000_000),), (Level(0, 10**9, 10**9),)))
    figure.canvas.draw()
    assert axis.get_ylabel() == "Gbit/s"
    assert axis.yaxis.get_major_formatter()(1.5e9, 0) == "1.5"
    assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1


def lazy(directory: Path, every_s: float, mbps: Callable[[float], float], seconds: int = 60) -> str:
    """A recording of eth0 at 10 Hz whose counter is refreshed only so often."""
    lines, total, shown_bytes = [HEADER], 0.0, 0
    for k in range(seconds * 10):
        total += mbps(k / 10) * 12_500
        if every_s == 0 or k % round(every_s * 10) == 0:
            shown_bytes = int(total)
        lines.append(json.dumps({"t": k * TENTH, "links": [[2, "eth0", shown_bytes]]}))
    file = directory / "lazy.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


@pytest.mark.parametrize(
    ("every_s", "refresh"), [(2, "2500ms"), (1, "1250ms"), (0.5, "650ms"), (4, "5000ms and max_gap: 10000ms")]
)
def test_a_lazy_counter_is_named_with_the_setting_that_helps(
    every_s: float, refresh: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 Gbit/s for a minute behind a counter that moves seldom is not limited in time; with the setting it is."""
    file = lazy(tmp_path, every_s, lambda _: 10_000)
    assert main(["replay", file, "--config", config(tmp_path), "--json"]) == 0
    err = capsys.readouterr().err
    assert f"eth0: its counter moves only every {every_s:g} s" in err
    assert err.rstrip().endswith(f"set counter_refresh: {refresh}")
    path = Path(config(tmp_path))
    value, _, gap = refresh.partition(" and max_gap: ")
    path.write_text(path.read_text() + f"sampling: {{counter_refresh: {value}, max_gap: {gap or '3s'}}}\n")
    events = replayed(capsys, file, "--config", str(path))
    limits = [event["t"] for event in events if event["event"] == "limit"]
    assert len(limits) == 1
    assert isinstance(limits[0], int)
    assert 10 * 10**9 < limits[0] <= (10 + 4 * every_s + 1) * 10**9
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "mbps",
    [lambda _: 1200.0, lambda s: 5.0 if int(s * 10) % 20 == 0 else 0.0, lambda s: 900.0 * (int(s) % 7 < 3), lambda _: 0.0],
    ids=["steady", "a keepalive", "on and off", "nothing"],
)
def test_other_counters_are_not_called_lazy(
    mbps: Callable[[float], float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Traffic that rests by itself moves its counter at every sample while it lasts."""
    assert main(["replay", lazy(tmp_path, 0, mbps), "--config", config(tmp_path), "--json"]) == 0
    assert capsys.readouterr().err == ""
