"""How a value of the configuration is read and written again, kind by kind."""

from __future__ import annotations

import pytest

from limiterd.core.errors import UnitError
from limiterd.core.keys import Section
from limiterd.core.kinds import Kind, Protocol, rate
from limiterd.core.model import Guard, GuardMode
from limiterd.core.model.policies import INTERFACES


def test_a_plain_text_is_read_as_it_stands() -> None:
    """The kind without a rule of its own takes any text."""
    assert Kind().read("eth0") == "eth0"


@pytest.mark.parametrize(("text", "read"), [("TCP", "tcp"), ("0", "0"), ("17", "udp"), ("200", "200"), ("255", "255")])
def test_a_protocol_is_a_name_or_a_number(text: str, read: str) -> None:
    """Known names, in any case, and numbers that fit in a byte; a number that has a name is that name."""
    assert Protocol().read(text) == read


@pytest.mark.parametrize("text", ["256", "01", "-1", "quic?"])
def test_what_is_no_protocol_is_refused(text: str) -> None:
    """The error says what would be right."""
    with pytest.raises(UnitError, match="a number from 0 to 255"):
        Protocol().read(text)


@pytest.mark.parametrize("text", ["[ab]0[cd]", "[]]x", "[!]]", "eth[0-9]"])
def test_a_pattern_may_hold_several_classes(text: str) -> None:
    """Each "[" has its "]"; the first character of a class may be a bracket."""
    assert INTERFACES.kind.read(text) == text


@pytest.mark.parametrize("text", ["[ab]0[cd", "[", "[]", "[!]"])
def test_a_class_that_is_never_closed_is_refused(text: str) -> None:
    """The error names the bracket."""
    with pytest.raises(UnitError, match="never closed"):
        INTERFACES.kind.read(text)


def test_a_section_is_written_as_yaml() -> None:
    """Only what differs from the defaults is written, each value as its kind writes it; a rate is a bare number in JSON."""
    assert Section(Guard).write(Guard()) == "{}"
    assert Section(Guard).write(Guard(GuardMode.ENFORCE, 10**9)) == "{mode: enforce, burst: 1gbit}"
    assert rate(1).document(5) == 5
