"""Every verb of both programs with standard input, output or error closed, full, or without a reader.

No traceback, whatever is lost; the exit code tells what was done: a change that was made is 0 although its words could not be
written, text that was asked for and could not be written is 1, and a reader that has gone is no failure at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from limiterd import cli
from limiterd.sim.netns import PrivateNet
from tests.ctl_server import ControlStub
from tests.rig import rig
from tests.test_cli import LIMITED, document, link

ROOT: Final = Path(__file__).resolve().parent.parent
BROKEN: Final = {
    "stdin closed": "<&-",
    "stdout closed": ">&-",
    "stdout full": ">/dev/full",
    "stderr closed": "2>&-",
    "stderr full": "2>/dev/full",
    "output full": ">/dev/full 2>&1",
    "all closed": "<&- >&- 2>&-",
    "stdout without a reader": "dead pipe",
}
LOSES_TEXT: Final = {"stdout closed", "stdout full", "output full", "all closed"}
DONE: Final = {"message": "done"}
ANSWERS: Final[dict[str, Any]] = {
    "status": document(link(**LIMITED), link("eth1")),
    "explain": {"interface": "eth0"},
    "history": {"entries": [], "directory": "/none"},
    "request.list": {"requests": []},
    "override.list": {"overrides": []},
    **dict.fromkeys(("reload", "limit", "release", "pause", "resume", "override.add", "override.revoke", "request.add"), DONE),
    "request.approve": DONE,
    "request.deny": DONE,
}
WHO: Final = ("--reason", "why")
SAY: Final = {
    "status": (),
    "status --json": (),
    "top": (),
    "explain": ("eth0",),
    "history": (),
    "override list": (),
    "requests": (),
    "check": ("CONFIG",),
    "replay": ("RECORDING", "--config", "CONFIG"),
    "replay --json": ("RECORDING", "--config", "CONFIG"),
    "record": ("--output", "-", "--duration", "100ms", "--interface", "lo", "--config", "CONFIG"),
    "completion": ("bash",),
    "--help": (),
    "status --help": (),
    "--version": (),
}
"""Verbs whose text is what was asked for."""
CHANGE: Final = {
    "reload": (),
    "limit": ("eth0", *WHO),
    "release": ("eth1", *WHO),
    "pause": WHO,
    "resume": WHO,
    "override add": ("--interface", "eth1", "--exempt", "--until", "7d", "--id", "REQ-1", *WHO),
    "override revoke": ("REQ-1", *WHO),
    "request": ("--interface", "eth1", "--until", "7d", *WHO),
    "approve": ("R-1",),
    "deny": ("R-1", *WHO),
    "install-service": ("--root", "TREE"),
    "uninstall-service": ("--root", "TREE"),
}
"""Verbs that change something."""
SEEN_BY_SERVICES: Final = """\
import sys
from limiterd.cli import main
from limiterd.ctl import install_service
install_service.HIDDEN_FROM_SERVICE = ()
sys.exit(main())
"""
"""limiterctl, wherever this checkout is: services see neither /tmp nor /home."""
NEITHER: Final = {"status --nonsense": (), "check BAD": (), "explain": ("eth0", "--socket", "/none")}
"""What ends with another code than 0."""


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The files that the command lines speak of, and a daemon's stand-in."""
    config = tmp_path / "limiterd.yaml"
    config.write_text(f"overrides: {{directory: {tmp_path}/none}}\nstate: {{directory: {tmp_path}/state}}\n")
    (tmp_path / "bad.yaml").write_text("policies: 7\n")
    recording = tmp_path / "recording.csv"
    recording.write_text("t_seconds,interface,tx_bytes\n" + "".join(f"{t},eth0,{t * 150_000_000}\n" for t in range(40)))
    with ControlStub(tmp_path / "control.sock", ANSWERS) as stub:
        found = {
            "CONFIG": config,
            "BAD": tmp_path / "bad.yaml",
            "RECORDING": recording,
            "TREE": tmp_path / "tree",
            "SOCKET": stub.path,
        }
        yield {name: str(path) for name, path in found.items()}


