"""The journal: what is kept over a restart, and what a bad disk or a bad file may cost."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiterd import json_codec as jsonsafe
from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import Decision, Journal, Reason, RootQdisc, SavedQdisc, StrikeRecord
from limiterd.core.units import MAX_RATE_BPS
from limiterd.store import crc_store as recordfile
from limiterd.store.journal import JournalStore, from_records, to_records
from tests.examples import few
from tests.netns import wait_for
from tests.smalldisk import fill, on_tmpfs, remount, use_up_inodes

_letters = st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"])
names = st.text(_letters, min_size=1, max_size=3) | st.just("eth\udc80")
texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 2**63 - 1)
decisions = st.builds(
    Decision,
    interface=names,
    mac=texts,
    policy=texts,
    reason=st.sampled_from(Reason),
    since_wall_ns=numbers,
    strikes=numbers,
    rate_bps=st.none() | st.integers(1, MAX_RATE_BPS),
    manual=st.booleans(),
    forced=st.booleans(),
    note=texts,
    by=texts,
)
strike_records = st.builds(StrikeRecord, interface=names, mac=texts, strikes=numbers, forget_wall_ns=numbers)
roots = st.builds(
    RootQdisc, kind=texts, handle=st.integers(0, 2**32 - 1), options=st.binary(max_size=20), has_children=st.booleans()
)
saved = st.builds(SavedQdisc, interface=names, mac=texts, root=roots)
journals = st.builds(
    Journal,
    decisions=st.lists(decisions, max_size=3).map(tuple),
    strike_records=st.lists(strike_records, max_size=3).map(tuple),
    replaced=st.lists(saved, max_size=3).map(tuple),
    paused=st.booleans(),
)

SAMPLE = Journal(
    decisions=(
        Decision("eth0", "02:00:00:00:00:01", "fair-use", Reason.SUSTAINED, 1_795_435_200_000_000_000, 2),
        Decision("eth1", "02:00:00:00:00:02", "fair-use", Reason.OPERATOR, 1, 0, 10**8, manual=True, note="by hand", by="ops"),
    ),
    strike_records=(StrikeRecord("eth2", "", 3, 2**60),),
    replaced=(SavedQdisc("eth0", "02:00:00:00:00:01", RootQdisc("tbf", 0x10000, b"\x01\x02\xff")),),
    paused=True,
)


def store_in(directory: Path, boot_id: str = "boot-1", retry_s: tuple[float, float] = (0.01, 0.02)) -> JournalStore:
    """A store that loses no time."""
    return JournalStore(directory, boot_id=boot_id, retry_s=retry_s)


def put(directory: Path, journal: Journal = SAMPLE, boot_id: str = "boot-1") -> None:
    """Save a journal, and end."""
    store = store_in(directory, boot_id)
    store.save(journal)
    assert store.close(20)


def part_of(found: Journal, whole: Journal) -> bool:
    """Whether every record of one journal is one of the other's."""
    return (
        set(found.decisions) <= set(whole.decisions)
        and set(found.strike_records) <= set(whole.strike_records)
        and set(found.replaced) <= set(whole.replaced)
        and found.paused <= whole.paused
    )


@settings(deadline=None)
@given(journals)
def test_records_come_back_equal(journal: Journal) -> None:
    """Whatever a journal holds is read back equal from the text that is written."""
    text = recordfile.text_of("limiterd_journal", 1, to_records(journal, "b"))
    records, lost = recordfile.records_of(text.encode())
    assert (from_records(tuple(records), "b"), lost) == ((journal, ()), "")


def test_a_saved_journal_is_loaded_equal(tmp_path: Path) -> None:
    """A new store in the same boot finds exactly what was saved, and nothing to complain of."""
    put(tmp_path)
    assert store_in(tmp_path).load() == (SAMPLE, ())


