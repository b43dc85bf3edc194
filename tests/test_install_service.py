"""The service: what install-service writes, what systemd says of the unit, and what the unit must not lose."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from limiterd.core.errors import EnvironmentFault, PermissionFault
from limiterd.ctl import install_service as service
from tests import needs, seccomp

SYSTEMD = Path(__file__).resolve().parent.parent / "systemd"
UNIT = SYSTEMD / "limiterd.service"
DROP_INS = sorted((SYSTEMD / "drop-ins").glob("*.conf"))


@pytest.fixture
def systemd() -> None:
    """What reads a unit as systemd does."""
    needs.program("systemd-analyze", "systemd")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with both programs in it, as an installation that services can see has one."""
    place = Path("/usr/local/lib/limiterd-under-test/bin")
    monkeypatch.setattr(sys, "executable", str(place / "python3"))
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.parent == place or real(path))
    return place


def call(verb: str, *, root: Path | None, dry_run: bool = False, purge: bool = False) -> int:
    """Run a verb as the command line does."""
    return service.run(argparse.Namespace(verb=verb, root=root, dry_run=dry_run, purge=purge))


def tree(root: Path) -> dict[str, str]:
    """Every file below root with its mode and text."""
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


# ---- install-service -------------------------------------------------------------------------------


def test_install_writes_unit_user_and_configuration(tmp_path: Path, programs: Path) -> None:
    """install-service puts down the unit with this installation's paths, the user, the configuration and its directory."""
    assert call("install-service", root=tmp_path) == 0
    files = tree(tmp_path)
    assert set(files) == {
        "etc/systemd/system/limiterd.service",
        "etc/sysusers.d/limiterd.conf",
        "etc/limiterd/limiterd.yaml",
    }
    unit = files["etc/systemd/system/limiterd.service"]
    assert f"ExecStart={programs}/limiterd --config /etc/limiterd/limiterd.yaml" in unit
    assert f"ExecReload={programs}/limiterctl reload" in unit
    assert "/usr/bin/limiter" not in unit
    assert f"ready-made ones are in {service.drop_ins()}/" in unit
    assert "\nu limiterd " in files["etc/sysusers.d/limiterd.conf"]
    assert (tmp_path / "etc/limiterd/overrides.d").is_dir()


def test_install_is_readable_whatever_the_umask(tmp_path: Path, programs: Path) -> None:
    """Files and directories made under umask 077 can be read by the daemon's user all the same."""
    before = os.umask(0o077)
    try:
        call("install-service", root=tmp_path)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "etc").rglob("*")}
    assert modes == {0o644, 0o755}


def test_install_keeps_the_operators_configuration(tmp_path: Path, programs: Path) -> None:
    """A configuration that is there already stays as it is, also when install-service runs again."""
    config = tmp_path / "etc/limiterd/limiterd.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("on_exit: remove\n")
    call("install-service", root=tmp_path)
    call("install-service", root=tmp_path)
    assert config.read_text() == "on_exit: remove\n"


@pytest.mark.parametrize("verb", ["install-service", "uninstall-service"])
def test_dry_run_changes_nothing(tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """--dry-run shows every step and touches no file."""
    if verb == "uninstall-service":
        call("install-service", root=tmp_path)
    before = tree(tmp_path)
    capsys.readouterr()
    assert call(verb, root=tmp_path, dry_run=True) == 0
    assert tree(tmp_path) == before
    assert str(tmp_path / "etc/systemd/system/limiterd.service") in capsys.readouterr().out


def test_dry_run_of_install_shows_the_unit(tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run prints the text that would be written."""
    call("install-service", root=tmp_path, dry_run=True)
    assert f"    ExecStart={programs}/limiterd --config" in capsys.readouterr().out


def test_foreign_unit_is_left_alone(tmp_path: Path, programs: Path) -> None:
    """A unit of that name that somebody else wrote is neither overwritten nor removed."""
    unit = tmp_path / "etc/systemd/system/limiterd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    for verb in ("install-service", "uninstall-service"):
        with pytest.raises(EnvironmentFault, match="was not written by install-service"):
            call(verb, root=tmp_path)
    assert tree(tmp_path) == {"etc/systemd/system/limiterd.service": "[Service]\n"}


def test_installation_that_services_cannot_see_is_refused(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs below /root or /home are hidden from the unit: install-service says so and says what to do."""
    monkeypatch.setattr(service, "HIDDEN_FROM_SERVICE", ("/usr/local",))
    with pytest.raises(EnvironmentFault, match=r"services cannot see /usr/local; .*PIPX_HOME=/opt/pipx"):
        call("install-service", root=tmp_path)
    assert tree(tmp_path) == {}


def test_missing_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the console scripts there is nothing for the unit to start."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python3"))
    with pytest.raises(EnvironmentFault, match="does not exist: install limiterd first"):
        call("install-service", root=tmp_path)


