"""`limiterctl record` on the loopback link: real counters, a recording that replay reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from limiterd.cli import main
from limiterd.recording import open_recording

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings_file(tmp_path: Path) -> str:
    """A configuration that samples every 20 ms and watches the loopback link."""
    file = tmp_path / "limiterd.yaml"
    file.write_text("sampling: {interval: 20ms}\npolicies: [{name: p, interfaces: [lo]}]\n")
    return str(file)


def test_record_writes_what_replay_reads(tmp_path: Path, settings_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The watched link's counter grows by what was sent; stamps rise; the header is anchored to the wall clock."""
    out = tmp_path / "out.jsonl"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        sink.bind(("127.0.0.1", 0))
        before_ns = time.time_ns()
        command = [sys.executable, "-m", "limiterd.cli", "record", "--output", str(out), "--config", settings_file]
        with subprocess.Popen(command, cwd=ROOT) as recorder:
            deadline_s = time.monotonic() + 30
            while (not out.exists() or out.read_bytes().count(b"\n") < 3) and time.monotonic() < deadline_s:
                source.sendto(bytes(1000), sink.getsockname())
                time.sleep(0.005)
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(10) == 0
    recording = open_recording(str(out))
    assert recording.header.started_wall_ns is not None
    assert abs(recording.header.started_wall_ns - before_ns) < 30 * 10**9
    ticks = [snapshot for _, snapshot in recording]
    assert [link.name for link in ticks[0].links] == ["lo"]
    assert all(p.t_ns < q.t_ns for p, q in pairwise(ticks))
    assert ticks[-1].tx_bytes[0] > ticks[0].tx_bytes[0] + 1000
    assert main(["replay", str(out), "--config", settings_file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["event"] == "epoch"


def test_record_leaves_existing_files_alone(tmp_path: Path, settings_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that exists is refused, and replaced with --force; a directory that does not exist is told in words."""
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        arguments = ["--config", settings_file, "--duration", "50ms", "--interface", "l?"]
        assert main(["record", "--output", str(out), *arguments]) == 1
        assert out.read_text() == "mine"
        assert "--force" in capsys.readouterr().err
        assert main(["record", "--output", str(tmp_path / "no" / "out"), *arguments]) == 1
        assert main(["record", "--output", str(out), "--force", *arguments]) == 0
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    assert len([snapshot for _, snapshot in open_recording(str(out))]) >= 1


def test_record_says_when_nothing_matched(settings_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A glob that no link matches gives a note; the ticks are written all the same."""
    arguments = ["--config", settings_file, "--duration", "20ms", "--interface", f"none{os.getpid()}"]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert main(["record", "--output", "-", *arguments]) == 0
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    out, err = capsys.readouterr()
    assert "no link matched" in err
    assert all(json.loads(line)["links"] == [] for line in out.splitlines()[1:])


def test_a_recording_without_a_sample_is_one(tmp_path: Path, settings_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended before the first sample came, the file has its header: replay reads it."""

    class Silent:
        """A sampler all of whose snapshots are dropped."""

        def sample(self) -> None:
            """Nothing."""

        def close(self) -> None:
            """Nothing to close."""

    monkeypatch.setattr("limiterd.ctl.record.open_sampler", lambda *_: Silent())
    out = tmp_path / "out.jsonl"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert main(["record", "--output", str(out), "--config", settings_file, "--duration", "20ms"]) == 0
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    assert list(open_recording(str(out))) == []
