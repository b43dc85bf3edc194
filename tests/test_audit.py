"""The audit trail: what the chain shows, and what a crash, a bad disk or a bad hand may cost."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiterd.core.errors import EnvironmentFault
from limiterd.store import audit
from limiterd.store import hash_chain as chain
from limiterd.store.audit import AuditTrail, Bounds
from limiterd.store.last_firings import LastFirings
from tests.examples import few
from tests.netns import wait_for
from tests.smalldisk import fill, on_tmpfs, remount, use_up_inodes

WALL = 1_795_435_200_000_000_000
USUAL = Bounds()
SMALL = Bounds(file_bytes=2000, kept_files=3)


def trail_in(directory: Path, bounds: Bounds = USUAL) -> AuditTrail:
    """A trail that loses no time, with a clock that moves a second an entry."""
    seconds = iter(range(10**9))
    return AuditTrail(directory, bounds=bounds, retry_s=(0.01, 0.02), wall_ns=lambda: WALL + next(seconds) * 10**9)


def write(directory: Path, count: int, bounds: Bounds = USUAL) -> str:
    """Write entries numbered 0 … count−1 and return the head."""
    trail = trail_in(directory, bounds)
    for number in range(count):
        trail.append("limit", f"eth{number % 2}", {"number": number})
    assert trail.close(20)
    return trail.head


def numbers(entries: tuple[chain.Entry, ...]) -> list[object]:
    """The numbers that `write` gave them."""
    return [entry.fields["number"] for entry in entries]


# ---- writing and reading -------------------------------------------------------------------------


def test_entries_are_chained_json_lines(tmp_path: Path) -> None:
    """Each line is one JSON object with seq, time, kind, interface, fields and the SHA-256 of the line before it."""
    head = write(tmp_path, 3)
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    first = json.loads(lines[0])
    assert first == {
        "seq": 1,
        "wall": "2026-11-23T12:00:00.000Z",
        "kind": "limit",
        "interface": "eth0",
        "fields": {"number": 0},
        "prev": "0" * 64,
    }
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[2])["prev"] == chain.line_hash(lines[1])
    assert head == chain.line_hash(lines[2])


def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    """A new trail continues where the last one ended, and all of it verifies."""
    heads = [write(tmp_path, 2) for _ in range(3)]
    found = trail_in(tmp_path).verify(heads[0])
    assert found.ok
    assert (found.entries, found.first_seq, found.last_seq, found.head) == (6, 1, 6, heads[2])
    assert not found.notes


def test_the_head_is_that_of_the_entry_just_told(tmp_path: Path) -> None:
    """append returns the hash of its own line, before the disk has it."""
    trail = trail_in(tmp_path)
    told = [trail.append("limit", "eth0", {"number": n}) for n in range(5)]
    assert trail.head == told[-1]
    trail.close()
    assert [entry.hash for entry in reversed(trail.read())] == told


def test_reading_is_newest_first_and_filtered(tmp_path: Path) -> None:
    """Interface, kinds, time and limit select; the newest come first."""
    trail = trail_in(tmp_path)
    for number in range(10):
        trail.append("limit" if number % 3 else "released", f"eth{number % 2}", {"number": number})
    trail.close()
    assert numbers(trail.read()) == list(range(9, -1, -1))
    assert numbers(trail.read(limit=2)) == [9, 8]
    assert numbers(trail.read(interface="eth1")) == [9, 7, 5, 3, 1]
    assert numbers(trail.read(kinds={"released"})) == [9, 6, 3, 0]
    assert numbers(trail.read(since_wall_ns=WALL + 7 * 10**9)) == [9, 8, 7]
    assert numbers(trail.read(until_wall_ns=WALL + 2 * 10**9)) == [1, 0]
    assert numbers(trail.read("eth0", {"released"}, WALL + 10**9, WALL + 9 * 10**9, 1)) == [6]
    assert trail.read("eth7") == ()


def test_rotation_keeps_the_chain_and_a_bounded_number_of_files(tmp_path: Path) -> None:
    """Files end at their size, the oldest go, and what is left verifies and reads as one."""
    head = write(tmp_path, 100, SMALL)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
    assert all((tmp_path / name).stat().st_size <= 2000 for name in files)
    trail = trail_in(tmp_path, SMALL)
    found = trail.verify(head)
    assert found.ok
    assert found.last_seq == 100
    assert found.notes
    assert "begins at seq" in found.notes[0]
    kept = numbers(trail.read(limit=1000))
    assert kept == list(range(99, 99 - len(kept), -1))
    assert found.entries == len(kept) > 20


@pytest.mark.parametrize("missing", ["audit.jsonl", "audit.jsonl.1"])
def test_a_rotation_cut_short_loses_nothing(tmp_path: Path, missing: str) -> None:
    """Where a crash left a gap in the numbers, the chain goes on and the next rotation only closes the gap."""
    write(tmp_path, 40, SMALL)
    before = trail_in(tmp_path, SMALL).verify()
    for number in (3, 2, 1) if missing == "audit.jsonl.1" else (3, 2, 1, 0):
        source = tmp_path / ("audit.jsonl" + (f".{number}" if number else ""))
        if source.exists():
            source.rename(tmp_path / f"audit.jsonl.{number + 1}")
    (tmp_path / "audit.jsonl.4").unlink(missing_ok=True)
    found = trail_in(tmp_path, SMALL).verify()
    assert found.ok
    assert found.last_seq == before.last_seq
    write(tmp_path, 1, SMALL)
    assert trail_in(tmp_path, SMALL).verify().ok


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=20,
    ),
    st.text(),
    st.text(),
)
def test_whatever_is_told_can_be_read_back(value: object, kind: str, interface: str) -> None:
    """A line made of any values is one line, parses, and has its place in the chain."""
    body = chain.body_of(WALL, kind, interface, {"value": value})
    line = chain.seal(7, body, chain.GENESIS)
    entry = chain.parse_line(line)
    assert b"\n" not in line
    assert entry is not None
    assert (entry.seq, entry.prev, entry.hash) == (7, chain.GENESIS, chain.line_hash(line))
    assert set(entry.fields) == {"value"}


@pytest.mark.parametrize(
    "value", ["eth\udc80", float("nan"), float("inf"), {1, 2}, b"\xff", object, [[[[]]]] * 3, "\x1b[31m\u2028\n"]
)
def test_odd_values_are_written_as_text(tmp_path: Path, value: object) -> None:
    """Broken Unicode, non-numbers, sets, bytes, classes and control characters cost no entry and no line."""
    trail = trail_in(tmp_path)
    trail.append("limit", "eth\udc80\n", {"value": value})
    trail.close()
    assert trail.errors == 0
    assert trail.verify().ok
    assert len(trail.read()) == 1
    assert (tmp_path / "audit.jsonl").read_bytes().isascii()


def test_nesting_without_end_is_cut(tmp_path: Path) -> None:
    """A value nested a thousand deep is written as far as it can be read back."""
    deep: list[object] = []
    for _ in range(1000):
        deep = [deep]
    trail = trail_in(tmp_path)
    trail.append("limit", "eth0", {"deep": deep, "flat": 1})
    trail.close()
    assert trail.read()[0].fields["flat"] == 1


def test_an_entry_too_long_gives_up_its_largest_fields(tmp_path: Path) -> None:
    """A line is bounded: the largest fields give way and are named."""
    trail = trail_in(tmp_path)
    trail.append("limit", "eth0", {"small": 1, "huge": "x" * 10**6, "large": "y" * 10**5})
    trail.close()
    assert trail.read()[0].fields == {"small": 1, "large": "y" * 10**5, "omitted": ["huge"]}


def test_an_answer_is_bounded_in_bytes(tmp_path: Path) -> None:
    """A thousand long entries are not all read into memory at once."""
    trail = trail_in(tmp_path, Bounds(queued_bytes=1 << 30))
    for number in range(100):
        trail.append("limit", "eth0", {"number": number, "evidence": "x" * 100_000})
    assert trail.close(20)
    assert 30 < len(trail.read(limit=1000)) < 60


# ---- verifying -----------------------------------------------------------------------------------


def test_every_altered_byte_is_found_at_its_line(tmp_path: Path) -> None:
    """Any flipped byte of any line but the last is found, at that line or where the next one refers to it."""
    write(tmp_path, 6)
    path = tmp_path / "audit.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for offset in range(last):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        found = chain.verify(tmp_path)
        line = whole[:offset].count(b"\n") + 1
        assert not found.ok, offset
        assert any(f"audit.jsonl:{n}:" in text for text in found.findings for n in (line, line + 1)), (offset, found.findings)


def test_an_altered_last_line_is_found_by_the_head(tmp_path: Path) -> None:
    """The last line has none after it: the head from the log shows its alteration."""
    head = write(tmp_path, 3)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"number":2', b'"number":7'))
    assert chain.verify(tmp_path).ok
    found = trail_in(tmp_path).verify(head)
    assert not found.ok
    assert head in found.findings[0]


@pytest.mark.parametrize("removed", range(5))
def test_removed_lines_are_counted_where_they_were(tmp_path: Path, removed: int) -> None:
    """A line taken out of the middle is reported at the line after it."""
    write(tmp_path, 6)
    path = tmp_path / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:removed] + lines[removed + 1 :]))
    found = chain.verify(tmp_path)
    if removed == 0:
        assert found.notes == ("audit.jsonl:1: the trail begins at seq 2; what was before was rotated away or removed",)
    else:
        assert found.findings == (f"audit.jsonl:{removed + 1}: 1 entry was removed before seq {removed + 2}",)


def test_reordered_lines_are_found(tmp_path: Path) -> None:
    """Two lines that changed places break the chain at each."""
    write(tmp_path, 6)
    path = tmp_path / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2], lines[3] = lines[3], lines[2]
    path.write_bytes(b"".join(lines))
    found = chain.verify(tmp_path)
    assert not found.ok
    assert any("out of order: seq 3 after seq 4" in text for text in found.findings)


def test_a_removed_file_is_found(tmp_path: Path) -> None:
    """A rotated file taken out of the middle is reported where the next one begins."""
    write(tmp_path, 100, SMALL)
    (tmp_path / "audit.jsonl.2").unlink()
    found = chain.verify(tmp_path)
    assert not found.ok
    assert found.findings[0].startswith("audit.jsonl.1:1: ")
    assert "removed" in found.findings[0]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_cut_tail_is_found_by_a_logged_head(tmp_path: Path, *, restarted: bool) -> None:
    """Lines cut off the end leave a sound chain: the running daemon knows, and after a restart the logged head tells."""
    trail = trail_in(tmp_path)
    heads = [trail.append("limit", "eth0", {"number": number}) for number in range(5)]
    assert trail.close()
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert chain.verify(tmp_path).ok
    asked = trail_in(tmp_path) if restarted else trail
    assert asked.verify(heads[2]).ok is restarted
    assert not asked.verify(heads[4]).ok


def test_an_older_head_is_found_in_a_longer_trail(tmp_path: Path) -> None:
    """A head logged long ago still proves what was before it, after the trail went on."""
    heads = [write(tmp_path, 3) for _ in range(3)]
    assert all(trail_in(tmp_path).verify(head).ok for head in heads)


def test_findings_are_bounded(tmp_path: Path) -> None:
    """A file full of rubbish gives a bounded report."""
    (tmp_path / "audit.jsonl").write_bytes(b"rubbish\n" * 10_000)
    found = chain.verify(tmp_path)
    assert not found.ok
    assert len(found.findings) == 101
    assert "more" in found.findings[-1]


@few(100)
@given(data=st.binary(max_size=400), position=st.integers(0, 1200))
def test_any_bytes_are_verified_and_read_without_an_exception(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, position: int
) -> None:
    """Whatever was written over a part of the file: reading, verifying, opening and going on raise nothing."""
    directory = tmp_path_factory.mktemp("fuzz")
    write(directory, 5)
    path = directory / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:position] + data + whole[position + len(data) :])
    trail = trail_in(directory)
    trail.verify()
    trail.append("limit", "eth0", {"number": 99})
    assert trail.close()
    assert numbers(trail.read(limit=1)) == [99]
    assert trail.errors == 0
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


# ---- crashes -------------------------------------------------------------------------------------


def test_a_line_torn_at_any_byte_is_ended_and_marked(tmp_path: Path) -> None:
    """Cut at every offset, the trail goes on, nothing before the cut is lost, and verify names the torn line as harmless."""
    write(tmp_path, 3)
    whole = (tmp_path / "audit.jsonl").read_bytes()
    for length in range(len(whole)):
        directory = tmp_path / str(length)
        directory.mkdir()
        (directory / "audit.jsonl").write_bytes(whole[:length])
        complete = whole[:length].count(b"\n") + (whole[length : length + 1] == b"\n")
        torn = whole[:length].rpartition(b"\n")[2] != b"" and whole[length : length + 1] != b"\n"
        head = write(directory, 1)
        found = trail_in(directory).verify(head)
        assert found.ok, (length, found)
        assert found.entries == complete + torn + 1
        assert len(found.notes) == torn
        assert (directory / "audit.jsonl").read_bytes().startswith(whole[:length])
        if torn:
            assert "torn by a crash" in found.notes[0]


def test_a_torn_line_is_marked_at_the_start(tmp_path: Path) -> None:
    """The mark does not wait for the next event."""
    write(tmp_path, 2)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"seq":3,"wa')
    trail = trail_in(tmp_path)
    wait_for(lambda: trail.queued == 0, "the mark is written")
    assert trail.read()[0].kind == "torn"
    assert trail.verify().ok


def test_junk_that_no_crash_leaves_is_not_excused(tmp_path: Path) -> None:
    """A line spoilt in the middle of the trail is a finding, also right before a sound line."""
    write(tmp_path, 4)
    path = tmp_path / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"spoilt\n"
    path.write_bytes(b"".join(lines))
    found = trail_in(tmp_path).verify()
    assert not found.ok
    assert found.findings[0].startswith("audit.jsonl:2: altered")


def test_an_endless_line_is_survived_in_bounded_memory(tmp_path: Path) -> None:
    """A file that is one gigantic line is kept, reported, and the trail goes on behind it."""
    path = tmp_path / "audit.jsonl"
    with path.open("wb") as file:
        file.truncate(20 << 20)
    write(tmp_path, 2)
    trail = trail_in(tmp_path)
    assert len(trail.read()) >= 2
    assert not trail.verify().ok


# ---- a disk that refuses, a disk that hangs ------------------------------------------------------


def test_telling_returns_at_once_while_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fsync stuck a thousand entries are told without waiting; none is lost, and all can be read meanwhile."""
    stuck, entered = threading.Event(), threading.Event()
    real_fsync = os.fsync

    def hanging(descriptor: int) -> None:
        entered.set()
        assert stuck.wait(30)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", hanging)
    trail = trail_in(tmp_path)
    trail.append("limit", "eth0", {"number": 0})
    assert entered.wait(10)
    for number in range(1, 1001):
        trail.append("limit", "eth0", {"number": number})
    assert trail.queued == 1001
    assert numbers(trail.read(limit=2000)) == list(range(1000, -1, -1))  # what is both queued and on disk comes once
    assert trail.verify().ok
    assert not trail.close(0.05)  # it would be for ever
    stuck.set()
    wait_for(lambda: trail.queued == 0, "everything is written")
    assert trail.verify().ok


