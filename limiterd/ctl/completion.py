"""`limiterctl completion bash|zsh|fish`: completion scripts, made from the parser itself so that they cannot lag behind it.

The parser is walked once into a plain description (verbs, options, what an option's value is); one writer a shell turns
that into its language. Links, files and the answers that a word can have are completed; ids and rates are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from limiterd.core.errors import EXIT_DONE
from limiterd.ctl.terminal import say

FILE_METAVARS: Final = frozenset({"FILE", "PATH", "RECORDING", "DIR", "DIRECTORY"})
LINK_METAVARS: Final = frozenset({"IFACE", "GLOB"})


class Option(NamedTuple):
    """One option: its spellings, help, and what its value is: "", "file", "link", "text", or the words to choose from."""

    names: tuple[str, ...]
    help: str
    value: str
    words: tuple[str, ...] = ()


class Word(NamedTuple):
    """A verb or an action below one: name, help, options, what its positional argument is, and the words below it."""

    name: str
    help: str
    options: tuple[Option, ...]
    positional: Option | None
    below: tuple[Word, ...]


def completion_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `completion`."""
    parser.add_argument("shell", choices=sorted(WRITERS), help="the shell to complete for")


def completion(ns: argparse.Namespace) -> int:
    """Print the script."""
    say(script(ns.shell).splitlines())
    return EXIT_DONE


def script(shell: str) -> str:
    """The completion script of one shell."""
    from limiterd.cli import build_parser  # noqa: PLC0415 - the parser is the command line's own, and it names this module

    return WRITERS[shell](describe("limiterctl", "", build_parser()))


# ---- the parser as data ------------------------------------------------------------------------------


def describe(name: str, help_text: str, parser: argparse.ArgumentParser) -> Word:
    """Walk a parser (argparse has no public way to: its actions are read)."""
    options: list[Option] = []
    positional: Option | None = None
    below: list[Word] = []
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            below = [describe(word, helps.get(word, ""), sub) for word, sub in action.choices.items()]
        elif action.help is argparse.SUPPRESS:
            continue
        elif action.option_strings:
            options.append(_option(action))
        elif positional is None:
            positional = _option(action)
    return Word(name, help_text, tuple(options), positional, tuple(below))


def _option(action: argparse.Action) -> Option:
    help_text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    words = tuple(str(choice) for choice in action.choices) if action.choices is not None else ()
    return Option(tuple(action.option_strings), help_text, _value(action, words), words)


def _value(action: argparse.Action, words: Sequence[str]) -> str:
    if action.nargs == 0:
        return ""
    metavar = str(action.metavar or "")
    if words:
        return "words"
    return "file" if metavar in FILE_METAVARS else "link" if metavar in LINK_METAVARS else "text"


def paths(word: Word, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Word]]:
    """Every word with the words that lead to it, the program's own first with none."""
    return [(above, word), *(found for inner in word.below for found in paths(inner, (*above, inner.name)))]


# ---- bash --------------------------------------------------------------------------------------------

_BASH_HEAD: Final = """\
# bash completion for limiterctl; made by `limiterctl completion bash`.
_limiterctl() {
    local cur prev words cword path="" word i
    cur="${COMP_WORDS[COMP_CWORD]}"
    prev="${COMP_WORDS[COMP_CWORD-1]}"
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${COMP_WORDS[i]}"
        case "$path/$word" in
"""
_BASH_MIDDLE: Final = """\
        esac
    done
    case "$path $prev" in
"""
_BASH_TAIL: Final = """\
}
complete -F _limiterctl limiterctl
"""
_BASH_VALUES: Final[Mapping[str, str]] = {
    "file": 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return',
    "link": 'mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return',
    "text": "COMPREPLY=(); return",
}


def _bash_value(option: Option) -> str:
    if option.value == "words":
        return f'mapfile -t COMPREPLY < <(compgen -W "{" ".join(option.words)}" -- "$cur"); return'
    return _BASH_VALUES[option.value]


def bash(root: Word) -> str:
    """The script for bash (4.4 and later)."""
    everything = paths(root)
    lines = [_BASH_HEAD.rstrip("\n")]
    lines += [f'            /{"/".join(path)}) path="/{"/".join(path)}" ;;' for path, _ in everything if path]
    lines.append(_BASH_MIDDLE.rstrip("\n"))
    for path, word in everything:
        where = "/" + "/".join(path) if path else ""
        for option in word.options:
            if option.value:
                names = "|".join(f'"{where} {name}"' for name in option.names)
                lines.append(f"        {names}) {_bash_value(option)} ;;")
    lines += ["    esac", '    case "$path" in']
    for path, word in everything:
        where = "/" + "/".join(path) if path else ""
        candidates = [w.name for w in word.below] or [name for option in word.options for name in option.names]
        lines.append(f'        "{where}")')
        if word.below:
            candidates += [name for option in word.options for name in option.names if name.startswith("--")]
        if word.positional is not None:
            lines.append(f'            if [[ "$cur" != -* ]]; then {_bash_value(word.positional)}; fi')
        lines.append(f'            mapfile -t COMPREPLY < <(compgen -W "{" ".join(candidates)}" -- "$cur") ;;')
    lines.append("    esac")
    return "\n".join(lines) + "\n" + _BASH_TAIL


