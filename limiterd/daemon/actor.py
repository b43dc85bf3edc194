"""Who asks something of the daemon, and how the audit trail and records name them."""

from __future__ import annotations

from typing import Protocol

from limiterd.core.text import MAX_NAME
from limiterd.daemon.host import hostname


class Actor(Protocol):
    """Who asks, as the socket's credentials tell."""

    @property
    def uid(self) -> int:
        """The effective user id."""

    @property
    def account(self) -> int:
        """The user id of the account that this one belongs to."""

    @property
    def name(self) -> str:
        """The user's name."""


def by(actor: Actor) -> str:
    """How the audit trail names somebody."""
    return f"{actor.name[:MAX_NAME]} (uid {actor.uid})"


def at_host(actor: Actor) -> str:
    """How a record names who approved it; the host, since records may be copied to another."""
    return f"{actor.name}@{hostname()}"
