"""What limiterd.yaml may hold, what it means, and what is said about it when it is wrong."""

from __future__ import annotations

import os
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from limiterd import trusted_files
from limiterd.config import load as config
from limiterd.config import yaml_reader as yamlsafe
from limiterd.config.check import check
from limiterd.core.errors import ConfigError
from limiterd.core.model import (
    HOUR,
    MS,
    SECOND,
    Config,
    ControlConfig,
    Detect,
    Enforcement,
    ForeignQdisc,
    Guard,
    GuardMode,
    Lifeline,
    Limit,
    LogConfig,
    Match,
    MetricsConfig,
    OnExit,
    OverridesConfig,
    Policy,
    PolicyMode,
    Release,
    ReleaseMode,
    Rules,
    Sampling,
    Source,
    StateConfig,
    Tls,
)

SHIPPED = Path(__file__).resolve().parent.parent / "config" / "limiterd.yaml"

DOCUMENTED = """\
sampling:
  interval: 100ms            # 20ms to 1s
  max_gap: 3s
  source: auto               # auto | netlink | psutil
  counter_refresh: 0s
  max_plausible_rate: 0      # 0 = off
policies:                    # the first that matches a link applies
  - name: fair-use
    interfaces: ["eth*", "en*", "!*.*"]
    mode: enforce            # enforce | observe
    detect: {threshold: 1gbit, window: 10s, slice: 1s, floor: 80%, guard: {mode: observe, burst: 90gbit}}
    limit:
      rate: 200mbit
      lifeline: {share: 5%, match: []}
      exempt: []
    release: {mode: approval, min_hold: 5m, max_hold: 24h, quiet_for: 60s, quiet_rate: 50%, multiplier: 2, forget_after: 24h}
    foreign_qdisc: refuse    # refuse | takeover
enforcement: {read_back: 1s, drain: 500ms}
on_exit: keep                # keep | remove
overrides: {directory: /etc/limiterd/overrides.d}
metrics: {listen: "127.0.0.1:9817", tls: null}
control: {socket: /run/limiterd/control.sock, group: null, admin_group: null}
state: {directory: /var/lib/limiterd}
log: {level: info, format: text}
"""

OTHER = """\
sampling: {interval: 20ms, max_gap: 1s, source: psutil, counter_refresh: 250ms, max_plausible_rate: 400gbit}
policies:
  - name: lab
    interfaces: [no, 1e3, "null", eth0]
    mode: observe
    detect: {threshold: 2.5Gbit/s, window: 1h, slice: 2s, floor: 0, guard: {mode: off, burst: 1tbit}}
    limit:
      rate: 300Mbps
      lifeline:
        share: 12.5%
        match: [{protocol: TCP, port: 22, to: 203.0.113.0/24}, {protocol: 58}, {to: "2001:db8::1"}]
      exempt: [{from: 10.0.0.0/8, protocol: udp, source_port: 53}]
    release: {mode: auto, min_hold: 0, max_hold: 2d, quiet_for: 1s, quiet_rate: 100%, multiplier: 1.5, forget_after: 0s}
    foreign_qdisc: takeover
  - {}
enforcement: {read_back: 250ms, drain: 0}
on_exit: remove
overrides: {directory: /srv/overrides}
metrics: {listen: "[::1]:80", tls: {certificate: /c.pem, key: /k.pem}}
control: {socket: /run/x.sock, group: users, admin_group: wheel}
state: {directory: /srv/state}
log: {level: debug, format: json}
"""

OTHER_MEANS = Config(
    sampling=Sampling(20 * MS, SECOND, Source.PSUTIL, 250 * MS, 400 * 10**9),
    policies=(
        Policy(
            name="lab",
            interfaces=("no", "1e3", "null", "eth0"),
            mode=PolicyMode.OBSERVE,
            detect=Detect(25 * 10**8, HOUR, 2 * SECOND, 0, Guard(GuardMode.OFF, 10**12)),
            limit=Limit(
                300 * 10**6,
                Lifeline(125_000, (Match("tcp", 22, to="203.0.113.0/24"), Match("icmpv6"), Match(to="2001:db8::1/128"))),
                (Match("udp", source_port=53, from_net="10.0.0.0/8"),),
            ),
            release=Release(ReleaseMode.AUTO, 0, 48 * HOUR, SECOND, 1_000_000, 1_500_000, 0),
            foreign_qdisc=ForeignQdisc.TAKEOVER,
        ),
        Policy(),
    ),
    enforcement=Enforcement(250 * MS, 0),
    on_exit=OnExit.REMOVE,
    overrides=OverridesConfig("/srv/overrides"),
    metrics=MetricsConfig("[::1]:80", Tls("/c.pem", "/k.pem")),
    control=ControlConfig("/run/x.sock", "users", "wheel"),
    state=StateConfig("/srv/state"),
    log=LogConfig("debug", "json"),
)


def read(text: str) -> Config:
    """Parse a text as the file c.yaml."""
    return config.parse(textwrap.dedent(text).encode(), "c.yaml")


def complaints(text: str) -> list[str]:
    """Everything that is said about a wrong text."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration file whose directories are the test's own."""

    def write_text(text: str) -> Path:
        path = tmp_path / "limiterd.yaml"
        own = f"overrides: {{directory: {tmp_path}/overrides.d}}\nstate: {{directory: {tmp_path}/state}}\n"
        path.write_text(own + textwrap.dedent(text))
        return path

    return write_text


