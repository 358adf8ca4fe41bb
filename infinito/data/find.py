"""From what a user wrote for a file - a file, a directory, a glob - to a list of text files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from infinito.data.documents import json_rows, passages
from infinito.data.text import read_lines, unreadable
from infinito.errors import DataError

_SUFFIXES = (".txt", ".md", ".jsonl", ".gz")
_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip", ".xz", ".bz2", ".zst", ".7z")


def find_files(reference: str, key: str) -> list[Path]:
    """The files that ``reference`` stands for, sorted; ``key`` is the config key to blame.

    A directory stands for every .txt, .md, .jsonl and .gz file below it, in the order of their
    paths; hidden files and directories are left out. Links to directories are not followed.

    Raises:
        DataError: nothing there, nothing in it, or not a readable text file by its kind.
    """
    path = Path(reference).expanduser()
    if os.path.isdir(path):  # os.path: an unreadable parent is no exception
        found = sorted(_walk(path))
        if not found:
            kinds = ", ".join(_SUFFIXES)
            raise DataError(f"{key}: no {kinds} file in directory {path}", "name a file or a glob")
        return found
    if os.path.exists(path):
        return [_checked(path, key)]
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    found = sorted(_checked(match, key) for match in matches if not os.path.isdir(match))
    if not found:
        pattern = any(character in reference for character in "*?[")
        what = f"no file matches {reference}" if pattern else f"{path} does not exist"
        remedy = "correct the path" if key.startswith("--") else f"correct it, or --set {key}=PATH"
        raise DataError(f"{key}: {what}", remedy)
    return found


def _walk(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or directory), error) from error

    for place, directories, names in os.walk(directory, onerror=refuse):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            wanted = name.lower().endswith(_SUFFIXES) and not name.lower().endswith(_ARCHIVES)
            if wanted and not name.startswith(".") and os.path.isfile(path):
                yield path


def _checked(path: Path, key: str) -> Path:
    if not os.path.isfile(path):  # a pipe or a device could keep us waiting, or never end
        raise DataError(f"{key}: {path} is not a regular file", "save the text to a file first")
    if path.name.lower().endswith(_ARCHIVES):
        raise DataError(
            f"{key}: {path} is an archive, not text", "unpack it and name its directory"
        )
    return path


def form(path: Path) -> str:
    """How a file is read: ``text`` or ``jsonl``, with ``.gz`` where it is compressed."""
    name = path.name.lower()
    packed = ".gz" if name.endswith(".gz") else ""
    return ("jsonl" if name.removesuffix(".gz").endswith(".jsonl") else "text") + packed


def file_documents(paths: list[Path], text_field: str) -> Iterator[str]:
    """Documents of all files: each row of a .jsonl file, each other file; long ones cut."""
    for path in paths:
        if form(path).startswith("jsonl"):
            yield from json_rows(path, text_field)
        else:
            yield from passages(read_lines(path))
