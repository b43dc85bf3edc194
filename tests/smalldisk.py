"""Functions of a test run on a tiny file system of their own, in a mount namespace that ends with them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests import needs

T = TypeVar("T")

_CHILD = """
import pickle, sys
sys.path[:0] = pickle.load(sys.stdin.buffer)
function, arguments = pickle.load(sys.stdin.buffer)
result = function(*arguments)
sys.stdout.buffer.write(b"\\0result\\0" + pickle.dumps(result))
"""


def on_tmpfs(directory: Path, function: Callable[..., T], *arguments: Any, options: str = "size=64k") -> T:
    """function(directory, *arguments) in a process that sees a tmpfs with these options at the directory.

    function must be found by import (a test module's own function); arguments and result must pickle.
    """
    mount = 'mount -t tmpfs -o "mode=700,$1" limiterd-test "$2" && shift 2 && exec "$@"'
    command = [*needs.private_mounts(), "sh", "-c", mount, "sh", options, str(directory)]
    told = pickle.dumps(sys.path) + pickle.dumps((function, (directory, *arguments)))
    done = subprocess.run([*command, sys.executable, "-c", _CHILD], input=told, capture_output=True, timeout=60, check=False)
    _before, mark, result = done.stdout.partition(b"\0result\0")
    assert mark, done.stderr.decode()
    value: T = pickle.loads(result)  # noqa: S301  # our own child's
    return value


def fill(directory: Path) -> Path:
    """Use up every byte of the file system; removing the returned file frees them."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


def remount(directory: Path, options: str) -> None:
    """Change the mount's options ("ro", "rw"): the mount's own, which root of a user namespace may change as well."""
    subprocess.run(["mount", "-o", f"remount,bind,{options}", str(directory)], check=True, capture_output=True)


def use_up_inodes(directory: Path) -> list[Path]:
    """Make empty files until no inode is left; removing one frees one."""
    made: list[Path] = []
    while True:
        path = directory / f"inode-{len(made)}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except OSError:
            return made
        made.append(path)
