"""Selectors as u32 filters, held against packets: an emulator of u32 on bytes, and a plain reading of the selector."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.model import CLASS_EXEMPT, CLASS_LIFELINE, Filter, Match
from limiterd.core.u32_filters import (
    ETH_ARP,
    ETH_IPV4,
    ETH_IPV6,
    OUR_PRIOS,
    PRIO_EXEMPT,
    PRIO_LIFELINE,
    _network,
    filters_for,
    is_link,
)

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
NUMBERS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6, "sctp": SCTP, "47": 47}


@dataclass(frozen=True)
class Packet:
    """A packet by its fields; fragment_offset and options_words are IPv4's. payload begins with the ports."""

    ethertype: int
    protocol: int = 0
    source: str = "192.0.2.1"
    destination: str = "198.51.100.1"
    source_port: int = 0
    destination_port: int = 0
    options_words: int = 0
    fragment_offset: int = 0

    def wire(self) -> bytes:
        """From the network header on."""
        payload = struct.pack(">HH16x", self.source_port, self.destination_port)
        if self.ethertype == ETH_ARP:
            return bytes(28)
        source, destination = ip_address(self.source).packed, ip_address(self.destination).packed
        if self.ethertype == ETH_IPV6:
            return struct.pack(">IHBB", 0x60000000, len(payload), self.protocol, 64) + source + destination + payload
        words = 5 + self.options_words
        head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 4 * words + len(payload), 0, self.fragment_offset, 64, self.protocol, 0)
        return head + source + destination + b"\x01" * (4 * self.options_words) + payload


def classified(filters: Sequence[Filter], packet: Packet) -> int:
    """What u32 makes of a packet: the flowid of the first filter that matches, by prio; 0 for none (u32_classify)."""
    wire = packet.wire()
    for prio in sorted({f.prio for f in filters}):
        group = [f for f in filters if f.prio == prio and f.ethertype == packet.ethertype]
        transport = 4 * (wire[0] & 0xF) if any(is_link(f) for f in group) else 0
        for item in group:
            if not is_link(item) and all(word_matches(wire, transport, key) for key in item.keys):
                return item.flowid
    return 0


def word_matches(wire: bytes, transport: int, key: tuple[int, int, int, bool]) -> bool:
    """One masked word of a packet against one key."""
    value, mask, offset, relative = key
    (word,) = struct.unpack_from(">I", wire, offset + (transport if relative else 0))
    return not (word ^ value) & mask


def means(match: Match, packet: Packet) -> bool:
    """The selector read as a person reads it, on the packet's fields."""
    if packet.ethertype == ETH_ARP or match.protocol == "arp":
        return packet.ethertype == ETH_ARP and match.protocol == "arp"
    ports = (match.port, match.source_port, match.destination_port)
    has_ports = packet.fragment_offset == 0 and packet.protocol in (TCP, UDP, SCTP)
    return (
        (match.protocol is None or NUMBERS[match.protocol] == packet.protocol)
        and all(
            text is None or (ip_address(address).version == ip_network(text).version and ip_address(address) in ip_network(text))
            for text, address in ((match.to, packet.destination), (match.from_net, packet.source))
        )
        and not (match.protocol == "icmp" and packet.ethertype == ETH_IPV6)
        and not (match.protocol == "icmpv6" and packet.ethertype == ETH_IPV4)
        and (ports == (None, None, None) or has_ports)
        and match.port in (None, packet.source_port, packet.destination_port)
        and match.source_port in (None, packet.source_port)
        and match.destination_port in (None, packet.destination_port)
    )


