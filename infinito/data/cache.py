"""The cache of prepared data: named by what went into it, verified when it is used.

Every entry is named by the SHA-256 of everything that made it (see :func:`cache_key`), so it is
never stale; it is written under another name and renamed, so it is never half-written, and
processes that make the same entry at the same time do no harm. Anything may be deleted at any
time: what is missing or damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from infinito.data.lines import form, unreadable
from infinito.errors import ResourceError

# Part of every key: raise it when the same inputs would give other entries.
CACHE_VERSION = 1
# A file changed more recently than this may change again without a new time stamp.
_SETTLED_SECONDS = 2.0
_REMEDY = "free space there, or set INFINITO_CACHE to a directory that can be written"


def cache_key(*parts: object) -> str:
    """The name of an entry: SHA-256 over plain data (numbers, text, lists of them, None)."""
    text = json.dumps([CACHE_VERSION, *parts], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cache_root() -> Path:
    """``$INFINITO_CACHE``, else ``$XDG_CACHE_HOME/infinito``, else ``~/.cache/infinito``."""
    if own := os.environ.get("INFINITO_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).absolute() / "infinito"
    return Path(os.path.expanduser("~")).absolute() / ".cache" / "infinito"


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache: its kind (the directory it lies in), size in bytes, and times."""

    path: Path
    kind: str
    size: int
    modified: float  # seconds since the epoch


class Cache:
    """A directory of entries by kind: ``tokens``, ``tokenizer``, ``inputs``, ``overlap``.

    ``refusal`` is the first reason why something could not be kept; the work goes on without.
    """

    def __init__(
        self, root: Path | None = None, *, required: bool = False, read_only: bool = False
    ) -> None:
        """Use the directory ``root``, or :func:`cache_root`; it is made when it is written.

        ``required``: what cannot be kept is an error, since keeping it is the purpose.
        ``read_only``: what is there is used, and nothing is kept.
        """
        self.root = root or cache_root()
        self.refusal: ResourceError | None = None
        self._required, self._read_only = required, read_only

    def path(self, kind: str, key: str) -> Path:
        """Where the entry of this kind and key is, or would be."""
        suffix = ".tokens" if kind == "tokens" else ".json"
        return self.root / kind / f"{key}{suffix}"

    def require_writable(self, kind: str) -> Path:
        """The directory of ``kind``, created and tried out; call it before slow work.

        Raises:
            ResourceError: it cannot be made or written.
        """
        directory = self.root / kind
        if self._read_only:
            raise ResourceError(
                f"the data cache {self.root} is only read here, and no temporary file can be made",
                "set TMPDIR to a directory that can be written",
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError as error:
            raise _unwritable(directory, error) from error

    @contextlib.contextmanager
    def writing(self, kind: str, key: str) -> Iterator[BinaryIO]:
        """A file that becomes the entry when the block ends well, and vanishes otherwise."""
        directory = self.require_writable(kind)
        try:
            handle, name = tempfile.mkstemp(suffix=".tmp", dir=directory)
            try:
                with os.fdopen(handle, "wb") as stream:
                    yield stream
                os.replace(name, self.path(kind, key))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        except OSError as error:
            raise _unwritable(directory, error) from error

    @contextlib.contextmanager
    def replaced(self, refusal: ResourceError) -> Iterator[Cache]:
        """A cache of temporary files for what this one refused; what is mapped of them stays."""
        self._go_on_without(refusal)
        try:
            directory = tempfile.TemporaryDirectory("", "infinito-", ignore_cleanup_errors=True)
        except OSError:
            raise refusal from None
        with directory as name:
            yield Cache(Path(name))

    def write_value(self, kind: str, key: str, value: Any) -> None:
        """Store plain JSON data together with its checksum, if the cache can be written."""
        text = json.dumps(value)
        checksum = hashlib.sha256(text.encode()).hexdigest()
        try:
            with self.writing(kind, key) as stream:
                stream.write(f"{checksum}\n{text}".encode())
        except ResourceError as refusal:
            self._go_on_without(refusal)

    def _go_on_without(self, refusal: ResourceError) -> None:
        if self._required:
            raise refusal
        if not self._read_only:
            self.refusal = self.refusal or refusal

    def read_value(self, kind: str, key: str) -> Any:
        """What :meth:`write_value` stored; None where there is nothing, or not what it stored."""
        try:
            checksum, _, text = self.path(kind, key).read_bytes().partition(b"\n")
        except OSError:
            return None  # not there, or not ours to read: made again
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            return None
        return json.loads(text)

    def hash_files(self, paths: Sequence[Path]) -> str:
        """SHA-256 of the contents and forms of ``paths``, in order; names do not count.

        Files whose path, size, time of change and inode are all as remembered are not read again.
        """
        try:
            stats = [path.stat() for path in paths]
        except OSError as error:
            raise unreadable(Path(error.filename), error) from error
        seen = [
            [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            for path, stat in zip(paths, stats, strict=True)
        ]
        key = cache_key("inputs", seen)
        remembered = self.read_value("inputs", key)
        if isinstance(remembered, str):
            return remembered
        settled = max(stat.st_mtime for stat in stats) < time.time() - _SETTLED_SECONDS
        digest = cache_key("files", [[form(path), _hash_file(path)] for path in paths])
        if settled:
            self.write_value("inputs", key, digest)
        return digest

    def entries(self) -> list[CacheEntry]:
        """Every file of the cache, half-written ones too, by kind and name."""
        found = []
        for kind in ("inputs", "overlap", "tokenizer", "tokens"):
            for path in sorted((self.root / kind).glob("*")):
                with contextlib.suppress(FileNotFoundError):  # removed by another process
                    stat = path.stat()
                    found.append(CacheEntry(path, kind, stat.st_size, stat.st_mtime))
        return found

    def clear(self) -> int:
        """Remove every entry; returns the bytes freed. Other files under the root stay."""
        freed = 0
        for entry in self.entries():
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise _unwritable(entry.path, error) from error
            freed += entry.size
        return freed


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def _unwritable(place: Path, error: OSError) -> ResourceError:
    reason = error.strerror or str(error)
    return ResourceError(f"cannot write the data cache {place}: {reason}", _REMEDY)