def test_no_file_is_an_empty_journal(tmp_path: Path) -> None:
    """The first start has an empty journal and no problem."""
    assert store_in(tmp_path / "missing").load() == (Journal(), ())


def test_truncation_at_every_offset_keeps_whole_records(tmp_path: Path) -> None:
    """A file cut anywhere gives back only records that were written, tells of the damage, and keeps the cut file."""
    put(tmp_path)
    path = tmp_path / "journal.json"
    whole = path.read_bytes()
    best = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found, problems = store_in(tmp_path).load()
        assert part_of(found, SAMPLE)
        kept = len(found.decisions) + len(found.strike_records) + len(found.replaced)
        assert kept >= best  # a longer rest never gives back less
        best = kept
        if whole[:length].rstrip() == whole.rstrip():
            assert (found, problems) == (SAMPLE, ())
        else:
            assert len(problems) == 1
            assert "damaged" in problems[0]
            assert (tmp_path / "journal.json.damaged").read_bytes() == whole[:length]
    assert best == 4


def test_any_altered_byte_alters_no_record(tmp_path: Path) -> None:
    """A flipped bit anywhere loses the record it hits at most; it never changes what one says."""
    put(tmp_path)
    path = tmp_path / "journal.json"
    whole = path.read_bytes()
    for offset in range(len(whole)):
        for bit in (0x01, 0x10, 0x80):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ bit]) + whole[offset + 1 :])
            found, problems = store_in(tmp_path).load()
            assert part_of(found, SAMPLE)
            assert found == SAMPLE or problems
            for aside in tmp_path.glob("journal.json.newer*"):  # the bit hit the version
                aside.unlink()


@few(300)
@given(data=st.binary(max_size=300), position=st.integers(0, 1000))
def test_any_bytes_are_read_without_an_exception(tmp_path_factory: pytest.TempPathFactory, data: bytes, position: int) -> None:
    """Whatever stands in the file, or was written over a part of it, only sound records and sentences come out."""
    directory = tmp_path_factory.getbasetemp() / "fuzz"
    put(directory)
    path = directory / "journal.json"
    whole = path.read_bytes()
    for content in (data, whole[:position] + data + whole[position + len(data) :]):
        path.write_bytes(content)
        found, problems = store_in(directory).load()
        assert part_of(found, SAMPLE)
        assert found == SAMPLE or problems


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 5000,
        b"[" * 200_000,
        b'{"limiterd_journal":1,"records":' + b'[{"a":' * 50_000,
        b'{"limiterd_journal":1,"records":[' + b"1," * 100_000 + b"1]}",
        b'{"limiterd_journal":1,"records":{}}',
        b'{"limiterd_journal":1}',
        b'{"limiterd_journal":1,"records":[' + b"9" * 10_000 + b"]}",
        b'{"limiterd_journal":1,"records":[1e999,NaN,"\\ud800"]}',
        b"\xff\xfe\x00",
        b"null",
    ],
    ids=[
        "empty",
        "zeros",
        "deep",
        "deep-records",
        "numbers",
        "no-list",
        "no-records",
        "huge-number",
        "odd-values",
        "no-utf8",
        "null",
    ],
)
def test_hostile_files_cost_a_sentence(tmp_path: Path, content: bytes) -> None:
    """A corrupt, deep or senseless file gives an empty journal, one sentence, and stays aside."""
    (tmp_path / "journal.json").write_bytes(content)
    found, problems = store_in(tmp_path).load()
    assert found == Journal()
    assert len(problems) == 1
    assert (tmp_path / "journal.json.damaged").read_bytes() == content


def test_a_huge_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """Of a file beyond the bound only the beginning is read: its whole records count, the rest is reported."""
    put(tmp_path)
    path = tmp_path / "journal.json"
    with path.open("r+b") as file:
        file.truncate(1 << 34)  # sparse
    found, problems = JournalStore(tmp_path, boot_id="boot-1", max_bytes=100_000).load()
    assert found == SAMPLE
    assert "larger than 100000 bytes" in problems[0]


