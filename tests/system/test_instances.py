"""One limiterd in a network namespace, whatever its files, its mode, its user and its mounts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from limiterd.kernel import instance_mark
from limiterd.sim.netns import Namespace, Pair, inside
from tests import needs
from tests.netns import wait_for
from tests.rig import FAST, Rig, rig

pytestmark = pytest.mark.root

NOBODY = 65534
LOOKS = 200

HOLD = """
import os, socket, sys, time
if os.geteuid() == 0:
    os.setuid({uid})
holder = socket.socket(socket.AF_UNIX)
holder.bind({address!r})
holder.listen(0)
askers = []
for _ in range({askers}):
    asker = socket.socket(socket.AF_UNIX)
    asker.setblocking(False)
    try:
        asker.connect({address!r})
    except BlockingIOError:
        pass
    askers.append(asker)
print("held", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def held(namespace: Namespace, *, uid: int = NOBODY, askers: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A process of this user that listens at the mark's name; so many askers wait at it, more than it has room for."""
    code = HOLD.format(uid=uid, askers=askers, address=instance_mark._ADDRESS)
    with inside(namespace):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def second_of(first: Rig, home: Path, policy: str, prefix: Sequence[str] = ()) -> Rig:
    """Another instance with files of its own in the namespace of the first."""
    home.mkdir()
    made = Rig(first.namespace, home, policy, 'metrics: {listen: "127.0.0.1:9818"}', prefix=prefix)
    made.configure()
    return made


def refused(daemon: Rig) -> str:
    """The one line with which an instance ends."""
    daemon.start(wait=False)
    return ending(daemon)


def ending(daemon: Rig) -> str:
    """What an instance said that ended with 1."""
    assert daemon.process is not None
    assert daemon.process.wait(20) == 1, daemon.log()
    (said,) = daemon.log().splitlines()
    return said


def as_nobody() -> Sequence[str]:
    """The command that runs another as a user without rights."""
    return (needs.program("setpriv", "util-linux"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def test_a_second_instance_of_every_kind_refuses_and_touches_nothing(real_root: None, pair: Pair, tmp_path: Path) -> None:
    """Enforcing, observing, watching nothing, of another user, with other mounts: exit 1, and the limit stands in each look."""
    with rig(pair.near.namespace, tmp_path, FAST) as first:
        first.start()
        first.ctl("limit", "eth0", "--reason", "test")
        assert first.process is not None
        open_place = Path("/var/tmp") / f"limiterd-{os.getpid()}"  # noqa: S108 - another user must reach it; made below
        open_place.mkdir()
        kinds: dict[str, Rig] = {}
        try:
            kinds |= {
                "enforce": second_of(first, tmp_path / "enforce", FAST),
                "observe": second_of(first, tmp_path / "observe", f"{FAST}, mode: observe"),
                "nothing": second_of(first, tmp_path / "nothing", FAST),
                "mounts": second_of(first, tmp_path / "mounts", FAST, (*needs.private_mounts(), *own_run(tmp_path))),
                "user": second_of(first, open_place / "user", f"{FAST}, mode: observe", as_nobody()),
            }
            nothing = kinds["nothing"]
            nothing.config.write_text(nothing.config.read_text().replace("eth*", "none*"))
            given_to_nobody(kinds["user"])
            looks, said = looks_while(first, kinds)
        finally:
            for daemon in kinds.values():
                daemon.close()
            shutil.rmtree(open_place)
        assert looks.count("htb 1d1d:") == len(looks) >= LOOKS
        for kind, line in said.items():
            assert f"PID {first.process.pid}, control socket {first.socket}" in line, kind
        assert first.phase() == "limited"
        assert "repair" not in first.log()


def own_run(place: Path) -> Sequence[str]:
    """A command that runs another with a /run of its own, as a container has it."""
    return ("sh", "-ec", 'mount -t tmpfs none /run; exec "$@"', "sh")


def given_to_nobody(daemon: Rig) -> None:
    """Let the other user write its files, in a place that it can reach."""
    os.chown(daemon.home, NOBODY, NOBODY)
    (daemon.home / "log").touch()


def looks_while(first: Rig, kinds: Mapping[str, Rig]) -> tuple[list[str], dict[str, str]]:
    """The link's root at LOOKS moments while the others start and live, and what each of these said at its end."""
    for daemon in kinds.values():
        daemon.start(wait=False)
    looks: list[str] = []
    while len(looks) < LOOKS or not all(daemon.ended() for daemon in kinds.values()):
        looks.append(first.root())
        assert len(looks) < 10 * LOOKS, [kind for kind, daemon in kinds.items() if not daemon.ended()]
    return looks, {kind: ending(daemon) for kind, daemon in kinds.items()}


def test_in_another_container(real_root: None, pair: Pair, tmp_path: Path) -> None:
    """From another PID namespace the first one has no number: the refusal says where it is."""
    with rig(pair.near.namespace, tmp_path, FAST) as first:
        first.start()
        contained = (*needs.private_mounts(), "--pid", "--fork", "--kill-child")
        said = refused(second_of(first, tmp_path / "second", FAST, contained))
        assert f"in this network namespace: in another container, control socket {first.socket};" in said


def test_a_mark_that_ends_with_its_process(pair: Pair, tmp_path: Path) -> None:
    """After a SIGKILL the next instance starts, whatever its files."""
    with rig(pair.near.namespace, tmp_path, FAST) as first:
        first.start()
        first.close()
        second = second_of(first, tmp_path / "second", FAST)
        second.start()
        assert second.status()["faults"] == []
        second.close()


@pytest.mark.parametrize("askers", [0, 5])
def test_who_does_not_count_holds_the_mark(real_root: None, pair: Pair, tmp_path: Path, askers: int) -> None:
    """An unprivileged holder, with a full queue too, keeps nobody from enforcing; it is named, and the mark is taken after it."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon, held(pair.near.namespace, askers=askers) as holder:
        daemon.start()
        (fault,) = daemon.status()["faults"]
        assert f"a process of uid {NOBODY}" in fault["message"]
        assert (f"PID {holder.pid}" in fault["message"]) == (askers == 0)
        daemon.ctl("limit", "eth0", "--reason", "test")
        assert daemon.phase() == "limited"
        holder.kill()
        wait_for(lambda: not daemon.status()["faults"], "the mark is taken", longest_s=3)
        assert "control socket" in refused(second_of(daemon, tmp_path / "second", FAST))


@pytest.mark.parametrize("askers", [0, 5])
def test_who_counts_is_known_without_an_answer(real_root: None, pair: Pair, askers: int) -> None:
    """Root's mark is one though its holder answers nobody, and though its queue is full; asking ends within a second."""
    with held(pair.near.namespace, uid=0, askers=askers) as holder, inside(pair.near.namespace):
        begun = time.monotonic()
        mark = instance_mark.InstanceMark("/run/none")
        with pytest.raises(Exception, match="another limiterd is running") as told:
            mark.take()
        assert time.monotonic() - begun < 2  # a second, and what a loaded machine adds
        assert (f"PID {holder.pid};" in str(told.value)) == (askers == 0)


def test_a_holder_that_owns_the_files_counts(real_root: None, pair: Pair, tmp_path: Path) -> None:
    """The service has a user of its own: root knows it by the owner of the state directory."""
    with held(pair.near.namespace), inside(pair.near.namespace):
        stranger = instance_mark.InstanceMark("/run/none", (tmp_path,))
        stranger.take()
        assert stranger.problem is not None
        os.chown(tmp_path, NOBODY, NOBODY)
        with pytest.raises(Exception, match="another limiterd is running"):
            instance_mark.InstanceMark("/run/none", (tmp_path,)).take()


def test_observe_touches_no_limit_of_an_earlier_run(pair: Pair, tmp_path: Path) -> None:
    """Started over a limit that a killed daemon held: left in each look, a fault with a way to lift it, and that way works."""
    with rig(pair.near.namespace, tmp_path, FAST) as daemon:
        before = daemon.root()
        daemon.start()
        daemon.ctl("limit", "eth0", "--reason", "test")
        daemon.close()
        daemon.configure(f"{FAST}, mode: observe")
        daemon.start()
        looks = [daemon.root() for _ in range(LOOKS)]
        assert looks.count("htb 1d1d:") == LOOKS
        (fault,) = daemon.status()["faults"]
        assert (daemon.phase(), fault["reason"], fault["warning"]) == ("fault", "other", False)
        assert "a limit of an earlier run stands; limiterctl release eth0 lifts it" in fault["message"]
        daemon.ctl("release", "eth0", "--reason", "test")
        wait_for(lambda: daemon.root() == before, "the limit is gone")
        wait_for(lambda: not daemon.status()["faults"], "the fault is over")