# ---- what is valid -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "\n", "# nothing\n", "---\n", "--- # nothing\n", "{}", "{}\n", "...\n", "sampling:\npolicies: [{}]\nmetrics: {}\n"],
)
def test_a_file_with_no_key_means_all_defaults(text: str) -> None:
    """Nothing, comments, an empty mapping and empty sections all mean the defaults."""
    assert read(text) == Config()


def test_the_documented_file_is_the_defaults() -> None:
    """The file of the documentation, every key with its default, equals a file without keys."""
    assert read(DOCUMENTED) == Config()


def test_the_shipped_file_is_the_defaults() -> None:
    """The shipped file states every key with its default, and is marked."""
    text = SHIPPED.read_text()
    assert read(text) == Config()
    assert text.startswith(yamlsafe.ENDS_MARKED + "\n")


def test_every_key_reaches_its_field() -> None:
    """A file with every key off its default reads as exactly that; names that YAML takes for values stay names."""
    assert read(OTHER) == OTHER_MEANS


@pytest.mark.parametrize("change", [lambda s: s.replace("\n", "\r\n"), lambda s: "\ufeff" + s, lambda s: "---\n" + s + "...\n"])
def test_line_ends_and_marks_do_not_matter(change: Callable[[str], str]) -> None:
    """CRLF, a byte order mark and document marks change no meaning."""
    assert read(change(OTHER)) == OTHER_MEANS


def test_json_is_yaml() -> None:
    """A configuration may be written by a JSON library, without a newline at its end."""
    assert read('{"sampling": {"interval": "50ms"}, "on_exit": "remove"}') == Config(
        sampling=Sampling(interval_ns=50 * MS), on_exit=OnExit.REMOVE
    )


def test_a_switched_off_server() -> None:
    """No metrics server: null, off, or nothing."""
    for word in ("null", "~", "off", ""):
        assert read(f"metrics: {{listen: {word}}}\n").metrics.listen is None


def test_a_missing_certificate_is_not_the_loaders_business() -> None:
    """Only the metrics server needs the certificate; enforcement must not."""
    assert read("metrics: {tls: {certificate: /no/such, key: /no/such}}\n").metrics.tls == Tls("/no/such", "/no/such")


# ---- what is wrong -----------------------------------------------------------------------------------

