"""The server against real clients over loopback: well-behaved ones, and every kind that means harm or does it anyway."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiterd.core.errors import EnvironmentFault
from limiterd.core.model import MetricsConfig, Tls
from limiterd.serve import http_server as server_module
from limiterd.serve.http_connections import Limits, Route
from limiterd.serve.http_negotiation import coding, media_type
from limiterd.serve.http_server import HttpServer
from limiterd.serve.http_wire import BadRequestError, Request, Response, encode_head, parse_request
from limiterd.serve.listen import Certificate, parse_listen
from tests import needs

PATIENCE_S: Final = 20.0
LOOPBACK: Final = MetricsConfig("127.0.0.1:0")
BIG: Final = b"x" * (16 * 1024 * 1024)
"""More than the kernel buffers for a client that does not read."""
FAST: Final = Limits(retry_first_s=0.02, retry_last_s=0.05)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; fail with its name."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


@dataclass
class Site:
    """Routes whose slow answer can be held up by the test."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    made: int = 0

    def slow(self, _: Request) -> Response:
        """Answered once the gate opens; each making has a number."""
        self.made += 1
        number = self.made
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        return Response(b"made %d" % number)

    @staticmethod
    def broken(_: Request) -> Response:
        """Never answered."""
        raise KeyError("eth0")

    @staticmethod
    def stalled(_: Request) -> Response:
        """Not answered for now."""
        raise EnvironmentFault("the loop did not answer")

    @property
    def routes(self) -> dict[str, Route]:
        """What the server serves."""
        return {
            "/": Route(lambda _: Response(b"page")),
            "/quick": Route(lambda _: Response(b"ok"), quick=True),
            "/big": Route(lambda _: Response(bytes(bytearray(BIG)))),  # a new object each time
            "/slow": Route(self.slow),
            "/broken": Route(self.broken),
            "/stalled": Route(self.stalled),
        }


@contextmanager
def serving(config: MetricsConfig = LOOPBACK, limits: Limits = FAST, site: Site | None = None) -> Iterator[HttpServer]:
    """A running server, closed at the end whatever happens."""
    site = site or Site()
    server = HttpServer(config, site.routes, limits=limits)
    server.start()
    try:
        yield server
    finally:
        site.gate.set()
        server.close()


def connect(server: HttpServer) -> socket.socket:
    """A client's connection."""
    assert server.address is not None, server.problem
    return socket.create_connection(server.address, timeout=PATIENCE_S)


def everything(sock: socket.socket) -> bytes:
    """All bytes up to the end of the connection, however it ends."""
    found = bytearray()
    with suppress(ConnectionError):
        while data := sock.recv(65_536):
            found += data
    return bytes(found)


def exchange(server: HttpServer, sent: bytes) -> bytes:
    """What the server answers to these bytes until it closes."""
    with connect(server) as sock:
        sock.sendall(sent)
        return everything(sock)


def get(server: HttpServer, path: str, method: str = "GET", version: str = "1.1", extra: str = "Connection: close\r\n") -> bytes:
    """One request on a connection of its own."""
    return exchange(server, f"{method} {path} HTTP/{version}\r\nHost: x\r\n{extra}\r\n".encode())


def status_of(answer: bytes) -> int:
    """The status code of an answer."""
    return int(answer.split(b" ", 2)[1])


def open_connections(server: HttpServer) -> int:
    """How many connections the server holds."""
    return len(server._connections)


# ---- requests and answers ------------------------------------------------------------------------------