def test_a_journal_too_large_to_be_read_back_is_not_written(tmp_path: Path) -> None:
    """What a load would not read whole is refused at the save, and the old file stands."""
    store = JournalStore(tmp_path, boot_id="b", max_bytes=2000)
    store.save_now(SAMPLE)
    with pytest.raises(EnvironmentFault, match="more than the 2000"):
        store.save_now(Journal(strike_records=tuple(StrikeRecord(f"eth{n}", "", 1, 1) for n in range(100))))
    assert store_in(tmp_path, "b").load() == (SAMPLE, ())


def test_wrong_types_cost_their_record_alone(tmp_path: Path) -> None:
    """A record with a wrong type, a missing field or a senseless value is named and left out; the others are kept."""
    good = ("decision", jsonsafe.encode(SAMPLE.decisions[0]))
    bad = [
        ("decision", {**jsonsafe.encode(SAMPLE.decisions[0]), "strikes": "two"}),
        ("decision", {**jsonsafe.encode(SAMPLE.decisions[0]), "strikes": True}),
        ("decision", {**jsonsafe.encode(SAMPLE.decisions[0]), "since_wall_ns": 2**63}),
        ("decision", {**jsonsafe.encode(SAMPLE.decisions[0]), "reason": "whim"}),
        ("decision", {**jsonsafe.encode(SAMPLE.decisions[0]), "rate_bps": 0}),
        ("decision", {**jsonsafe.encode(SAMPLE.decisions[0]), "interface": "../../etc"}),
        ("decision", {"interface": "eth0"}),
        ("saved", {**jsonsafe.encode(SAMPLE.replaced[0]), "root": {"kind": "tbf", "handle": 1, "options": "not base64!"}}),
        ("memory", []),
        ("novelty", 1),
    ]
    recordfile.CrcStore(tmp_path / "journal.json", "limiterd_journal").write([good, *bad])
    found, problems = store_in(tmp_path).load()
    assert found == Journal(decisions=SAMPLE.decisions[:1])
    assert len(problems) == len(bad)
    assert "strikes: text where an integer is expected" in problems[0]


def test_saved_roots_end_with_their_boot(tmp_path: Path) -> None:
    """After a reboot the decisions are still there; the saved foreign roots, gone with the boot, are dropped and named."""
    put(tmp_path, boot_id="boot-1")
    found, problems = store_in(tmp_path, "boot-2").load()
    assert found == Journal(SAMPLE.decisions, SAMPLE.strike_records, (), SAMPLE.paused)
    assert len(problems) == 1
    assert "rebooted" in problems[0]
    assert "eth0" in problems[0]


def test_the_real_boot_is_recognised(tmp_path: Path) -> None:
    """Two stores of one boot agree about it without being told."""
    JournalStore(tmp_path).save_now(SAMPLE)
    assert JournalStore(tmp_path).load() == (SAMPLE, ())


def test_a_newer_file_is_moved_aside_untouched(tmp_path: Path) -> None:
    """The file of a newer version is not read, not altered, and not in the way of ours; a second one neither."""
    path = tmp_path / "journal.json"
    for number, expected in enumerate(["journal.json.newer", "journal.json.newer.1"]):
        newer = json.dumps({"limiterd_journal": 2, "things": number}).encode()
        path.write_bytes(newer)
        store = store_in(tmp_path)
        found, problems = store.load()
        assert found == Journal()
        assert "version 2" in problems[0]
        assert expected in problems[0]
        store.save_now(SAMPLE)
        assert (tmp_path / expected).read_bytes() == newer
    assert store_in(tmp_path).load() == (SAMPLE, ())


