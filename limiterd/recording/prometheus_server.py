"""A live Prometheus server, asked over HTTP in as many range queries as its limit of points needs.

Nothing that lets somebody in is ever shown: user and password of a URL go into a header and out of the name that errors,
report and picture give; a redirect is not followed, since the headers would go along.
"""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from http.client import HTTPException
from pathlib import Path
from typing import IO, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlencode, urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from limiterd.recording import scraped
from limiterd.recording.prometheus import METRIC, read, text_of
from limiterd.recording.source import CHUNK_BYTES, Recording, RecordingError

POINTS_PER_QUERY: Final = 10_000
"""A Prometheus server refuses more than 11 000 points a series."""
_PATH: Final = "/api/v1/query_range"
_TOKEN_MAX_CHARS: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and what it is to be told. name is its URL as it may be shown; headers are secret."""

    name: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)


def server(url: str, *, headers: tuple[str, ...] = (), token_file: str | None = None, ca: str | None = None) -> Server:
    """A server by its URL, `Name: value` headers, and files with a bearer token and with certificates. Raises RecordingError."""
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    base = _judged(scheme, place, login)
    told = [_header(base, text) for text in headers]
    if at:
        told.append(("Authorization", "Basic " + base64.b64encode(unquote(login).encode()).decode("ascii")))
    if token_file is not None:
        told.append(("Authorization", f"Bearer {_token(token_file)}"))
    if sum(name.lower() == "authorization" for name, _ in told) > 1:
        raise RecordingError(
            f"{base}: a user in the URL, --token-file and --header 'Authorization: …': only one of them can hold"
        )
    if ca is not None and scheme != "https":
        raise RecordingError(f"{base}: --ca is only for https URLs")
    return Server(base, base + _PATH, dict(told), None if ca is None else _tls(ca))


def _judged(scheme: str, place: str, login: str) -> str:
    """The URL without user and password, and without the path of range queries. Raises RecordingError."""
    shown = f"{scheme}://{place.partition('?')[0].partition('#')[0]}"
    if scheme not in {"http", "https"}:
        raise RecordingError(f"{shown}: only http and https URLs are supported")
    if set(login) & set("/?#"):
        raise RecordingError(f"{shown}: before the @ there is a character that must be written %2F, %3F or %23")
    if "?" in place or "#" in place:
        raise RecordingError(f"{shown}: give the server's address alone, and the query as --query SELECTOR --from TIME")
    try:
        parts = urlsplit(shown)
        parts.port  # noqa: B018 - it is judged when it is read
    except ValueError as error:
        raise RecordingError(f"{shown}: {error}") from None
    if not parts.hostname:
        raise RecordingError(f"{shown}: the URL names no host")
    return shown.rstrip("/").removesuffix(_PATH)


def _header(name_of_server: str, text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not name.strip().replace("-", "").isalnum() or not value.isprintable() or not text.isascii():
        raise RecordingError(f"{name_of_server}: a --header is no 'Name: value' of printable ASCII (its text is not shown)")
    return name.strip(), value


def _token(path: str) -> str:
    try:
        with Path(path).open(encoding="ascii") as file:
            token = file.read(_TOKEN_MAX_CHARS).strip()
    except OSError as error:
        raise RecordingError(f"--token-file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise RecordingError(f"--token-file {path}: one token on one line of ASCII is needed (its text is not shown)")
    return token


def _tls(path: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise RecordingError(f"--ca {path}: no certificates in PEM form") from None
    except OSError as error:
        raise RecordingError(f"--ca {path}: {error.strerror or error}") from None


def query(
    url: str | Server,
    *,
    start_s: int,
    end_s: int,
    step_s: Decimal,
    selector: str = METRIC,
    label: str | None = None,
    timeout_s: float = 30.0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Recording:
    """Ask for the span; progress is told how many of how many queries are answered. Raises RecordingError."""
    asked = server(url) if isinstance(url, str) else url
    chunk = max(1, int(step_s * POINTS_PER_QUERY))
    spans = [(at, min(at + chunk, end_s)) for at in range(start_s, end_s, chunk)]
    opener = build_opener(ProxyHandler(), HTTPHandler(), HTTPSHandler(context=asked.tls), _NoRedirect())

    def answers() -> Iterator[tuple[str, str]]:
        for done, (start, end) in enumerate(spans):
            progress(done, len(spans))
            wanted = {"query": selector, "start": start, "end": end, "step": step_s}
            yield asked.name, text_of(asked.name, _answer(opener, asked, wanted, timeout_s))

    found = read(answers(), label)
    if not found.series and found.failure is None:
        raise RecordingError(f"{asked.name}: no series of {selector} in that time; see --query, --from and --to")
    return Recording(asked.name, *scraped.read(found, label))


class _NoRedirect(HTTPRedirectHandler):
    """Tells where a server sends the caller, instead of going there with its headers."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str) -> Request | None:
        """Refuse. Raises URLError."""
        del msg, headers
        fp.close()
        place = newurl.rpartition("@")[2] if "@" in newurl else newurl.partition("://")[2] or newurl
        where = place.partition("?")[0].removesuffix(_PATH)
        scheme = newurl.partition("://")[0] if "://" in newurl else req.type
        raise URLError(f"HTTP {code}: the server sends the query elsewhere; name that server instead: {scheme}://{where}")


def _answer(opener: OpenerDirector, asked: Server, parameters: Mapping[str, object], timeout_s: float) -> Iterator[bytes]:
    """The answer's body as it arrives. Raises RecordingError."""
    deadline_s = time.monotonic() + timeout_s
    request = Request(f"{asked.url}?{urlencode(parameters)}", headers=dict(asked.headers))  # noqa: S310 - http(s) only
    try:
        with opener.open(request, timeout=timeout_s) as response:
            while part := response.read1(CHUNK_BYTES):
                if time.monotonic() > deadline_s:
                    raise RecordingError(f"{asked.name}: the server is too slow; ask for a shorter span, or allow more --timeout")
                yield part
    except HTTPError as error:
        with error:  # it holds the connection
            raise RecordingError(f"{asked.name}: HTTP {error.code}: {_words(error)}") from error
    except URLError as error:
        raise RecordingError(f"{asked.name}: {error.reason}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise RecordingError(f"{asked.name}: {str(error) or type(error).__name__}") from error


def _words(error: HTTPError) -> str:
    """What the server says of its refusal: Prometheus' own words where it gives any."""
    text = error.read(65_536).decode(errors="replace")
    hint = {401: "; see --header, --token-file and user:password@ in the URL"}.get(error.code, "")
    try:
        answer = json.loads(text)
        return f"{answer['errorType']}: {answer['error']}{hint}"
    except (ValueError, LookupError, TypeError):
        return (text.strip()[:200] or str(error.reason)) + hint