def test_get_and_head() -> None:
    """HEAD has the headers of GET, the length included, and no body."""
    with serving() as server:
        answer = get(server, "/")
        head, body = answer.split(b"\r\n\r\n", 1)
        assert (status_of(answer), body) == (200, b"page")
        bare = get(server, "/", method="HEAD")
        assert bare.endswith(b"\r\n\r\n")
        assert b"Content-Length: 4\r\n" in bare

        def but_date(text: bytes) -> bytes:
            return re.sub(rb"Date: [^\r]*", b"", text)

        assert but_date(bare) == but_date(head + b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_read_only(method: str) -> None:
    """Every method but GET and HEAD is refused, and told which there are."""
    with serving() as server:
        answer = get(server, "/", method=method)
        assert status_of(answer) == 405
        assert b"Allow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /nothing HTTP/1.0\r\n\r\n", 404),
        (b"GET /quick/ HTTP/1.0\r\n\r\n", 404),
        (b"GET /../quick HTTP/1.0\r\n\r\n", 404),
        (b"GET /quick?name=x HTTP/1.0\r\n\r\n", 200),
        (b"GET http://elsewhere/quick HTTP/1.0\r\n\r\n", 200),
        (b"GET /quick HTTP/1.0\n\n", 200),
        (b"GET /quick HTTP/2.0\r\n\r\n", 505),
        (b"GET /quick\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /quick HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /quick HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET /quick HTTP/1.1\r\nX: " + b"y" * 20_000, 431),
    ],
)
def test_what_is_no_plain_request_is_refused(sent: bytes, status: int) -> None:
    """Unknown paths, other versions, malformed and oversized headers have their own status each."""
    with serving() as server:
        assert status_of(exchange(server, sent)) == status


def test_security_headers_on_every_answer() -> None:
    """Even an error carries the headers that keep browsers from guessing, framing or caching."""
    with serving() as server:
        for path in ("/", "/nothing"):
            answer = get(server, path)
            for header in (
                b"X-Content-Type-Options: nosniff",
                b"Content-Security-Policy: default-src 'none'",
                b"Cache-Control: no-store",
            ):
                assert header in answer


def test_one_connection_serves_many_requests() -> None:
    """A connection stays open for the next request, and requests sent ahead are answered in their order."""
    with serving() as server, connect(server) as sock:
        line = "GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n"
        sock.sendall((line.format("/", "") + line.format("/quick", "") + line.format("/", "Connection: close\r\n")).encode())
        bodies = re.findall(rb"\r\n\r\n(page|ok)", everything(sock))
        assert bodies == [b"page", b"ok", b"page"]


def counted_turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a loop has turned from now on."""
    turns = [0]
    turn = asyncio.SelectorEventLoop._run_once  # type: ignore[attr-defined]  # asyncio's own; there is no other way to count

    def counted(self: asyncio.SelectorEventLoop) -> None:
        turns[0] += 1
        turn(self)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "_run_once", counted)
    return turns


def test_a_client_in_a_hurry_has_its_turn_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many requests sent at once the loop answers one a turn, so that others come in between; all are answered."""
    turns = counted_turns(monkeypatch)
    with serving() as server, connect(server) as sock:
        sock.sendall(b"GET /quick HTTP/1.1\r\n\r\n" * 299 + b"GET /quick HTTP/1.0\r\n\r\n")
        assert everything(sock).count(b"\r\n\r\nok") == 300
        assert turns[0] >= 300


def test_a_body_is_never_read_and_the_answer_arrives() -> None:
    """A client that sends a large body gets its refusal and the end of the connection, not a reset."""
    with serving() as server:
        answer = exchange(server, b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"z" * 300_000)
        assert status_of(answer) == 405
        assert b"Connection: close" in answer


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_bad_one(head: bytes) -> None:
    """Whatever arrives, the parser gives a request or raises its one error."""
    with suppress(BadRequestError):
        assert isinstance(parse_request(head), Request)


def test_headers_given_by_an_answer_win() -> None:
    """An answer's own policy replaces the default one: each header is there once."""
    head = encode_head(Response(b"", headers=(("Content-Security-Policy", "mine"),)), keep_alive=True)
    assert head.count(b"Content-Security-Policy") == 1
    assert b"Content-Security-Policy: mine" in head


