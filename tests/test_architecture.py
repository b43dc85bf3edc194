"""The house rules that a reader can rely on without looking, held by reading every module's syntax tree.

Layers: core ← adapters ← wiring (MAY_IMPORT). The core is pure; adapters know the core and the tools they stand on; only
the wiring knows everybody. Each dependency lives behind one fence.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "limiterd"
ROOT = PACKAGE.parent

MAY_IMPORT: dict[str, set[str]] = {
    # package (or module at the top): what it may import besides itself and the core
    "core": set(),
    "background": set(),
    "files": set(),
    "json_codec": set(),
    "log": {"json_codec"},
    "streams": set(),
    "systemd": set(),
    "trusted_files": set(),
    "config": {"files", "trusted_files"},
    "store": {"background", "files", "json_codec"},
    "kernel": set(),
    "serve": {"files", "json_codec"},
    "sim": set(),
    "recording": set(),
    "daemon": {
        "background",
        "config",
        "files",
        "json_codec",
        "kernel",
        "log",
        "serve",
        "store",
        "streams",
        "systemd",
        "trusted_files",
    },
    "ctl": {"config", "json_codec", "kernel", "recording", "serve", "store", "streams", "trusted_files"},
    "replay": {"config", "ctl", "daemon", "recording", "sim", "files"},
    "demo": {"config", "ctl", "daemon", "kernel", "serve", "sim"},
    "cli": {"ctl", "streams"},
}
"""The layers: which package may know which. No adapter (config, store, kernel, serve, sim, recording) knows the wiring."""

WIRING = {"daemon", "replay", "demo", "cli", "ctl"}
"""The packages that may know several adapters."""

FENCES = {
    "pyroute2": {"limiterd.sim.netns"},
    "psutil": {"limiterd.kernel.samplers", "limiterd.kernel.top_talkers"},
    "yaml": {"limiterd.config.yaml_reader"},
    "prometheus_client": {"limiterd.serve.metrics"},
    "matplotlib": {"limiterd.replay.plot"},  # the extra `plot`
    "rich": {"limiterd.ctl.top", "limiterd.demo.show", "limiterd.replay"},
}
"""Which modules may import a dependency."""

# fmt: off
PURE_STDLIB = frozenset({
    "__future__", "abc", "array", "bisect", "collections", "contextlib", "dataclasses", "datetime", "decimal", "difflib", "enum",
    "errno", "fnmatch", "fractions", "functools", "hashlib", "heapq", "ipaddress", "itertools", "json", "math",
    "operator", "re", "string", "struct", "textwrap", "types", "typing", "unicodedata",
})
# fmt: on
"""What the core may import besides itself: nothing that reads a clock, a file, the environment or chance."""

CLOCK_READS = frozenset({"now", "today", "utcnow"})
"""datetime is pure but for these."""

MAX_LINES = 600

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


NAMES = {name_of(path): path for path in MODULES}


def nodes_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, without the blocks that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from nodes_at_run_time(child)


@cache
def imports_of(path: Path, *, run_time: bool = False) -> frozenset[str]:
    """Every module that a file imports anywhere in it, in full; `from package import module` counts as the module."""
    found: set[str] = set()
    for node in nodes_at_run_time(tree_of(path)) if run_time else ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            found.update(full if (full := f"{base}.{alias.name}") in NAMES else base for alias in node.names)
    return frozenset(found)


def is_core(name: str) -> bool:
    """Whether a module belongs to the pure core."""
    return name == "limiterd.core" or name.startswith("limiterd.core.")


def is_wiring(name: str) -> bool:
    """Whether a module may know several adapters: a wiring module, or a part of one that grew into a package."""
    parts = name.split(".")
    return len(parts) > 1 and parts[1] in WIRING


def package_of(name: str) -> str:
    """The package of a module; a module at the top is its own."""
    return name.split(".")[1] if "." in name else ""


def own(imports: frozenset[str]) -> set[str]:
    """Those imports that are modules of this package."""
    return {name for name in imports if name.split(".")[0] == "limiterd"}


def reachable(start: str) -> set[str]:
    """Every module of this package that importing `start` pulls in."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name in seen or name not in NAMES:
            continue
        seen.add(name)
        todo.extend(own(imports_of(NAMES[name], run_time=True)))
        todo.append(name.rpartition(".")[0])
    return seen


every_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


@every_module
def test_core_imports_core_and_pure_stdlib_only(path: Path) -> None:
    """A core module imports core modules and the listed pure standard library, nothing else."""
    if not is_core(name_of(path)):
        return
    alien = {name for name in imports_of(path) if not is_core(name) and name.split(".")[0] not in PURE_STDLIB}
    assert not alien


@every_module
def test_core_reads_no_clock(path: Path) -> None:
    """A core module never asks what time it is: every time is an argument."""
    if not is_core(name_of(path)):
        return
    asked = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CLOCK_READS
        and ast.unparse(node.func.value) in {"datetime", "date", "datetime.datetime", "datetime.date", "dt.datetime", "dt.date"}
    ]
    assert not asked


