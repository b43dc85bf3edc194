"""What can be asked: each message goes over the wire and comes back, and what is none is refused by name."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.errors import EXIT_USAGE, PeerError
from limiterd.daemon.verbs import VERBS
from limiterd.serve import messages, protocol
from limiterd.serve.messages import LONGEST_TEXT, MESSAGES, Message, decode

TEXTS = st.text(min_size=1, max_size=LONGEST_TEXT)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXTS,
    "str | None": st.none() | TEXTS,
    "int | None": st.none() | st.integers(min_value=0, max_value=1 << 62),
    "bool": st.booleans(),
    "Sequence[str] | None": st.none() | st.lists(TEXTS, max_size=3),
    "Mapping[str, object]": st.dictionaries(TEXTS, TEXTS, max_size=3),
}

ANY: st.SearchStrategy[Message] = st.sampled_from(list(MESSAGES.values())).flatmap(
    lambda kind: st.builds(kind, **{field.name: VALUES[str(field.type)] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
)


@given(ANY)
def test_a_message_comes_back(message: Message) -> None:
    """As JSON and decoded again it is the same; what has its default is not sent."""
    sent = json.dumps({"v": protocol.VERSION, "verb": message.verb, "args": message.args()})
    verb, args = protocol.parse_request(sent.encode())
    assert decode(MESSAGES[verb], args) == message
    assert None not in args.values()


@given(st.sampled_from(list(MESSAGES.values())), st.dictionaries(st.text(max_size=10), st.none() | st.text() | st.integers()))
def test_any_arguments_are_a_message_or_refused(kind: type[Message], args: dict[str, Any]) -> None:
    """Whatever the arguments are, the message has fields of their types, or the error names one."""
    made, said = decoded(kind, args)
    assert isinstance(made, kind) or any(said.startswith(f"{name} must ") for name in typing.get_type_hints(kind))


def decoded(kind: type[Message], args: dict[str, Any]) -> tuple[Message | None, str]:
    """The message, or why there is none."""
    try:
        return decode(kind, args), ""
    except PeerError as error:
        return None, str(error) if error.exit_code == EXIT_USAGE else ""


@pytest.mark.parametrize(
    ("kind", "args", "complaint"),
    [
        (messages.Limit, {"reason": "x"}, "interface must be a non-empty string"),
        (messages.Limit, {"interface": "", "reason": "x"}, "interface must be a non-empty string"),
        (messages.Limit, {"interface": "e", "reason": "x" * 501}, "reason must have at most 500 characters"),
        (messages.Limit, {"interface": "e", "reason": "x", "rate_bps": -1}, "rate_bps must be a whole number ≥ 0"),
        (messages.Limit, {"interface": "e", "reason": "x", "rate_bps": True}, "rate_bps must be a whole number ≥ 0"),
        (messages.Limit, {"interface": "e", "reason": "x", "force": 1}, "force must be true or false"),
        (messages.GetHistory, {"kinds": "limit"}, "kinds must be a list of strings"),
        (messages.GetHistory, {"kinds": [1]}, "kinds must be a list of strings"),
        (messages.AddOverride, {}, "record must be an object with the keys of an override"),
        (messages.AddOverride, {"record": []}, "record must be an object with the keys of an override"),
    ],
)
def test_a_wrong_argument_is_named(kind: type[Message], args: dict[str, Any], complaint: str) -> None:
    """One sentence says which and what it should be."""
    with pytest.raises(PeerError, match=f"^{complaint}$"):
        decode(kind, args)


def test_every_message_has_a_verb_that_does_it() -> None:
    """The tables of both ends name the same verbs."""
    assert set(MESSAGES) == set(VERBS) == set(protocol.VERBS)