PLAIN, OPEN = ("text/plain", "0.0.4"), ("application/openmetrics-text", "1.0.0")
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html, */*;q=0.1", PLAIN),
        ("application/openmetrics-text", OPEN),
        ("APPLICATION/OpenMetrics-Text ; Q=0.9, text/plain;q=0.5", OPEN),
        ("application/openmetrics-text;q=0.5, text/plain", PLAIN),
        ("application/openmetrics-text;q=0, */*", PLAIN),
        ("application/openmetrics-text;q=0", PLAIN),
        ("text/plain;q=0, */*;q=0.1", OPEN),
        ("text/*;q=0.1, */*;q=0.2", OPEN),
        ("application/*", OPEN),
        ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", PLAIN),
        ('application/openmetrics-text;version="1.0.0"', OPEN),
        (PROMETHEUS, OPEN),
        ("application/openmetrics-text;q=2, text/plain;q=0.1", PLAIN),
        ("application/openmetrics-text;q=nonsense", PLAIN),
        ("image/png", PLAIN),
        (",,;q=1,", PLAIN),
    ],
)
def test_the_best_media_type(header: str, chosen: tuple[str, str]) -> None:
    """The highest weight wins, of equals the first offer; the most specific range counts; 0 refuses; nonsense is left out."""
    offers = (PLAIN, OPEN)
    assert offers[media_type(header, offers)] == chosen


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("", "identity"),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP;q=0.1", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip;q=0.000, *", "identity"),
        ("gzip;q=0.5, identity", "identity"),
        ("gzip;q=0.5, identity;q=0.5", "gzip"),
        ("*", "gzip"),
        ("*;q=0", "identity"),
        ("deflate, br", "identity"),
        ("gzip;q=1.001", "identity"),
    ],
)
def test_the_best_coding(header: str, chosen: str) -> None:
    """Weights decide; q=0 is a refusal, and what is not named is not forced on anybody."""
    assert coding(header) == chosen


@given(st.text(max_size=200) | st.lists(st.sampled_from([*"/*;,q=.015 ", "gzip", "text/plain", "identity"])).map("".join))
def test_any_header_gets_a_choice(header: str) -> None:
    """Whatever a client sends, there is an answer, and it is one of the offers."""
    assert media_type(header, (PLAIN, OPEN)) in {0, 1}
    assert coding(header) in {"gzip", "identity"}


# ---- clients that do harm ------------------------------------------------------------------------------


def test_a_slow_header_is_cut_off() -> None:
    """A header that trickles in is cut off at its deadline, however steadily it trickles."""
    with serving(limits=Limits(request_s=0.3)) as server, connect(server) as sock:
        with suppress(ConnectionError):
            until(lambda: open_connections(server) == 1, "connected")
            while open_connections(server):
                sock.sendall(b"X")
                time.sleep(0.01)
        until(lambda: open_connections(server) == 0, "the slow client was cut off")
        assert everything(sock) == b""


def test_a_trickling_second_request_is_cut_off_too() -> None:
    """The long patience for an idle connection ends with the first byte of its next request."""
    with serving(limits=Limits(request_s=0.3, idle_s=PATIENCE_S * 2)) as server, connect(server) as sock:
        sock.sendall(b"GET /quick HTTP/1.1\r\n\r\nGE")
        assert everything(sock).endswith(b"ok")
        until(lambda: open_connections(server) == 0, "the slow client was cut off")


def test_an_idle_connection_ends() -> None:
    """A connection without a next request is closed after the idle time."""
    with serving(limits=Limits(idle_s=0.1)) as server, connect(server) as sock:
        sock.sendall(b"GET /quick HTTP/1.1\r\n\r\n")
        assert everything(sock).endswith(b"ok")


def test_a_client_that_does_not_read_is_cut_off() -> None:
    """An answer that nobody reads costs its memory until the deadline and no longer."""
    with serving(limits=Limits(send_s=0.3)) as server, connect(server) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        until(lambda: server._connections._unread_bytes == len(BIG), "the answer waits to be read")
        until(lambda: open_connections(server) == 0, "the client was cut off")
        assert server._connections._unread_bytes == 0


def test_a_large_answer_arrives_whole() -> None:
    """A client that reads gets all of a large answer."""
    with serving() as server:
        assert get(server, "/big").endswith(BIG)


def test_unread_answers_are_bounded_together() -> None:
    """When unread answers grow too many the slowest reader goes, and the newcomer is served."""
    with serving(limits=Limits(unread_bytes=2 * len(BIG))) as server, ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(5)]
        for count, sock in enumerate(socks, 1):
            sock.sendall(b"GET /big HTTP/1.1\r\n\r\n")
            dropped, unread = max(0, count - 2), min(2, count) * len(BIG)
            until(lambda n=5 - dropped: open_connections(server) == n, "the slowest reader went")  # type: ignore[misc]
            until(lambda n=unread: server._connections._unread_bytes == n, "the answer waits")  # type: ignore[misc]
        assert open_connections(server) == 2
        assert get(server, "/").endswith(b"page")


