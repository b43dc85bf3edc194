"""limiterctl install-service and uninstall-service: the systemd unit for installations that no package manager made.

Rule: a plan first, then its steps; `--dry-run` prints the plan and ends. The unit is the one in systemd/, with the paths
of this installation. Installing is not consenting: nothing is enabled or started. Uninstalling lifts all limits and
keeps configuration and state unless `--purge` is given. A file that somebody else wrote is never overwritten or deleted.

Under a package manager (apt install limiterd) none of this is needed; with `--root DIR` the files go below DIR, for
building images, and no command is run.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Final

from limiterd.core.errors import EnvironmentFault, PermissionFault
from limiterd.ctl.terminal import output_is_extra, say

MARK: Final = "# Written by `limiterctl install-service`; `limiterctl uninstall-service` takes it away."
UNIT: Final = Path("/etc/systemd/system/limiterd.service")
SYSUSERS: Final = Path("/etc/sysusers.d/limiterd.conf")
CONFIG: Final = Path("/etc/limiterd/limiterd.yaml")
OVERRIDES: Final = Path("/etc/limiterd/overrides.d")
STATE: Final = Path("/var/lib/limiterd")
PACKAGED_UNITS: Final = (
    Path("/usr/lib/systemd/system/limiterd.service"),
    Path("/lib/systemd/system/limiterd.service"),
)

HIDDEN_FROM_SERVICE: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - names them, uses none
"""ProtectHome= and PrivateTmp= of the unit hide these from the daemon: it cannot be executed from there."""


@dataclass(frozen=True, slots=True)
class Write:
    """Put a file there, mode 644. keep: an existing one is the operator's and stays."""

    path: Path
    text: str
    keep: bool = False


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Make a directory, mode 755, with its parents."""

    path: Path


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete a file or a whole directory, where it exists."""

    path: Path


@dataclass(frozen=True, slots=True)
class Execute:
    """Run a command; must: its failure ends the plan."""

    command: tuple[str, ...]
    must: bool = True


Step = Write | MakeDirectory | Remove | Execute


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of both verbs; --purge makes sense for the second only and is refused by the first."""
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, change nothing")
    parser.add_argument("--root", type=Path, metavar="DIR", help="put the files below DIR (an image), run no command")
    parser.add_argument("--purge", action="store_true", help="uninstall: delete configuration and state too")


def run(ns: argparse.Namespace) -> int:
    """Carry out or print the plan of the verb in ns.verb. Raises EnvironmentFault, PermissionFault."""
    if ns.verb == "uninstall-service":
        steps, last = uninstall_plan(ns.root, purge=ns.purge), "limiterd.service is gone."
    elif ns.purge:
        raise EnvironmentFault("--purge belongs to uninstall-service; install-service deletes nothing")
    else:
        steps = install_plan(ns.root)
        last = f"Next: edit {CONFIG}, then: limiterctl check && systemctl enable --now limiterd\nDrop-ins: {drop_ins()}"
    if ns.dry_run:
        say(describe(step) for step in steps)
        return 0
    output_is_extra()  # no step is left out because nobody reads of it
    for step in steps:
        say([describe(step, brief=True)], flush=True)
        perform(step)
    say([last])
    return 0


# ---- plans ---------------------------------------------------------------------------------------


def install_plan(root: Path | None) -> list[Step]:
    """The steps of install-service. Raises EnvironmentFault where they could not lead to a service that works."""
    programs = Path(sys.executable).parent  # not resolved: a virtual environment's python is a link out of it
    _check_programs(programs)
    _check_unit_is_ours(below(root, UNIT))
    if root is None and (packaged := next((unit for unit in PACKAGED_UNITS if unit.exists()), None)):
        raise EnvironmentFault(f"{packaged} is there already: limiterd is installed as a package; use that")
    steps: list[Step] = [
        Write(below(root, SYSUSERS), f"{MARK}\n{shipped('systemd/limiterd.sysusers')}"),
        Write(below(root, CONFIG), shipped("config/limiterd.yaml"), keep=True),
        MakeDirectory(below(root, OVERRIDES)),
        Write(below(root, UNIT), f"{MARK}\n{unit_text(programs)}"),
    ]
    if root is None:
        steps += [Execute(("systemd-sysusers", str(SYSUSERS))), Execute(("systemctl", "daemon-reload"))]
    return steps


def uninstall_plan(root: Path | None, *, purge: bool) -> list[Step]:
    """The steps of uninstall-service. Raises EnvironmentFault where the unit is not the one that we wrote."""
    _check_unit_is_ours(below(root, UNIT))
    steps: list[Step] = []
    if root is None:
        daemon = str(Path(sys.executable).parent / "limiterd")
        steps = [
            Execute(("systemctl", "disable", "--now", "limiterd.service"), must=False),
            Execute((daemon, "--cleanup")),
        ]
    steps += [Remove(below(root, UNIT)), Remove(below(root, SYSUSERS))]
    if purge:
        steps += [Remove(below(root, CONFIG.parent)), Remove(below(root, STATE))]
    return [*steps, Execute(("systemctl", "daemon-reload"))] if root is None else steps


def below(root: Path | None, path: Path) -> Path:
    """The path itself, or the same path below root."""
    return path if root is None else root / path.relative_to("/")


def unit_text(programs: Path) -> str:
    """The unit as shipped, with the programs of that directory, and with the drop-ins where this installation has them."""
    text = shipped("systemd/limiterd.service").replace("/usr/share/limiterd/systemd/drop-ins/", f"{drop_ins()}/")
    for name in ("limiterd", "limiterctl"):
        text = text.replace(f"=/usr/bin/{name} ", f"={_quoted(programs / name)} ")
    return text


def _quoted(program: Path) -> str:
    """A program's path for ExecStart= (systemd.service(5): quotes, and % and $ doubled)."""
    text = str(program).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(c in text for c in " \t\"'\\;") else text


