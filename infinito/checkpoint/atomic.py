"""Files that are either whole or absent: atomic writing, links and free space. No torch here."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from infinito.errors import ResourceError, remedy_of

TEMPORARY_SUFFIX = ".tmp"


def format_size(n_bytes: int) -> str:
    """A byte count for people, in decimal units (1 MB is 1,000,000 bytes)."""
    amount = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def free_bytes(directory: Path) -> int:
    """Bytes that this user may still write on the file system of ``directory``."""
    return shutil.disk_usage(directory).free


def require_space(directory: Path, needed_bytes: int) -> None:
    """Raise ResourceError unless ``directory`` has room for ``needed_bytes`` more bytes."""
    free = free_bytes(directory)
    if free < needed_bytes:
        raise ResourceError(
            f"not enough disk space in {directory}: {format_size(needed_bytes)} needed, "
            f"{format_size(free)} free",
            "free some space, lower training.keep_last, or choose another --output-dir",
        )


def cannot_write(path: Path, error: OSError, needed_bytes: int | None = None) -> ResourceError:
    """The error for a write that the system refused, with what was needed and what is free."""
    space, remedy = "", remedy_of(error)
    if needed_bytes is not None:
        remedy += "; files written earlier are untouched"
        with contextlib.suppress(OSError):
            free = format_size(free_bytes(path.parent))
            space = f" ({format_size(needed_bytes)} needed, {free} free)"
    return ResourceError(f"cannot write {path}: {error.strerror or error}{space}", remedy)


def make_directory(path: Path) -> None:
    """Make a directory and those around it where they are not there (ResourceError)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def make_numbered(root: Path, name: str) -> Path:
    """Make ``root/<name>-<number>`` with the next free number; mkdir decides between racers."""
    prefix = f"{name}-"
    ends = [path.name.removeprefix(prefix) for path in root.glob(f"{glob.escape(prefix)}*")]
    number = max((int(end) for end in ends if end.isdecimal()), default=0)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            path = root / f"{prefix}{number}"
            path.mkdir()
            return path


def fsync_directory(directory: Path) -> None:
    """Make renames in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _replacing(path: Path, needed_bytes: int | None) -> Iterator[Path]:
    """A name beside ``path``, to be given to a new file, which becomes ``path`` at the end."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        # What an earlier process left, or a link that someone planted, is removed, never followed.
        temporary.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise cannot_write(path, error, needed_bytes) from error
    finally:
        # After a failure; but renaming a link over one of the same file leaves both names, too.
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that nobody had under this name, on the disk when the block ends."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "wb", buffering=1 << 20) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_writer(path: Path, needed_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Yield a file that becomes ``path`` at the end: write, fsync, rename, fsync the directory.

    On any failure the temporary file is removed and ``path`` stays what it was. A failure of the
    system is raised as ResourceError.
    """
    with _replacing(path, needed_bytes) as temporary, _new_file(temporary) as file:
        yield file


def require_new(path: Path, remedy: str = "name another file, or move it away") -> None:
    """Raise ResourceError where ``path`` is there already, or its directory is not."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()  # fails for a name that no file can have, too
        raise ResourceError(f"{path} exists", remedy)
    if not path.parent.is_dir():
        raise ResourceError(f"{path.parent} is no directory", "create it, or name another file")


@contextlib.contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Take the name ``path`` with an empty file that the block replaces, or leaves no trace of.

    Raises ResourceError as :func:`require_new`, also where the file is there since a moment ago.
    """
    require_new(path)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 so that ``path`` is never seen half-written (ResourceError)."""
    data = text.encode()
    with atomic_writer(path, len(data)) as file:
        file.write(data)


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file's bytes; ``target`` is never seen half-written (ResourceError)."""
    with source.open("rb") as reader, atomic_writer(target, source.stat().st_size) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, or a copy on file systems without links."""
    try:
        with _replacing(target, None) as temporary:
            os.link(source, temporary, follow_symlinks=False)
    except ResourceError:
        copy_atomic(source, target)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that becomes ``path`` at the end of the block; a failure leaves nothing.

    Raises ResourceError as :func:`require_new`, and for what the system refuses.
    """
    require_new(path, "name another directory, or move it away")
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
            temporary.rename(path)
            fsync_directory(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from error