def test_a_scrape_beside_500_idle_connections() -> None:
    """500 clients that say nothing keep nobody from being served, and are themselves left alone until their time."""
    with ExitStack() as stack:
        stack.enter_context(descriptors(4096))
        server = stack.enter_context(serving())
        for _ in range(500):
            stack.enter_context(connect(server))
        until(lambda: open_connections(server) == 500, "all are connected")
        assert get(server, "/").endswith(b"page")
        assert open_connections(server) >= 500


def test_a_newcomer_replaces_the_one_that_idles_longest() -> None:
    """At the limit of connections a new client is served in the place of the one nearest to its deadline."""
    with serving(limits=Limits(connections=3)) as server, ExitStack() as stack:
        idlers = []
        for count in range(1, 4):
            idlers.append(stack.enter_context(connect(server)))
            until(lambda n=count: open_connections(server) == n, "connected")  # type: ignore[misc]
        assert get(server, "/quick").endswith(b"ok")
        assert everything(idlers[0]) == b""
        idlers[2].sendall(b"GET /quick HTTP/1.0\r\n\r\n")
        assert everything(idlers[2]).endswith(b"ok")


def test_half_of_the_descriptors_stay_with_the_process() -> None:
    """However many connections are allowed, they take at most half of the descriptors that the process may open."""
    with descriptors(256), serving() as server:
        assert server._capacity == 128


@contextmanager
def descriptors(limit: int) -> Iterator[None]:
    """The process may open that many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_running_out_of_descriptors_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without free descriptors the server says so, rests between attempts, and serves again when there are some."""
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE_S", 0.1)
    turns = counted_turns(monkeypatch)
    with serving() as server, ExitStack() as stack:
        assert server.address is not None
        sock = stack.enter_context(socket.socket())
        sock.settimeout(PATIENCE_S)
        with ExitStack() as hoard:
            last = os.dup(0)
            hoard.callback(os.close, last)
            hoard.enter_context(descriptors(last + 1))
            with suppress(OSError):
                while True:
                    hoard.callback(os.close, os.dup(0))
            sock.connect(server.address)
            sock.sendall(b"GET /quick HTTP/1.0\r\n\r\n")
            until(lambda: "EMFILE" in (server.problem or ""), "the problem is named")
            before, began = turns[0], time.monotonic()
            until(lambda: turns[0] >= before + 6, "it tries again")
            assert turns[0] - before <= 6 + 4 * (time.monotonic() - began) / 0.1, "a busy loop"
        assert everything(sock).endswith(b"ok")
        assert server.problem is None


def test_tls_to_the_plain_port_is_told_so_at_once() -> None:
    """A TLS hello is answered in the clear with a 400, long before any deadline."""
    with serving(limits=Limits(request_s=PATIENCE_S * 3)) as server:
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLError, match=r"WRONG_VERSION_NUMBER|wrong version number"), connect(server) as sock:
            context.wrap_socket(sock, server_hostname="x")
        answer = exchange(server, b"\x16\x03\x01\x02\x00\x01\x00")
        assert status_of(answer) == 400
        assert b"plain HTTP, not HTTPS" in answer


# ---- the worker ----------------------------------------------------------------------------------------


def test_a_quick_answer_does_not_wait_for_the_worker() -> None:
    """While the worker is busy the quick routes are still answered."""
    site = Site()
    with serving(site=site) as server, connect(server) as sock:
        sock.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        assert site.entered.acquire(timeout=PATIENCE_S)
        assert get(server, "/quick").endswith(b"ok")
        site.gate.set()
        assert everything(sock).endswith(b"made 1")


def test_waiting_requests_share_one_answer_that_began_after_them() -> None:
    """Requests that wait for the worker share the next answer; none gets one that was begun before it asked."""
    site = Site()
    with serving(site=site) as server, ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(20)]
        socks[0].sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        assert site.entered.acquire(timeout=PATIENCE_S)
        for sock in socks[1:]:
            sock.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        until(lambda: sum(len(answer.waiters) for answer in server._connections._open_answers.values()) == 19, "all have asked")
        site.gate.set()
        assert [everything(sock)[-6:] for sock in socks] == [b"made 1"] + [b"made 2"] * 19


def test_a_failing_answer_is_a_500_and_a_problem() -> None:
    """An error in an answer is told to the client in general, to the operator in particular, and ends nothing."""
    with serving() as server:
        assert status_of(get(server, "/broken")) == 500
        assert "KeyError('eth0')" in (server.problem or "")
        assert get(server, "/").endswith(b"page")


