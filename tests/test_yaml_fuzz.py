"""Nothing but the ConfigError leaves the loaders, and no file costs much, whatever it holds."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from limiterd.config import load as config
from limiterd.config import override_files as overrides
from limiterd.config.yaml_reader import MAX_BYTES
from limiterd.core.errors import ConfigError
from limiterd.core.model import Config, Override, OverrideAction
from tests.examples import few

ROOT: Final = Path(__file__).resolve().parent.parent
HOSTILE: Final = sorted((ROOT / "tests/data/hostile").glob("*.yaml"))
SEEDS: Final = [
    (ROOT / "config/limiterd.yaml").read_bytes(),
    (ROOT / "config/overrides.d/example.yaml.example").read_bytes(),
    b'{"sampling": {"interval": "50ms"}, "policies": [{"name": "a", "limit": {"exempt": [{"to": "10.0.0.0/8"}]}}]}',
]


def filled(unit: str, end: str = "\n") -> bytes:
    """As much of one text as a file may hold."""
    return (unit * (MAX_BYTES // len(unit.encode()))).encode()[: MAX_BYTES - len(end)] + end.encode()


LARGE: Final = {
    "brackets": filled("["),
    "closed-brackets": filled("[]"),
    "braces": filled("{"),
    "dashes": filled("- "),
    "question-marks": filled("? "),
    "colons": filled(": "),
    "quotes": filled("'"),
    "double-quotes": filled('"'),
    "backslashes": b'a: "' + filled("\\\\"),
    "anchors": filled("&a "),
    "aliases": filled("- *a\n"),
    "tags": filled("- !a b\n"),
    "percent": filled("%a b\n"),
    "one-word": b"a: " + filled("b")[3:],
    "one-key": filled("k")[:-4] + b": 1\n",
    "one-list": b"overrides: [" + filled("a,")[13:-1] + b"]\n",
    "one-mapping": b"{" + filled("a: b,")[2:-1] + b"}\n",
    "blocks": filled("a: |\n"),
    "newlines": filled("\n"),
    "spaces": filled(" "),
    "tabs": filled("\t"),
    "comments": filled("#\n"),
    "one-comment": filled("#"),
    "documents": filled("---\n"),
    "ends": filled("...\n"),
    "same-key": filled("a:\n"),
    "unknown-keys": b"".join(b"k%d: 1\n" % number for number in range(26_000))[:MAX_BYTES],
    "near-keys": b"".join(b"sampling%d: 1\n" % number for number in range(16_000))[:MAX_BYTES],
    "nuls": filled("\0"),
    "not-utf-8": b"\xff" * MAX_BYTES,
    "umlauts": filled("ä"),
    "astral": filled("𝄞: 𝄞\n"),
    "marked-spaces": b"# limiterd: ends with ...\n..." + filled(" ")[40:-1] + b"x\n",
    "folded": b"a:\n" + filled(" b\n")[3:],
    "stars": b"policies: [{interfaces: ['" + filled("*")[40:-1] + b"']}]\n",
    "open-globs": b"policies: [{interfaces: ['" + filled("[")[40:-1] + b"']}]\n",
    "half-globs": b"policies: [{interfaces: ['" + filled("[a]")[40:-1] + b"']}]\n",
    "digits": b"policies: [{detect: {threshold: " + filled("1")[50:-1] + b"}}]\n",
    "networks": b"policies: [{limit: {exempt: [{to: '" + filled("1/")[50:-1] + b"'}]}}]\n",
    "addresses": b"policies: [{limit: {exempt: [{to: '" + filled("1:")[50:-1] + b"'}]}}]\n",
    "hosts": b"metrics: {listen: '" + filled("a.")[50:-1] + b":80'}\n",
    "labels": b"metrics: {listen: '" + filled("a-")[50:-1] + b":80'}\n",
    "policies": b"policies: [" + filled("{},")[20:-1] + b"]\n",
    "bad-records": b"overrides:\n" + filled("- {id: a b, limit: 1}\n")[30:],
    "too-long": b"#" * (MAX_BYTES + 1),
}
RECORDS: Final = overrides.to_yaml(
    Override(f"REQ-{number}", ("eth0", "en*"), OverrideAction.EXEMPT, None, "ops@example.net", "nightly backup")
    for number in range(1700)
).encode()
"""An honest file that is nearly as large as one may be."""


def outcome(data: bytes) -> tuple[ConfigError | None, ConfigError | None]:
    """Load a text as configuration and as records. Anything but a result or a ConfigError is an error of the test."""
    errors: list[ConfigError | None] = []
    for load in (load_config, load_records):
        try:
            load(data)
            errors.append(None)
        except ConfigError as error:
            check(error, data)
            errors.append(error)
    return errors[0], errors[1]


def load_config(data: bytes) -> None:
    """Parse as limiterd.yaml."""
    assert isinstance(config.parse(data, "f.yaml"), Config)


def load_records(data: bytes) -> None:
    """Parse as an override file."""
    found = overrides.parse(data, "f.yaml")
    if found.problems:
        raise ConfigError(found.problems)
    assert all(isinstance(placed.record, Override) for placed in found.records)


def check(error: ConfigError, data: bytes) -> None:
    """Hold an error to its form: named, inside the file, short, and safe on a terminal."""
    assert 1 <= len(error.problems) <= 101
    for problem in error.problems:
        assert problem.file == "f.yaml"
        assert 1 <= problem.line <= data.count(b"\n") + 2
        assert problem.column >= 1
        assert problem.path
        assert str(problem).isprintable()
        assert len(str(problem)) < 700


# ---- the corpus --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_every_hostile_file_is_refused(path: Path) -> None:
    """Every file of the corpus is refused, as a configuration and as records, and nothing but the documented error escapes."""
    as_config, as_records = outcome(path.read_bytes())
    assert as_config is not None
    assert as_records is not None


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_without_libyaml_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's own parser stands in where libyaml is missing, and refuses the same files."""
    monkeypatch.delattr(yaml, "CBaseLoader", raising=False)
    as_config, as_records = outcome(path.read_bytes())
    assert as_config is not None
    assert as_records is not None


