"""Strict YAML: text becomes plain data with the line of every key, or one error that names a line.

PyYAML's safe loader reads ``3e-4`` as text, ``no`` as false, ``010`` as 8, ``1:30`` as 90, keeps
the last of duplicate keys and expands aliases. A training run started from such a misreading
costs hours, so here only what looks like a number is one, only ``true`` and ``false`` are
booleans, everything else is text for the schema to judge, and every construct a config has no use
for (anchors, aliases, tags, several documents) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from infinito.config.explain import Place, Problem
from infinito.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NUMBER_DIGITS = 400  # beyond any float64, and far below the limit of int()
REMEDY = "`infinito config init` prints a valid file with every key"

Plain = str | int | float | bool | list["Plain"] | dict[str, "Plain"] | None
KeyPath = tuple[str, ...]
_SCALARS: tuple[tuple[str, str, Callable[[str], Plain]], ...] = (
    ("null", r"(?:~|null)?", lambda _: None),
    ("bool", r"true|false", "true".__eq__),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", int),
    ("float", r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", float),
)  # what is none of them is text


@dataclass(frozen=True)
class Document:
    """A parsed file: its values, the line (from 1) of each key path, and keys given twice."""

    values: dict[str, Plain]
    lines: dict[KeyPath, int]
    problems: list[Problem]


def scalar_tag(text: str) -> str:
    """The YAML tag of a plain (unquoted) scalar: null, bool, int, float or str."""
    return f"tag:yaml.org,2002:{_scalar_kind(text)[0]}"


def plain_scalar(text: str) -> Plain:
    """The value of an unquoted scalar. Raises ``ValueError`` for a number of absurd length."""
    kind, value_of = _scalar_kind(text)
    if kind in ("int", "float") and len(text) > MAX_NUMBER_DIGITS:
        raise ValueError(f"a number of {len(text)} characters")
    return value_of(text)


def _scalar_kind(text: str) -> tuple[str, Callable[[str], Plain]]:
    found = ((name, value) for name, form, value in _SCALARS if re.fullmatch(form, text))
    return next(found, ("str", str))


class _StrictLoader(yaml.SafeLoader):
    """Composes nodes only; refuses what a config must not hold, before any of it is expanded."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(
                event, "an alias (*name) is not allowed; text that starts so needs quotes"
            )
        if event.anchor:
            raise _refusal(event, "an anchor (&name) is not allowed")
        if getattr(event, "tag", None) is not None:
            raise _refusal(event, "a tag (!name) is not allowed; text that starts so needs quotes")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(event, f"nested more than {MAX_DEPTH} levels deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refusal(at: yaml.Event | yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    mark = at.start_mark
    assert isinstance(mark, yaml.Mark)
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Builder:
    """Turns nodes into plain data and remembers where each key stands."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, path: KeyPath) -> Plain:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, str(i))) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        if node.style is not None:  # quoted or block text is never a number
            return str(node.value)
        try:
            return plain_scalar(node.value)
        except ValueError as error:
            raise _refusal(node, f"{error} is not allowed") from error

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Plain]:
        result: dict[str, Plain] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal(key_node, "a key must be a plain name")
            name, line = str(key_node.value), key_node.start_mark.line + 1
            here = (*path, name)
            if name in result:
                # The first value is kept, so that the rest can be checked.
                reason = f"given twice: first in line {self.lines[here]}"
                value = _Builder(self.where).value(value_node, here)
                place = Place(self.where, line)
                self.problems.append(Problem(place, ".".join(here), reason, value))
                continue
            self.lines[here] = line
            result[name] = self.value(value_node, here)
        return result


def decode(content: bytes, where: str) -> str:
    """UTF-8 text of a config; a UTF-8 byte order mark is dropped (Windows editors write one).

    Raises ConfigError for more than ``MAX_BYTES``, a NUL byte and anything that is not UTF-8.
    """
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{where}: larger than {MAX_BYTES} bytes: not a config file", REMEDY)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{where}:1: UTF-16 text", "save the file as UTF-8")
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise ConfigError(f"{where}:{line}: NUL byte: not a text file", REMEDY)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reason = f"byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8"
        raise ConfigError(f"{where}:{line}: {reason}", "save the file as UTF-8 text") from error


def _error_place(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line (from 1) and reason of an error of PyYAML, in words that help."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"character U+{int(error.character):04X} is not allowed"
    if not isinstance(error, yaml.MarkedYAMLError):
        return 1, str(error)
    mark = error.problem_mark or error.context_mark
    reason = error.problem or error.context or "not valid YAML"
    if "'\\t'" in reason:
        reason = "a tab cannot indent or start a value; use spaces"
    elif "another document" in reason:
        reason = "a second document (---) is not allowed"
    elif reason.startswith("mapping values"):
        reason = "a second `: ` in one line; text that holds one needs quotes"
    elif error.context and error.problem:
        reason = f"{error.context}: {error.problem}"
    return (mark.line + 1 if mark else 1), reason


def parse_document(text: str, where: str) -> Document:
    """Parse the text of a config. ``where`` names it in messages.

    Raises ConfigError with ``where:line`` for anything but one mapping of plain values.
    """
    try:
        node = _StrictLoader(text).get_single_node()
        if node is None:
            raise ConfigError(f"{where}: the file is empty", REMEDY)
        if not isinstance(node, yaml.MappingNode):
            raise _refusal(node, "expected `key: value` lines")
        builder = _Builder(where)
        values = builder.mapping(node, ())
    except yaml.YAMLError as error:
        line, reason = _error_place(error, text)
        raise ConfigError(f"{where}:{line}: {reason}", REMEDY) from error
    return Document(values, builder.lines, builder.problems)


def parse_value(text: str) -> Plain:
    """The value of ``--set key=TEXT``: a list or quoted text by YAML, else one plain scalar.

    A plain scalar is taken to its end, so that globs, URLs and ``#`` need no second quoting.
    Raises ``ValueError`` with the reason.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return plain_scalar(text)
    try:
        document = parse_document(f"value: {text}", "value")
    except ConfigError as error:
        reason = error.message.rpartition(": ")[2]
        raise ValueError(f"{reason}; put the whole value in quotes to use it as text") from error
    if len(document.values) > 1:
        raise ValueError("more than one value")
    return document.values["value"]


def read_document(path: Path, kind: str = "config") -> Document:
    """Read and parse a file of at most ``MAX_BYTES``. Raises ConfigError."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot read the {kind} {path}: {reason}", f"check the path of the {kind}"
        ) from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"cannot read the {kind} {str(path)!r}: {error}") from error
    return parse_document(decode(content, str(path)), str(path))