WRONG = [
    ("sampling: {interval: 100}\n", "c.yaml:1:22: sampling.interval: '100': a unit is missing; write it like 100ms"),
    ("sampling: {interval: 19ms}\n", "c.yaml:1:22: sampling.interval: '19ms' is out of range; write 20ms to 1s"),
    ("sampling: {interval: 1001ms}\n", "sampling.interval: '1001ms' is out of range"),
    ("sampling: {max_gap: 150ms}\n", "c.yaml:1:21: sampling.max_gap: max_gap 150ms is shorter than two intervals of 100ms"),
    ("sampling: {max_gap: 0s}\n", "'0s' is out of range; write more than 0"),
    (
        "policies: [{name: a, interfaces: [eth0], counter_refresh: 3s}]\n",
        "policies[0].counter_refresh: counter_refresh 3s must be shorter than sampling.max_gap 3s",
    ),
    (
        "sampling: {counter_refresh: 3s}\n",
        "c.yaml:1:29: sampling.counter_refresh: counter_refresh 3s must be shorter than max_gap",
    ),
    ("sampling: {source: proc}\n", "'proc' is not known; write auto or netlink or psutil"),
    ("sampling: {source: netlnk}\n", "did you mean `netlink`?"),
    ("sampling: {max_plausible_rate: 5}\n", "unit is missing"),
    ("sampling: 3\n", "c.yaml:1:11: sampling: is not a mapping; write `key: value` lines (keys: interval,"),
    ("sampling: []\n", "is not a mapping"),
    ("samplng: {}\n", "c.yaml:1:1: samplng: is not a known key; did you mean `sampling`?"),
    ("interval: 1s\n", "c.yaml:1:1: interval: is not a known key here; it belongs under `sampling`"),
    ("zzz: 1\n", "is not a known key; known are sampling, policies,"),
    ("policies: {name: a}\n", "c.yaml:1:11: policies: is not a list"),
    ("policies:\n", "policies: is empty; write a list"),
    ("policies: [{name: a}, {name: a}]\n", "policies[1].name: 'a' is the name of two policies, in line 1 and in line 1"),
    ("policies: [{name: a b}]\n", "is not a name"),
    ("policies: [{interfaces: []}]\n", "has 0 entries; name at least one interface pattern"),
    ("policies: [{interfaces: eth0}]\n", "is not a list; write a list of interface pattern entries"),
    ("policies: [{interfaces: [/eth0]}]\n", "does not name an instance of a recording before its slash"),
    ("policies: [{interfaces: ['!a b/eth0']}]\n", "does not name an instance of a recording before its slash"),
    ("policies: [{interfaces: ['10.0.0.1:9100/eth0:1']}]\n", "can match no interface"),
    ("policies: [{interfaces: ['eth0 eth1']}]\n", "can match no interface"),
    ("policies: [{interfaces: [sixteen-is-toolong]}]\n", "none is longer than 15 bytes"),
    ("policies: [{interfaces: ['eth[0']}]\n", 'has a "[" that is never closed'),
    ("policies: [{interfaces: ['!']}]\n", "excludes nothing"),
    ("policies: [{interfaces: ['!!eth0']}]\n", 'has two "!"'),
    ("policies:\n  -\n", "policies[0]: is empty; write a policy, or remove the dash"),
    ("policies: [{interfaces: ['']}]\n", "is empty"),
    ("policies: [{interfaces: [null]}]\n", "is empty"),
    ("policies: [{interfaces: [[eth0]]}]\n", "policies[0].interfaces[0]: is a list; write a single value"),
    ("policies: [{interfaces: ['" + "a*" * 60 + "']}]\n", "too long"),
    (
        "policies: [{interfaces: [*x]}]\n",
        "policies[0].interfaces[0]: the alias *x is not allowed; write the value out (yaml.dump does where its dumper's ignore_",
    ),
    ("policies:\n  - interfaces:\n      - !a\n", "the tag !a is not allowed; quote a text that begins with"),
    ("policies:\n  - interfaces:\n      - *.*\n", 'quote a value that begins with a special character, like "*.*"'),
    ("policies: [{mode: no}]\n", "'no' is not known; write enforce or observe"),
    ("policies: [{mode: on}]\n", "'on' is not known"),
    ("policies: [{threshold: 1gbit}]\n", "policies[0].threshold: is not a known key here; it belongs under `detect`"),
    ("policies: [{detect: {threshold: 1e9}}]\n", "c.yaml:1:33: policies[0].detect.threshold: '1e9' is not a rate"),
    ("policies: [{detect: {threshold: 1000000000}}]\n", "a unit is missing"),
    ("policies: [{detect: {threshold: 0}}]\n", "a unit is missing"),
    (
        "policies: [{detect: {threshold: 100mbps}}]\n",
        "lower-case 'mbps' means bytes per second to tc; for bits per second write 'mbit' or Mbps",
    ),
    ("policies: [{detect: {window: 1:30}}]\n", "is not a duration"),
    ("policies: [{detect: {window: 0o17s}}]\n", "is not a duration|unknown unit"),
    ("policies: [{detect: {window: 2h}}]\n", "write at most 1h"),
    ("policies: [{detect: {window: 500ms}}]\n", "policies[0].detect.window: slice 1s is longer than window 500ms"),
    ("policies: [{detect: {slice: 11s}}]\n", "policies[0].detect.slice: slice 11s is longer than window 10s"),
    ("policies: [{detect: {slice: 50ms}}]\n", "policies[0].detect.slice: slice 50ms is shorter than the sampling interval 100ms"),
    ("policies: [{detect: {slice: 2000-01-01}}]\n", "is not a duration"),
    ("policies: [{detect: {floor: 0.8}}]\n", "a share is written in percent"),
    ("policies: [{detect: {floor: 101%}}]\n", "at most 100%"),
    ("policies: [{detect: {guard: {burst: 90gbit/s}}}]\n", "is a rate; a size in bits is wanted"),
    ("policies: [{detect: {guard: {burst: 0bit}}}]\n", "write more than 0 (`mode: off` switches the guard off)"),
    ("policies: [{detect: {guard: {mode: enforced}}}]\n", "did you mean `enforce`?"),
    ("policies: [{limit: {rate: 1gbit}}]\n", "policies[0].limit.rate: the limit 1gbit must be below the threshold 1gbit"),
    (
        "policies: [{detect: {threshold: 100mbit}}]\n",
        "policies[0].detect.threshold: the limit 200mbit must be below the threshold 100mbit",
    ),
    ("policies: [{limit: {rate: 10bit}}]\n", "write at least 1kbit"),
    ("policies: [{limit: {lifeline: {share: 100%}}}]\n", "write less than 100%"),
    ("policies: [{limit: {exempt: [{}]}}]\n", "policies[0].limit.exempt[0].protocol: would match all traffic"),
    ("policies: [{limit: {exempt: [{port: 0}]}}]\n", "'0' is not a port; write a number from 1 to 65535"),
    ("policies: [{limit: {exempt: [{port: 65536}]}}]\n", "is not a port"),
    ("policies: [{limit: {exempt: [{port: 022}]}}]\n", "is not a port"),
    ("policies: [{limit: {exempt: [{port: 22, source_port: 1}]}}]\n", "port means either side"),
    ("policies: [{limit: {exempt: [{protocol: icmp, port: 1}]}}]\n", "protocol icmp has no ports"),
    ("policies: [{limit: {exempt: [{protocol: tpc}]}}]\n", "'tpc' is no protocol"),
    ("policies: [{limit: {exempt: [{protocol: 256}]}}]\n", "'256' is no protocol"),
    ("policies: [{limit: {exempt: [{protocol: arp, to: 10.0.0.0/8}]}}]\n", "ARP is matched whole"),
    ("policies: [{limit: {exempt: [{to: 10.0.0.1/8}]}}]\n", "has bits set beyond its prefix; write 10.0.0.0/8"),
    ("policies: [{limit: {exempt: [{to: 10.0.0.0/255.0.0.0}]}}]\n", "is not a network"),
    ("policies: [{limit: {exempt: [{to: 10.0.0/8}]}}]\n", "is not a network"),
    ("policies: [{limit: {exempt: [{to: 'fe80::1%eth0'}]}}]\n", "is not a network"),
    ("policies: [{limit: {exempt: [{to: 10.0.0.0/8, from: '::/0'}]}}]\n", "IPv4 and IPv6 are mixed"),
    ("policies: [{limit: {exempt: [{to: 10.0.0.0/8, protocol: icmpv6}]}}]\n", "IPv4 and IPv6 are mixed"),
    ("policies: [{release: {min_hold: 2d}}]\n", "min_hold 2d is longer than max_hold 1d"),
    ("policies: [{release: {multiplier: 0.9}}]\n", "0.9 is out of range; write a number from 1 to 1000"),
    ("policies: [{release: {multiplier: 2x}}]\n", "is not a plain number"),
    ("policies: [{release: {quiet_rate: 0%}}]\n", "write more than 0% (or no link is ever quiet)"),
    ("policies: [{release: {quiet_for: 10ms}}]\n", "write at least 1s"),
    ("policies: [{foreign_qdisc: replace}]\n", "write refuse or takeover"),
    ("enforcement: {read_back: 0s}\n", "write 10ms to 1h"),
    ("enforcement: {drain: 2m}\n", "write at most 1m"),
    ("on_exit:\n", "c.yaml:1:9: on_exit: is empty; write a value"),
    ("on_exit: ~\n", "is empty"),
    ("on_exit: [keep]\n", "is a list; write a single value"),
    ("overrides: {directory: overrides.d}\n", "'overrides.d' is not absolute; begin it with /"),
    ("overrides: {directory: /var/lib/limiterd/overrides.d/}\n", "where the daemon keeps its own records"),
    ("overrides: [{id: a}]\n", "is not a mapping"),
    ("metrics: {listen: 9817}\n", "has no port"),
    ("metrics: {listen: '127.0.0.1:0'}\n", "has no port from 1 to 65535"),
    ("metrics: {listen: '::1:9817'}\n", "is no address to listen on"),
    ("metrics: {listen: '300.1.1.1:9817'}\n", "is no address to listen on"),
    ("metrics: {listen: '[127.0.0.1]:9817'}\n", "is no address to listen on"),
    ("metrics: {tls: {key: /k}}\n", "metrics.tls: the key `certificate` is missing; it is required"),
    ("metrics: {tls: {certificate: c, key: /k}}\n", "is not absolute"),
    ("control: {socket: /" + "x" * 101 + "}\n", "longer than 101 bytes"),
    ("control: {group: 'a b'}\n", "is not a group's name"),
    ("log: {level: warn}\n", "did you mean `warning`?"),
    ("log: {format: xml}\n", "write text or json"),
    (
        "log: {format: json, format: text}\n",
        "c.yaml:1:21: log.format: 'format' is given twice, in line 1 and in line 1; keep one",
    ),
    ("on_exit: keep\n\non_exit: keep\n", "c.yaml:3:1: on_exit: 'on_exit' is given twice, in line 1 and in line 3; keep one"),
    ("<<: {on_exit: keep}\n", "the merge key << is not allowed"),
    ("on_exit: &a keep\n", "the anchor &a is not allowed"),
    ("on_exit: !!str keep\n", "the tag tag:yaml.org,2002:str is not allowed"),
    ("? [a]\n: b\n", "cannot be a key"),
    ("%YAML 1.1\n---\non_exit: keep\n", "a % directive is not allowed"),
    ("on_exit: keep\n---\non_exit: remove\n", "c.yaml:2:1: yaml: a second document begins here"),
    ("on_exit: keep\n...\non_exit: remove\n", "nothing may follow `...`"),
    ("- a\n", "c.yaml:1:1: file: is not a mapping"),
    ("keep\n", "is not a mapping"),
    ("a: " + "[" * 20 + "]" * 20 + "\n", "nested deeper than 16 levels"),
    ("on_exit:\n\tkeep: 1\n", "indent with spaces, YAML allows no tabs there"),
    ("on_exit: a: b\n", "must be quoted"),
    ("on_exit: 'keep\n", "a quotation mark is open to the end of the file"),
    ("sampling: {interval: 1s\n", "a bracket is still open"),
    ("sampling:\n  interval: 1s\n max_gap: 3s\n", "check the indentation"),
    ("on_exit: %keep\n", "cannot start any token"),
    ("on_exit: keep", "c.yaml:1:14: file: ends within a value, as a half-written file does"),
    ("on_exit: keep # comm", ""),
    ("# comm", "ends within a comment"),
    ("on_exit: 'keep'", "ends within a value"),
    ("# limiterd: ends with ...\non_exit: keep\n", "is cut off: its first line says that it ends with `...`"),
    (
        "log: {level: 'in\\u0000fo'}\n".replace("\\u0000", "\x00"),
        "c.yaml:1:17: file: the invisible character U+0000 is not allowed",
    ),
    ("# a\u2028on_exit: remove\n", "the invisible character U+2028 is not allowed"),
    ("# a\ron_exit: remove\n", "the invisible character U+000D is not allowed"),
    ('log: {level: "a\\e[31m"}\n', "holds the control character U+001B"),
]