def test_a_full_queue_loses_the_newest_and_says_how_many(tmp_path: Path) -> None:
    """While the trail cannot be written, what exceeds the bound is counted; afterwards a `lost` entry tells how many."""
    blocker = tmp_path / "state"
    blocker.write_bytes(b"a file where the directory should be")
    trail = trail_in(blocker, Bounds(queued_lines=10))
    for number in range(25):
        trail.append("limit", "eth0", {"number": number})
    assert trail.queued == 10
    wait_for(lambda: trail.problem, "the problem shows")
    blocker.unlink()
    wait_for(lambda: trail.queued == 0 and trail.problem is None, "written by itself once it can be")
    assert trail.errors >= 16  # fifteen lost, and the failed attempts
    entries = trail.read(limit=100)
    assert [entry.kind for entry in entries] == ["lost"] + ["limit"] * 10
    assert entries[0].fields == {"entries": 15}
    assert numbers(entries[1:]) == list(range(9, -1, -1))
    assert trail.verify(trail.head).ok


@pytest.mark.parametrize("what", ["fifo", "link", "directory"])
def test_something_else_under_its_name_is_a_problem_until_it_is_gone(tmp_path: Path, what: str) -> None:
    """A fifo (which must not block), a link or a directory in the trail's place is neither written to nor followed."""
    path, elsewhere = tmp_path / "audit.jsonl", tmp_path / "elsewhere"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(elsewhere)
    else:
        path.mkdir()
    trail = trail_in(tmp_path)
    trail.append("limit", "eth0", {"number": 1})
    wait_for(lambda: trail.problem, "the problem shows")
    assert not elsewhere.exists()
    path.rmdir() if what == "directory" else path.unlink()
    wait_for(lambda: trail.queued == 0 and trail.problem is None, "written by itself once it can be")
    assert trail.verify().ok


