"""The unit's system call filter, as systemd would install it: so that the daemons of the tests run under it.

The sets (@system-service …) are resolved by the installed systemd, the program is made by libseccomp, which systemd itself
uses. Where either is missing there is no filter, and `unit_filter` says so by None.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

SYSTEMD: Final = Path(__file__).resolve().parent.parent / "systemd"
UNIT: Final = SYSTEMD / "limiterd.service"
SOCKET_GROUP: Final = SYSTEMD / "drop-ins" / "socket-group.conf"
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_UNKNOWN: Final = -1
"""What libseccomp resolves the name of another architecture's system call to."""
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38
_BYTES_PER_STEP: Final = 8

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


@cache
def members(name: str) -> frozenset[str]:
    """The system calls of a set, with those of the sets in it; a system call is a set of its own."""
    if not name.startswith("@"):
        return frozenset({name})
    said = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout
    words = [word for line in said.splitlines()[1:] if (word := line.strip()) and not word.startswith("#")]
    return frozenset().union(*map(members, words))


def allowed(*files: Path) -> frozenset[str]:
    """What the unit's file and those of its drop-ins, in this order, leave to the daemon."""
    texts = "\n".join(file.read_text(encoding="utf-8") for file in files).splitlines()
    found = members("@default")
    for line in [text.partition("=")[2] for text in texts if text.startswith("SystemCallFilter=")]:
        listed = frozenset().union(*map(members, line.removeprefix("~").split()))
        found = found - listed if line.startswith("~") else found | listed
    return found


@cache
def unit_filter(*drop_ins: Path) -> Callable[[], None] | None:
    """A function that puts the process it is called in under the filter (Popen's preexec_fn); None where it cannot be made."""
    library = ctypes.util.find_library("seccomp")
    if library is None or shutil.which("systemd-analyze") is None:
        return None
    code = _compiled(ctypes.CDLL(library), allowed(UNIT, *drop_ins))
    steps = ctypes.create_string_buffer(code)

    def install() -> None:
        program = _Program(len(code) // _BYTES_PER_STEP, ctypes.addressof(steps))
        for arguments in (
            (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
        ):
            if _libc.prctl(*arguments) != 0:
                raise OSError(ctypes.get_errno(), "prctl")

    return install


def _compiled(library: ctypes.CDLL, names: frozenset[str]) -> bytes:
    """The program: these system calls, and EPERM for every other one (SystemCallErrorNumber=EPERM)."""
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ERRNO | errno.EPERM)))
    numbers = {number for name in names if (number := library.seccomp_syscall_resolve_name(name.encode())) != _UNKNOWN}
    for number in numbers:
        library.seccomp_rule_add(context, ctypes.c_uint32(_ALLOW), number, ctypes.c_uint(0))
    with os.fdopen(os.memfd_create("filter"), "rb") as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        library.seccomp_release(context)
        file.seek(0)
        return file.read()
