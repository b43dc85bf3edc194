"""Text from outside (names of links, processes and cgroups, reasons, ids, labels) as people may see it: one bound, one sanitizer.

Whatever a terminal, a browser or a reader's eye could be misled by is written as an escape: control and format characters
(bidirectional ones too), letters that turn the line's direction, blanks that look like nothing, marks stacked upon each
other, bytes that are no UTF-8. What is shown stands for one text alone: a backslash that would begin an escape is escaped itself.

What programs read (JSON, the audit trail's lines) keeps the text itself, in ASCII.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Final

MAX_NAME: Final = 64
"""Characters kept of a process's or a user's name."""
MAX_CGROUP: Final = 256
MAX_TEXT: Final = 1000
"""Characters kept of a reason, a message or any other text."""

_TURNING: Final = frozenset({"R", "AL", "AN", "RLE", "LRE", "RLO", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"})
_BLANK: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
_SELECTORS: Final = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_MOST_MARKS: Final = 2
"""Combining marks in a row that real scripts use."""


def shown(text: str, longest: int | None = None) -> str:
    """The text with escapes for all that could mislead, and cut to that many characters before, with "…" at its end."""
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(_pieces(text))


def is_plain(text: str) -> bool:
    """Whether `shown` leaves the text as it is."""
    return shown(text) == text


def _pieces(text: str) -> Iterator[str]:
    marks = _MOST_MARKS  # one at the beginning would change what stands before the text
    for char, following in zip(text, [*text[1:], ""], strict=True):
        marks = marks + 1 if unicodedata.category(char) in {"Mn", "Me"} else 0
        if char == "\\":
            yield r"\x5c" if following in {"x", "u", "U"} else char
        elif marks > _MOST_MARKS or _misleads(char):
            yield _escape(char)
        else:
            yield char


def _misleads(char: str) -> bool:
    return (
        not char.isprintable()
        or char in _BLANK
        or unicodedata.bidirectional(char) in _TURNING
        or any(first <= ord(char) <= last for first, last in _SELECTORS)
    )


def _escape(char: str) -> str:
    """Two digits after x are an ASCII control character or a byte that is no UTF-8; all others are named by their code point."""
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