def test_a_file_moved_away_while_running_is_noticed(tmp_path: Path) -> None:
    """The daemon goes on in a new file, and the chain shows where the rest is missing."""
    trail = trail_in(tmp_path)
    trail.append("limit", "eth0", {"number": 1})
    wait_for(lambda: trail.queued == 0, "written")
    (tmp_path / "audit.jsonl").rename(tmp_path / "stolen")
    trail.append("limit", "eth0", {"number": 2})
    assert trail.close()
    found = trail.verify()
    assert found.ok
    assert found.first_seq == 2
    assert "begins at seq 2" in found.notes[0]


def _tell(trail: AuditTrail, count: int) -> None:
    for number in range(count):
        trail.append("limit", "eth0", {"number": number, "text": "x" * 100})


def _on_a_full_disk(directory: Path) -> tuple[str | None, int, chain.Verification]:
    trail = trail_in(directory)
    _tell(trail, 10)
    wait_for(lambda: trail.queued == 0, "written")
    ballast = fill(directory)
    _tell(trail, 100)  # the file's last page takes a part: a write cut short
    wait_for(lambda: trail.problem, "the problem shows")
    problem, errors = trail.problem, trail.errors
    assert len(trail.read(limit=1000)) == 110
    ballast.unlink()
    wait_for(lambda: trail.queued == 0 and trail.problem is None, "written by itself once there is room")
    return problem, errors, trail.verify(trail.head)


