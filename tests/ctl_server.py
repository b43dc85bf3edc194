"""A control socket that answers what a test tells it to: the JSON-lines protocol and nothing of the daemon.

Requests are kept, so that a test can look at what the command line asked for.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

Answer = Mapping[str, Any] | Callable[[dict[str, Any]], Mapping[str, Any]]


class Refusal(Exception):
    """Raised by an answer to refuse with an exit code."""

    def __init__(self, exit_code: int, error: str) -> None:
        super().__init__(error)
        self.exit_code = exit_code


class ControlStub:
    """Listens on path; answers maps a verb to its data, or to a function of the arguments."""

    def __init__(self, path: Path, answers: Mapping[str, Answer]) -> None:
        self.path = path
        self.answers = dict(answers)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rwb") as stream:
                for line in stream:
                    stream.write(json.dumps(self._answer(json.loads(line))).encode() + b"\n")
                    stream.flush()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        verb, args = request["verb"], request["args"]
        self.asked.append((verb, args))
        try:
            answer = self.answers[verb]
            return {"ok": True, "data": answer(args) if callable(answer) else answer}
        except Refusal as refusal:
            return {"ok": False, "exit": refusal.exit_code, "error": str(refusal)}