def test_paths_are_quoted_for_systemd() -> None:
    """A path with a space, a percent sign or a dollar sign reaches ExecStart= as systemd reads it back."""
    text = service.unit_text(Path("/opt/my tools/100%$/bin"))
    assert 'ExecStart="/opt/my tools/100%%$$/bin/limiterd" --config' in text


def test_uninstall_removes_what_install_wrote(tmp_path: Path, programs: Path) -> None:
    """uninstall-service leaves configuration and state; --purge takes them too."""
    call("install-service", root=tmp_path)
    state = tmp_path / "var/lib/limiterd/journal.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    call("uninstall-service", root=tmp_path)
    assert set(tree(tmp_path)) == {"etc/limiterd/limiterd.yaml", "var/lib/limiterd/journal.json"}
    call("uninstall-service", root=tmp_path, purge=True)
    assert tree(tmp_path) == {}


def test_uninstall_lifts_limits_after_the_daemon_stopped(programs: Path) -> None:
    """On a live machine the service stops first, then the kernel is cleaned, then the files go."""
    plan = [service.describe(step) for step in service.uninstall_plan(None, purge=False)]
    order = ["systemctl disable --now limiterd", f"{programs}/limiterd --cleanup", f"remove {service.UNIT}", "daemon-reload"]
    places = [next(i for i, line in enumerate(plan) if part in line) for part in order]
    assert places == sorted(places)