@every_module
def test_core_does_no_io(path: Path) -> None:
    """A core module neither opens files nor prints nor asks."""
    if not is_core(name_of(path)):
        return
    calls = {node.func.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


def package_imports() -> dict[str, set[str]]:
    """Every package, and the other packages that it imports, type-checking imports included."""
    found: dict[str, set[str]] = {package_of(name): set() for name in NAMES if "." in name}
    for name, path in NAMES.items():
        targets = {package_of(target) for target in own(imports_of(path))} - {"", "core", package_of(name)}
        found.setdefault(package_of(name), set()).update(targets)
    return {package: targets for package, targets in found.items() if package}


def test_packages_import_what_their_layer_allows() -> None:
    """A package imports the core and what MAY_IMPORT names, type-checking imports included; the table names nothing else."""
    assert package_imports() == MAY_IMPORT


def test_each_dependency_has_one_fence() -> None:
    """A third-party library is imported behind its fence and nowhere else, and only the declared ones are imported at all."""
    found: dict[str, set[str]] = {}
    for name, path in NAMES.items():
        for library in {imported.split(".")[0] for imported in imports_of(path)} - sys.stdlib_module_names - {"limiterd"}:
            found.setdefault(library, set()).add(name)
    assert found == FENCES


DAEMON = {name for name in NAMES if name == "limiterd.daemon" or name.startswith("limiterd.daemon.")}


def test_the_daemon_starts_no_processes() -> None:
    """Nothing that the daemon imports, however indirectly, imports a way to start a process."""
    starters = {"subprocess", "multiprocessing", "pty", "concurrent.futures.process"}
    modules = set().union(*map(reachable, DAEMON))
    assert "limiterd.core.engine" in modules
    assert not {name: found for name in modules if (found := imports_of(NAMES[name]) & starters)}


def test_the_daemon_does_not_carry_the_terminal() -> None:
    """The daemon pulls in none of the command line: no rich, no demo, no replay."""
    modules = set().union(*map(reachable, DAEMON))
    assert not {name for name in modules if is_wiring(name) and name not in DAEMON}
    assert not {name for name in modules if any(imported.split(".")[0] == "rich" for imported in imports_of(NAMES[name]))}


def test_imports_form_no_circle() -> None:
    """No module imports itself through others, type-checking imports included."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done or name not in NAMES:
            return
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        path.append(name)
        for target in sorted(own(imports_of(NAMES[name]))):
            visit(target)
        path.pop()
        done.add(name)

    for name in NAMES:
        visit(name)


@every_module
def test_module_opens_with_its_rule(path: Path) -> None:
    """Every module has a docstring."""
    assert ast.get_docstring(tree_of(path))


@every_module
def test_module_is_small(path: Path) -> None:
    """A module is short enough to read in one sitting."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def swallows_everything(node: ast.AST) -> bool:
    """Whether a handler catches everything and does not raise it again (to clean up first is no swallowing)."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None:
        return False
    caught = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {"BaseException"}
    return bool(caught & {"Exception", "BaseException"})


def test_one_broad_except_at_the_daemons_edge() -> None:
    """Only the daemon's outermost edge swallows everything, and in one place."""
    broad = [
        f"{name}:{node.lineno}"
        for name, path in NAMES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and swallows_everything(node)
    ]
    assert len([place for place in broad if place.startswith("limiterd.daemon")]) <= 1, broad
    assert not [place for place in broad if not place.startswith("limiterd.daemon")]


@every_module
def test_no_mutable_globals_by_assignment(path: Path) -> None:
    """State lives in objects that somebody owns: no `global` statement anywhere."""
    assert not [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Global)]


# ---- docs/architecture.md --------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def in_code(text: str) -> set[str]:
    """Every word that a text shows as code; of a path its last part."""
    return {word.rstrip("/").rpartition("/")[2] for code in re.findall(r"`([^`]+)`", text) for word in code.split()}


def test_the_page_names_every_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of modules say what `make docs` reads in the modules themselves, and no module is missing."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    build_modules = import_module("build_modules")
    assert build_modules.text() == PAGE
    named = set(
        re.findall(r"^\| `([\w.]+)` \|", PAGE[PAGE.index(build_modules.BEGIN) : PAGE.index(build_modules.END)], re.MULTILINE)
    )
    assert named == {name.removeprefix("limiterd.") for name, path in NAMES.items() if path.name != "__init__.py"}


FORBIDDEN = ("keeper", "chronicle", "understudy", "petition", "laboratory", "kernelside", "surroundings")
"""Words of the project's own that stood for the controller, the event log, the standby sampler, the approvals …"""


@every_module
def test_words_are_the_fields(path: Path) -> None:
    """No module speaks the private language of earlier versions."""
    assert not [word for word in FORBIDDEN if word in path.read_text(encoding="utf-8").lower()]


def test_the_page_names_every_thread() -> None:
    """The table of threads has each name that a thread is given."""
    made = [
        node
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"threading.Thread", "Background", "ThreadPoolExecutor", "AuditTrail"}
    ]
    names = {
        word.value
        for call in made
        for word in (*call.args, *(key.value for key in call.keywords if key.arg in {"name", "thread_name_prefix"}))
        if isinstance(word, ast.Constant) and isinstance(word.value, str)
    }
    table = PAGE[PAGE.index("| thread |") : PAGE.index("Nobody but the loop")]
    assert names == set().union(*(in_code(row.split("|")[1]) for row in table.splitlines() if row))