ports = st.sampled_from([22, 53, 443, 5353])
v4 = st.sampled_from(["10.1.2.3", "10.255.0.1", "192.0.2.1", "203.0.113.77"])
v6 = st.sampled_from(["2001:db8::1", "2001:db8:0:1::1", "fe80::1", "2001:db8:8000::1"])
nets = st.sampled_from(
    ["10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "203.0.113.64/26", "2001:db8::/32", "2001:db8:0:1::/64", "fe80::1/128"]
)
packets = st.one_of(
    st.just(Packet(ETH_ARP)),
    st.builds(
        Packet,
        st.just(ETH_IPV4),
        st.sampled_from([TCP, UDP, ICMP, SCTP, 47]),
        v4,
        v4,
        ports,
        ports,
        st.integers(0, 10),
        st.sampled_from([0, 0, 0, 1, 185]),
    ),
    st.builds(Packet, st.just(ETH_IPV6), st.sampled_from([TCP, UDP, SCTP, 47]), v6, v6, ports, ports),
)
ported = st.builds(
    Match,
    protocol=st.sampled_from([None, "tcp", "udp", "sctp"]),
    port=st.none() | ports,
    source_port=st.none() | ports,
    destination_port=st.none() | ports,
    to=st.none() | nets,
    from_net=st.none() | nets,
)
plain = st.builds(Match, protocol=st.sampled_from(["arp", "icmp", "icmpv6", "47"]), to=st.none() | nets)
selectors = st.one_of(ported, plain).filter(lambda m: m != Match() and not (m.protocol == "arp" and m.to))


@given(st.lists(selectors, min_size=1, max_size=4), packets)
def test_filters_match_what_the_selector_says_and_nothing_else(matches: list[Match], packet: Packet) -> None:
    """An exempt packet is one that some selector names, with IPv4 options too, never a later fragment by its ports."""
    verdict = classified(filters_for(tuple(matches), ()), packet)
    assert (verdict == CLASS_EXEMPT) == any(means(match, packet) for match in matches)


@given(st.lists(selectors, max_size=2), st.lists(selectors, max_size=2), packets)
def test_exempt_goes_before_lifeline(exempt: list[Match], lifeline: list[Match], packet: Packet) -> None:
    """A packet that both name is exempt."""
    if any(means(match, packet) for match in exempt):
        assert classified(filters_for(tuple(exempt), tuple(lifeline)), packet) == CLASS_EXEMPT
    elif any(means(match, packet) for match in lifeline):
        assert classified(filters_for(tuple(exempt), tuple(lifeline)), packet) == CLASS_LIFELINE


@pytest.mark.parametrize(
    ("packet", "alive"),
    [
        (Packet(ETH_ARP), True),
        (Packet(ETH_IPV4, UDP, source_port=68, destination_port=67), True),
        (Packet(ETH_IPV4, UDP, source_port=67, destination_port=68, options_words=3), True),
        (Packet(ETH_IPV4, UDP, source_port=67, destination_port=68, fragment_offset=10), False),
        (Packet(ETH_IPV4, TCP, source_port=68, destination_port=67), False),
        (Packet(ETH_IPV4, UDP, source_port=68, destination_port=53), False),
        (Packet(ETH_IPV6, UDP, "fe80::1", "ff02::1:2", 546, 547), True),
        (Packet(ETH_IPV6, UDP, "fe80::1", "fe80::2", 547, 546), True),
        (Packet(ETH_IPV6, UDP, "fe80::1", "fe80::2", 547, 545), False),
        *((Packet(ETH_IPV6, ICMPV6, "fe80::1", "fe80::2", kind << 8), 133 <= kind <= 137) for kind in (1, 128, *range(131, 140))),
    ],
)
def test_the_lifeline_always_carries_what_keeps_a_machine_on_its_network(packet: Packet, *, alive: bool) -> None:
    """ARP, neighbour discovery and DHCP are in the lifeline without being asked for; their likes are not."""
    assert (classified(filters_for((), ()), packet) == CLASS_LIFELINE) is alive


def test_a_port_without_protocol_means_those_that_have_ports() -> None:
    """Port 53 alone is TCP, UDP and SCTP, either side, both families: twelve filters and one link."""
    found = [f for f in filters_for((Match(port=53),), ()) if f.prio < PRIO_LIFELINE]
    assert len([f for f in found if is_link(f)]) == 1
    assert len([f for f in found if not is_link(f)]) == 12


def test_contradictions_match_nothing() -> None:
    """An IPv4 source with an IPv6 destination, or two different source ports, cannot be: no filter."""
    impossible = (
        Match(to="10.0.0.0/8", from_net="2001:db8::/32"),
        Match(protocol="tcp", port=22, source_port=23, destination_port=24),
    )
    assert all(f.prio >= PRIO_LIFELINE for f in filters_for(impossible, ()))


def test_equal_filters_stand_once() -> None:
    """Two selectors that say the same make one filter."""
    once, twice = filters_for((Match(to="10.0.0.0/8"),), ()), filters_for((Match(to="10.0.0.0/8"),) * 2, ())
    assert once == twice


@given(st.lists(selectors, max_size=3), st.lists(selectors, max_size=3))
def test_prios_are_ours_and_hold_one_ethertype_each(exempt: list[Match], lifeline: list[Match]) -> None:
    """The kernel allows one ethertype a prio; a link stands before the filters that need it."""
    filters = filters_for(tuple(exempt), tuple(lifeline))
    assert {f.prio for f in filters} <= OUR_PRIOS
    assert all((f.prio < PRIO_LIFELINE) == (f.flowid == CLASS_EXEMPT) for f in filters if not is_link(f))
    assert all(len({f.ethertype for f in filters if f.prio == prio}) == 1 for prio in {f.prio for f in filters})
    linked: set[int] = set()
    for item in filters:
        linked |= {item.prio} if is_link(item) else set()
        assert item.prio in linked or not any(relative for *_, relative in item.keys)
    assert PRIO_EXEMPT < PRIO_LIFELINE


def test_each_word_of_an_ipv6_network_is_its_own() -> None:
    """All 32 bit words that the prefix covers, the first at the first offset: as tc writes `match ip6 dst`."""
    words = list(_network(ETH_IPV6, "2001:db8:1:2:3:4:0:0/96", source=False))
    assert [(value, mask) for value, mask, _, _ in words] == [
        (0x20010DB8, 0xFFFFFFFF),
        (0x00010002, 0xFFFFFFFF),
        (0x00030004, 0xFFFFFFFF),
    ]
    assert [offset for _, _, offset, _ in words] == [24, 28, 32]