@pytest.mark.root
def test_a_full_disk_costs_no_entry(tmp_path: Path) -> None:
    """On a full file system entries wait, the problem shows, and once there is room the chain is whole to the letter."""
    problem, errors, found = on_tmpfs(tmp_path, _on_a_full_disk, options="size=256k")
    assert problem is not None
    assert "No space left" in problem
    assert errors >= 1
    assert found == chain.Verification(ok=True, entries=110, first_seq=1, last_seq=110, head=found.head)


def _killed_on_a_full_disk(directory: Path) -> tuple[bytes, chain.Verification, list[str]]:
    pid = os.fork()
    if pid == 0:
        trail = trail_in(directory)
        _tell(trail, 10)
        wait_for(lambda: trail.queued == 0, "written")
        fill(directory)
        _tell(trail, 100)
        wait_for(lambda: trail.problem, "the problem shows")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (directory / "ballast").unlink()
    end = (directory / "audit.jsonl").read_bytes()[-1:]
    after = trail_in(directory)
    _tell(after, 1)
    assert after.close()
    return end, after.verify(), [entry.kind for entry in after.read(limit=2)]


@pytest.mark.root
def test_a_crash_on_a_full_disk_leaves_a_marked_torn_line(tmp_path: Path) -> None:
    """A write cut short by a full disk and never resumed is ended and marked by the next start."""
    end, found, kinds = on_tmpfs(tmp_path, _killed_on_a_full_disk)
    assert end != b"\n"
    assert found.ok
    assert len(found.notes) == 1
    assert kinds == ["limit", "torn"]