def test_a_failed_answer_is_a_problem_for_a_while_only() -> None:
    """Where nobody asks for it again it is no fault for ever."""
    with serving(limits=replace(FAST, failure_s=0.0)) as server:
        assert status_of(get(server, "/broken")) == 500
        assert server.problem is None


def test_what_the_environment_did_is_told_in_its_own_words() -> None:
    """A foreseen failure is a sentence, not a class's name."""
    with serving() as server:
        assert status_of(get(server, "/stalled")) == 500
        assert server.problem == "the answer for /stalled cannot be made: the loop did not answer"


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    """A client is not kept for ever by an answer that does not come."""
    site = Site()
    with serving(limits=Limits(answer_s=0.1), site=site) as server, connect(server) as sock:
        sock.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        assert everything(sock) == b""


def test_a_client_that_left_is_forgotten() -> None:
    """An answer for somebody who has hung up is thrown away."""
    site = Site()
    with serving(site=site) as server:
        with connect(server) as sock:
            sock.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            assert site.entered.acquire(timeout=PATIENCE_S)
        site.gate.set()
        until(lambda: open_connections(server) == 0, "forgotten")
        assert get(server, "/").endswith(b"page")


# ---- where it listens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9817", "127.0.0.1", 9817),
        ("[::1]:9817", "::1", 9817),
        ("localhost:0", "localhost", 0),
        (":9817", "", 9817),
        ("*:9817", "", 9817),
        ("[::]:9817", "", 9817),
        ("0.0.0.0:9817", "0.0.0.0", 9817),  # noqa: S104 - only parsed
    ],
)
def test_listen_addresses(text: str, host: str, port: int) -> None:
    """IPv4, IPv6 in brackets, names, and every address."""
    assert parse_listen(text) == (host, port)


@pytest.mark.parametrize("text", ["9817", "localhost", "::1:9817", "127.0.0.1:http", "127.0.0.1:70000", "127.0.0.1:-1", "h:²"])
def test_bad_listen_addresses(text: str) -> None:
    """What is no address says so, and as a configuration it is a problem, not an exception."""
    with pytest.raises(ValueError, match=r"like (127.0.0.1:9817 or )?\[::1\]:9817"):
        parse_listen(text)
    with serving(MetricsConfig(text)) as server:
        assert text in (server.problem or "")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", ":0"])
def test_it_listens_on_every_kind_of_address(listen: str) -> None:
    """IPv4, IPv6, a name and the wildcard are served."""
    if listen.startswith("[") and not _has_ipv6():
        needs.missing("this machine has no IPv6 loopback")
    with serving(MetricsConfig(listen)) as server:
        assert server.problem is None
        assert get(server, "/").endswith(b"page")


def _has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


def test_a_taken_port_is_a_problem_and_retried() -> None:
    """A port that somebody else holds is named in `problem`, in the same words at each attempt; once free, it is served."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with serving(MetricsConfig(listen)) as server:
            assert listen in (server.problem or "")
            assert os.strerror(errno.EADDRINUSE) in (server.problem or "")
            assert server.address is None
            told = server.problem
            until(lambda: server._bind_delay_s == FAST.retry_last_s, "more attempts")
            assert server.problem == told
            other.close()
            until(lambda: server.address is not None, "it listens")
            assert server.problem is None
            assert get(server, "/").endswith(b"page")


def test_reconfiguring_moves_the_server() -> None:
    """A reload moves the server to another address, off and on again; the old address is closed."""
    with serving() as server:
        old = server.address
        assert old is not None
        server.reconfigure(MetricsConfig("localhost:0"))
        until(lambda: server.address not in (None, old), "it moved")
        assert get(server, "/").endswith(b"page")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(old, timeout=PATIENCE_S)
        server.reconfigure(MetricsConfig(None))
        until(lambda: server.address is None, "it is off")
        assert server.problem is None
        server.reconfigure(LOOPBACK)
        until(lambda: server.address is not None, "it is on")
        assert get(server, "/").endswith(b"page")


def test_an_equal_configuration_changes_nothing() -> None:
    """A reload that changes nothing for the server drops no connection."""
    with serving() as server, connect(server) as sock:
        until(lambda: open_connections(server) == 1, "connected")
        server.reconfigure(MetricsConfig("127.0.0.1:0"))
        sock.sendall(b"GET /quick HTTP/1.0\r\n\r\n")
        assert everything(sock).endswith(b"ok")


def test_close_ends_everything() -> None:
    """After close nothing is left: no thread, no descriptor, no listener; a second close is harmless."""
    until(lambda: not _threads(), "earlier servers are gone")
    before = _descriptors()
    with serving() as server:
        address = server.address
        assert address is not None
        sock = connect(server)
        assert get(server, "/").endswith(b"page")
        assert len(_threads()) == 2
    assert everything(sock) == b""
    sock.close()
    until(lambda: not _threads(), "the threads have ended")
    assert _descriptors() == before
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=PATIENCE_S)


def _descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("serve")]


def test_an_internal_error_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that the server did not foresee ends it alone, with a problem that says so."""
    seen: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type.__name__))
    server = HttpServer(LOOPBACK, {"/bad": Route(Site.broken, quick=True)})
    server.start()
    try:
        assert get(server, "/bad") == b""
        until(lambda: server.problem, "the problem is named")
        assert "internal error" in (server.problem or "")
        assert server.address is None
        until(lambda: seen == ["KeyError"], "the error is shown")
    finally:
        server.close()


