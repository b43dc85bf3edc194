"""A live Prometheus server, asked over HTTP in as many range queries as its limit of points needs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from decimal import Decimal
from http.client import HTTPException
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, ProxyHandler, build_opener

from limiterd.recording.jsonstream import JsonStream
from limiterd.recording.prometheus import METRIC, read
from limiterd.recording.source import CHUNK_BYTES, Recording, RecordingError

MAX_ANSWER_BYTES: Final = 256 << 20
POINTS_PER_QUERY: Final = 10_000
"""A Prometheus server refuses more than 11 000 points a series."""


def query(
    url: str,
    *,
    start_s: int,
    end_s: int,
    step_s: Decimal,
    selector: str = METRIC,
    timeout_s: float = 30.0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Recording:
    """Ask for the span; progress is told how many of how many queries are answered. Raises RecordingError."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise RecordingError(f"{url}: only http and https URLs are supported")
    chunk = max(1, int(step_s * POINTS_PER_QUERY))
    spans = [(at, min(at + chunk, end_s)) for at in range(start_s, end_s, chunk)]
    base = url.rstrip("/").removesuffix("/api/v1/query_range") + "/api/v1/query_range"

    def answers() -> Generator[JsonStream]:
        for done, (start, end) in enumerate(spans):
            progress(done, len(spans))
            wanted = {"query": selector, "start": start, "end": end, "step": step_s}
            with closing(_answer(base, wanted, timeout_s)) as body:
                yield JsonStream(base, body)

    with closing(answers()) as found:
        return Recording(url, *read(found))


def _answer(url: str, parameters: Mapping[str, object], timeout_s: float) -> Generator[bytes]:
    """The answer's body as it arrives. Raises RecordingError."""
    opener = build_opener(ProxyHandler(), HTTPHandler(), HTTPSHandler())
    deadline_s = time.monotonic() + timeout_s
    left = MAX_ANSWER_BYTES
    try:
        with opener.open(f"{url}?{urlencode(parameters)}", timeout=timeout_s) as response:
            while part := response.read1(CHUNK_BYTES):
                left -= len(part)
                if left < 0:
                    raise RecordingError(f"{url}: the answer is larger than {MAX_ANSWER_BYTES} bytes; ask for less at a time")
                if time.monotonic() > deadline_s:
                    raise RecordingError(f"{url}: the server is too slow; ask for a shorter span, or allow more --timeout")
                yield part
    except HTTPError as error:
        with error:  # it holds the connection
            raise RecordingError(f"{url}: HTTP {error.code}: {_words(error)}") from error
    except URLError as error:
        raise RecordingError(f"{url}: {error.reason}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise RecordingError(f"{url}: {str(error) or type(error).__name__}") from error


def _words(error: HTTPError) -> str:
    """What the server says of its refusal: Prometheus' own words where it gives any."""
    text = error.read(65_536).decode(errors="replace")
    try:
        answer = json.loads(text)
        return f"{answer['errorType']}: {answer['error']}"
    except (ValueError, LookupError, TypeError):
        return text.strip()[:200] or str(error.reason)
