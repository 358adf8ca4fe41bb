"""Files to lines: UTF-8 checked to the byte, one kind of line end, never a whole file in memory.

A byte-order mark is dropped; ``\\r\\n`` and ``\\r`` become ``\\n``. Nothing else is changed.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from infinito.errors import DataError

CHUNK_BYTES = 1 << 20
# A longer line is handed on in parts of half to all of this size, cut at a space if possible.
LINE_CHARACTERS = 1 << 17

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ZIP = b"PK\x03\x04"
# What lies among texts and is none: how it begins, what else its first chunk holds, its name.
_FORMATS = (
    (b"%PDF-", b"", "a PDF document"),
    (rb"{\rtf", b"", "an RTF document"),
    (_ZIP, b"word/document", "a DOCX document"),
    (_ZIP, b"xl/workbook", "an XLSX workbook"),
    (_ZIP, b"ppt/presentation", "a PPTX presentation"),
    (_ZIP, b"application/epub+zip", "an EPUB book"),
    (_ZIP, b"application/vnd.oasis.opendocument", "an OpenDocument file"),
    (_ZIP, b"", "a ZIP archive"),
    (b"\xd0\xcf\x11\xe0", b"", "an old Office document"),
    (b"\x89PNG", b"", "a PNG image"),
    (b"\xff\xd8\xff", b"", "a JPEG image"),
    (b"GIF8", b"", "a GIF image"),
    (b"II*\0", b"", "a TIFF image"),
    (b"MM\0*", b"", "a TIFF image"),
    (b"RIFF", b"WEBP", "a WebP image"),
    (b"\x1f\x8b", b"", "compressed with gzip (a name ending in .gz says so)"),
    (b"BZh", b"", "compressed with bzip2"),
    (b"\xfd7zXZ", b"", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", b"", "compressed with zstd"),
    (b"7z\xbc\xaf", b"", "a 7z archive"),
    (b"\x7fELF", b"", "a program"),
    (b"PAR1", b"", "a Parquet file (a name ending in .parquet says so)"),
)
# These may be valid UTF-8 from beginning to end; for the others a bad byte must be found first.
_NEVER_TEXT = (b"%PDF-", rb"{\rtf", _ZIP)
_NO_TEXT_REMEDY = "save what it says as UTF-8 text (.txt), or leave the file out"


class NotTextError(DataError):
    """A file of another format, or of none: no text of whatever encoding."""


def read_lines(path: Path, limit: int = LINE_CHARACTERS) -> Iterator[str]:
    """Lines of a text file (gzip where its name ends in .gz), their ``\\n`` kept.

    The last line may lack it. A line of more than ``limit`` characters comes in several parts, of
    which only the last ends in ``\\n``; memory stays within a small multiple of ``limit``.

    Raises:
        DataError: the file is missing, unreadable, not UTF-8 (with the byte offset), or a
            damaged or truncated gzip file; NotTextError where it is no text at all.
    """
    return split_lines(_decode(_chunks(path), path), limit)


def begins_as_text(path: Path) -> bool:
    """Whether :func:`read_lines` would take a file for text; other faults are its to tell."""
    try:
        next(_decode(_chunks(path), path), "")
    except DataError as error:
        return not isinstance(error, NotTextError)
    return True


def split_lines(chunks: Iterable[str], limit: int = LINE_CHARACTERS) -> Iterator[str]:
    """Cut text that comes in chunks of any size into lines, as :func:`read_lines` does."""
    rest = ""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split("\n")
        for line in complete:
            if len(line) > limit:
                line = yield from _long_line(line, limit)
            yield line + "\n"
        if len(rest) > limit:
            rest = yield from _long_line(rest, limit)
    if rest:
        yield rest


def _long_line(line: str, limit: int) -> Generator[str, None, str]:
    """Yield parts of ``line`` until what is left, which is returned, fits ``limit``."""
    start = 0
    while len(line) - start > limit:
        end = line.rfind(" ", start + limit // 2, start + limit) + 1 or start + limit
        yield line[start:end]
        start = end
    return line[start:]


def normalise(text: str) -> str:
    """The canonical form of a text that was not read from a file: ``\\n`` as the only line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _chunks(path: Path) -> Iterator[bytes]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with cast(BinaryIO, opener(path, "rb")) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is a damaged or truncated gzip file: {error}", "fetch or compress it again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def form(path: Path) -> str:
    """How a file is read: ``parquet``, or ``text`` or ``jsonl``, ``.gz`` where compressed."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    packed = ".gz" if name.endswith(".gz") else ""
    return ("jsonl" if name.removesuffix(".gz").endswith(".jsonl") else "text") + packed


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the operating system does not give."""
    return DataError(
        f"cannot read {path}: {error.strerror or error}", "check the path and its permissions"
    )


def _decode(chunks: Iterable[bytes], path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    consumed = 0  # bytes of the file that were decoded, or wait in the decoder
    head = b""
    for number, chunk in enumerate(chunks):
        head = head or chunk
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise not_utf8(path, consumed - waiting + error.start, head) from error
        consumed += len(chunk)
        if number == 0:
            if head.startswith(_NEVER_TEXT):
                raise not_utf8(path, 0, head)
            text = text.removeprefix("\ufeff")
        yield newlines.decode(text)
    waiting = len(decoder.getstate()[0])
    if waiting:
        raise not_utf8(path, consumed - waiting, head)
    yield newlines.decode("", final=True)


def not_utf8(place: Path | str, offset: int, head: bytes) -> DataError:
    """The error for a file whose byte at ``offset`` is no text, by what ``head`` of it tells."""
    for beginning, mark, name in _FORMATS:
        if head.startswith(beginning) and mark in head:
            return NotTextError(f"{place} is {name}, not text", _NO_TEXT_REMEDY)
    utf16 = head.startswith(_UTF16_MARKS)
    if b"\0" in head and not utf16:
        return NotTextError(
            f"{place} is a binary file, not text: bad byte at offset {offset}", _NO_TEXT_REMEDY
        )
    guess = "; it looks like UTF-16" if utf16 else ""
    return DataError(
        f"{place} is not UTF-8 text: bad byte at offset {offset}{guess}",
        "convert it to UTF-8, for example with iconv, or leave the file out",
    )
