"""Writes what is said of each configuration key from its declaration (limiterd/core/model): one text, two places.

config/limiterd.yaml whole: every key with its default, what is allowed and what it means. In docs/configuration.md the tables
between `<!-- keys: NAME -->` and `<!-- end -->`; the rest of that page is written by hand.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from limiterd.core.keys import Key, Section, keys_of
from limiterd.core.kinds import Choice, Kind, ListOf, Maybe
from limiterd.core.model import Config, Match, Override, Policy, Sampling

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "configuration.md"
SHIPPED: Final = ROOT / "config" / "limiterd.yaml"

HEAD: Final = """\
# limiterd: ends with ...
#
# limiterd's configuration. Every key is here with its default: a key that is left out means the same. docs/configuration.md
# describes each key's meaning and range. After a change: `limiterctl check`, then `limiterctl reload`.
#
# Rates need a unit: bit kbit mbit gbit tbit (decimal: 1gbit is 10^9 bit/s), Mbit/s, or Mbps. Durations: 100ms 10s 5m 24h 7d.
# The first line is read: it makes a file whose last line is not `...` an error, so that a half-written one is never applied.
"""
COMMENT_COLUMN: Final = 29
WIDTH: Final = 130


# ---- docs/configuration.md -------------------------------------------------------------------------


def flat(make: type, path: str = "", *, without: tuple[str, ...] = ()) -> Iterator[tuple[str, Key]]:
    """Every key with a value of its own, with its path; sections are opened, lists are not."""
    for key in keys_of(make).values():
        if key.name in without:
            continue
        if isinstance(key.kind, Section):
            yield from flat(key.kind.make, f"{path}{key.name}.")
        else:
            yield path + key.name, key


def allowed(key: Key) -> str:
    """What may be written, for a table of Markdown."""
    words = choices(key.kind)
    return ", ".join(f"`{word}`" for word in words) if words else key.allowed


def choices(kind: Kind) -> tuple[str, ...]:
    """The words of a kind that is one of a few."""
    return kind.words if isinstance(kind, Choice) else ()


def table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines).replace("|  |", "| |")


def with_defaults(make: type, *, without: tuple[str, ...] = ()) -> str:
    """The table of a configuration's section."""
    rows = (
        (f"`{path}`", f"`{key.kind.write(key.default)}`", allowed(key), key.meaning) for path, key in flat(make, without=without)
    )
    return table(("key", "default", "range", "meaning"), rows)


def of_matches() -> str:
    """The table of a match's keys."""
    return table(("key", "values", "meaning"), ((f"`{key.name}`", allowed(key), key.meaning) for _, key in flat(Match)))


def of_records() -> str:
    """The table of an override record's keys."""
    rows = ((f"`{key.name}`", "required" if key.required else "", key.meaning) for _, key in flat(Override))
    return table(("key", "", "meaning"), rows)


def page(text: str) -> str:
    """The page with its tables written afresh."""
    tables = {
        "sampling": with_defaults(Sampling),
        "policies": with_defaults(Policy),
        "match": of_matches(),
        "rest": with_defaults(Config, without=("sampling", "policies")),
        "override": of_records(),
    }
    for name, made in tables.items():
        head, rest = f"<!-- keys: {name} -->\n", "<!-- end -->"
        before, _, after = text.partition(head)
        text = f"{before}{head}\n{made}\n{rest}{after.partition(rest)[2]}"
    return text


# ---- config/limiterd.yaml --------------------------------------------------------------------------


def bare(text: str) -> str:
    """A text of the documentation without Markdown's marks."""
    return text.replace("`", "")


def comment(key: Key) -> str:
    """What stands behind a key: the words or bounds, and the meaning."""
    kind = key.kind.kind if isinstance(key.kind, Maybe) else key.kind
    words = " | ".join(choices(kind)) or key.allowed
    return bare("; ".join(part for part in (words, key.meaning) if part))


def lines_of(key: Key, indent: int) -> Iterator[str]:
    """A key with its default, and all that is below it."""
    pad = " " * indent
    section, entries = isinstance(key.kind, Section), isinstance(key.kind, ListOf) and isinstance(key.kind.kind, Section)
    entries = entries and bool(key.default)
    start = f"{pad}{key.name}:" if section or entries else f"{pad}{key.name}: {key.kind.write(key.default)}"
    yield from commented(start, bare(key.meaning) if section or entries else comment(key))
    if section:
        for inner in keys_of(key.kind.make).values():  # type: ignore[attr-defined]  # a Section, as `section` says
            yield from lines_of(inner, indent + 2)
    elif entries:
        made = [line for inner in keys_of(key.kind.kind.make).values() for line in lines_of(inner, indent + 4)]  # type: ignore[attr-defined]
        yield f"{pad}  - {made[0].lstrip()}"
        yield from made[1:]


def commented(start: str, text: str) -> Iterator[str]:
    """A line with a comment behind it, which goes on below where it is long."""
    column = max(COMMENT_COLUMN, len(start) + 2)
    first, *more = textwrap.wrap(text, WIDTH - column - 2) or [""]
    yield f"{start:<{column}}# {first}".rstrip() if first else start
    yield from (f"{'':<{column}}# {line}" for line in more)


def shipped() -> str:
    """The whole of config/limiterd.yaml."""
    sections = ["\n".join(lines_of(key, 0)) for key in keys_of(Config).values()]
    return HEAD + "\n" + "\n\n".join(sections) + "\n...\n"


def main() -> None:
    """Write both."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    SHIPPED.write_text(shipped(), encoding="utf-8")


if __name__ == "__main__":
    main()
