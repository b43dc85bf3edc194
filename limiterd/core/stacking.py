"""Who sends through whom: links that are bound to another one, and bonds, teams and bridges through their ports.

A veth's other end is no lower link, and what is bound to a link of another namespace sends through none of this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from limiterd.core.model import Link, Phase, Status

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


def still_limited(status: Status, interface: str) -> list[str]:
    """What goes on limiting the bytes of a released link: what it sends through, and what sends through it."""
    links = {view.interface: view for view in status.links}
    view = links.get(interface)
    near = () if view is None else (*view.lower, *view.upper)
    limited = [links[name] for name in near if name in links and links[name].phase is Phase.LIMITED]
    return [
        f"{other.interface}, which {interface} sends through, still limits it: limiterctl release {other.interface} --reason …"
        if view is not None and other.interface in view.lower
        else f"{other.interface}, which sends through {interface}, is still limited itself"
        for other in limited
    ]
