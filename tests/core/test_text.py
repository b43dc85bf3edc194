"""Text from outside: nothing that misleads gets through, nothing is taken for something else, plain text stays as it is."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.text import is_plain, shown
from tests.hostile import HOSTILE, misleading


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("nightly backup, 2 × faster – für Zoë ✓ 日本語 हिन्दी", None),
        ("C:\\temp", None),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("eth0\u202e0hte", "eth0\\u202e0hte"),
        ("\u05d0\u05d1 200", "\\u05d0\\u05d1 200"),
        ("\u0645\u0661", "\\u0645\\u0661"),
        ("eth0\u3164", "eth0\\u3164"),
        ("Z\u0335\u0321\u0322\u0341", "Z\u0335\u0321\\u0322\\u0341"),
        ("\u0301x", "\\u0301x"),
        ("e\u0301", None),
        (os.fsdecode(b"eth\xff"), "eth\\xff"),
        ("eth\\xff", "eth\\x5cxff"),
        ("\x9b2J", "\\u009b2J"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_shown(text: str, seen: str | None) -> None:
    """Real scripts stay; what a terminal obeys, what turns or hides text and what is no text is an escape."""
    assert shown(text) == (text if seen is None else seen)
    assert is_plain(text) is (seen is None)


@given(HOSTILE)
def test_nothing_that_misleads_is_shown(text: str) -> None:
    """Whatever goes in, what comes out is printable, runs left to right, and has no pile of marks."""
    seen = shown(text)
    assert not misleading(seen)
    seen.encode()


@given(st.lists(HOSTILE, min_size=2, max_size=8, unique=True))
def test_no_two_texts_look_the_same(texts: list[str]) -> None:
    """Different texts are shown differently."""
    assert len({shown(text) for text in texts}) == len(texts)


@given(HOSTILE, st.integers(1, 30))
def test_what_is_long_is_cut(text: str, longest: int) -> None:
    """At most so many characters of the text are shown, and a cut is visible."""
    seen = shown(text, longest)
    assert seen == (shown(text) if len(text) <= longest else shown(text[: longest - 1] + "…"))
    assert len(seen) <= 10 * longest


def test_marks_are_counted_as_unicode_does() -> None:
    """The test's own notion of a mark is the library's."""
    assert unicodedata.category("\u0301") == "Mn"
