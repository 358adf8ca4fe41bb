"""The embedded corpus ``python-docs``: what every CPython carries of its own documentation.

It needs no network and no download: the manual sections behind Python's ``help()``, and the
docstrings of the standard library, read from its source; no module is imported. It differs a
little between versions of Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infinito.config.schema import SplitName
from infinito.data.cache import Cache, cache_key
from infinito.data.corpus import Corpus, overlap, share
from infinito.data.documents import cut
from infinito.data.lines import normalise, split_lines
from infinito.errors import DataError

# A few topics make most of the manual's text, so they are cut into sections of at least this size
# before every tenth document is held out.
_SECTION_CHARACTERS = 4096
# Not of the library, or of its tests and demonstrations.
_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo",
    "ensurepip", "pydoc_data", "__pycache__",
}  # fmt: skip


def python_docs() -> Corpus:
    """The corpus; too little text for a test split."""
    splits: tuple[SplitName, ...] = ("train", "valid")
    return Corpus("python-docs", {split: _Part(split) for split in splits})


@dataclass(frozen=True)
class _Part:
    """Every tenth document, for validation, or the others."""

    split: SplitName
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"python-docs ({self.split} part)"

    def __iter__(self) -> Iterator[str]:
        return share(_documents(), self.split)

    def identity(self, cache: Cache) -> str:
        """Of the sources, so that what is in the cache costs no parsing of them."""
        topics = hashlib.sha256(repr(sorted(_topics().items())).encode()).hexdigest()
        return cache_key("python-docs", self.split, topics, cache.hash_files(_sources()))


@functools.cache
def _documents() -> tuple[str, ...]:
    """Sections of the manual, and a document for each module of the library that has prose."""
    sections = (
        section
        for text in _distinct(_topics().values())
        for section in cut(split_lines([normalise(text)]), _SECTION_CHARACTERS)
    )
    seen: set[str] = set()
    modules = ("\n\n".join(_entries(path, seen)) for path in _sources())
    return (*sections, *(f"{text}\n" for text in modules if text))


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise _missing("pydoc_data") from error
    return topics


@functools.cache
def _sources() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path for path in root.rglob("*.py") if not _LEFT_OUT & {*path.relative_to(root).parts})
    if not (found := sorted(paths)):
        raise _missing("sources of its library")
    return found


def _missing(what: str) -> DataError:
    return DataError(
        f"this Python carries no {what}, the text of python-docs",
        "give your own text: infinito train --data FILE",
    )


def _distinct(texts: Iterable[str]) -> list[str]:
    """Leave out texts that mostly stand in a longer one: many topics are part of another.

    Held out, they would measure what was learnt by heart: of every tenth topic, half was.
    """
    kept: list[str] = []
    for text in sorted(texts, key=lambda text: (-len(text), text)):
        if overlap(kept, [text]) < 0.5:
            kept.append(text)
    return kept


def _entries(path: Path, seen: set[str]) -> Iterator[str]:
    """The docstrings of a module as a manual sets them, each paragraph of the library once.

    ``seen`` are those before; the others are copies of a method in a subclass, and would tell how
    well the model copies. Example sessions are left out: they are no prose.
    """
    name = path.relative_to(sysconfig.get_path("stdlib")).with_suffix("").as_posix()
    module = ast.parse(path.read_bytes())
    for heading, docstring in _documented(module, name.replace("/", ".").removesuffix(".__init__")):
        paragraphs = [part.strip("\n") for part in docstring.split("\n\n") if ">>>" not in part]
        words = {part: " ".join(part.split()) for part in paragraphs}
        new = [part for part in paragraphs if words[part] and words[part] not in seen]
        seen.update(words.values())
        if new:
            text = textwrap.indent("\n\n".join(new), "   ")
            yield f"{heading}\n\n{text}\n"


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Docstrings under their name and arguments, in the order of the source."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield f"{name}({ast.unparse(node.args)})", ast.get_docstring(node) or ""
    elif isinstance(node, ast.Module | ast.ClassDef):
        yield name, ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")