# ---- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Tls]:
    """Two self-signed certificates for 127.0.0.1 with their keys."""
    openssl = needs.program("openssl", "openssl")
    directory = tmp_path_factory.mktemp("tls")
    made = []
    for name in ("first", "second"):
        tls = Tls(str(directory / f"{name}.pem"), str(directory / f"{name}.key"))
        kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        files = ["-out", tls.certificate, "-keyout", tls.key]
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([openssl, "req", *kind, *subject, *files], check=True, capture_output=True)
        made.append(tls)
    return made


@pytest.fixture
def tls(pairs: list[Tls], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tls:
    """Files of a server's own that a test may rotate; they are looked at often."""
    monkeypatch.setattr(server_module, "TLS_CHECK_S", 0.02)
    mine = Tls(str(tmp_path / "server.pem"), str(tmp_path / "server.key"))
    install(pairs[0], mine)
    return mine


def install(pair: Tls, target: Tls) -> None:
    """Put a pair in place as rotation tools do: write beside, then rename."""
    for source, path in ((pair.key, target.key), (pair.certificate, target.certificate)):
        shutil.copy(source, path + ".new")
        Path(path + ".new").replace(path)


def secure(server: HttpServer, trusted: Tls, **versions: ssl.TLSVersion) -> ssl.SSLSocket:
    """A client's TLS connection that trusts this certificate alone."""
    context = ssl.create_default_context(cafile=trusted.certificate)
    for name, version in versions.items():
        setattr(context, name, version)
    return context.wrap_socket(connect(server), server_hostname="127.0.0.1")


def secure_get(server: HttpServer, trusted: Tls) -> bytes:
    """One GET over TLS."""
    with secure(server, trusted) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return everything(sock)


def config_of(tls: Tls) -> MetricsConfig:
    """Loopback under TLS."""
    return MetricsConfig("127.0.0.1:0", tls)


def test_tls_is_served_from_1_2_on(tls: Tls, pairs: list[Tls]) -> None:
    """TLS 1.2 and 1.3 are spoken, older ones are not offered, and a plain client gets nothing."""
    with serving(config_of(tls)) as server:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            with secure(server, pairs[0], minimum_version=version, maximum_version=version) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert everything(sock).endswith(b"page")
        context = server._certificate.context if server._certificate else None
        assert context is not None
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert b"page" not in get(server, "/")


def test_a_large_answer_arrives_whole_over_tls(tls: Tls, pairs: list[Tls]) -> None:
    """Partial writes of TLS records lose and repeat nothing."""
    with serving(config_of(tls)) as server, secure(server, pairs[0]) as sock:
        sock.sendall(b"GET /big HTTP/1.0\r\n\r\n")
        assert everything(sock).split(b"\r\n\r\n", 1)[1] == BIG


def test_silent_tls_peers_block_nobody(tls: Tls, pairs: list[Tls]) -> None:
    """Peers that never begin their handshake cost nobody else anything."""
    with serving(config_of(tls), Limits(request_s=PATIENCE_S)) as server, ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(server))
        until(lambda: open_connections(server) == 50, "all are connected")
        assert secure_get(server, pairs[0]).endswith(b"page")


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"], ids=["silent", "half a hello"])
def test_an_unfinished_handshake_is_cut_off(tls: Tls, said: bytes) -> None:
    """A handshake that does not begin, or does not go on, ends at its deadline."""
    with serving(config_of(tls), Limits(request_s=0.2)) as server, connect(server) as sock:
        sock.sendall(said)
        assert everything(sock) == b""


