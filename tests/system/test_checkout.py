"""`make run` in a checkout as people have them: another user's, made with any umask."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from limiterd.sim.netns import Pair, inside
from tests import needs
from tests.netns import wait_for

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix)
NEEDED = ("Makefile", "pyproject.toml", "constraints.txt", "config", "limiterd")

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("real_root"),
    pytest.mark.skipif(not (VENV / ".ready").exists(), reason="the tests run outside make's virtual environment"),
]


def checkout(place: Path, uid: int, umask: int) -> Path:
    """A copy of what `make run` needs, owned by a user and with the modes that git gives under a umask."""
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(exist_ok=True)
            shutil.copy2(source, place / name)
    for path in (place, *place.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        os.chown(path, uid, uid)
    own = place / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", own], check=True)
    (packages,) = own.glob("lib/python*/site-packages")
    (packages / "checkout.pth").write_text(f"{place}\n{sysconfig.get_path('purelib')}\n")  # ours, then what it needs
    return place


@pytest.mark.parametrize(("uid", "umask"), [(0, 0o002), (1000, 0o000), (1000, 0o077)], ids=["002", "other-000", "other-077"])
def test_make_run_works_from_any_checkout(pair: Pair, tmp_path: Path, uid: int, umask: int) -> None:
    """The daemon starts with the shipped configuration, `limiterctl status` shows the links, Ctrl-C ends it in order."""
    place = checkout(tmp_path / "a checkout", uid, umask)
    private = 'mount -t tmpfs none /run && mount -t tmpfs none /var/lib && cd "$1" && exec make run -o .venv/.ready'
    command = [*needs.private_mounts(), "sh", "-ec", private, "sh", str(place)]
    said = tmp_path / "said"
    with inside(pair.near.namespace), said.open("wb") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: "watching eth0" in said.read_text() or run.poll() is not None, "the first line of the log", longest_s=20)
        assert run.poll() is None, said.read_text()
        enter = ["nsenter", f"--target={run.pid}", "--mount", "--net", f"--wd={place}"]
        status = [*enter, sys.executable, "-m", "limiterd.cli", "status", "--json"]
        shown = json.loads(subprocess.run(status, check=True, capture_output=True, timeout=20).stdout)
        assert [link["interface"] for link in shown["links"]] == ["eth0"]
        assert shown["config"]["error"] is None
    finally:
        os.killpg(run.pid, signal.SIGINT)
        run.wait(10)
    assert "limiterd stopped" in said.read_text()
