"""A real Prometheus server for tests, on loopback (of a namespace, if need be), with its data in a temporary directory."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from limiterd.sim.netns import Namespace, inside
from tests import needs

SCRAPE_INTERVAL: Final = "500ms"
PATIENCE_S: Final = 60.0


def tool(name: str) -> str:
    """The path of prometheus or promtool."""
    return needs.program(name, "prometheus")


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str
    namespace: Namespace | None = None

    def _get(self, path: str, **arguments: str) -> Any:
        address = f"{self.url}{path}?{urllib.parse.urlencode(arguments)}"
        with _in(self.namespace), urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310  (it is http)
            return json.load(answer)["data"]

    def values(self, expression: str, *, last_s: float = 0.0) -> list[float]:
        """The values of an expression now, or of all its points over the last seconds; NaN is left out."""
        try:
            if last_s:
                now = time.time()
                data = self._get("/api/v1/query_range", query=expression, start=str(now - last_s), end=str(now), step="1")
                found = [float(value) for series in data["result"] for _, value in series["values"]]
            else:
                data = self._get("/api/v1/query", query=expression)
                points = [data["result"]] if data["resultType"] == "scalar" else [series["value"] for series in data["result"]]
                found = [float(value) for _, value in points]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:  # it is still starting
                raise
            with error:
                pytest.fail(f"{expression}\n{json.load(error).get('error')}", pytrace=False)
        return [value for value in found if not math.isnan(value)]

    def wait_for(self, expression: str) -> None:
        """Wait until an expression has a value."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers(expression):
            assert time.monotonic() < deadline, f"never: {expression}"
            time.sleep(0.1)

    def _answers(self, expression: str) -> bool:
        try:
            return bool(self.values(expression))
        except (urllib.error.URLError, ConnectionError):  # not up yet
            return False

    def instances(self, expression: str) -> set[str]:
        """The instances that an expression has values of now."""
        found = self._get("/api/v1/query", query=expression)["result"]
        return {series["metric"].get("instance", "") for series in found}

    def firing(self) -> set[str]:
        """The alerts that are firing or would be after their `for`."""
        return {alert["labels"]["alertname"] for alert in self._get("/api/v1/alerts")["alerts"]}

    def target_errors(self) -> Mapping[str, str]:
        """What the last scrape of each target had to complain of."""
        return {target["scrapeUrl"]: target["lastError"] for target in self._get("/api/v1/targets")["activeTargets"]}


def _in(namespace: Namespace | None) -> AbstractContextManager[None]:
    return nullcontext() if namespace is None else inside(namespace)


@contextmanager
def prometheus(
    targets: Sequence[str | Mapping[str, Any]], directory: Path, rules: Path | None = None, namespace: Namespace | None = None
) -> Iterator[Prometheus]:
    """Run a server that scrapes these targets (or static_configs) as job limiterd twice a second; in a namespace, if need be."""
    program = tool("prometheus")
    with _in(namespace), socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    static = [dict(one) if isinstance(one, Mapping) else {"targets": [one]} for one in targets]
    config = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": SCRAPE_INTERVAL, "evaluation_interval": "1s"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [{"job_name": "limiterd", "static_configs": static}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with _in(namespace), (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={listen}",
                "--storage.tsdb.retention.time=1h",
            ],
            stdout=log,
            stderr=log,
            cwd=directory,
        )
    try:
        server = Prometheus(f"http://{listen}", namespace)
        server.wait_for("vector(1)")
        yield server
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
