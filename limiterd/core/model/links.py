"""The words for what is watched: links, and their counters at one instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """One instance of a network interface.

    incarnation counts the interfaces seen under one ifindex: an interface made anew is a new link even when the kernel
    hands out the same ifindex again. mac is "" where the device has none. altnames are names of the link like `name`,
    wherever people write one. kind is the kernel's word for what it is ("vlan", "veth"; "" for hardware), link_ifindex what
    it is bound to in this namespace, master_ifindex what it is a port of; 0 for none.
    """

    ifindex: int
    name: str
    mac: str = ""
    mtu: int = 1500
    gso_max_bytes: int = 65_536
    tx_queues: int = 1
    incarnation: int = 0
    up: bool = True
    altnames: tuple[str, ...] = ()
    kind: str = ""
    link_ifindex: int = 0
    master_ifindex: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All transmit counters at one instant; tx_bytes[i] belongs to links[i], and neither is changed afterwards.

    A sampler hands out the *same* links tuple as long as no link changed: consumers compare it by identity. A memoryview
    of native 64-bit words is the form of tx_bytes that is judged the fastest (core/lanes.py).
    """

    t_ns: int
    links: tuple[Link, ...]
    tx_bytes: Sequence[int]
