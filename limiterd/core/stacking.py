"""Who sends through whom: links that are bound to another one, and bonds, teams and bridges through their ports.

A veth's other end is no lower link, and what is bound to a link of another namespace sends through none of this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from limiterd.core.model import Link

_BOUND: Final = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"})
_TUNNELS: Final = frozenset({"gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan", "ipip", "sit", "ip6tnl", "vxlan"})
_MASTERS: Final = frozenset({"bond", "team", "bridge"})


def lower_of(links: Iterable[Link]) -> Mapping[str, tuple[str, ...]]:
    """The names of the links that each link sends through directly; links that send through none are left out."""
    by_index = {link.ifindex: link for link in links}
    found: dict[str, list[str]] = {}
    for link in by_index.values():
        lower = by_index.get(link.link_ifindex) if link.kind in _BOUND | _TUNNELS else None
        if lower is not None:
            found.setdefault(link.name, []).append(lower.name)
        master = by_index.get(link.master_ifindex)
        if master is not None and master.kind in _MASTERS:
            found.setdefault(master.name, []).append(link.name)
    return {name: tuple(names) for name, names in found.items()}


def upper_of(lower: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    """The other way round: the names of the links that send through each link directly."""
    found: dict[str, list[str]] = {}
    for name, names in lower.items():
        for one in names:
            found.setdefault(one, []).append(name)
    return {name: tuple(names) for name, names in found.items()}
