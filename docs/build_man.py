"""Makes docs/man/limiterd.yaml.5 from docs/configuration.md: one text for the web and for `man`.

Reads the little Markdown that our documentation is written in: headings, paragraphs, lists, fenced blocks, tables, and in
a line `code`, **bold** and *emphasis*. Anything else is left as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from limiterd import __version__

DOCS: Final = Path(__file__).resolve().parent
SOURCE: Final = DOCS / "configuration.md"
PAGE: Final = DOCS / "man" / "limiterd.yaml.5"

HEAD: Final = f""".\\" Made by docs/build_man.py from docs/configuration.md; do not edit.
.TH LIMITERD.YAML 5 "" "limiterd {__version__}" "File Formats"
.SH NAME
limiterd.yaml, overrides.d/*.yaml \\- configuration of limiterd, the egress rate limiter
.SH DESCRIPTION
"""
TAIL: Final = """\
.SH SEE ALSO
.BR limiterd (8),
.BR limiterctl (1),
.BR tc\\-htb (8)
"""
PLAIN_HEADINGS: Final = ("meaning", "values", "written", "")
"""Columns that speak for themselves."""

_INLINE: Final = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*")


def escaped(text: str) -> str:
    """Text as roff shows it unchanged."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("−", "\\-")


def inline(text: str) -> str:
    """A line with its code and emphasis in roff's fonts; one that begins like a request is guarded."""
    parts, at = [], 0
    for found in _INLINE.finditer(text):
        code, bold, emphasis = found.groups()
        font, inner = ("I", emphasis) if emphasis else ("B", code or bold)
        parts += [escaped(text[at : found.start()]), f"\\f{font}{escaped(inner)}\\fR"]
        at = found.end()
    line = "".join([*parts, escaped(text[at:])])
    return f"\\&{line}" if line.startswith((".", "'")) else line


def cells(row: str) -> list[str]:
    """The cells of a table's row."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def table(rows: list[str]) -> Iterator[str]:
    """A table as a list of terms, the manual's way: the first cell, what it means, and "heading: cell" for the rest."""
    head, *body = [cells(row) for row in rows if not re.fullmatch(r"[\s|:-]+", row)]
    for term, *others in body:
        named = [(name, cell) for name, cell in zip(head[1:], others, strict=True) if cell]
        facts = "; ".join(f"{name}: {cell}" for name, cell in named if name not in PLAIN_HEADINGS)
        meaning = " ".join(cell for name, cell in named if name in PLAIN_HEADINGS)
        yield ".TP"
        yield f"\\fB{escaped(term.replace('`', ''))}\\fR"
        yield inline(f"{meaning} ({facts})" if facts and meaning else facts or meaning)
    yield ".PP"


def fence(lines: list[str]) -> Iterator[str]:
    """A block shown as it stands."""
    yield from (".PP", ".RS 4", ".nf")
    yield from (f"\\&{escaped(line)}" if line.startswith((".", "'")) else escaped(line) for line in lines)
    yield from (".fi", ".RE", ".PP")


def blocks(text: str) -> Iterator[list[str]]:
    """The document's blocks: a fenced block whole, else lines up to an empty one; a heading or list item begins a new one."""
    block: list[str] = []
    fenced = False
    for line in text.splitlines():
        mark = line.lstrip().startswith("```")
        if not fenced and (not line.strip() or mark or line.startswith("#") or re.match(r"\s*- ", line)):
            if block:
                yield block
            block = []
        if line.strip() or fenced:
            block.append(line)
        if mark:
            fenced = not fenced
            if not fenced:
                yield block
                block = []
    if block:
        yield block


def roff(block: list[str]) -> Iterator[str]:
    """One block as roff."""
    first = block[0].strip()
    if first.startswith("```"):
        yield from fence([line[len(block[0]) - len(block[0].lstrip()) :] for line in block[1:-1]])
    elif first.startswith("#"):
        level, _, title = first.partition(" ")
        yield f".SH {escaped(title).upper()}" if level == "##" else f".SS {escaped(title)}"
    elif first.startswith("|"):
        yield from table(block)
    elif first.startswith("- "):
        yield ".IP \\(bu 2"
        yield inline(" ".join([first[2:], *(line.strip() for line in block[1:])]))
    else:
        yield ".PP"
        yield inline(" ".join(line.strip() for line in block))


def page() -> str:
    """The whole page; the document's own title is the page's name."""
    text = re.sub(r"\A# .*\n|<!--.*-->\n+", "", SOURCE.read_text(encoding="utf-8"))
    return HEAD + "\n".join(line for block in blocks(text) for line in roff(block)) + "\n" + TAIL


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
