"""docs/recordings.md: each of its lines is run as it stands, on a sample of what its tool writes (tests/data/conversions).

The tools themselves are stood in for by programs that print the samples, one call after the other; time passes by itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests import needs

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "recordings.md"
SAMPLES: Final = ROOT / "tests" / "data" / "conversions"
STARTED_S: Final = 1_795_435_200

# How many samples a tool has, what separates them, and how many seconds pass from one to the next.
TOOLS: Final = {
    "ip": ("ip.jsonl", "\n", 1),
    "sadf": ("sadf.txt", "", 0),
    "vnstat": ("vnstat.json", "", 0),
    "snmpbulkwalk": ("snmp.txt", "\n\n", 10),
}
EXPECTED: Final = {
    "ip": ("would_limit", STARTED_S + 23),
    "sadf": ("possible", STARTED_S + 3000),
    "vnstat": ("possible", STARTED_S + 2700),
    "awk collectd": ("possible", STARTED_S + 610),
    "snmpbulkwalk": ("possible", STARTED_S + 220),
    "awk panel": ("possible", STARTED_S + 315),
}
"""The first thing that replay says of eth0 by each line, and when (Unix seconds)."""
COUNT: Final = f"""#!{sys.executable}
import pathlib, sys
seconds = pathlib.Path({{seconds!r}})
k = int(seconds.read_text()) if seconds.exists() else 0
"""
"""How often the loop has slept."""
TOOL: Final = (
    COUNT
    + """
text = pathlib.Path({sample!r}).read_text()
sys.stdout.write(text.rstrip().split({separator!r})[k - 1] + "\\n" if {separator!r} else text)
"""
)
CLOCK: Final = COUNT + f"print(f'{{{{{STARTED_S} + {{step}} * k}}}}.000000000')\n"
SLEEP: Final = COUNT + "seconds.write_text(str(k + 1))\nsys.exit(k >= {most})\n"
"""At once; with an error once there is no sample left, which ends the loop as Ctrl-C would."""


def lines() -> dict[str, str]:
    """The page's lines by what they begin with."""
    found = re.findall(r"(?ms)^```sh\n(.+?)\n```$", PAGE.read_text(encoding="utf-8"))
    named = {}
    for line in found:
        tool = next((tool for tool in TOOLS if re.search(rf"(^|\bdo ){tool} ", line)), "")
        named[tool or ("awk collectd" if "collectd" in line else "awk panel")] = line
    return named


def program(directory: Path, name: str, text: str) -> None:
    """A program for PATH."""
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)


def test_every_line_of_the_page_is_run() -> None:
    """None is added without a sample."""
    page = PAGE.read_text(encoding="utf-8")
    assert set(lines()) == set(EXPECTED)
    assert page.count("```sh") == len(EXPECTED)
    assert all("\n" not in line for line in lines().values())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_line_makes_a_recording(name: str, tmp_path: Path) -> None:
    """What is sent at 1.2 Gbit/s for a while is found at its time, as a firing or, where samples are coarse, as possible."""
    needs.program("jq", "jq")
    sample, separator, step = TOOLS.get(name, ("", "", 0))
    tools, seconds = tmp_path / "bin", str(tmp_path / "seconds")
    tools.mkdir()
    if sample:
        path = SAMPLES / sample
        most = len(path.read_text().rstrip("\n").split(separator)) if separator else 1
        program(tools, name, TOOL.format(sample=str(path), separator=separator, seconds=seconds))
        program(tools, "date", CLOCK.format(seconds=seconds, step=step))
        program(tools, "sleep", SLEEP.format(seconds=seconds, most=most))
    program(tools, "limiterctl", f'#!/bin/sh\nexec {sys.executable} -P -m limiterd.cli "$@" --json\n')
    config = tmp_path / "limiterd.yaml"
    config.write_text("policies: [{name: fair-use, interfaces: ['eth*'], mode: observe}]\n")
    line = lines()[name].replace("/var/lib/collectd/csv", str(SAMPLES / "collectd"))
    (tmp_path / "panel.csv").write_bytes((SAMPLES / "panel.csv").read_bytes())
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    first = next(event for event in events if event["event"] != "epoch")
    assert first["interface"] == "eth0"
    assert (first["event"], round(first["t"] / 1e9)) == EXPECTED[name]
    assert {event["interface"] for event in events if event["event"] != "epoch"} == {"eth0"}