def _check_programs(programs: Path) -> None:
    for name in ("limiterd", "limiterctl"):
        if not (programs / name).exists():
            raise EnvironmentFault(f"{programs / name} does not exist: install limiterd first (pipx install . in its checkout)")
    hidden = next((place for place in HIDDEN_FROM_SERVICE if programs.is_relative_to(place)), None)
    if hidden:
        raise EnvironmentFault(
            f"limiterd is installed in {programs}, but services cannot see {hidden}; install it where they can: "
            "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install . (in its checkout)"
        )


def _check_unit_is_ours(unit: Path) -> None:
    if unit.exists() and not unit.read_text(encoding="utf-8").startswith(MARK):
        raise EnvironmentFault(f"{unit} was not written by install-service; move it away first")


def drop_ins() -> Path:
    """Where this installation has the unit's ready-made drop-ins."""
    return _found("systemd/drop-ins/process-names.conf").parent


def shipped(name: str) -> str:
    """The text of a file that comes with limiterd, from wherever this installation has it."""
    return _found(name).read_text(encoding="utf-8")


def _found(name: str) -> Path:
    places = _places(name)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise EnvironmentFault(f"{name} did not come with this installation (looked for {places[0]}); reinstall limiterd")
    return found


def _places(name: str) -> list[Path]:
    """Where it may be: beside this code in a checkout, where the installer noted it, in this Python's share or the system's."""
    try:
        noted = [entry for entry in files("limiterd") or () if str(entry).endswith(f"share/limiterd/{name}")]
    except PackageNotFoundError:
        noted = []
    shares = (Path(sysconfig.get_path("data")), Path(sys.prefix), Path("/usr"))
    return [
        Path(__file__).resolve().parent.parent.parent / name,
        *(Path(str(entry.locate())).resolve() for entry in noted),  # an installer notes ../../../share
        *(prefix / "share/limiterd" / name for prefix in shares),
    ]


# ---- steps ---------------------------------------------------------------------------------------


def describe(step: Step, *, brief: bool = False) -> str:
    """A step for people; in full, a file to be written is shown with its text."""
    match step:
        case Write(path, _, keep=True) if path.exists():
            return f"keep {path}"
        case Write(path, text):
            return f"write {path}" if brief else f"write {path}:\n{_indented(text)}"
        case MakeDirectory(path):
            return f"make directory {path}"
        case Remove(path):
            return f"remove {path}"
        case Execute(command):
            return f"run {' '.join(command)}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def perform(step: Step) -> None:
    """Carry out one step. Raises PermissionFault where it is not permitted, EnvironmentFault for what else goes wrong."""
    try:
        match step:
            case Write(path, _, keep=True) if path.exists():
                pass
            case Write(path, text):
                _make_directory(path.parent)
                path.write_text(text, encoding="utf-8")
                path.chmod(0o644)
            case MakeDirectory(path):
                _make_directory(path)
            case Remove(path):
                _remove(path)
            case Execute(command, must):
                _execute(command, must=must)
    except PermissionError as error:
        raise PermissionFault(f"{error.filename}: not permitted; run it as root: sudo limiterctl …") from error
    except OSError as error:
        raise EnvironmentFault(f"{describe(step, brief=True)}: {error.strerror}") from error


def _make_directory(path: Path) -> None:
    """Readable by the daemon's user whatever the umask; existing directories keep their modes."""
    if not path.exists():
        _make_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _execute(command: Sequence[str], *, must: bool) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise EnvironmentFault(f"{command[0]} is not on this machine: is systemd its service manager?")
    done = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True)
    if must and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise EnvironmentFault(f"{' '.join(command)} failed with exit code {done.returncode}: {said}")