def test_valid_files_mean_the_same_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers read the shipped files alike, place for place."""
    first = [config.parse(SEEDS[0], "f"), config.parse(SEEDS[2], "f"), overrides.parse(SEEDS[1], "f").records[0].record]
    monkeypatch.delattr(yaml, "CBaseLoader", raising=False)
    assert [config.parse(SEEDS[0], "f"), config.parse(SEEDS[2], "f"), overrides.parse(SEEDS[1], "f").records[0].record] == first


# ---- cost --------------------------------------------------------------------------------------------


def cpu_s(work: Callable[[], object]) -> float:
    """The least processor time of three runs, without what the collector spends on everything else in this process."""
    times = []
    gc.disable()
    try:
        for _ in range(3):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
    finally:
        gc.enable()
    return min(times)


@pytest.fixture(scope="module")
def honest_s() -> float:
    """What a large honest file costs."""
    assert overrides.parse(RECORDS, "f.yaml").problems == []
    assert 0.9 * MAX_BYTES < len(RECORDS) <= MAX_BYTES
    return cpu_s(lambda: overrides.parse(RECORDS, "f.yaml"))


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_hostile_files_cost_less_than_an_honest_one(name: str, honest_s: float) -> None:
    """A file of 256 KiB is refused, or read, in less time than a good one of its size takes, read twice over."""
    outcome(LARGE[name])
    assert cpu_s(lambda: outcome(LARGE[name])) < 2 * honest_s


MEMORY: Final = """
import resource, sys
sys.path.insert(0, {root!r})
from tests.test_yaml_fuzz import HOSTILE, LARGE, RECORDS, outcome
cases = [path.read_bytes() for path in HOSTILE] + list(LARGE.values())
outcome(cases[0])
outcome(b"on_exit: never\\nlogg: 1\\n")
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 64 * 2**20, size + 64 * 2**20))
for data in cases:
    outcome(data)
