"""What is told in several places is told alike: versions, dependencies, files that the packages bring."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import limiterd

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BOUNDS: dict[str, str] = dict(line.split(">=") for line in PROJECT["project"]["dependencies"])

DEBIAN_12 = {"pyroute2": "0.7.2", "psutil": "5.9.4", "prometheus-client": "0.16", "PyYAML": "6.0", "rich": "13.3"}
"""What the oldest supported distribution ships."""

DEBIAN_NAMES = {"PyYAML": "python3-yaml"}
"""Where Debian's package is not called python3-NAME."""


def text(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def version(numbers: str) -> tuple[int, ...]:
    """A version that can be compared."""
    return tuple(map(int, re.findall(r"\d+", numbers)))


def normal(name: str) -> str:
    """A distribution's name as package indexes normalise it."""
    return re.sub(r"[-_.]+", "-", name).lower()


# ---- versions --------------------------------------------------------------------------------------


def test_version_is_the_same_everywhere() -> None:
    """The package, the newest changelog entries and the manual pages speak of one version."""
    assert re.search(r"^## \[(\d+\.\d+\.\d+)\]", text("CHANGELOG.md"), re.MULTILINE)[1] == limiterd.__version__  # type: ignore[index]
    assert re.match(r"limiterd \(([^)]+)\)", text("debian/changelog"))[1] == limiterd.__version__  # type: ignore[index]
    for page in sorted((ROOT / "docs" / "man").glob("*.[158]")):
        assert f'"limiterd {limiterd.__version__}"' in page.read_text(encoding="utf-8"), page.name


# ---- dependencies ----------------------------------------------------------------------------------


def test_lower_bounds_are_debian_12s() -> None:
    """Nothing newer than what Debian 12 ships is asked for, and nothing older is promised."""
    assert BOUNDS == DEBIAN_12


@pytest.mark.parametrize("name", BOUNDS)
def test_constraints_hold_one_version_not_below_the_bound(name: str) -> None:
    """The pinned version of a dependency is exact and allowed by its lower bound."""
    pins = {normal(line.split("==")[0]): line.split("==")[1] for line in text("constraints.txt").splitlines() if "==" in line}
    assert version(pins[normal(name)]) >= version(BOUNDS[name])


def test_constraints_pin_every_tool() -> None:
    """What tests, lint, builds and plots install is pinned too, and `make constraints` renews all of it."""
    pinned = {normal(line.split("==")[0]) for line in text("constraints.txt").splitlines() if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {normal(re.split(r"[>=<]", line)[0]) for extra in extras for line in extras[extra]}
    assert wanted <= pinned
    (renewed,) = re.findall(r"--upgrade .*'\.\[(.*)\]'", text("Makefile"))
    assert set(renewed.split(",")) == set(extras)


@pytest.mark.parametrize("name", BOUNDS)
def test_debian_builds_with_the_same_bounds(name: str) -> None:
    """debian/control asks for each library by Debian's name with the project's lower bound."""
    package = DEBIAN_NAMES.get(name, f"python3-{normal(name)}")
    assert f" {package} (>= {BOUNDS[name]})," in text("debian/control")


@pytest.mark.parametrize("name", BOUNDS)
def test_readme_gives_a_reason_for_each_dependency(name: str) -> None:
    """The README's table has a row for each library, with its lower bound and a reason."""
    assert re.search(
        rf"^\| \[{re.escape(name)}\]\(\S+\) \| {re.escape(BOUNDS[name])} \| [^|]+ \| [^|]+ \|$", text("README.md"), re.MULTILINE
    )


# ---- the commands of the README --------------------------------------------------------------------


def test_readme_opens_with_the_two_commands() -> None:
    """The first code that a newcomer sees is `sudo make run`, then `sudo make test`, then `make demo`."""
    block = re.search(r"```sh\n(.*?)```", text("README.md"), re.DOTALL)
    assert block
    assert [line.split("#")[0].strip() for line in block[1].splitlines()] == ["sudo make run", "sudo make test", "make demo"]


def test_every_make_target_that_is_told_exists() -> None:
    """Each `make TARGET` of the documents is a target of the Makefile, with a line of help."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", text("Makefile"), re.MULTILINE))
    assert {"run", "demo", "test", "lint", "types", "bench", "deb", "deb-test", "vm-test", "docs", "clean", "help"} <= targets
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CHANGELOG.md"]
    told = {
        word for document in documents for word in re.findall(r"`(?:sudo )?make ([a-z-]+)", document.read_text(encoding="utf-8"))
    }
    assert told <= targets


@pytest.mark.parametrize("document", ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_between_documents_lead_somewhere(document: str) -> None:
    """Every relative link of a document names a file that exists."""
    place = (ROOT / document).parent
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text(document))
    assert not [target for target in targets if not (place / target).exists()]


# ---- files -----------------------------------------------------------------------------------------


def test_shipped_files_exist() -> None:
    """Every pattern of the wheel's data files matches something."""
    patterns = [pattern for place in PROJECT["tool"]["setuptools"]["data-files"].values() for pattern in place]
    assert not [pattern for pattern in patterns if not list(ROOT.glob(pattern))]


def test_the_source_distribution_holds_what_the_packages_need() -> None:
    """MANIFEST.in brings every directory that debian/ installs from and that the Makefile and the tests name."""
    grafted = set(re.findall(r"^graft (\S+)", text("MANIFEST.in"), re.MULTILINE))
    installed = {line.split("/")[0] for line in text("debian/limiterd.install").splitlines()}
    assert installed | {"bench", "debian", "systemd", "tests"} <= grafted


def test_every_exception_to_a_lint_rule_is_somebodys() -> None:
    """A file that ruff is told to be lenient with exists."""
    patterns = PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    assert not [pattern for pattern in patterns if not next(ROOT.glob(pattern), None)]


def test_nobody_is_sent_to_a_publication_that_does_not_exist() -> None:
    """limiterd is installed from its checkout: a bare name would install a stranger's package."""
    places = [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs/man").iterdir(),
        *(ROOT / "limiterd").rglob("*.py"),
    ]
    assert not [place for place in places if re.search(r"pipx? install '?limiterd", place.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("link", ["debian/limiterd.service", "debian/limiterd.sysusers"])
def test_debian_uses_the_one_unit(link: str) -> None:
    """The package's unit is the repository's, not a copy that could fall behind."""
    assert (ROOT / link).resolve() == ROOT / "systemd" / Path(link).name


def test_installing_starts_nothing() -> None:
    """The package neither enables nor starts the service, and restarts only what ran."""
    assert "dh_installsystemd --no-enable --no-start --restart-after-upgrade" in text("debian/rules")


def test_removing_lifts_limits_and_upgrading_does_not() -> None:
    """prerm cleans the kernel up on `remove` alone, after it stopped the daemon."""
    script = text("debian/limiterd.prerm")
    assert script.index('"$1" = remove') < script.index("stop limiterd.service") < script.index("limiterd --cleanup")
    assert script.count("limiterd --cleanup") == 1