def run(command: list[str], broken: str) -> tuple[int, str]:
    """The exit code of a command under such streams, and what it said on what is left of them."""
    how = BROKEN.get(broken, "")
    if how == "dead pipe":
        ours, theirs = os.pipe()
        os.close(ours)
        try:
            done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False, cwd=ROOT)
        finally:
            os.close(theirs)
        return done.returncode, done.stderr.decode()
    shell = ["sh", "-c", f'exec "$@" {how}', "sh", *command]
    done = subprocess.run(shell, capture_output=True, stdin=subprocess.DEVNULL, check=False, cwd=ROOT)
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def command_line(words: str, arguments: tuple[str, ...], places: dict[str, str]) -> list[str]:
    """A limiterctl command line; capital words are places, and the stand-in's socket is named where no other is."""
    whole = [places.get(word, word) for word in (*words.split(), *arguments)]
    helping = {"--help", "--version"} & set(whole)
    return [
        sys.executable,
        *(("-c", SEEN_BY_SERVICES) if words == "install-service" else ("-m", "limiterd.cli")),
        *whole,
        *([] if helping or "--socket" in whole else ["--socket", places["SOCKET"]]),
    ]


def quiet(text: str) -> bool:
    """Whether nothing in this text is Python's own."""
    return not any(word in text for word in ("Traceback", "Exception ignored", "lost sys.", 'File "'))


@pytest.mark.parametrize("words", SAY)
def test_text_that_was_asked_for_is_written_or_the_exit_code_says_so(words: str, places: dict[str, str]) -> None:
    """0 where it could be, and where its reader has gone; 1 where not; lost messages lose nothing else."""
    command = command_line(words, SAY[words], places)
    assert run(command, "")[0] == 0
    for broken in BROKEN:
        code, text = run(command, broken)
        assert quiet(text), (broken, text)
        assert (broken, code) == (broken, 1 if broken in LOSES_TEXT else 0)
        if broken == "stdout full":
            assert text.endswith("limiterctl: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("words", CHANGE)
def test_a_change_that_was_made_is_made(words: str, places: dict[str, str]) -> None:
    """0, whatever became of the words."""
    command = command_line(words, CHANGE[words], places)
    if "TREE" in CHANGE[words]:
        (Path(places["TREE"]) / "etc/systemd/system").mkdir(parents=True)
    code, text = run(command, "")
    assert code == 0, text
    for broken in BROKEN:
        code, text = run(command, broken)
        assert quiet(text), (broken, text)
        assert (broken, code) == (broken, 0)
        if broken == "stdout full":
            assert text.endswith("limiterctl: done, but the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("words", NEITHER)
def test_other_exit_codes_stay(words: str, places: dict[str, str]) -> None:
    """A usage error, an invalid file, no daemon: the same code as with a terminal."""
    command = command_line(words, NEITHER[words], places)
    usual, _ = run(command, "")
    assert usual in {1, 2, 3, 78}
    for broken in BROKEN:
        code, text = run(command, broken)
        assert quiet(text), (broken, text)
        assert (broken, code) == (broken, usual)


def test_every_verb_is_looked_at() -> None:
    """Only the demo is not: it says nothing but what happens in it."""
    seen = {words.split()[0] for words in (*SAY, *CHANGE, *NEITHER)}
    assert set(cli.VERBS) - seen == {"demo"}


@pytest.mark.parametrize(("words", "usual"), [("--check", 0), ("--help", 0), ("--version", 0), ("--nonsense", 2), ("BAD", 78)])
def test_the_daemon_s_exit_codes_stay(words: str, usual: int, places: dict[str, str]) -> None:
    """--check and the like, as limiterctl."""
    arguments = ["--check", "--config", places["BAD" if words == "BAD" else "CONFIG"]] if words in {"--check", "BAD"} else [words]
    command = [sys.executable, "-m", "limiterd.daemon", *arguments]
    assert run(command, "")[0] == usual
    for broken in BROKEN:
        code, text = run(command, broken)
        assert quiet(text), (broken, text)
        assert (broken, code) == (broken, usual or int(broken in LOSES_TEXT))


@pytest.mark.root
@pytest.mark.parametrize("broken", [how for how in BROKEN if how != "stdout without a reader"])
def test_the_daemon_runs_whatever_its_streams(broken: str, tmp_path: Path) -> None:
    """It starts, answers and ends with 0; what it would log is lost, and nothing gets the numbers of the closed streams."""
    with PrivateNet() as net, rig(net.pair().near.namespace, tmp_path) as daemon:
        daemon.prefix = ("sh", "-c", f'exec "$@" {BROKEN[broken]}', "sh")
        daemon.start()
        assert daemon.process is not None
        for number in (0, 1, 2):
            leads_to = Path(f"/proc/{daemon.process.pid}/fd/{number}").readlink()
            assert leads_to in {Path("/dev/null"), Path("/dev/full"), daemon.home / "log"} or number == 0, leads_to
        assert daemon.stop() == 0