def test_install_neither_enables_nor_starts(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing is not consenting: no step of the live plan enables or starts the unit."""
    monkeypatch.setattr(service, "PACKAGED_UNITS", ())
    plan = "\n".join(service.describe(step, brief=True) for step in service.install_plan(None))
    assert "run systemctl daemon-reload" in plan
    assert not re.search(r"\b(enable|start|restart)\b", plan)


def test_packaged_unit_is_not_shadowed(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a package brought the unit, install-service refuses instead of shadowing it from /etc."""
    packaged = tmp_path / "limiterd.service"
    packaged.touch()
    monkeypatch.setattr(service, "PACKAGED_UNITS", (packaged,))
    with pytest.raises(EnvironmentFault, match="installed as a package"):
        service.install_plan(None)


def test_what_is_not_permitted_says_so(tmp_path: Path) -> None:
    """A refused write names the file and asks for root; it is a permission fault with exit code 77."""
    if os.geteuid() == 0:
        target = Path("/proc/sys/kernel/limiterd-under-test")  # not even root creates files there
        expected: type[EnvironmentFault] = EnvironmentFault
    else:
        tmp_path.chmod(0o500)
        target, expected = tmp_path / "file", PermissionFault
    with pytest.raises(expected):
        service.perform(service.Write(target, ""))


def test_failing_command_ends_the_plan() -> None:
    """A command that must succeed and does not raises with its own words; one that may fail does not."""
    failing = (sys.executable, "-c", "import sys; sys.exit('no such thing')")
    with pytest.raises(EnvironmentFault, match="exit code 1: no such thing"):
        service.perform(service.Execute(failing))
    service.perform(service.Execute(failing, must=False))


def test_absent_command_says_what_is_missing() -> None:
    """Without systemd the message says so instead of naming an errno."""
    with pytest.raises(EnvironmentFault, match="is systemd its service manager"):
        service.perform(service.Execute(("limiterd-no-such-command",)))


# ---- the unit ----------------------------------------------------------------------------------------


def staged(directory: Path, *drop_ins: Path) -> Path:
    """The unit in a directory of its own, with programs that exist, and these drop-ins beside it."""
    unit = directory / "limiterd.service"
    text = UNIT.read_text()
    for name in ("limiterd", "limiterctl"):
        text = text.replace(f"=/usr/bin/{name} ", "=/usr/bin/true ")
    unit.write_text(text)
    beside = directory / "limiterd.service.d"
    beside.mkdir()
    for drop_in in drop_ins:
        shutil.copy(drop_in, beside)
    return unit


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize("drop_in", [None, *DROP_INS], ids=lambda path: path.stem if path else "alone")
def test_systemd_accepts_every_line_of_the_unit(tmp_path: Path, drop_in: Path | None) -> None:
    """systemd-analyze verify has nothing to say (it exits 0 on unknown keys, so its silence is what counts)."""
    verdict = analyze("verify", "--man=no", staged(tmp_path, *filter(None, [drop_in])))
    assert (verdict.returncode, verdict.stderr) == (0, "")


@pytest.mark.usefixtures("systemd")
def test_exposure_is_at_most_one_and_a_half(tmp_path: Path) -> None:
    """systemd-analyze security rates the unit 1.5 or better."""
    verdict = analyze("security", "--offline=true", "--threshold=15", staged(tmp_path))
    assert verdict.returncode == 0, verdict.stdout


def settings() -> dict[str, list[str]]:
    """The unit's keys with all their values, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_unit_has_one_capability_and_no_root() -> None:
    """CAP_NET_ADMIN is in both sets (a user other than root needs it ambient), and nothing else is."""
    unit = settings()
    assert unit["AmbientCapabilities"] == unit["CapabilityBoundingSet"] == ["CAP_NET_ADMIN"]
    assert unit["User"] == ["limiterd"]


def test_unit_never_removes_limits_at_a_crash() -> None:
    """No ExecStopPost, and the two exit codes that a restart cannot cure are the only ones that prevent it."""
    unit = settings()
    assert "ExecStopPost" not in unit
    assert unit["Restart"] == ["always"]
    assert unit["RestartPreventExitStatus"] == ["77 78"]
    assert "RestartSteps" not in unit  # unknown before systemd 254


@pytest.mark.parametrize("key", ["PrivateNetwork", "PrivateUsers", "ProcSubset", "RootDirectory", "RootImage", "NoExecPaths"])
def test_what_would_break_the_daemon_is_left_out_and_explained(key: str) -> None:
    """A directive that cannot be used stands in the unit's list of reasons, not among its settings."""
    assert key not in settings()
    assert f"{key}=" in UNIT.read_text()


def test_what_the_daemon_needs_is_not_taken_away() -> None:
    """Netlink and unix sockets, and the loopback address, stay open."""
    unit = settings()
    assert {"AF_NETLINK", "AF_UNIX", "AF_INET", "AF_INET6"} == set(unit["RestrictAddressFamilies"][0].split())
    assert unit["IPAddressAllow"] == ["localhost"]
    assert "@process" not in " ".join(value for value in unit["SystemCallFilter"] if value.startswith("~"))


@pytest.mark.usefixtures("systemd")
def test_the_filter_leaves_what_the_daemon_needs_alone() -> None:
    """Netlink, files and threads stay; changing owners takes the drop-in for groups; what breaks out is refused either way."""
    plain, grouped = seccomp.allowed(seccomp.UNIT), seccomp.allowed(seccomp.UNIT, seccomp.SOCKET_GROUP)
    assert {"sendmsg", "recvmsg", "fsync", "rename", "clone3", "futex", "execve", "clock_gettime"} <= plain
    assert {"chown", "fchown", "fchownat", "lchown"} <= grouped - plain
    assert not {"mount", "ptrace", "bpf", "reboot", "setpriority", "init_module"} & grouped
