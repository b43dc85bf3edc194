"""A live Prometheus server: who is let in, how, and that nothing secret is ever shown."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest

from limiterd.cli import main
from limiterd.recording import METRIC, RecordingError, query, server
from tests import needs

SECRET: Final = "s3cret%2Fword"  # noqa: S105 - nobody's
BODY: Final = json.dumps(
    {
        "status": "success",
        "data": {
            "resultType": "matrix",
            "result": [
                {
                    "metric": {"__name__": METRIC, "instance": "a:9100", "device": "eth0"},
                    "values": [[1_800_000_000 + k, str(k * 150_000_000)] for k in range(20)],
                }
            ],
        },
    }
)


class Web(ThreadingHTTPServer):
    """A server on loopback that gives one answer, and the headers that it was sent."""

    def __init__(self, code: int, body: str, headers: Mapping[str, str]) -> None:
        seen = self.seen = list[Message]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(self.headers)
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                """Keep quiet."""

        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not like the certificate is no news."""

    @property
    def place(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_address[1]}"


@contextmanager
def web(code: int = 200, body: str = BODY, **headers: str) -> Iterator[Web]:
    """A running server."""
    with Web(code, body, headers) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield http
        finally:
            http.shutdown()
            thread.join()


def replayed(capsys: pytest.CaptureFixture[str], directory: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of a replay, and all that it printed."""
    config = directory / "limiterd.yaml"
    config.write_text(f"overrides: {{directory: {directory}/none}}\n")
    code = main(["replay", *arguments, "--from", "1799999999", "--to", "1800000020", "--step", "1s", "--config", str(config)])
    out, err = capsys.readouterr()
    return code, out + err


def test_user_and_password_of_a_url_go_into_a_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They let the caller in, and are in nothing that is printed."""
    with web() as http:
        code, text = replayed(capsys, tmp_path, f"http://ops:{SECRET}@{http.place}")
        assert code == 0
        assert f"http://{http.place}, 20 ticks" in text
        assert http.seen[0]["Authorization"] == "Basic " + base64.b64encode(b"ops:s3cret/word").decode()
    assert "s3cret" not in text
    assert "ops" not in text


def test_headers_and_tokens_are_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--header for a tenant, --token-file for a bearer token."""
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    with web() as http:
        arguments = ("--header", "X-Scope-OrgID: team-1", "--token-file", str(token))
        code, text = replayed(capsys, tmp_path, f"http://{http.place}/", *arguments)
        assert code == 0
        assert http.seen[0]["X-Scope-OrgID"] == "team-1"
        assert http.seen[0]["Authorization"] == "Bearer t0ken"
    assert "t0ken" not in text


@pytest.mark.parametrize(
    "place", ["127.0.0.1:1", "127.0.0.1:no", "127.0.0.1:1/graph?g0.expr=up", "", "127.0.0.1:1/a?token=s3cret"]
)
@pytest.mark.parametrize("login", [f"ops:{SECRET}@", "ops:s3cret/word@", "s3cret@x@", "ops:s3cret?#@"])
def test_no_error_shows_a_secret(login: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with the URL or the server."""
    for scheme in ("http", "https", "ftp"):
        code, text = replayed(capsys, tmp_path, f"{scheme}://{login}{place}")
        assert code == 1
        assert text.startswith(f"limiterctl: {scheme}://")
        assert "s3cret" not in text
        assert "word" not in text


def test_a_refused_login_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """401 names the options; what was sent stays unsaid."""
    with web(401, "who are you?") as http:
        code, text = replayed(capsys, tmp_path, f"http://ops:{SECRET}@{http.place}")
    assert code == 1
    assert text == (
        f"limiterctl: http://{http.place}: HTTP 401: who are you?; see --header, --token-file and user:password@ in the URL\n"
    )


def test_a_redirect_is_told_not_followed() -> None:
    """The headers would go along to whoever is named."""
    with web(302, "", Location="https://other.example/prom/api/v1/query_range?query=up") as http:
        with pytest.raises(RecordingError, match=r"HTTP 302: .* name that server instead: https://other.example/prom$"):
            query(f"http://u:p@{http.place}", start_s=0, end_s=60, step_s=Decimal(1))
        assert len(http.seen) == 1


def test_an_answer_without_series_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A query that finds nothing ends with 1 and names the options."""
    with web(body='{"status":"success","data":{"resultType":"matrix","result":[]}}') as http:
        code, text = replayed(capsys, tmp_path, f"http://{http.place}", "--query", "nothing")
    assert code == 1
    assert text == f"limiterctl: http://{http.place}: no series of nothing in that time; see --query, --from and --to\n"


def test_options_that_cannot_hold_are_refused(tmp_path: Path) -> None:
    """A file that is missing or holds something else, two logins, a header that is none: named, without their text."""
    bad = tmp_path / "bad"
    bad.write_text("two words s3cret")
    for wanted, url, options in (
        ("No such file", "http://h", {"token_file": str(tmp_path / "none")}),
        ("one token on one line", "http://h", {"token_file": str(bad)}),
        ("No such file", "https://h", {"ca": str(tmp_path / "none")}),
        ("no certificates in PEM form", "https://h", {"ca": str(bad)}),
        ("only for https", "http://h", {"ca": str(bad)}),
    ):
        with pytest.raises(RecordingError, match=wanted) as caught:
            server(url, token_file=options.get("token_file"), ca=options.get("ca"))
        assert "s3cret" not in str(caught.value)
    for url, headers in (
        ("http://h", ("s3cret",)),
        ("http://h", ("a b: s3cret",)),
        ("http://h", ("A: s3cret\r\nB: 1",)),
        ("http://u:s3cret@h", ("authorization: Basic s3cret",)),
    ):
        with pytest.raises(RecordingError, match=r"header|Authorization") as caught:
            server(url, headers=headers)
        assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(server("http://u:s3cret@h"))


def test_a_private_authority_is_named_by_its_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --ca an unknown certificate is refused, with it the answer is replayed."""
    openssl = needs.program("openssl", "openssl")
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=h")
    names = ("-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run([openssl, "req", *made, *names, "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with web() as http:
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
        code, text = replayed(capsys, tmp_path, f"https://{http.place}")
        assert code == 1
        assert "certificate verify failed" in text
        assert replayed(capsys, tmp_path, f"https://{http.place}", "--ca", str(pem))[0] == 0
