"""Reads one YAML file that only trusted hands can have written, and composes it without YAML's surprises.

Rule: what a reader of the text sees is what it means, or the file is refused with file:line:column. Every value is its
own text: nothing is guessed from its look, so an interface named `no` or `1e3` is that name, and `1:30` is no number.
Aliases, anchors, tags, merge keys, directives, duplicate keys, a second document, nesting deeper than 16 and invisible
line breaks have no place in it.

How: the file is opened without waiting for a fifo's other end (trusted_files.py), then judged by its descriptor (regular,
owned by trusted hands, nobody else may write it, at most 256 KiB) and read once.
libyaml's event stream (PyYAML's own parser where libyaml is missing) is read into nodes that remember their place; an
event stream never expands an alias and can be left at any event, so a bomb costs what its first bytes cost. PyYAML's
composer is not used: it would stop at the first alias, where here the reading goes on to find what else is wrong.

Half-written files. A cut inside a value at the end of a file is refused: the last value must be followed by a newline or
a comment, or close itself with a quotation mark or bracket. A cut between two entries cannot be told from a shorter file
by anything in the file, except where the file itself announces its end: one whose first line is
`# limiterd: ends with ...` must have `...` as its last line. docs/configuration.md says what is left.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from limiterd.core.errors import ConfigError, Problem
from limiterd.core.text import shown as text_shown
from limiterd.trusted_files import UntrustedError, distrust, open_trusted

if TYPE_CHECKING:
    import yaml

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 16
MAX_NODES: Final = 30_000
MAX_PROBLEMS: Final = 100
ENDS_MARKED: Final = "# limiterd: ends with ..."
"""The first line of a file that announces its last line, `...`."""

_UNSEEN = re.compile("\r(?!\n)|[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML forbids in a text (its control characters), and the line breaks that an editor does not show as such."""
_FIRST_LINE = re.compile(r"#\s*limiterd:\s*ends with \.\.\.\s*")
_QUOTE_HINT = '; quote a value that begins with a special character, like "*.*"'


class Place(NamedTuple):
    """Where a node begins, counted from 1 as editors do."""

    line: int
    column: int


START: Final = Place(1, 1)


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as its text. plain: written without quotation marks."""

    text: str
    place: Place
    plain: bool = True


@dataclass(frozen=True, slots=True)
class Items:
    """A YAML sequence."""

    place: Place
    items: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Table:
    """A YAML mapping; its keys are unique scalars, in the order of the text."""

    place: Place
    pairs: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands where something was refused; its problem is noted already."""

    place: Place


Node = Scalar | Items | Table | Refused


