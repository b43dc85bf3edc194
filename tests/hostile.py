"""Unicode as an attacker writes it, and what must not be seen of it."""

from __future__ import annotations

import unicodedata
from typing import Final

from hypothesis import strategies as st

_CHARS: Final = (
    "\x00\x07\x08\t\n\r\x1b\x7f\x85\x9b\xa0\xad\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202d\u202e\u2066\u2067\u2069\ufeff"
    "\u05d0\u05d1\u0627\u0645\u0661\u07c0\u3164\u115f\uffa0\u2800\u034f\ufe0f\U000e0101\u0301\u0335\u0489\u20dd"
    "\ud800\udc80\udcff\ue000\U0010ffff\\xu<>&\"'`${}[]!%=#|~ aZ0é✓日"
)
HOSTILE: Final = st.text(st.sampled_from(_CHARS) | st.characters(), max_size=24) | st.sampled_from(
    [
        "\x1b[2J\x1b]0;owned\x07",
        "eth0\u202e\u2066",
        "<script>alert(1)</script>",
        "a\r\nSet-Cookie: x",
        '"} 1\nlimiterd_paused 1',
        "$x^2$",
    ]
)
NAMES: Final = HOSTILE.map(lambda text: text.replace("/", "").replace("\0", "")[:15] or "x")
"""Such as a link's or a process's name could be."""


def misleading(text: str) -> str:
    """The first character of a shown line that could mislead who looks at it; "" where there is none."""
    marks = 2
    for char in text:
        marks = marks + 1 if unicodedata.category(char) in {"Mn", "Me"} else 0
        turns = unicodedata.bidirectional(char) in {"R", "AL", "AN"}  # the marks for it are not printable anyway
        hides = char in "\u3164\u115f\u1160\uffa0\u2800\u034f" or 0xFE00 <= ord(char) <= 0xFE0F or 0xE0100 <= ord(char) <= 0xE01EF
        if not char.isprintable() or turns or hides or marks > 2:
            return repr(char)
    return ""
