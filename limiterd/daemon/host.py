"""What the daemon asks of the machine that it runs on: its name, and what this process may do."""

from __future__ import annotations

import os
from typing import Final

CAP_NET_ADMIN: Final = 12
"""capabilities(7)."""


def has_capability(number: int) -> bool:
    """Whether this process holds a capability in its effective set."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123 - no path to build
        line = next((line for line in status if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(line.split()[1], 16) >> number & 1)


def hostname() -> str:
    """This machine's name as overrides' `hosts` match it."""
    return os.uname().nodename