def test_a_missing_certificate_is_a_problem_until_it_is_there(tls: Tls, pairs: list[Tls]) -> None:
    """Without its certificate nothing is served, least of all in the clear; when the file appears, it is."""
    Path(tls.certificate).unlink()
    with serving(config_of(tls)) as server:
        assert tls.certificate in (server.problem or "")
        assert os.strerror(errno.ENOENT) in (server.problem or "")
        assert server.address is None
        install(pairs[0], tls)
        until(lambda: server.address is not None, "it listens")
        assert server.problem is None
        assert secure_get(server, pairs[0]).endswith(b"page")


def test_a_rotated_certificate_is_picked_up(tls: Tls, pairs: list[Tls]) -> None:
    """After a rotation new connections see the new certificate, without a restart or a reload."""
    with serving(config_of(tls)) as server:
        assert secure_get(server, pairs[0]).endswith(b"page")
        context = server._certificate.context if server._certificate else None
        install(pairs[1], tls)
        until(lambda: server._certificate and server._certificate.context is not context and server.problem is None, "rotated")
        assert secure_get(server, pairs[1]).endswith(b"page")
        with pytest.raises(ssl.SSLCertVerificationError):
            secure_get(server, pairs[0])


def test_a_bad_rotation_keeps_the_previous_pair(tls: Tls, pairs: list[Tls]) -> None:
    """While certificate and key do not fit, or are no PEM, the previous pair goes on serving and the problem is named."""
    with serving(config_of(tls)) as server:
        shutil.copy(pairs[1].key, tls.key)
        until(lambda: "previous one goes on" in (server.problem or ""), "the problem is named")
        assert secure_get(server, pairs[0]).endswith(b"page")
        Path(tls.certificate).write_text("no certificate", encoding="ascii")
        until(lambda: "previous one goes on" in (server.problem or ""), "the problem is named")
        assert secure_get(server, pairs[0]).endswith(b"page")
        install(pairs[1], tls)
        until(lambda: server.problem is None, "the problem is over")
        assert secure_get(server, pairs[1]).endswith(b"page")


def test_plain_http_to_the_tls_port_is_told_so_at_once(tls: Tls) -> None:
    """It gets a sentence in the clear, and nothing else is ever served so."""
    with serving(config_of(tls), Limits(request_s=PATIENCE_S * 3)) as server:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"G", b"\r\n"):
            answer = exchange(server, said)
            assert status_of(answer) == 400
            assert b"HTTPS, not plain HTTP" in answer
            assert b"page" not in answer


def test_an_encrypted_key_asks_nobody(pairs: list[Tls], tmp_path: Path) -> None:
    """A key with a password is an error at once, not a question on a terminal that a daemon has not."""
    openssl = shutil.which("openssl")
    assert openssl is not None
    locked = Tls(pairs[0].certificate, str(tmp_path / "locked.key"))
    subprocess.run(
        [openssl, "ec", "-in", pairs[0].key, "-aes256", "-passout", "pass:secret", "-out", locked.key],
        check=True,
        capture_output=True,
    )
    assert "nothing is served" in (Certificate(locked).refresh() or "")


def test_switching_tls_on_serves_nothing_in_the_clear(tls: Tls, pairs: list[Tls]) -> None:
    """A reload that adds TLS ends idle plain connections; from then on only TLS is spoken."""
    with serving() as server, connect(server) as sock:
        sock.sendall(b"GET /quick HTTP/1.1\r\n\r\n")
        assert sock.recv(1) == b"H"
        server.reconfigure(config_of(tls))
        assert everything(sock).endswith(b"ok")
        assert secure_get(server, pairs[0]).endswith(b"page")
        assert HTTPStatus.OK.phrase.encode() not in get(server, "/")
