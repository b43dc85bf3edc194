"""The service manager's notifications, against a socket that plays its part."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from limiterd.systemd import Notifier


class Manager:
    """A datagram socket as systemd has it."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def told(self) -> list[str]:
        """Every message that has arrived since the last look."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["file", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Manager]]:
    """A manager, and its NOTIFY_SOCKET, in the file system or in the abstract namespace."""
    if request.param == "file":
        shown = address = str(tmp_path / "notify")
    else:
        name = f"limiterd-test-{os.getpid()}"
        shown, address = f"@{name}", f"\0{name}"
    manager = Manager(address)
    yield shown, manager
    manager.socket.close()


def test_every_state_is_told(listening: tuple[str, Manager]) -> None:
    """READY, RELOADING with its time, STATUS, WATCHDOG and STOPPING arrive, one datagram each."""
    path, manager = listening
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "10000000"})
    notifier.ready("watching 3 links")
    notifier.reloading()
    notifier.ready()
    notifier.status("two\nlines  and more")
    notifier.tick(0)
    notifier.stopping("bye")
    told = manager.told()
    assert told[0] == "READY=1\nSTATUS=watching 3 links"
    assert told[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(told[1].rpartition("=")[2]) > 0
    assert told[2:] == [
        "READY=1",
        "STATUS=two lines and more",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=bye",
    ]
    assert notifier.problem is None
    notifier.close()


def test_without_a_manager_nothing_happens() -> None:
    """Started by hand, every call does nothing and nothing is wrong."""
    notifier = Notifier({})
    notifier.ready()
    notifier.reloading()
    notifier.tick(0)
    notifier.status("x")
    notifier.stopping()
    notifier.close()
    assert notifier.problem is None


@pytest.mark.parametrize(
    ("environ", "pings_s"),
    [
        ({"WATCHDOG_USEC": "10000000"}, [0.0, 5.0, 10.0]),
        ({"WATCHDOG_USEC": "1000000"}, [0.5 * n for n in range(24)]),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, [0.0, 5.0, 10.0]),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, []),
        ({"WATCHDOG_USEC": "0"}, []),
        ({"WATCHDOG_USEC": "soon"}, []),
        ({"WATCHDOG_USEC": "9" * 30}, []),
        ({}, []),
    ],
)
def test_the_watchdog_is_fed_twice_a_period(tmp_path: Path, environ: dict[str, str], pings_s: list[float]) -> None:
    """Ticks every 100 ms for 12 s: a ping each half of what systemd allows, none where it does not watch this process."""
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), **environ})
    found = []
    for tick in range(120):
        notifier.tick(tick * 100_000_000)
        found += [(tick / 10, text) for text in manager.told()]
    assert found == [(at_s, "WATCHDOG=1") for at_s in pings_s]
    manager.socket.close()
    notifier.close()


def test_a_full_queue_delays_ready_and_blocks_nobody(tmp_path: Path) -> None:
    """When the manager does not read, calls return at once; what must not be missed comes, in order, with the next tick."""
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"})
    for _ in range(1000):
        notifier.status("x" * 300)
    assert "cannot be told" in str(notifier.problem)
    notifier.ready("started")
    notifier.stopping()
    assert not [text for text in manager.told() if "READY" in text]
    notifier.tick(0)
    assert manager.told() == ["READY=1\nSTATUS=started", "STOPPING=1", "WATCHDOG=1"]
    assert notifier.problem is None
    manager.socket.close()
    notifier.close()


def test_a_missing_manager_is_a_problem_until_it_is_back(tmp_path: Path) -> None:
    """A socket that is gone shows as a problem; once it is back the state that was missed is told."""
    path = tmp_path / "notify"
    notifier = Notifier({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"})
    notifier.ready()
    assert "systemd cannot be told" in str(notifier.problem)
    manager = Manager(str(path))
    notifier.tick(0)
    assert manager.told() == ["READY=1", "WATCHDOG=1"]
    assert notifier.problem is None
    manager.socket.close()
    notifier.close()


def test_what_must_not_be_missed_is_bounded(tmp_path: Path) -> None:
    """A thousand reloads beside a manager that never comes keep the latest few messages."""
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for _ in range(1000):
        notifier.reloading()
        notifier.ready()
    manager = Manager(str(tmp_path / "notify"))
    notifier.status("x")
    told = manager.told()
    assert len(told) < 20
    assert told[-2:] == ["READY=1", "STATUS=x"]
    manager.socket.close()
    notifier.close()


def test_an_address_of_another_kind_is_reported() -> None:
    """A NOTIFY_SOCKET that is no unix socket is a problem, not a crash."""
    notifier = Notifier({"NOTIFY_SOCKET": "vsock:2:1234"})
    notifier.ready()
    assert "no unix socket" in str(notifier.problem)


def test_a_path_too_long_is_a_problem() -> None:
    """An address that no socket can have is reported, not raised."""
    notifier = Notifier({"NOTIFY_SOCKET": "/" + "x" * 200})
    notifier.ready()
    assert "cannot be told" in str(notifier.problem)
    notifier.close()
