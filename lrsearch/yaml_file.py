"""A YAML 1.2 file as plain values, with the line and column of each: what error messages point at.

Whatever a study file has no use for is refused here, with its position: tags, aliases that blow up, several documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from lrsearch.errors import StudyFileError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 20_000
"""Counted with every alias written out: nine lines of nested aliases can stand for a billion values."""

KeyPath = tuple[str | int, ...]
"""Where a value stands: the keys and list indices that lead to it."""


class Position(NamedTuple):
    """Counted from one, as editors do."""

    line: int
    column: int


class Problem(NamedTuple):
    """Something wrong in a file; problems sort in file order."""

    position: Position
    text: str


@dataclass
class YamlFile:
    """The values of a file. `problems` are those that leave the rest readable, such as a key written twice."""

    path: Path
    values: Any = None
    problems: list[Problem] = field(default_factory=list)
    refused: list[KeyPath] = field(default_factory=list)
    """Where they are. What stands there is None or incomplete, and says nothing."""
    _keys: dict[KeyPath, Position] = field(default_factory=dict)
    _values: dict[KeyPath, Position] = field(default_factory=dict)

    def value_position(self, path: Sequence[str | int]) -> Position:
        """Return where the value at `path` begins; for one that is not there, its nearest parent's position."""
        parents = (tuple(path[:length]) for length in range(len(path), -1, -1))
        return next(self._values[parent] for parent in parents if parent in self._values)

    def key_position(self, path: Sequence[str | int]) -> Position:
        """Return where the key at `path` is written; list items have none and give the value's position."""
        return self._keys.get(tuple(path)) or self.value_position(path)

    def position_of(self, path: Sequence[str | int]) -> Position | None:
        """Return where the value at `path` begins; None where there is none."""
        return self._values.get(tuple(path))

    def error(self, problems: Sequence[Problem]) -> StudyFileError:
        """Return the exception that names all problems in file order, one a line."""
        return StudyFileError("\n".join(_located(self.path, problem) for problem in sorted(set(problems))))


def read_yaml(path: Path) -> YamlFile:
    """Read `path`. Raises StudyFileError when it is not one readable YAML 1.2 document of plain values."""
    text = _decode(path, _read(path))
    yaml = YAML(typ="safe", pure=True)
    try:
        _refuse_floods(path, text)
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        raise _error(path, _mark(error.problem_mark or error.context_mark), f"not YAML: {_reason(error)}") from error
    except ReaderError as error:
        raise _error(
            path, _position(text[: error.position]), "a control character is not allowed; remove it"
        ) from error
    except (YAMLError, ValueError) as error:
        raise _error(path, Position(1, 1), f"not YAML: {error}") from error
    if root is None:
        raise _error(path, Position(1, 1), "the file is empty; a study file begins with 'version: 1'")
    file = YamlFile(path)
    file.values = _Builder(file, yaml).build(root)
    return file


def _refuse_floods(path: Path, text: str) -> None:
    """Raise before the parser's recursion, or its slowness, does."""
    depth = 0
    for count, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _error(path, _mark(event.start_mark), f"nested deeper than {MAX_DEPTH} levels")
        if count > 2 * MAX_VALUES:
            raise _error(path, _mark(event.start_mark), f"more than {MAX_VALUES} values; use fewer")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise StudyFileError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise StudyFileError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise StudyFileError(f"{path}: a study file has at most 1 MB, this one has more; give it only settings.")
    return content


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = _position(content[: error.start].decode("utf-8-sig"))
        wrong = f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise _error(path, position, wrong) from error


def _position(before: str) -> Position:
    """Return the position that follows the text `before`."""
    return Position(before.count("\n") + 1, len(before) - before.rfind("\n"))


def _mark(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)