@pytest.mark.parametrize(("text", "says"), [case for case in WRONG if case[1]], ids=[case[1][:60] for case in WRONG if case[1]])
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    """Each mistake is refused, at its place, with what would be right; the answer is fit for a terminal."""
    lines = complaints(text)
    assert any(one in line for line in lines for one in says.split("|")), lines
    assert all(line.startswith("c.yaml:") and line.isprintable() for line in lines)
    assert len(lines) == 1, lines


def test_a_line_comment_may_be_cut() -> None:
    """A value that a comment follows is whole, newline or not."""
    assert read("on_exit: remove # comm") == Config(on_exit=OnExit.REMOVE)


def test_everything_that_is_wrong_is_said_in_one_pass() -> None:
    """Structure, values, unknown keys and conditions across keys come together, in the order of the file."""
    lines = complaints("""\
        samplng: {}
        sampling: {interval: 5ms}
        policies:
          - name: a
            interfaces: [*x, "eth0,eth1"]
            detect: {threshold: 1e9, floor: 80%, floor: 70%}
          - name: a
            detect: {slice: 20s}
            limit: {rate: 200mbps}
          - name: b
            limit: {rate: 2gbit}
        on_exit: never
    """)
    assert [line.split(": ")[:2] for line in lines] == [
        ["c.yaml:1:1", "samplng"],
        ["c.yaml:2:22", "sampling.interval"],
        ["c.yaml:5:18", "policies[0].interfaces[0]"],
        ["c.yaml:5:22", "policies[0].interfaces[1]"],
        ["c.yaml:6:25", "policies[0].detect.threshold"],
        ["c.yaml:6:42", "policies[0].detect.floor"],
        ["c.yaml:7:11", "policies[1].name"],
        ["c.yaml:8:21", "policies[1].detect.slice"],
        ["c.yaml:9:19", "policies[1].limit.rate"],
        ["c.yaml:11:19", "policies[2].limit.rate"],
        ["c.yaml:12:10", "on_exit"],
    ]


