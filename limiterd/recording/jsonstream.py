"""JSON text that is larger than memory, read value by value, with the line of everything that is wrong in it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Final

from limiterd.recording.source import RecordingError

MAX_VALUE_CHARS: Final = 1 << 20
_SPACE: Final = re.compile(r"[ \t\n\r]*")


class JsonStream:
    """A cursor in one JSON text. Whoever reads decides which containers to walk into and which to take as one value."""

    def __init__(self, name: str, chunks: Iterator[bytes]) -> None:
        self._name = name
        self._chunks = chunks
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._scan = json.JSONDecoder(parse_float=Decimal).raw_decode
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def error(self, what: str) -> RecordingError:
        """The error for the current line."""
        return self._error_at(self._at, what)

    def error_in_value(self, what: str) -> RecordingError:
        """The error for the line of the last figure in the value that was read last."""
        return self._error_at(len(self._text[: self._at].rstrip("]} \t\r\n")), what)

    def _error_at(self, at: int, what: str) -> RecordingError:
        line = self._line + self._text.count("\n", 0, at)
        return RecordingError(f"{self._name}:{line}: {what}")

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def value(self) -> object:
        """The next value, whole; fractions as Decimal. Raises RecordingError."""
        self.peek()
        while True:
            problem = ""
            try:
                value, end = self._scan(self._text, self._at)
            except (ValueError, RecursionError) as error:
                problem = str(error).partition(":")[0]
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_VALUE_CHARS or not self._more():
                raise self._broken(problem)

    def members(self) -> Iterator[str]:
        """The keys of an object, each in time to read its value."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            key = self.value()
            self._take(":")
            yield str(key)
            if self._take(",}") == "}":
                return

    def items(self) -> Iterator[None]:
        """The places of a list, each in time to read its value."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        while True:
            yield
            if self._take(",]") == "]":
                return

    def _take(self, wanted: str) -> str:
        found = self.peek()
        if not found or found not in wanted:
            raise self._broken(f"{' or '.join(wanted)} is missing")
        self._at += 1
        return found

    def _broken(self, what: str) -> RecordingError:
        return self.error(f"not JSON ({what or 'a value without end'})" + ("; is the file cut off?" if self._ended else ""))

    def _more(self) -> bool:
        """Read on; False when all was read."""
        if self._ended:
            return False
        chunk = next(self._chunks, b"")
        try:
            text = self._decode(chunk, not chunk)
        except UnicodeDecodeError:
            raise self.error("not UTF-8 text") from None
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + text
        self._at = 0
        self._ended = not chunk
        return True