def test_a_newer_file_that_cannot_be_moved_is_never_overwritten(tmp_path: Path) -> None:
    """While a newer version's file cannot be set aside nothing is saved; once it can, saving works."""
    newer = b'{"limiterd_journal":2}'
    (tmp_path / "journal.json").write_bytes(newer)
    asides = [tmp_path / ("journal.json.newer" + (f".{n}" if n else "")) for n in range(10)]
    for aside in asides:
        aside.write_bytes(b"")
    store = store_in(tmp_path)
    assert "move them away" in store.load()[1][0]
    with pytest.raises(EnvironmentFault):
        store.save_now(SAMPLE)
    assert (tmp_path / "journal.json").read_bytes() == newer
    asides[3].unlink()
    store.save_now(SAMPLE)
    assert asides[3].read_bytes() == newer


@pytest.mark.parametrize("kind", ["directory", "fifo", "link"])
def test_something_else_under_its_name_is_a_problem(tmp_path: Path, kind: str) -> None:
    """A directory, a fifo (which must not block) or a link in the journal's place is reported, not followed."""
    path = tmp_path / "journal.json"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere")
    found, problems = store_in(tmp_path).load()
    assert found == Journal()
    assert len(problems) == 1


def test_saving_returns_at_once_while_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fsync stuck, saves return without waiting, and when it ends the newest journal alone is written."""
    stuck, entered = threading.Event(), threading.Event()
    real_fsync = os.fsync
    written: list[int] = []

    def hanging(descriptor: int) -> None:
        entered.set()
        assert stuck.wait(30)
        written.append(descriptor)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", hanging)
    store = store_in(tmp_path)
    store.save(Journal(paused=True))
    assert entered.wait(10)
    for number in range(1000):
        last = store.save(Journal(strike_records=(StrikeRecord("eth0", "", number, 1),)))
    assert store.durable == 0  # still stuck: none of the thousand waited
    stuck.set()
    wait_for(lambda: store.durable == last, "the newest journal is durable")
    assert len(written) == 4  # two files of two fsyncs each: the first, and the newest
    assert store_in(tmp_path).load()[0].strike_records[0].strikes == 999
    assert store.close()


def test_a_takeover_does_not_wait_for_a_hanging_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fsync stuck, save_now raises after its time-out; when the disk is back what it wanted is written by itself."""
    stuck = threading.Event()
    real_fsync = os.fsync

    def hanging(descriptor: int) -> None:
        assert stuck.wait(30)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", hanging)
    store = store_in(tmp_path)
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match="hangs") as raised:
            store.save_now(SAMPLE, 0.05)
        assert raised.value.operation == "write"
    stuck.set()
    wait_for(lambda: store.durable, "written by itself")
    store.save_now(SAMPLE, 20)
    assert store_in(tmp_path).load() == (SAMPLE, ())


def test_a_takeover_is_not_kept_waiting_by_back_off(tmp_path: Path) -> None:
    """save_now tries at once, however long the pause after an earlier failure, and raises this attempt's own failure."""
    blocker = tmp_path / "state"
    blocker.write_bytes(b"a file where the directory should be")
    store = store_in(blocker, retry_s=(600, 600))
    for _ in range(3):
        with pytest.raises(EnvironmentFault, match="cannot be written"):
            store.save_now(SAMPLE, 20)
    blocker.unlink()
    store.save_now(SAMPLE, 20)
    assert store.problem is None
    assert store_in(blocker).load() == (SAMPLE, ())


def test_an_unchanged_journal_is_written_once(tmp_path: Path) -> None:
    """Saving what is saved already touches no file."""
    store = store_in(tmp_path)
    first = store.save(SAMPLE)
    wait_for(lambda: store.durable == first, "saved")
    before = (tmp_path / "journal.json").stat().st_mtime_ns
    assert store.save(SAMPLE) == first
    store.save_now(SAMPLE)
    assert (tmp_path / "journal.json").stat().st_mtime_ns == before


