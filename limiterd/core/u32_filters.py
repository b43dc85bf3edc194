"""Traffic selectors as u32 filters: which packets belong to the lifeline and which to the exempt class.

Rule: a filter matches the packets that its selector names, never others. What it cannot see (ports behind IPv6 extension
headers, ports of fragments other than the first) it does not match.

Theory of operation. u32 compares masked 32-bit words at fixed offsets from the network header. IPv6 has its ports at a
fixed place (no extension headers). IPv4 has them behind options of any length: a first filter of each IPv4 prio, the
*link*, reads the header's length and hands the packet on to the prio's own table, where `relative` words count from the
transport header. Non-first fragments hold data where ports would be: port filters ask for fragment offset 0.

Our filters are known by their prio: exempt ones come first. One prio holds one ethertype (the kernel's rule).
Layouts: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 4861 (neighbour discovery), RFC 2131 and RFC 8415 (DHCP).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import product
from typing import Final, NamedTuple

from limiterd.core.model import CLASS_EXEMPT, CLASS_LIFELINE, Filter, Match

ETH_IPV4: Final = 0x0800
ETH_IPV6: Final = 0x86DD
ETH_ARP: Final = 0x0806

PRIO_EXEMPT: Final = 0x1D00
PRIO_LIFELINE: Final = 0x1D10
_PRIO_OF_ETHERTYPE: Final = {ETH_ARP: 1, ETH_IPV4: 2, ETH_IPV6: 3}
OUR_PRIOS: Final = frozenset(base + n for base in (PRIO_EXEMPT, PRIO_LIFELINE) for n in _PRIO_OF_ETHERTYPE.values())
"""Whatever stands at these prios of our root is ours, or is replaced by what should be."""

PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "dccp": 33, "icmpv6": 58, "sctp": 132, "udplite": 136}
PORTED: Final = ("tcp", "udp", "sctp")
"""What a port without a protocol means."""
_FAMILIES_OF: Final = {"arp": (), "icmp": (ETH_IPV4,), "icmpv6": (ETH_IPV6,)}

Key = tuple[int, int, int, bool]
"""(value, mask, offset, relative), as in Filter.keys."""
EVERYTHING: Final[Key] = (0, 0, 0, False)
FIRST_FRAGMENT: Final[Key] = (0, 0x1FFF, 4, False)


class _Layout(NamedTuple):
    """Where a network header keeps things: offsets of words, masks within them."""

    protocol_offset: int
    protocol_shift: int
    source_offset: int
    destination_offset: int
    ports_offset: int
    ports_relative: bool
    address_words: int


_LAYOUTS: Final = {
    ETH_IPV4: _Layout(8, 16, 12, 16, 0, ports_relative=True, address_words=1),
    ETH_IPV6: _Layout(4, 8, 8, 24, 40, ports_relative=False, address_words=4),
}

_ND_TYPES: Final = ((133, 0xFF), (134, 0xFE), (136, 0xFE))
"""ICMPv6 133 to 137 as (type, mask): router and neighbour solicitation and advertisement, redirect."""
_DHCPV4_PORTS: Final = (67, 68)
_DHCPV6_PORTS: Final = (546, 0xFFFE)
"""546 and 547 as (port, mask)."""


@lru_cache(maxsize=256)
def filters_for(exempt: tuple[Match, ...], lifeline: tuple[Match, ...]) -> tuple[Filter, ...]:
    """All filters of a limit, in the order to install them: exempt before lifeline, each link before what needs it."""
    wanted = [
        *_filters(PRIO_EXEMPT, CLASS_EXEMPT, (keys for match in exempt for keys in _expand(match))),
        *_filters(PRIO_LIFELINE, CLASS_LIFELINE, _always()),
        *_filters(PRIO_LIFELINE, CLASS_LIFELINE, (keys for match in lifeline for keys in _expand(match))),
    ]
    linked: dict[Filter, None] = {}
    for item in wanted:
        if any(relative for *_, relative in item.keys):
            linked.setdefault(Filter(item.prio, item.ethertype, (EVERYTHING,), 0))
        linked.setdefault(item)
    return tuple(linked)


def is_link(item: Filter) -> bool:
    """Whether a filter only finds the transport header for others."""
    return item.flowid == 0 and bool(item.keys)


def _filters(prio: int, flowid: int, found: Iterable[tuple[int, tuple[Key, ...]]]) -> Iterator[Filter]:
    return (Filter(prio + _PRIO_OF_ETHERTYPE[ethertype], ethertype, keys, flowid) for ethertype, keys in found)


def _always() -> Iterator[tuple[int, tuple[Key, ...]]]:
    """What keeps a machine on its network: ARP, IPv6 neighbour discovery, DHCP."""
    yield ETH_ARP, (EVERYTHING,)
    for value, mask in _ND_TYPES:
        yield ETH_IPV6, (_protocol(ETH_IPV6, 58), (value << 24, mask << 24, 40, False))
    for port in _DHCPV4_PORTS:
        yield ETH_IPV4, (_protocol(ETH_IPV4, 17), FIRST_FRAGMENT, (port, 0xFFFF, 0, True))
    yield ETH_IPV6, (_protocol(ETH_IPV6, 17), (*_DHCPV6_PORTS, 40, False))


def _expand(match: Match) -> Iterator[tuple[int, tuple[Key, ...]]]:
    """A selector as alternatives: one for each family, protocol and side of a port that it allows."""
    if match.protocol == "arp":
        yield ETH_ARP, (EVERYTHING,)
        return
    for ethertype in _families(match):
        networks = [*_network(ethertype, match.from_net, source=True), *_network(ethertype, match.to, source=False)]
        for protocol, ports in product(_protocols(match), _ports(match)):
            keys = [*([] if protocol is None else [_protocol(ethertype, protocol)]), *networks]
            if ports is not None:
                keys += _port_keys(ethertype, *ports)
            yield ethertype, tuple(keys) or (EVERYTHING,)


def _families(match: Match) -> tuple[int, ...]:
    allowed = {ETH_IPV4, ETH_IPV6} & set(_FAMILIES_OF.get(match.protocol or "", (ETH_IPV4, ETH_IPV6)))
    for text in (match.to, match.from_net):
        if text is not None:
            allowed &= {_family(text)}
    return tuple(sorted(allowed))


def _family(text: str) -> int:
    return ETH_IPV4 if ip_network(text, strict=False).version == 4 else ETH_IPV6


def _protocols(match: Match) -> tuple[int | None, ...]:
    if match.protocol is not None:
        return (PROTOCOLS[match.protocol] if match.protocol in PROTOCOLS else int(match.protocol),)
    has_port = any(port is not None for port in (match.port, match.source_port, match.destination_port))
    return tuple(PROTOCOLS[name] for name in PORTED) if has_port else (None,)


def _ports(match: Match) -> tuple[tuple[int | None, int | None] | None, ...]:
    """(source, destination) alternatives; contradictory ones are left out. (None,) where no port is asked for."""
    fixed = (match.source_port, match.destination_port)
    if match.port is None:
        return (None,) if fixed == (None, None) else (fixed,)
    sides: list[tuple[int | None, int | None]] = []
    if match.source_port in (None, match.port):
        sides.append((match.port, match.destination_port))
    if match.destination_port in (None, match.port):
        sides.append((match.source_port, match.port))
    return tuple(dict.fromkeys(sides))


def _protocol(ethertype: int, number: int) -> Key:
    layout = _LAYOUTS[ethertype]
    return number << layout.protocol_shift, 0xFF << layout.protocol_shift, layout.protocol_offset, False


def _port_keys(ethertype: int, source: int | None, destination: int | None) -> tuple[Key, ...]:
    layout = _LAYOUTS[ethertype]
    mask = (0 if source is None else 0xFFFF0000) | (0 if destination is None else 0xFFFF)
    ports = ((source or 0) << 16 | (destination or 0), mask, layout.ports_offset, layout.ports_relative)
    return (FIRST_FRAGMENT, ports) if ethertype == ETH_IPV4 else (ports,)


def _network(ethertype: int, text: str | None, *, source: bool) -> Iterator[Key]:
    """The words of a network's address that its prefix covers."""
    if text is None:
        return
    network: IPv4Network | IPv6Network = ip_network(text, strict=False)
    layout = _LAYOUTS[ethertype]
    offset = layout.source_offset if source else layout.destination_offset
    address, mask = int(network.network_address), int(network.netmask)
    for word in range(layout.address_words):
        shift = 32 * (layout.address_words - 1 - word)
        word_mask = mask >> shift & 0xFFFFFFFF
        if word_mask:
            yield address >> shift & 0xFFFFFFFF, word_mask, offset + 4 * word, False
