"""What a test needs of the machine, beside Python. Where it is not there the test is skipped loudly, and in CI it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final, NoReturn

import pytest

NAMESPACES: Final = "needs CAP_SYS_ADMIN and CAP_NET_ADMIN (run as root, or allow user namespaces)"
SKIPPED: Final = "NOT TESTED: "
"""What every reason begins with: the report's last words tell all of them."""


def missing(what: str) -> NoReturn:
    """End this test, for what it needs is not there."""
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"{what}; in CI that is an error", pytrace=False)
    pytest.skip(f"{SKIPPED}{what}")


def program(name: str, package: str) -> str:
    """The path of a program, which a Debian package brings."""
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not installed (Debian package {package})")
    return path


def real_root() -> None:
    """Be root of the machine: in a user namespace of one's own other users' ids cannot be taken on."""
    ids = (int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines())
    if os.geteuid() != 0 or sum(ids) == 1:
        missing("needs root of the machine, not of a user namespace")


def private_mounts() -> tuple[str, ...]:
    """The command that runs another with mounts of its own; not to be had in a chroot, nor in most containers."""
    command, refusal = _private_mounts()
    if refusal:
        missing(f"needs a mount namespace with private mounts: {refusal}")
    return command


@cache
def _private_mounts() -> tuple[tuple[str, ...], str]:
    command = ("unshare", "--mount", "--propagation", "private")
    with tempfile.TemporaryDirectory() as place:
        trial = (*command, "mount", "-t", "tmpfs", "limiterd-test", place)
        done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return command, done.stderr.strip() if done.returncode else ""