def test_closing_writes_what_is_wanted(tmp_path: Path) -> None:
    """A journal saved just before the end is on disk after close."""
    store = store_in(tmp_path)
    store.save(SAMPLE)
    assert store.close()
    assert store_in(tmp_path).load() == (SAMPLE, ())


def test_closing_does_not_wait_for_a_hanging_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fsync stuck, close gives up after its time-out and says so."""
    stuck = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _descriptor: stuck.wait(30))
    store = store_in(tmp_path)
    store.save(SAMPLE)
    assert not store.close(0.05)  # it would be for ever
    stuck.set()


def test_the_file_is_private(tmp_path: Path) -> None:
    """Only the daemon's user reads the journal, and no temporary file stays."""
    put(tmp_path)
    assert (tmp_path / "journal.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["journal.json"]  # noqa: PTH208  # hidden files too


# ---- real disks ----------------------------------------------------------------------------------


def _on_a_full_disk(directory: Path) -> tuple[str | None, str, Journal, str | None]:
    store = store_in(directory)
    store.save_now(SAMPLE)
    ballast = fill(directory)
    larger = Journal(strike_records=tuple(StrikeRecord(f"eth{n}", "", 1, 1) for n in range(80)))
    ticket = store.save(larger)
    wait_for(lambda: store.problem, "the problem shows")
    problem = store.problem
    try:
        store.save_now(larger)
        raised = ""
    except EnvironmentFault as error:
        raised = error.errno_name
    kept = store_in(directory).load()[0]
    ballast.unlink()
    wait_for(lambda: store.durable == ticket, "saved by itself once there is room")
    assert store_in(directory).load() == (larger, ())
    return problem, raised, kept, store.problem


@pytest.mark.root
def test_a_full_disk_keeps_the_old_journal_and_recovers(tmp_path: Path) -> None:
    """On a full file system the old journal stands, the problem names the cause, and room alone ends it."""
    problem, raised, kept, afterwards = on_tmpfs(tmp_path, _on_a_full_disk)
    assert problem is not None
    assert "No space left" in problem
    assert "free space" in problem
    assert raised == "ENOSPC"
    assert kept == SAMPLE
    assert afterwards is None


def _on_a_read_only_disk(directory: Path) -> tuple[str | None, Journal]:
    store = store_in(directory)
    store.save_now(SAMPLE)
    remount(directory, "ro")
    ticket = store.save(Journal(paused=True))
    wait_for(lambda: store.problem, "the problem shows")
    problem, kept = store.problem, store_in(directory).load()[0]
    remount(directory, "rw")
    wait_for(lambda: store.durable == ticket and store.problem is None, "saved by itself once writable")
    return problem, kept


@pytest.mark.root
def test_a_read_only_disk_keeps_the_old_journal_and_recovers(tmp_path: Path) -> None:
    """On a read-only file system the old journal stands and is read, and being writable again alone ends the problem."""
    problem, kept = on_tmpfs(tmp_path, _on_a_read_only_disk)
    assert problem is not None
    assert "read-only" in problem
    assert kept == SAMPLE


def _without_inodes(directory: Path) -> tuple[str | None, Journal]:
    store = store_in(directory)
    store.save_now(SAMPLE)
    made = use_up_inodes(directory)
    ticket = store.save(Journal(paused=True))
    wait_for(lambda: store.problem, "the problem shows")
    problem, kept = store.problem, store_in(directory).load()[0]
    made[0].unlink()
    wait_for(lambda: store.durable == ticket and store.problem is None, "saved by itself once there is an inode")
    return problem, kept


@pytest.mark.root
def test_a_disk_without_inodes_keeps_the_old_journal_and_recovers(tmp_path: Path) -> None:
    """Without a free inode the old journal stands; one free inode alone ends the problem."""
    problem, kept = on_tmpfs(tmp_path, _without_inodes, options="size=64k,nr_inodes=6")
    assert problem is not None
    assert "inodes" in problem
    assert kept == SAMPLE