def test_the_number_of_problems_is_bounded() -> None:
    """A file that is wrong throughout gets a hundred complaints and a word that there may be more."""
    lines = complaints("".join(f"k{number}: 1\n" for number in range(5000)))
    assert len(lines) == 101
    assert any("more may follow" in line for line in lines)


# ---- the file ----------------------------------------------------------------------------------------


def refusal(path: Path | str) -> str:
    """What is said about a file that is not even read."""
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_a_missing_file_is_named_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path appears as the user wrote it, with what to do."""
    monkeypatch.chdir(tmp_path)
    assert refusal("no.yaml").startswith("no.yaml:1:1: file: there is no such file; create it")


def test_a_fifo_blocks_nobody(tmp_path: Path) -> None:
    """A fifo without a writer is refused at once, and so is one with a writer."""
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    assert "not a regular file" in refusal(fifo)


def test_directories_devices_and_sockets_are_refused(tmp_path: Path) -> None:
    """Only a regular file is read."""
    assert "not a regular file" in refusal(tmp_path)
    assert "not a regular file" in refusal("/dev/zero") or "belongs" in refusal("/dev/zero")
    assert "no such file" in refusal(tmp_path / "a" / "b.yaml")
    assert "NUL" in refusal("a\0b")
    assert refusal("x" * 5000).isprintable()
    assert refusal("\udcff\x1b[31m").isprintable()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Group- or world-writable: somebody else's word."""
    path = tmp_path / "c.yaml"
    path.write_text("{}\n")
    path.chmod(mode)
    assert f"can be written by others (mode {mode:04o}); chmod go-w it" in refusal(path)


@pytest.mark.usefixtures("real_root")
def test_a_strangers_file_is_refused(tmp_path: Path) -> None:
    """A file that another user owns is not read, though it is readable; owners that are named are trusted."""
    path = tmp_path / "c.yaml"
    path.write_text("{}\n")
    os.chown(path, 65_533, 0)
    assert "belongs to uid 65533" in refusal(path)
    assert yamlsafe.read_bytes(str(path), owners=(65_533,)) == b"{}\n"


@pytest.mark.usefixtures("real_root")
def test_the_owner_of_the_program_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout the configuration is its user's, and so is the code: `sudo make run` reads both."""
    path = tmp_path / "c.yaml"
    path.write_text("on_exit: remove\n")
    os.chown(path, 65_533, 0)
    monkeypatch.setattr(trusted_files, "_PROGRAM_OWNER", 65_533)
    assert config.load(path).on_exit is OnExit.REMOVE
    path.chmod(0o664)
    assert "can be written by others" in refusal(path)


@pytest.mark.usefixtures("real_root")
def test_a_daemon_under_its_own_user_reads_roots_files() -> None:
    """A root:limiterd 0640 file is read by a member of the group, and refused with advice to everybody else."""
    with tempfile.TemporaryDirectory() as home:  # pytest's own directories are closed to other users
        Path(home).chmod(0o711)
        path = Path(home) / "limiterd.yaml"
        path.write_text("on_exit: remove\n")
        os.chown(path, 0, 65_530)
        path.chmod(0o640)
        with acting_as(65_530):
            assert config.load(path).on_exit is OnExit.REMOVE
        with acting_as(65_529):
            assert "may not be read by uid 65529" in refusal(path)


