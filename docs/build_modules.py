"""Writes the tables of modules in docs/architecture.md from the modules' own docstrings."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "architecture.md"
BEGIN: Final = "## The modules\n"
END: Final = "## The path of one byte count\n"
PACKAGES: Final = ("core", "config", "store", "kernel", "serve", "sim", "recording", "daemon", "ctl", "replay", "demo", "")
"""In the order in which to read them; "" are the modules at the top."""


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def table(package: str) -> str:
    """The modules of one package, a line each."""
    folder = ROOT / "limiterd" / package
    paths = sorted(path for path in (folder.rglob("*.py") if package else folder.glob("*.py")) if path.name != "__init__.py")
    rows = [f"| `{'.'.join(path.relative_to(ROOT / 'limiterd').with_suffix('').parts)}` | {summary(path)} |" for path in paths]
    title = f"`{package}/`: {summary(folder / '__init__.py')}" if package else "At the top"
    return "\n".join([f"### {title}", "", "| module | holds |", "|---|---|", *rows, ""])


def text() -> str:
    """The page with its tables made anew."""
    page = PAGE.read_text(encoding="utf-8")
    tables = "\n".join(table(package) for package in PACKAGES)
    return page[: page.index(BEGIN)] + f"{BEGIN}\n{tables}\n" + page[page.index(END) :]


def main() -> None:
    """Write it."""
    PAGE.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