def _on_a_read_only_disk(directory: Path) -> tuple[str | None, chain.Verification]:
    trail = trail_in(directory)
    _tell(trail, 3)
    wait_for(lambda: trail.queued == 0, "written")
    remount(directory, "ro")
    _tell(trail, 3)
    wait_for(lambda: trail.problem, "the problem shows")
    problem = trail.problem
    remount(directory, "rw")
    wait_for(lambda: trail.queued == 0 and trail.problem is None, "written by itself once writable")
    return problem, trail.verify(trail.head)


@pytest.mark.root
def test_a_read_only_disk_costs_no_entry(tmp_path: Path) -> None:
    """On a read-only file system entries wait; being writable again alone ends the problem."""
    problem, found = on_tmpfs(tmp_path, _on_a_read_only_disk)
    assert problem is not None
    assert "read-only" in problem
    assert found.ok
    assert found.entries == 6


def _without_inodes(directory: Path) -> tuple[str | None, chain.Verification]:
    made = use_up_inodes(directory)
    trail = trail_in(directory)
    _tell(trail, 3)
    wait_for(lambda: trail.problem, "the problem shows")
    problem = trail.problem
    made[0].unlink()
    wait_for(lambda: trail.queued == 0 and trail.problem is None, "written by itself once there is an inode")
    return problem, trail.verify(trail.head)


