"""Fuzz of what comes from outside and has none elsewhere: recordings, link events, tc's dumps. `make explore` draws more."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.errors import EnvironmentFault
from limiterd.kernel import tcwire as wire
from limiterd.kernel.links import RTM_DELLINK, RTM_NEWLINK, LinkTable
from limiterd.kernel.netlink import Ack, MalformedMessage
from limiterd.kernel.tc import TcKernel
from limiterd.recording import RecordingError, open_recording
from tests.examples import few

DATA: Final = Path(__file__).parent.parent / "data/fuzz"
CORPUS: Final = sorted(DATA.glob("corpus/*.json"))
DUMPS: Final[Mapping[str, list[str]]] = json.loads((DATA / "tc.json").read_text())
"""What the real kernel (Linux 6.18) answers about a link with a limit of 40 Gbit/s and exempt traffic: payloads in hex."""

IFINDEX: Final = 2
JSON_LINES: Final = (
    b'{"limiterd_recording": 1, "host": "h", "clock": "boottime", "started_at": "2026-11-23T12:00:00Z"}\n'
    b'{"t":5,"links":[[2,"eth0",7],[3,"eth1",9]]}\n{"t":6,"links":[[2,"eth0",8]]}\n'
)
CSV: Final = b"t_seconds,interface,tx_bytes\n0.000000001,eth0,12\n1.5,eth0,18446744073709551615\n"
ANSWER: Final = (
    b'{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":'
    b'"node_network_transmit_bytes_total","instance":"a:9100","device":"eth0"},"values":[[1,"5"],[16,"9e3"]]}]}}\n'
)
SEEDS: Final = (JSON_LINES, CSV, ANSWER)
WORDS: Final = (b"", b"\n", b"0", b"-1", b"1e999", b"NaN", b"null", b"[", b"{", b'"', b",", b"\\ud800", b"\xff")
TOKENS: Final = (*WORDS, b"9" * 25, b"[" * 5000)


@st.composite
def mutants(draw: st.DrawFn, seeds: tuple[bytes, ...], longest_cut: int = 12) -> bytes:
    """One of the seeds with up to six places overwritten, cut or filled."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 6))):
        at, cut = draw(st.integers(0, len(data))), draw(st.integers(0, longest_cut))
        data = data[:at] + draw(st.sampled_from(TOKENS) | st.binary(max_size=4)) + data[at + cut :]
    return data


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_corpus_raises_only_the_documented_errors(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fuzz with inputs of known sorts, kept a file a decoder: each is read or refused as the fuzz target requires of any."""
    corpus = json.loads(path.read_text())
    module, name = corpus["target"].split(":")
    target = getattr(import_module(module), name).hypothesis.inner_test
    asked = {"tmp_path_factory": tmp_path_factory} if "tmp_path_factory" in signature(target).parameters else {}
    for what, arguments in corpus["cases"].items():
        try:
            target(**asked, **raw(arguments))
        except Exception as error:
            error.add_note(f"the case: {what}")
            raise


def raw(value: Any) -> Any:
    """Every text as the bytes that it stands for, one a character."""
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, dict):
        return {key: raw(part) for key, part in value.items()}
    return [raw(part) for part in value] if isinstance(value, list) else value


def read(data: bytes) -> list[str]:
    """The error that reading these bytes as a recording ends with, if any."""
    descriptor = os.memfd_create("recording")
    try:
        os.write(descriptor, data)
        for _ in open_recording(f"/proc/self/fd/{descriptor}"):
            pass
    except RecordingError as error:
        return [str(error)]
    finally:
        os.close(descriptor)
    return []


def test_the_seeds_are_recordings() -> None:
    """What the fuzz of recordings starts from is read without an error, so damage to it is what is tried."""
    assert [read(seed) for seed in SEEDS] == [[], [], []]


@few(150)
@given(mutants(SEEDS) | st.binary(max_size=300))
def test_damaged_recordings_are_read_or_refused(data: bytes) -> None:
    """Fuzz of recordings (JSON lines, CSV, Prometheus answers): ticks, then the end or one RecordingError fit for a terminal."""
    for error in read(data):
        assert error.isprintable()


_ATTRIBUTES: Final = (
    (1, bytes.fromhex("020000000009")),
    (3, b"eth9\0"),
    (4, struct.pack("=I", 1500)),
    (41, struct.pack("=I", 1 << 16)),
)
_LINK: Final = struct.pack("=BxHiII", 0, 1, 9, 0x1043, 0) + b"".join(
    struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4) for kind, value in _ATTRIBUTES
)
"""ifinfomsg and the attributes IFLA_ADDRESS, IFNAME, MTU and GSO_MAX_SIZE: rtnetlink(7)."""


def test_the_link_message_is_one() -> None:
    """What the fuzz of link events starts from makes a link, so damage to it is what is tried."""
    with contextlib.closing(LinkTable()) as table:
        table.apply([(RTM_NEWLINK, memoryview(_LINK))])
        assert table.get(9) is not None


@few(150)
@given(st.lists(st.tuples(st.sampled_from([RTM_NEWLINK, RTM_DELLINK]), mutants((_LINK,)) | st.binary(max_size=60)), max_size=4))
def test_damaged_link_messages_are_applied_or_malformed(messages: list[tuple[int, bytes]]) -> None:
    """Fuzz of link events: applied in order, or MalformedMessage, which leads to a resync."""
    with contextlib.closing(LinkTable()) as table, contextlib.suppress(MalformedMessage):
        table.apply([(kind, memoryview(payload)) for kind, payload in messages])


class Played:
    """Stands in for the netlink socket and plays dumps."""

    def __init__(self, dumps: Mapping[str, list[bytes]]) -> None:
        self._dumps = {
            wire.RTM_GETQDISC: dumps["qdisc"],
            wire.RTM_GETTCLASS: dumps["class"],
            wire.RTM_GETTFILTER: dumps["filter"],
        }

    def dump(self, kind: int, _body: bytes, **_: Any) -> list[tuple[int, memoryview]]:
        """All objects of a kind."""
        return [(0, memoryview(payload)) for payload in self._dumps[kind]]

    def request(self, messages: list[Any], **_: Any) -> list[Ack]:
        """Every link is there."""
        return [Ack(0) for _ in messages]


def reader(dumps: Mapping[str, list[bytes]]) -> TcKernel:
    """A TcKernel on played dumps."""
    kernel = object.__new__(TcKernel)
    kernel._readings_until_dump = 0
    kernel._socket = Played(dumps)  # type: ignore[assignment]  # the two methods that reading uses
    return kernel


WHOLE: Final = {kind: [bytes.fromhex(text) for text in texts] for kind, texts in DUMPS.items()}


def test_the_recorded_dump_reads_whole() -> None:
    """The corpus itself is a whole limit."""
    actual = reader(WHOLE).read([IFINDEX])[IFINDEX]
    assert actual.ours
    assert actual.tree is not None
    assert actual.tree.rate_bps == 40 * 10**9
    assert actual.foreign == ()


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, list[bytes]]:
    """The dumps with one to three payloads damaged: cut, overwritten, filled."""
    dumps = {kind: list(payloads) for kind, payloads in WHOLE.items()}
    for _ in range(draw(st.integers(1, 3))):
        payloads = dumps[draw(st.sampled_from(sorted(dumps)))]
        which = draw(st.integers(0, len(payloads) - 1))
        data = payloads[which]
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["cut", "byte", "length", "noise"]))
        if how == "cut":
            data = data[:at]
        elif how == "byte":
            data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
        elif how == "length":
            at = at // 4 * 4
            data = data[:at] + draw(st.integers(0, 64)).to_bytes(2, "little") + data[at + 2 :]
        else:
            data = data[:at] + draw(st.binary(max_size=40))
        payloads[which] = data
    return dumps


@few(300)
@given(damaged())
def test_damaged_dumps_of_tc_are_read_or_a_fault(dumps: dict[str, list[bytes]]) -> None:
    """Fuzz of tc's dumps: whatever the kernel says, reading gives a state or the documented fault, never another exception."""
    kernel = reader(dumps)
    for look in (kernel.roots, lambda: kernel.read([IFINDEX])):
        with contextlib.suppress(EnvironmentFault):
            look()