class Problems:
    """Collects everything that is wrong with one file. Full at 100: the ConfigError is then raised from add()."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: list[Problem] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, place: Place, path: str, message: str) -> None:
        """Note one problem at a place, under a key's path such as `policies[0].detect.window`."""
        self._found.append(Problem(self.file, place.line, place.column, printable(path), printable(message)))
        if len(self._found) >= MAX_PROBLEMS:
            last = "more may follow: only the first 100 problems are shown; correct these first"
            self._found.append(Problem(self.file, place.line, place.column, "file", last))
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raise ConfigError with all that was found, or return."""
        if self._found:
            raise ConfigError(self._found)

    def take(self) -> tuple[Problem, ...]:
        """Everything noted so far."""
        return tuple(self._found)


def refuse(file: str, message: str, place: Place = START) -> ConfigError:
    """Make the error for a file as a whole."""
    return ConfigError([Problem(file, place.line, place.column, "file", message)])


def shown(path: str | os.PathLike[str]) -> str:
    """Make a path printable whatever bytes it holds."""
    return printable(os.fsdecode(os.fsencode(path)))


def printable(text: str) -> str:
    """Escape what a terminal could obey, and what could mislead."""
    return text_shown(text)


# ---- the file --------------------------------------------------------------------------------------


def read_bytes(path: str, *, dir_fd: int | None = None, file: str | None = None, owners: Collection[int] = ()) -> bytes:
    """Read one file whole, whatever it is, without ever blocking on it. Raises ConfigError alone.

    file is the name to show (the path as given by default); dir_fd and owners as open_trusted() takes them.
    """
    name = shown(path) if file is None else file
    try:
        descriptor = open_trusted(path, dir_fd=dir_fd, owners=owners)
    except UntrustedError as error:
        raise refuse(name, str(error)) from error
    except (OSError, ValueError) as error:
        raise refuse(name, _cannot_open(error, dir_fd)) from error
    try:
        return _read_trusted(descriptor, name, owners)
    except OSError as error:
        raise refuse(name, f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _cannot_open(error: OSError | ValueError, dir_fd: int | None) -> str:
    if isinstance(error, ValueError):
        return "this name cannot be a file's (it holds a NUL)"
    if isinstance(error, FileNotFoundError):
        return "there is no such file" + ("; create it, or correct the name" if dir_fd is None else " any more")
    if isinstance(error, PermissionError):
        return f"may not be read by uid {os.geteuid()}: {error.strerror}; give it the daemon's group and mode 0640"
    return f"cannot be opened: {error.strerror}"


def _read_trusted(descriptor: int, name: str, owners: Collection[int]) -> bytes:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise refuse(name, "is not a regular file; put the YAML text itself here")
    if (reason := distrust(descriptor, owners)) is not None:
        raise refuse(name, reason)
    if before.st_size > MAX_BYTES:
        raise refuse(name, f"is {before.st_size} bytes long; at most {MAX_BYTES} (256 KiB) are read, split it")
    chunks: list[bytes] = []
    size = 0
    while size <= MAX_BYTES and (chunk := os.read(descriptor, MAX_BYTES + 1 - size)):
        chunks.append(chunk)
        size += len(chunk)
    after = os.fstat(descriptor)
    if size != after.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise refuse(name, "changed while it was read; reload again once its writer is done (better: write beside, then rename)")
    return b"".join(chunks)


def decode(data: bytes, file: str) -> str:
    """Decode UTF-8 (a leading byte order mark is dropped) and refuse characters that a reader cannot see. Raises ConfigError."""
    if len(data) > MAX_BYTES:
        raise refuse(file, f"is {len(data)} bytes long; at most {MAX_BYTES} (256 KiB) are read, split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace")
        byte = data[error.start]
        raise refuse(file, f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8", _place_after(before)) from error
    if (unseen := _UNSEEN.search(text)) is not None:
        code, place = ord(unseen[0]), _place_after(text[: unseen.start()])
        raise refuse(file, f"the invisible character U+{code:04X} is not allowed; remove it", place)
    return text


def _place_after(text: str) -> Place:
    return Place(text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1)


# ---- the YAML --------------------------------------------------------------------------------------


Take = Callable[["Node", str], "Node"]
"""Takes an entry of a list with its path as soon as it is read; what is returned stands in its place."""


def compose(text: str, problems: Problems, *, taken_from: str = "", take: Take | None = None) -> Node | None:
    """Fold a text into nodes; None where it holds no content at all. take gets each entry of the list at `taken_from`.

    What is wrong is added to `problems`, and a Refused stands in its place, so that the caller can go on to find more.
    Raises ConfigError where reading on makes no sense: a syntax error, or a limit passed.
    """
    if _FIRST_LINE.fullmatch(text.partition("\n")[0]) and not _ends_marked(text):
        line = text.count("\n") + (not text.endswith("\n"))
        problems.add(Place(line, 1), "file", "is cut off: its first line says that it ends with `...`, and it does not")
        problems.raise_if_any()
    if not any(_has_content(line) for line in text.split("\n")):
        if "#" in text.rpartition("\n")[2]:
            problems.add(_place_after(text), "file", "ends within a comment; end its last line with a newline")
            problems.raise_if_any()
        return None
    return _Composer(text, problems, taken_from, take).run()


def _ends_marked(text: str) -> bool:
    return text.rstrip().rpartition("\n")[2].split(maxsplit=1)[:1] == ["..."]


def _has_content(line: str) -> bool:
    bare = line.strip()
    return bool(bare) and not bare.startswith("#") and bare not in {"---", "..."}


def _events(text: str) -> Iterator[Any]:
    import yaml  # noqa: PLC0415 - 10 ms that only a process which reads YAML pays

    loader: type[yaml.BaseLoader | yaml.CBaseLoader] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    return yaml.parse(text, Loader=loader)


def _start(event: yaml.Event) -> Place:
    mark = event.start_mark
    return START if mark is None else Place(mark.line + 1, mark.column + 1)


def _end(event: yaml.Event) -> int:
    mark = event.end_mark
    return 0 if mark is None else mark.index


class _Composer:
    """Reads events into nodes, one level of the text a call. An event is judged before the next one is asked for."""

    def __init__(self, text: str, problems: Problems, taken_from: str, take: Take | None) -> None:
        self._text = text
        self._problems = problems
        self._taken_from = taken_from
        self._take = take
        self._events = _events(text)
        self._nodes = 0
        self._last: tuple[int, bool] = (0, True)
        """Where the last content ended, and whether it closed itself."""

    def run(self) -> Node | None:
        import yaml  # noqa: PLC0415 - see _events

        root: Node | None = None
        documents = 0
        try:
            for event in self._events:
                match type(event).__name__:
                    case "StreamStartEvent" | "StreamEndEvent" | "DocumentEndEvent":
                        pass
                    case "DocumentStartEvent":
                        documents += 1
                        self._document(event, documents)
                    case _:
                        root = self._node(event, "", 0)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._stop(START if mark is None else Place(mark.line + 1, mark.column + 1), _explain(error, self._text))
        except (yaml.YAMLError, ValueError) as error:  # ValueError: PyYAML's own parser, on an escape beyond Unicode
            self._stop(START, f"is not YAML: {' '.join(str(error).split())[:100]}")
        self._check_end(root)
        return root

    def _stop(self, place: Place, message: str) -> None:
        self._problems.add(place, "yaml", message)
        self._problems.raise_if_any()

    def _document(self, event: yaml.DocumentStartEvent, number: int) -> None:
        place = _start(event)
        if number > 1:
            self._stop(place, "a second document begins here; keep everything in one")
        if event.version or event.tags:
            self._problems.add(place, "yaml", "a % directive is not allowed; remove it")

    def _node(self, event: Any, path: str, depth: int) -> Node:  # noqa: ANN401 - any of PyYAML's events
        """Compose the node that an event begins."""
        place, kind = _start(event), type(event).__name__
        if kind == "AliasEvent":
            hint = f'{_GENERATED}; or quote a glob: "*…"'
            self._problems.add(place, path or "file", f"the alias *{str(event.anchor)[:40]} is not allowed; {hint}")
            self._last = (_end(event), False)
            return Refused(place)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._stop(place, f"holds more than {MAX_NODES} values; split the file")
        refused = self._is_decorated(event, path, place)
        if kind == "ScalarEvent":
            self._last = (_end(event), event.style == '"')
            return Refused(place) if refused else Scalar(event.value, place, not event.style)
        if depth >= MAX_DEPTH:
            self._stop(place, f"is nested deeper than {MAX_DEPTH} levels; no key of limiterd needs that")
        return (self._table if kind == "MappingStartEvent" else self._items)(place, path, depth + 1)

    def _inner(self, end: str) -> Iterator[Any]:
        """Yield the first event of each node up to the end of the collection."""
        for event in self._events:
            if type(event).__name__ == end:
                at = _end(event)
                if self._text[at - 1 : at] in ("]", "}") and at > self._last[0]:  # its bracket closes it
                    self._last = (at, True)
                return
            yield event

    def _items(self, place: Place, path: str, depth: int) -> Items:
        node = Items(place)
        for event in self._inner("SequenceEndEvent"):
            where = f"{path}[{len(node.items)}]"
            item = self._node(event, where, depth)
            node.items.append(item if self._take is None or path != self._taken_from else self._take(item, where))
        return node

    def _table(self, place: Place, path: str, depth: int) -> Table:
        node = Table(place)
        for event in self._inner("MappingEndEvent"):
            key = self._key(node, self._node(event, path, depth), path)
            inner = f"{path}.{key.text[:40]}".removeprefix(".") if key is not None else path
            value = self._node(next(self._events), inner, depth)
            if key is not None:
                node.pairs[key.text] = (key, value)
        return node

    def _key(self, table: Table, key: Node, path: str) -> Scalar | None:
        """Judge a mapping's key; one that is refused takes its value with it."""
        if isinstance(key, Refused):
            return None
        if not isinstance(key, Scalar):
            self._problems.add(key.place, path or "file", "a list or mapping cannot be a key; write `key: value`")
        elif key.plain and key.text == "<<":
            self._problems.add(key.place, path or "file", "the merge key << is not allowed; write the keys out")
        elif key.text in table.pairs:
            first, _ = table.pairs[key.text]
            message = f"{key.text[:40]!r} is given twice, in line {first.place.line} and in line {key.place.line}; keep one"
            self._problems.add(key.place, f"{path}.{key.text[:40]}".removeprefix("."), message)
        else:
            return key
        return None

    def _is_decorated(self, event: Any, path: str, place: Place) -> bool:  # noqa: ANN401 - of a scalar or collection
        """Note an anchor or tag."""
        for kind, text, advice in (
            ("tag ", event.tag, 'quote a text that begins with "!"'),
            ("anchor &", event.anchor, f'{_GENERATED}; or quote a text that begins with "&"'),
        ):
            if text is not None:
                self._problems.add(place, path or "file", f"the {kind}{text[:40]} is not allowed; {advice}")
        return event.tag is not None or event.anchor is not None

    def _check_end(self, root: Node | None) -> None:
        end, closed = self._last
        rest = self._text[end:]
        bare = isinstance(root, Scalar) and not root.text  # only `---`: there is nothing to cut
        line_ended = self._text[:end].endswith("\n")  # a block scalar takes its newline in
        if not (closed or line_ended or bare or rest.strip(" \t")):
            message = "ends within a value, as a half-written file does; end the last line with a newline"
            self._problems.add(_place_after(self._text), "file", message)


