"""Writes docs/man/limiterctl.1 from the command line's own description (`make docs`); `--check` says whether it is current.

limiterd.8 and limiterd.yaml.5 are written by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from limiterd import __version__
from limiterd.cli import build_parser

PAGE: Final = Path(__file__).resolve().parent / "man" / "limiterctl.1"

HEAD: Final = r"""'\" t
.\" Made by docs/man.py from the command line's own description; do not edit.
.TH LIMITERCTL 1 "" "limiterd {version}" "User Commands"
.SH NAME
limiterctl \- show and steer limiterd, the egress rate limiter
.SH SYNOPSIS
.B limiterctl
.I VERB
[\fIARGUMENT\fR...]
.SH DESCRIPTION
.B limiterctl
asks the running daemon over its control socket what it does and why, and tells it what to do.
Verbs that need no daemon say so.
Every verb that prints data takes
.BR \-\-json .
.PP
Every verb takes
.BI \-\-config " FILE"
(default /etc/limiterd/limiterd.yaml: it names the socket and the directories) and
.BI \-\-socket " PATH"
after its name.
.SH VERBS
"""

TAIL: Final = r""".SH EXIT STATUS
.TS
tab(|);
l l.
0|done
1|the operation failed
2|usage
3|the daemon cannot be reached
75|inconclusive: the demo's own traffic paused; run it again
77|not permitted
78|invalid configuration
.TE
.SH FILES
.TP
.I /etc/limiterd/limiterd.yaml
The configuration, see
.BR limiterd.yaml (5).
.TP
.I /run/limiterd/control.sock
The control socket.
.SH SEE ALSO
.BR limiterd (8),
.BR limiterd.yaml (5),
.BR tc-htb (8)
"""

COMMON: Final = frozenset({"--help", "--config", "--socket"})
"""Told once, for every verb."""


def roff(text: str) -> str:
    """Text as roff shows it unchanged."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def value_of(action: argparse.Action) -> str:
    """How an option's or argument's value is written."""
    if action.nargs == 0:
        return ""
    if action.metavar is None and action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))


def help_of(action: argparse.Action) -> str:
    """An argument's help with its default filled in."""
    return (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")


def arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a verb that are its own."""
    for action in parser._actions:
        told = action.help is argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction)
        if not told and not COMMON & set(action.option_strings):
            yield action


def synopsis(action: argparse.Action) -> str:
    """One argument in a verb's heading."""
    value = f"\\fI{roff(value_of(action))}\\fR" if value_of(action) else ""
    text = f"{roff(action.option_strings[-1])} {value}".strip() if action.option_strings else value
    return text if action.required and action.nargs not in {"?", "*"} else f"[{text}]"


def verb(words: str, help_text: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """A verb's section, and those of the words below it."""
    own = list(arguments(parser))
    yield f".SS {roff(words)} {' '.join(map(synopsis, own))}".rstrip()
    yield roff(f"{help_text[:1].upper()}{help_text[1:]}.")
    for action in own:
        names = ", ".join(f"\\fB{roff(name)}\\fR" for name in action.option_strings)
        yield ".TP"
        yield f"{names} \\fI{roff(value_of(action))}\\fR".replace(" \\fI\\fR", "").strip()
        yield roff(help_of(action)) or "."
    yield from below(words, parser)


def below(words: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """The sections of every word below a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, inner in action.choices.items():
                yield from verb(f"{words} {word}".strip(), helps.get(word, ""), inner)


def page() -> str:
    """The whole page."""
    body = "\n".join(below("", build_parser()))
    return HEAD.replace("{version}", __version__) + body + "\n" + TAIL


def main(words: list[str]) -> int:
    """Write the page, or compare it."""
    if words == ["--check"]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        if not current:
            sys.stderr.write(f"{PAGE} is behind the command line; run: make docs\n")
        return not current
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