# ---- zsh ---------------------------------------------------------------------------------------------

_ZSH_VALUES: Final[Mapping[str, str]] = {"file": "_files", "link": "_net_interfaces", "text": " "}


def _zsh_text(text: str) -> str:
    for char, escaped in (("\\", "\\\\"), ("'", "'\\''"), ("[", "\\["), ("]", "\\]"), (":", "\\:")):
        text = text.replace(char, escaped)
    return text


def _zsh_action(option: Option) -> str:
    return f"({' '.join(option.words)})" if option.value == "words" else _ZSH_VALUES[option.value]


def _zsh_function(path: Sequence[str]) -> str:
    return "_" + "_".join(["limiterctl", *(part.replace("-", "_") for part in path)])


def zsh(root: Word) -> str:
    """The script for zsh."""
    lines = ["#compdef limiterctl", "# zsh completion for limiterctl; made by `limiterctl completion zsh`."]
    for path, word in reversed(paths(root)):
        lines += ["", f"{_zsh_function(path)}() {{"]
        if word.below:
            lines += ["    local line state", "    local -a words_below=("]
            lines += [f"        '{_zsh_text(inner.name)}:{_zsh_text(inner.help)}'" for inner in word.below]
            lines.append("    )")
        lines.append("    _arguments -C \\" if word.below else "    _arguments \\")
        for option in word.options:
            value = f":value:{_zsh_action(option)}" if option.value else ""
            lines += [f"        '{name}[{_zsh_text(option.help)}]{value}' \\" for name in option.names]
        if word.below:
            lines += ["        '1: :->word' \\", "        '*:: :->rest'", '    case "$state" in']
            lines += ["        word) _describe 'word' words_below ;;", '        rest) case "$line[1]" in']
            lines += [f"            {inner.name}) {_zsh_function([*path, inner.name])} ;;" for inner in word.below]
            lines += ["        esac ;;", "    esac"]
        elif word.positional is not None:
            lines.append(f"        '*:argument:{_zsh_action(word.positional)}'")
        else:
            lines[-1] = lines[-1].removesuffix(" \\")
        lines.append("}")
    return "\n".join([*lines, "", 'if [ "$funcstack[1]" = "_limiterctl" ]; then', '    _limiterctl "$@"']) + (
        "\nelse\n    compdef _limiterctl limiterctl\nfi\n"
    )


# ---- fish --------------------------------------------------------------------------------------------

_FISH_VALUES: Final[Mapping[str, str]] = {"": "", "file": " -r -F", "link": ' -x -a "(command ls /sys/class/net)"', "text": " -x"}


def _fish_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _fish_value(option: Option) -> str:
    return f" -x -a '{' '.join(option.words)}'" if option.value == "words" else _FISH_VALUES[option.value]


def _fish_condition(path: Sequence[str], word: Word) -> str:
    if not path:
        return "__fish_use_subcommand"
    here = "; and ".join(f"__fish_seen_subcommand_from {part}" for part in path)
    names = " ".join(inner.name for inner in word.below)
    return f"{here}; and not __fish_seen_subcommand_from {names}" if names else here


def fish(root: Word) -> str:
    """The script for fish."""
    lines = ["# fish completion for limiterctl; made by `limiterctl completion fish`.", "complete -c limiterctl -f"]
    for path, word in paths(root):
        start = f"complete -c limiterctl -n '{_fish_condition(path, word)}'"
        lines += [f"{start} -a {inner.name} -d '{_fish_text(inner.help)}'" for inner in word.below]
        for option in word.options:
            flags = "".join(f" -l {n[2:]}" if n.startswith("--") else f" -s {n[1:]}" for n in option.names)
            lines.append(f"{start}{flags}{_fish_value(option)} -d '{_fish_text(option.help)}'")
        if word.positional is not None:
            lines.append(f"{start}{_fish_value(word.positional)}")
    return "\n".join(lines) + "\n"


WRITERS: Final[Mapping[str, Callable[[Word], str]]] = {"bash": bash, "zsh": zsh, "fish": fish}