_GENERATED: Final = "write the value out (yaml.dump does where its dumper's ignore_aliases returns True)"


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    """Say what a syntax error means for the one who wrote it."""
    problem = error.problem or "is not YAML"
    message = f"{problem} ({error.context})" if error.context else problem
    for sign, hint in _SYNTAX_HINTS:
        if sign in message:
            return message + hint
    mark = error.problem_mark
    if mark is not None and "\t" in "".join(text.splitlines()[mark.line : mark.line + 1])[: mark.column + 1]:
        return message + "; indent with spaces, YAML allows no tabs there"
    return message


_SYNTAX_HINTS: Sequence[tuple[str, str]] = (
    ("scanning an alias", _QUOTE_HINT),
    ("scanning a tag", _QUOTE_HINT),
    ("scanning a directive", "; quote a value that begins with %"),
    ("mapping values are not allowed", '; a value that holds ": " must be quoted, and keys must line up'),
    ("<document start>", "; keep everything in one document, nothing may follow `...`"),
    ("unexpected end of stream", "; a quotation mark is open to the end of the file"),
    ("did not find expected key", "; check the indentation of this line and the one above"),
    ("<block end>", "; check the indentation of this line and the one above"),
    ("',' or '", "; a bracket is still open"),
    ("',' or ']'", "; a bracket is still open"),
)
