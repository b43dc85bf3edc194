"""What tests that touch the real kernel share: waiting for conditions, and running functions inside a namespace."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from limiterd.sim.netns import Namespace, inside
from tests.machine import Control

T = TypeVar("T")

LONG = bool(os.environ.get("LIMITERD_LONG"))
"""Whether every case of long lists is wanted (LIMITERD_LONG=1, `make test-long`), not only the telling ones."""

_ALONE_S = 0.5
"""Most waits are over by then, and need no control."""

_CHILD = """
import pickle, sys
sys.path[:0] = pickle.load(sys.stdin.buffer)
function, arguments = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(b"\\0result\\0" + pickle.dumps(function(*arguments)))
"""


def wait_for(condition: Callable[[], T], what: str, *, longest_s: float = 20.0, pause_s: float = 0.01) -> T:
    """The first true value of condition(); fails the test by saying what did not come within longest_s.

    Seconds beyond the first half are a control's (tests/machine.py): where the machine is busy there are fewer of them.
    """
    begun_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        control: Control | None = None
        while not (value := condition()):
            if control is None and time.monotonic() > begun_s + _ALONE_S:
                control = stack.enter_context(Control())
            if control is not None and control.seconds() > longest_s - _ALONE_S:
                raise AssertionError(f"not within {longest_s:g} s: {what} (last: {value!r})")
            time.sleep(pause_s)
    return value


def in_child(namespace: Namespace, function: Callable[..., T], *arguments: Any) -> T:
    """function(*arguments) in a process of its own inside the namespace (for what looks at /proc/net, as psutil does).

    function must be found by import (a module's own function); arguments and result must pickle.
    """
    with inside(namespace):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=pickle.dumps(sys.path) + pickle.dumps((function, arguments)),
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        )
    result: T = pickle.loads(done.stdout.split(b"\0result\0", 1)[1])  # noqa: S301 # written by our own child
    return result
