"""From what a user names - a file, a directory, a glob - to text files and their documents."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from infinito.config.explain import printable
from infinito.data.cache import Cache, cache_key
from infinito.data.documents import articles, json_rows, parquet_rows, passages
from infinito.data.lines import begins_as_text, form, read_lines, unreadable
from infinito.errors import DataError

_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".gz")
_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip", ".xz", ".bz2", ".zst", ".7z")
_NAMED = 5  # files passed over that are named; more are counted


@dataclass(frozen=True)
class FoundFiles:
    """Text files, sorted, and a note of which they are where the user did not name each."""

    paths: list[Path]
    note: str = ""


@dataclass(frozen=True)
class TextFiles:
    """The documents of text files: rows of .jsonl and .parquet, each other file; long ones cut.

    Attributes:
        label: what the user named: a file, a directory or a glob.
        key: the config key or option to blame.
        text_field: what holds the text in a row of such a file; None for WikiText, whose files
            are cut into articles.
    """

    label: str
    key: str
    text_field: str | None

    @cached_property
    def _found(self) -> FoundFiles:
        return find_files(self.label, self.key)

    @property
    def notes(self) -> tuple[str, ...]:
        """What it stands for, where that is to be told."""
        return (self._found.note,) if self._found.note else ()

    def __iter__(self) -> Iterator[str]:
        """Give the documents, file by file."""
        for path in self._found.paths:
            if self.text_field is None:
                yield from articles(read_lines(path))
            elif form(path) == "parquet":
                yield from parquet_rows(path, self.text_field)
            elif form(path).startswith("jsonl"):
                yield from json_rows(path, self.text_field)
            else:
                yield from passages(read_lines(path))

    def identity(self, cache: Cache) -> str:
        """Hash of the contents; names do not count."""
        units = ("articles",) if self.text_field is None else ("documents", self.text_field)
        return cache_key(*units, cache.hash_files(self._found.paths))


def find_files(reference: str, key: str) -> FoundFiles:
    """The files that ``reference`` stands for; ``key`` is the config key to blame.

    A directory stands for every .txt, .md, .jsonl, .parquet and .gz file below it, in the order of
    their paths; hidden files and directories are left out. Links to directories are not followed.
    A glob stands for every file that it matches, whatever its name, if it begins as text does.

    Raises:
        DataError: nothing there, nothing in it, or not a readable text file by its kind.
    """
    path = Path(reference).expanduser()
    if os.path.isdir(path):  # os.path: an unreadable parent is no exception
        files, others = _sorted_out(_walk(path), _has_text_name)
        kinds = ", ".join(_SUFFIXES)
        what, remedy = f"no {kinds} file in directory {path}", "name a file or a glob"
    elif os.path.exists(path):
        return FoundFiles([_checked(path, key)])
    else:
        matches = map(Path, glob.glob(str(path), recursive=True))
        files, others = _sorted_out((m for m in matches if not os.path.isdir(m)), _is_readable)
        pattern = any(character in reference for character in "*?[")
        what = f"no file matches {reference}" if pattern else f"{path} does not exist"
        remedy = _like(path) or f"correct the path; it was looked for in {path.absolute().parent}"
        remedy += "" if key.startswith("--") else f" (--set {key}=PATH)"
    if not files:
        raise DataError(f"{key}: {what}{_passed_over(others)}", remedy)
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    return FoundFiles(files, f"{reference}: {count}{_passed_over(others)}")


def _like(path: Path) -> str:
    """A question after what lies where ``path`` should, under a name like its own."""
    with suppress(OSError, ValueError):
        [name] = get_close_matches(path.name, os.listdir(path.parent), 1, 0.7)
        return f"did you mean {path.parent / name}?"
    return ""


def _sorted_out(
    candidates: Iterable[Path], is_text: Callable[[Path], bool]
) -> tuple[list[Path], list[Path]]:
    """Those that will be read, and the others."""
    files, others = list[Path](), list[Path]()
    for path in sorted(candidates):
        readable = os.path.isfile(path) and not _is_archive(path) and is_text(path)
        (files if readable else others).append(path)
    return files, others


def _passed_over(paths: list[Path]) -> str:
    names = ", ".join(printable(path.name) for path in paths[:_NAMED])
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return f", {len(paths)} passed over: {names}{more}" if paths else ""


def _walk(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or directory), error) from error

    for place, directories, names in os.walk(directory, onerror=refuse):
        directories[:] = [name for name in directories if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _has_text_name(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)


def _is_readable(path: Path) -> bool:
    return form(path) == "parquet" or begins_as_text(path)


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(_ARCHIVES)


def _checked(path: Path, key: str) -> Path:
    if not os.path.isfile(path):  # a pipe or a device could keep us waiting, or never end
        raise DataError(f"{key}: {path} is not a regular file", "save the text to a file first")
    if _is_archive(path):
        raise DataError(
            f"{key}: {path} is an archive, not text", "unpack it and name its directory"
        )
    return path