@contextmanager
def acting_as(number: int) -> Iterator[None]:
    """Be another user, and of that group alone, for a while."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_size_and_encoding(tmp_path: Path) -> None:
    """At most 256 KiB of UTF-8."""
    path = tmp_path / "c.yaml"
    path.write_bytes(b"#" * (256 * 1024 - 1) + b"\n")
    assert config.load(path) == Config()
    path.write_bytes(b"#" * (256 * 1024) + b"\n")
    assert "at most 262144 (256 KiB) are read" in refusal(path)
    path.write_bytes(b"# ok\non_exit: k\xe9ep\n")
    assert "c.yaml:2:11: file: byte 0xe9 is not UTF-8" in refusal(path)
    path.write_bytes("on_exit: keep\n".encode("utf-16"))
    assert "is not UTF-8" in refusal(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """A writer at work shows in the file's size or time; whatever is accepted is one of the texts that were written whole."""
    path = tmp_path / "c.yaml"
    texts = ["on_exit: keep\n" + "# pad\n" * 20_000, "on_exit: remove\n"]
    path.write_text(texts[0])
    done = threading.Event()

    def rewrite() -> None:
        for context in range(300):
            with path.open("w") as file:
                file.write(texts[context % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    answers: set[object] = set()
    while not done.is_set():
        try:
            answers.add(config.load(path).on_exit)
        except ConfigError as error:
            assert "changed while it was read" in str(error) or "ends within" in str(error)  # noqa: PT017
    writer.join()
    assert answers <= {OnExit.KEEP, OnExit.REMOVE}


# ---- half-written files ------------------------------------------------------------------------------


def cuts(text: str, whole: object, load: Callable[[bytes], object]) -> list[int]:
    """Every byte offset at which a cut text is accepted and means something else."""
    data = text.encode()
    wrong = []
    for end in range(len(data)):
        try:
            if load(data[:end]) != whole:
                wrong.append(end)
        except ConfigError:
            continue
    return wrong


def test_a_cut_shipped_file_is_refused_or_means_the_same() -> None:
    """The shipped file cut at any byte is refused, or means the same."""
    assert cuts(SHIPPED.read_text(), Config(), lambda data: config.parse(data, "c.yaml")) == []


def test_a_cut_marked_file_is_refused_or_empty() -> None:
    """A file that announces its end is refused at every cut; only no bytes at all is a file without keys."""
    text = f"{yamlsafe.ENDS_MARKED}\n{OTHER}...\n"
    assert cuts(text, OTHER_MEANS, lambda data: config.parse(data, "c.yaml")) == [0]


def test_a_cut_unmarked_file_can_only_lose_whole_lines() -> None:
    """Without the mark every cut inside a line is refused, or loses nothing but a comment of it."""
    text = OTHER.replace("\n", " # é\n").encode()
    lines = text.splitlines(keepends=True)
    whole_lines = [accepted(b"".join(lines[:count])) for count in range(len(lines) + 1)]
    for end in cuts(text.decode(), OTHER_MEANS, lambda data: config.parse(data, "c.yaml")):
        count = text[:end].count(b"\n")
        assert accepted(text[:end]) in whole_lines[count : count + 2], end


def accepted(data: bytes) -> Config | None:
    """What a text means, or None where it is refused."""
    try:
        return config.parse(data, "c.yaml")
    except ConfigError:
        return None


# ---- the whole load ----------------------------------------------------------------------------------

RECORD = """\
overrides:
  - id: REQ-1
    interfaces: ["eth0"]
    action: exempt
    expires: 2026-12-31
    approved_by: ops
    reason: test
"""


def test_rules_hold_everything(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Configuration, host, records of both directories in the order of their names, and a hash that `sha256sum` agrees with."""
    path = write("on_exit: remove\n")
    for directory in ("overrides.d", "state/overrides.d"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "overrides.d/b.yml").write_text(RECORD.replace("REQ-1", "REQ-b"))
    (tmp_path / "overrides.d/a.yaml").write_text(RECORD.replace("REQ-1", "REQ-a"))
    (tmp_path / "state/overrides.d/own.yaml").write_text(RECORD.replace("REQ-1", "REQ-own"))
    rules = config.load_rules(path, host="gpu-1")
    assert (rules.host, rules.config.on_exit) == ("gpu-1", OnExit.REMOVE)
    assert [(record.id, record.origin) for record in rules.overrides] == [
        ("REQ-a", f"{tmp_path}/overrides.d/a.yaml:2"),
        ("REQ-b", f"{tmp_path}/overrides.d/b.yml:2"),
        ("REQ-own", "state"),
    ]
    files = [path, tmp_path / "overrides.d/a.yaml", tmp_path / "overrides.d/b.yml", tmp_path / "state/overrides.d/own.yaml"]
    assert rules.sha256 == sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_a_missing_overrides_directory_is_noted(write: Callable[[str], Path]) -> None:
    """No directory, no records; the load says so without failing."""
    loaded = config.load_all(write(""), host="h")
    assert loaded.rules.overrides == ()
    assert any("no such directory, so there are no overrides" in note for note in loaded.notes)


def test_problems_of_all_files_come_together(write: Callable[[str], Path], tmp_path: Path) -> None:
    """The configuration's mistakes and the records' are told in one pass."""
    path = write("on_exit: never\n")
    (tmp_path / "overrides.d").mkdir()
    (tmp_path / "overrides.d/a.yaml").write_text(RECORD.replace("exempt", "excempt"))
    (tmp_path / "overrides.d/b.yaml").write_text(RECORD.replace("2026-12-31", "soon"))
    with pytest.raises(ConfigError) as caught:
        config.load_rules(path, host="h")
    assert [(Path(problem.file).name, problem.path) for problem in caught.value.problems] == [
        ("limiterd.yaml", "on_exit"),
        ("a.yaml", "overrides[0].action"),
        ("b.yaml", "overrides[0].id"),  # the one of a.yaml, though both records are wrong otherwise
        ("b.yaml", "overrides[0].expires"),
    ]


def test_a_damaged_record_of_the_daemons_own_does_not_stop_it(write: Callable[[str], Path], tmp_path: Path) -> None:
    """It is left out and reported; the other records stand, and the file stays for people to look at."""
    own = tmp_path / "state/overrides.d"
    own.mkdir(parents=True)
    (own / "bad.yaml").write_text(RECORD[:40])
    (own / "good.yaml").write_text(RECORD)
    loaded = config.load_all(write(""), host="h")
    assert [record.id for record in loaded.rules.overrides] == ["REQ-1"]
    assert loaded.damaged
    assert all(problem.file.endswith("bad.yaml") for problem in loaded.damaged)
    assert (own / "bad.yaml").exists()


def test_an_id_of_the_daemons_own_is_taken(write: Callable[[str], Path], tmp_path: Path) -> None:
    """A file of the operator's with that id is refused at its own place, naming both; twice in the store is damage."""
    own, theirs = tmp_path / "state/overrides.d", tmp_path / "overrides.d"
    own.mkdir(parents=True)
    theirs.mkdir()
    (own / "a.yaml").write_text(RECORD)
    (own / "b.yaml").write_text(RECORD.replace("test", "again"))
    loaded = config.load_all(write(""), host="h")
    assert [record.reason for record in loaded.rules.overrides] == ["test"]
    assert [Path(problem.file).name for problem in loaded.damaged] == ["b.yaml"]
    (theirs / "c.yaml").write_text(RECORD)
    with pytest.raises(ConfigError) as caught:
        config.load_rules(write(""), host="h")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (f"{theirs}/c.yaml", 2)
    assert f"in {own}/a.yaml:2 and in {theirs}/c.yaml:2" in problem.message


def test_an_approved_record_does_not_stop_the_daemon(write: Callable[[str], Path], tmp_path: Path) -> None:
    """A record of its own that the policies contradict by now is noted; the operator's is refused."""
    own, theirs = tmp_path / "state/overrides.d", tmp_path / "overrides.d"
    own.mkdir(parents=True)
    text = RECORD.replace("exempt", "limit\n    limit: 900mbit").replace("2026-12-31", "never")
    (own / "a.yaml").write_text(text)
    path = write("policies: [{detect: {threshold: 500mbit}}]\n")
    assert any("900mbit is not below the threshold 500mbit" in note for note in config.load_all(path, host="h").notes)
    (own / "a.yaml").unlink()
    theirs.mkdir()
    (theirs / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a.yaml:5:12: overrides\[0\].limit: the limit 900mbit"):
        config.load_rules(path, host="h")


def test_a_configuration_that_cannot_be_read_leads_nowhere_else(tmp_path: Path) -> None:
    """Where the overrides live is not guessed: only the configuration's own mistakes are told."""
    path = tmp_path / "c.yaml"
    for text in ("on_exit: [\n", f"overrides: {{directory: x}}\nstate: {{directory: {tmp_path}}}\n", "- a\n"):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            config.load_rules(path, host="h")
        assert {problem.file for problem in caught.value.problems} == {str(path)}


def test_an_unknown_group_is_refused_at_its_key(write: Callable[[str], Path]) -> None:
    """With the other mistakes, at its place; a check judges as a start would, a replay does not ask."""
    path = write("control: {group: no-such-group, admin_group: nor-this}\non_exit: never\n")
    with pytest.raises(ConfigError) as caught:
        config.load_all(path, host="h")
    assert [str(problem).partition(": ")[2] for problem in caught.value.problems] == [
        "control.group: there is no group 'no-such-group' on this machine; create it, or correct the name",
        "control.admin_group: there is no group 'nor-this' on this machine; create it, or correct the name",
        "on_exit: 'never' is not known; write keep or remove",
    ]
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (3, 18)
    write("control: {group: no-such-group}\n")
    (problem,), _ = check([path])
    assert (problem.file, problem.line, problem.column, problem.path) == (str(path), 3, 18, "control.group")
    assert config.load_rules(path, host="h", paced=False).config.control.group == "no-such-group"


def test_what_a_running_daemon_cannot_follow_has_its_place(write: Callable[[str], Path], tmp_path: Path) -> None:
    """A changed state directory or socket is named where it is written; an empty file in place of a configuration, too."""
    before = config.load_rules(write(""), host="h")
    moved = config.load_all(write("control:\n  socket: /run/other.sock\n"), host="h")
    (problem,) = moved.unfit_after(before)
    assert (problem.file, problem.line, problem.column, problem.path) == (str(write("")), 4, 11, "control.socket")
    assert "→ /run/other.sock needs a restart; put the old value back, or restart limiterd" in problem.message
    assert config.load_all(write("on_exit: remove\n"), host="h").unfit_after(before) == []
    empty = tmp_path / "limiterd.yaml"
    for text, refused in (("", True), ("\n", True), ("# defaults\n", False)):
        empty.write_text(text)
        problems = config.load_all(empty, host="h").unfit_after(Rules(config=Config(on_exit=OnExit.REMOVE)))
        assert ["is empty, which" in str(problem) for problem in problems] == [True] * refused
    empty.write_text("")
    assert config.load_all(empty, host="h").unfit_after(Rules()) == []


def test_notes_say_what_is_worth_a_look(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing watched, observed only, matching nothing, never expiring, expired, on an unwatched link."""
    path = write('policies: [{name: a, interfaces: ["!eth0"]}, {name: b, interfaces: [en0, "r1/eth*"], mode: observe}]\n')
    (tmp_path / "overrides.d").mkdir()
    records = RECORD.replace("2026-12-31", "never"), RECORD.replace("REQ-1", "REQ-2").replace("2026", "1999")
    (tmp_path / "overrides.d/a.yaml").write_text(records[0] + records[1].partition("\n")[2])
    (tmp_path / "overrides.d/b.yaml").write_text(RECORD.replace("REQ-1", "REQ-3").replace('"eth0"', '"!eth0"'))
    notes = "\n".join(config.load_all(path, host="h", wall_ns=10**18).notes)
    for words in (
        "a only excludes",
        "b observes",
        "b names r1/eth*, which only a recording",
        "REQ-1 never expires",
        "REQ-2 has expired",
        "REQ-1 names eth0, which no policy",
        "REQ-3 only excludes interfaces",
    ):
        assert words in notes
    assert "no policy, so no link" in "\n".join(config.load_all(write("policies: []\n"), host="h").notes)


# ---- limiterctl check --------------------------------------------------------------------------------


def test_check_without_paths_is_what_a_daemon_would_load(write: Callable[[str], Path], tmp_path: Path) -> None:
    """The configuration with all that it names; a good one has no problem, a bad record is one."""
    path = write("")
    (tmp_path / "overrides.d").mkdir()
    assert check([], default=path) == ((), ())
    (tmp_path / "overrides.d/a.yaml").write_text("x: 1\n")
    problems, _ = check([], default=path)
    assert {Path(problem.file).name for problem in problems} == {"a.yaml"}


def test_check_takes_files_and_directories_of_both_kinds(tmp_path: Path) -> None:
    """Each path is known by what it holds; duplicates and conflicts are found across them."""
    (tmp_path / "c.yaml").write_text("policies: [{detect: {threshold: 2gbit}}]\n")
    (tmp_path / "one.yaml").write_text(RECORD)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/two.yaml").write_text(RECORD.replace("exempt", "limit\n    limit: 3gbit"))
    problems, _ = check([tmp_path / "c.yaml", tmp_path / "one.yaml"])
    assert problems == ()
    problems, _ = check([tmp_path / "c.yaml", tmp_path / "one.yaml", tmp_path / "d"])
    assert [problem.path for problem in problems] == ["overrides[0].id", "overrides[0].limit"]
    (tmp_path / "one.yaml").unlink()
    problems, _ = check([tmp_path / "c.yaml", tmp_path / "d"])
    assert "the limit 3gbit is not below the threshold 2gbit of policy fair-use" in problems[0].message
    problems, _ = check([tmp_path / "one.yaml", tmp_path / "c.yaml"])
    assert "no such file" in problems[0].message


def test_check_knows_an_empty_override_file_by_its_directory(tmp_path: Path) -> None:
    """Without content, a file in overrides.d is one of records, and lacks them; elsewhere it is a configuration."""
    (tmp_path / "overrides.d").mkdir()
    for path in (tmp_path / "overrides.d/a.yaml", tmp_path / "c.yaml"):
        path.write_text("# nothing\n")
    assert check([tmp_path / "c.yaml"])[0] == ()
    assert "no record is in this file" in check([tmp_path / "overrides.d/a.yaml"])[0][0].message


def test_a_load_reads_the_clock_only_for_remarks(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Whatever the time, the rules are the same."""
    path = write("")
    (tmp_path / "overrides.d").mkdir()
    (tmp_path / "overrides.d/a.yaml").write_text(RECORD)
    then, now = (config.load_all(path, host="h", wall_ns=wall_ns).rules for wall_ns in (0, 4 * 10**18))
    assert then == now


def test_files_are_closed(write: Callable[[str], Path]) -> None:
    """Loads and refused loads leave no descriptor open."""
    path = write("")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        config.load_all(path, host="h")
        with pytest.raises(ConfigError):
            config.load(path.parent)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_recorded_samples_have_no_interval_to_check(tmp_path: Path) -> None:
    """For a replay nothing that is said of the sampling interval is checked; everything else is."""
    path = tmp_path / "limiterd.yaml"
    path.write_text("sampling: {interval: 30s, max_gap: 40s}\npolicies: [{name: p, interfaces: ['*'], detect: {slice: 50ms}}]\n")
    path.chmod(0o644)
    assert config.load_rules(path, host="h", paced=False).config.sampling.interval_ns == 30 * 10**9
    with pytest.raises(ConfigError, match="out of range"):
        config.load_rules(path, host="h")
    path.write_text("sampling: {max_gap: 1s, counter_refresh: 2s}\n")
    with pytest.raises(ConfigError, match="counter_refresh"):
        config.load_rules(path, host="h", paced=False)
