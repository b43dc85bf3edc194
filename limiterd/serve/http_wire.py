"""HTTP/1.x requests and answers as values: bytes in, bytes out (RFC 9110, RFC 9112). No sockets here.

Rule: what is not a plain request is refused with the status that says why; a request's body is never read.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VERSION: Final = re.compile(r"HTTP/1\.[0-9]")
_EVERY_ANSWER: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body (if any) left unread. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; its headers are added to, and win over, those that every answer carries."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: tuple[tuple[str, str], ...] = ()


class BadRequestError(Exception):
    """The peer's bytes are no request that is served here; status is the answer's."""

    def __init__(self, text: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(text)
        self.status = status


def parse_request(head: bytes) -> Request:
    """Read a request line and its headers, without the empty line that ends them. Raises BadRequestError."""
    first, *lines = head.decode("latin-1").replace("\r\n", "\n").lstrip("\n").split("\n")
    words = first.split(" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]):
        raise BadRequestError("the request line is malformed")
    method, target, version = words
    if not _VERSION.fullmatch(version):
        raise BadRequestError("only HTTP/1.0 and HTTP/1.1 are spoken here", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    headers = _parse_headers(lines)
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    persistent = "keep-alive" in options if version == "HTTP/1.0" else "close" not in options
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return Request(method, _path(target), headers, persistent and not has_body)


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not (colon and _TOKEN.fullmatch(name)):
            raise BadRequestError("a header line is malformed")
        key = name.lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return headers


def _path(target: str) -> str:
    """The path of an origin-form or absolute-form target, without its query."""
    if not target.startswith("/") and "://" in target:
        target = "/" + target.split("://", 1)[1].partition("/")[2]
    return target.partition("?")[0]


def plain(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
    """An answer of one line of text."""
    return Response(f"{text}\n".encode(), status=status, headers=headers)


def encode_head(response: Response, *, keep_alive: bool) -> bytes:
    """The status line and headers of an answer, ready to send."""
    fields = {
        "Date": email.utils.formatdate(usegmt=True),
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Connection": "keep-alive" if keep_alive else "close",
        **_EVERY_ANSWER,
        **dict(response.headers),
    }
    status = f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
    return (status + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n").encode("latin-1")