@pytest.mark.root
def test_a_disk_without_inodes_costs_no_entry(tmp_path: Path) -> None:
    """Where no file can be made entries wait; one free inode alone ends the problem."""
    problem, found = on_tmpfs(tmp_path, _without_inodes, options="size=64k,nr_inodes=5")
    assert problem is not None
    assert "inodes" in problem
    assert found.ok
    assert found.entries == 3


def test_an_unreadable_trail_is_reported_to_who_asks(tmp_path: Path) -> None:
    """Reading and verifying raise the documented fault where the files cannot be opened."""
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    trail = trail_in(tmp_path)
    with pytest.raises(EnvironmentFault, match="cannot be opened"):
        trail.read()
    with pytest.raises(EnvironmentFault):
        trail.verify()
    trail.close(0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_no_file_is_missed_while_it_is_moved(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    """A rotation goes on, step by step, between any two looks of a reader: what was there is read, in order, without a gap."""
    directory = tmp_path_factory.mktemp("trail")
    head = write(directory, 40, Bounds(file_bytes=2000, kept_files=20))
    rotation, pace = _rotating(directory, head), iter(steps)
    whole = chain._open_part

    def look(where: Path, name: str) -> chain.Part | None:
        for _ in range(next(pace, 0)):
            next(rotation, None)
        return whole(where, name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chain, "_open_part", look)
        found = chain.verify(directory, expected={head: "what was there"})
    assert (found.ok, found.first_seq) == (True, 1), found.findings


def _rotating(directory: Path, head: str) -> Iterator[None]:
    """Rotate six times, and write one entry each time; yields after each change on the disk."""
    for seq in range(41, 47):
        for number in range(len(list(directory.iterdir())) - 1, -1, -1):
            (directory / chain._name(number)).rename(directory / chain._name(number + 1))
            yield
        line = chain.seal(seq, chain.body_of(WALL, "limit", "eth0", {"number": seq}), head)
        head = chain.line_hash(line)
        (directory / chain.FILE_NAME).write_bytes(line + b"\n")
        yield


def test_writers_readers_and_rotation_go_together(tmp_path: Path) -> None:
    """Several threads telling, reading and verifying while files rotate: no entry lost or twice, and never a false alarm."""
    bounds = Bounds(file_bytes=20_000, kept_files=50, queued_lines=10**6)
    trail = trail_in(tmp_path, bounds)
    alarms: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            found = trail.verify()
            seqs = [entry.seq for entry in trail.read(limit=300)]
            if not found.ok or seqs != sorted(set(seqs), reverse=True):
                alarms.append((found, seqs))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    tellers = [threading.Thread(target=_tell, args=(trail, 500)) for _ in range(3)]
    for thread in askers + tellers:
        thread.start()
    for thread in tellers:
        thread.join()
    assert trail.close(20)
    stop.set()
    for thread in askers:
        thread.join()
    assert not alarms
    assert trail.verify(trail.head).entries == 1500


# ---- a bounded look, and the last firing of a link ------------------------------------------------------------


def test_the_newest_entries_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wanted, a bounded number of lines is looked at; where more may match, it is said from where on."""
    monkeypatch.setattr(audit, "NEWEST", chain.Look(lines=10, size_bytes=1 << 20))
    trail = AuditTrail(tmp_path)
    for number in range(30):
        trail.append("limit" if number == 3 else "noted", "eth0", {"number": number})
    assert trail.close()
    first = trail.newest(chain.Filter(), 5)
    assert (numbers(first.entries), first.before_seq) == ([29, 28, 27, 26, 25], None)
    none = trail.newest(chain.Filter(kinds={"limit"}), 5)
    assert (none.entries, none.before_seq) == ((), 21)
    rest = chain.read(
        tmp_path, chain.Filter(kinds={"limit", "noted"}, before_seq=none.before_seq), waiting={}, limit=99, max_bytes=1 << 30
    )
    assert numbers(rest) == list(range(19, -1, -1))
    parts = trail.open_parts()
    assert numbers(chain.read(parts, chain.Filter(kinds={"limit"}), waiting={}, limit=5, max_bytes=1 << 30)) == [3]
    assert chain.verify(parts, expected=chain.expectations(trail.written_head, None)).ok
    chain.close(parts)


def test_a_look_is_bounded_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lines end a look sooner, but one line is always looked at."""
    monkeypatch.setattr(audit, "NEWEST", chain.Look(lines=1000, size_bytes=5_000))
    trail = AuditTrail(tmp_path)
    for number in range(10):
        trail.append("noted", "eth0", {"number": number, "x": "y" * (9_000 if number == 9 else 900)})
    assert trail.close()
    found = trail.newest(chain.Filter(), 100)
    assert (numbers(found.entries), found.before_seq) == ([9], 10)


def test_the_last_firing_of_each_link(tmp_path: Path) -> None:
    """It is found through rotations, in memory and on disk; what an operator limited is none; nothing is read twice."""
    trail = AuditTrail(tmp_path, bounds=Bounds(file_bytes=4_000, kept_files=50))
    firings = LastFirings(tmp_path, trail)
    assert firings.of("eth0") is None
    expected: dict[str, int] = {}
    for number in range(120):
        interface = f"eth{number % 7}"
        trail.append("limit", interface, {"number": number, "reason": "sustained" if number % 3 else "operator"})
        if number % 3:
            expected[interface] = number
        if number % 10 == 0:
            wait_for(lambda: not trail.queued, "it is on disk")
        last = firings.of(interface)
        assert (last.fields["number"] if last else None) == expected.get(interface)
    assert trail.close()
    again = LastFirings(tmp_path, trail)
    assert {name: entry.fields["number"] for name in expected if (entry := again.of(name))} == expected
    assert again.of("eth9") is None