def _reason(error: MarkedYAMLError) -> str:
    problem = " ".join(str(error.problem).split())
    if "\\t" in problem:
        return "a tab cannot indent or begin a value; use spaces"
    if problem.startswith("expected <block end>"):
        return "the line does not fit the indentation above it"
    if problem.startswith("mapping values are not allowed"):
        return f"{problem}; check the indentation"
    if error.context is None:
        return problem
    begun = f" begun in line {error.context_mark.line + 1}" if error.context_mark else ""
    return f"{error.context}{begun}, {problem}"


def _error(path: Path, position: Position, text: str) -> StudyFileError:
    return StudyFileError(_located(path, Problem(position, text)))


def _located(path: Path, problem: Problem) -> str:
    dot = "" if problem.text.endswith((".", "?", "!")) else "."
    return f"{path}:{problem.position.line}:{problem.position.column}: {problem.text}{dot}"


class _Builder:
    """Turns the parser's tree into plain values, noting where each begins."""

    def __init__(self, file: YamlFile, yaml: YAML) -> None:
        self._file = file
        self._construct = yaml.constructor.construct_object
        self._count = 0

    def build(self, node: Node, path: KeyPath = ()) -> Any:
        position = _mark(node.start_mark)
        self._file._values[path] = position
        self._count += 1
        if len(path) > MAX_DEPTH:
            raise _error(self._file.path, position, f"nested deeper than {MAX_DEPTH} levels")
        if self._count > MAX_VALUES:
            raise _error(self._file.path, position, f"more than {MAX_VALUES} values, aliases written out; use fewer")
        if isinstance(node, MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        self._refuse(path, position, _foreign_tag(node))
        return None

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            position = _mark(key_node.start_mark)
            if not isinstance(key_node, ScalarNode):
                self._refuse(path, position, "a key must be a word, got a list or a mapping")
                continue
            key = str(key_node.value)
            if key == "<<" and key_node.style is None:
                self._refuse(path, position, "merge keys (<<) are not of YAML 1.2; write out what they would bring in")
                continue
            here = (*path, key)
            if key in values:
                first = self._file._keys[here].line
                self._refuse(here, position, f"is written twice, first in line {first}; remove one")
                continue
            self._file._keys[here] = position
            values[key] = self.build(value_node, here)
        return values

    def _scalar(self, node: ScalarNode, path: KeyPath) -> str | int | float | bool | None:
        try:
            return _plain(node, self._construct)
        except ValueError as error:
            self._refuse(path, self._file._values[path], str(error))
            return None

    def _refuse(self, path: KeyPath, position: Position, text: str) -> None:
        self._file.problems.append(Problem(position, f"{dotted(path)}{text}"))
        self._file.refused.append(path)


def _plain(node: ScalarNode, construct: Callable[[Node], Any]) -> str | int | float | bool | None:
    """Return a scalar's value; dates stay text. Raises ValueError with the rule that it breaks."""
    kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if kind in ("str", "timestamp"):
        return _text(str(node.value))
    if kind not in ("null", "bool", "int", "float"):
        raise ValueError(_foreign_tag(node))
    try:
        value: int | float | bool | None = construct(node)
    except (ValueError, LookupError, YAMLError) as error:
        raise ValueError(f"cannot be read as {kind}, got {node.value[:40]!r}") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {node.value[:40]}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"must fit into 64 bits, got {node.value[:40]}")
    return value


def _foreign_tag(node: Node) -> str:
    return f"the tag {str(node.tag).replace('tag:yaml.org,2002:', '!!')} is not known here; remove it"


def _text(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):  # only an escape such as "\ud800" brings one in
        raise ValueError("half a surrogate pair is not a character; remove the escape")
    if "\0" in text:  # likewise; no path may hold it
        raise ValueError("the character \\0 has no place here; remove the escape")
    return text


def dotted(path: Sequence[str | int]) -> str:
    """Return "strategies.grid.points: ", or nothing for the top of the file.

    >>> dotted(("seeds", 0))
    'seeds.0: '
    """
    return ".".join(str(part) for part in path) + ": " if path else ""