outcome(RECORDS)
print("done")
"""


def test_no_case_needs_more_than_64_mib() -> None:
    """A process that may grow by no more than 64 MiB survives the whole corpus, and the honest file."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(root=str(ROOT))], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "done\n", done.stderr[-2000:]


# ---- chance ------------------------------------------------------------------------------------------

SIGNS: Final = rb"[ ] { } : , - ? ! & * # | > % @ ` ' \" \ / = . << --- ... ~ null yes 0 1e9 1:30 0x1f 2001-01-01".split()
WHITE: Final = [b" ", b"\t", b"\n", b"\r\n", b"\r", b"\0", b"\x1b", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xed\xa0\x80"]
PIECES: Final = [b": ", b"- ", b"&a ", b"*a", b"!!str ", b"<<: *a\n", b"overrides:\n", b"  - id: x\n", b"policies: []\n"]
TOKENS: Final = [*SIGNS, *WHITE, *PIECES, b"9" * 400, b"[" * 400, b"a: " * 40]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A valid file with a few things done to it."""
    data = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        low, high = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        high = min(high, low + 60)
        match draw(st.sampled_from(["cut", "drop", "twice", "insert", "swap", "byte"])):
            case "cut":
                data = data[:low]
            case "drop":
                data = data[:low] + data[high:]
            case "twice":
                data = data[:high] + data[low:]
            case "insert":
                data = data[:low] + draw(st.sampled_from(TOKENS)) + data[low:]
            case "swap":
                lines = data.split(b"\n")
                at, to = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
                lines[at], lines[to] = lines[to], lines[at]
                data = b"\n".join(lines)
            case _:
                data = data[:low] + bytes([draw(st.integers(0, 255))]) + data[low + 1 :]
    return data


@few(600)
@given(mutants())
def test_mutants_are_read_or_refused(data: bytes) -> None:
    """A damaged file is a configuration or a ConfigError, and reads the same twice."""
    first, second = outcome(data), outcome(data)
    assert [str(error) for error in first] == [str(error) for error in second]


@few(100)
@given(mutants())
def test_mutants_are_read_or_refused_without_libyaml(data: bytes) -> None:
    """The same through PyYAML's own parser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(yaml, "CBaseLoader", raising=False)
        outcome(data)


@few(200)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_noise_is_read_or_refused(data: bytes) -> None:
    """Bytes and text without any meaning."""
    outcome(data)


@few(200)
@given(st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join))
def test_punctuation_is_read_or_refused(data: bytes) -> None:
    """YAML's own signs in any order."""
    outcome(data)


KEYS: Final = """
    sampling policies overrides metrics control log on_exit name interfaces mode detect limit release guard lifeline match
    exempt interval max_gap threshold window slice floor burst rate share to from port protocol listen tls id action expires
"""
WORDS: Final = "eth0 eth* 1gbit 200mbit 10s 1s 80% 0 null never exempt limit enforce off 22 tcp 10.0.0.0/8"
keys = st.sampled_from(KEYS.split())
trees = st.recursive(
    st.sampled_from(["", *WORDS.split()]) | st.text(max_size=10) | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=30,
)


@few(300)
@given(st.dictionaries(keys, trees, max_size=5), st.booleans())
def test_well_formed_nonsense_is_read_or_refused(tree: dict[str, Any], flow: bool) -> None:  # noqa: FBT001 - drawn
    """Proper YAML of known keys in wrong places, with values of every type, is read or refused."""
    outcome(yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True).encode("utf-8", "surrogatepass"))


@few(200)
@given(st.integers(0, 2), st.data())
def test_a_cut_is_read_or_refused(which: int, data: st.DataObject) -> None:
    """A valid file cut at any byte, then continued by another."""
    end = data.draw(st.integers(0, len(SEEDS[which])))
    start = data.draw(st.integers(0, len(SEEDS[1])))
    outcome(SEEDS[which][:end] + SEEDS[1][start:])
