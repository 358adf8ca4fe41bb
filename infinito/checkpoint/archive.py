"""The zip archive that ``torch.save`` writes, read strictly: every byte that matters is checked.

A checkpoint from a stranger may be cut, flipped or built to deceive. Members must be stored
uncompressed, must not overlap, must carry names that a checkpoint has, and must match their
CRC-32, before anyone interprets a byte of them. Memory stays small whatever the file claims.
Format: PKWARE APPNOTE 6.3.9, sections 4.3.7 (local header) to 4.3.16 (end of directory).
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PREFIX = "archive/"
PICKLE = PREFIX + "data.pkl"
BYTE_ORDER = PREFIX + "byteorder"
STORAGES = PREFIX + "data/"
_OTHER_MEMBERS = {
    PREFIX + name for name in ("version", ".format_version", ".storage_alignment")
} | {PREFIX + ".data/serialization_id"}
_STORAGE_NAME = re.compile(re.escape(STORAGES) + r"[0-9]{1,9}", re.ASCII)

MAX_DIRECTORY_BYTES = 16 << 20  # about 200,000 tensors; bounds what a directory can cost
CHUNK_BYTES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64_BYTES = 20


class DamagedError(ValueError):
    """Why a file is refused. Callers turn it into a CheckpointError that names the file."""


@dataclass(frozen=True)
class Member:
    """Where the bytes of one member lie in the file."""

    start: int
    size: int


def read_members(file: BinaryIO, file_size: int) -> dict[str, Member]:
    """Locate and verify every member. Raises DamagedError. Reads the whole file once, in chunks."""
    directory_start = _directory_start(file, file_size)
    members: dict[str, Member] = {}
    end_of_previous = 0
    for info in sorted(_directory(file), key=lambda info: info.header_offset):
        if info.filename in members:
            raise DamagedError("holds a member twice")
        member = _locate(file, info)
        if info.header_offset < end_of_previous or member.start + member.size > directory_start:
            raise DamagedError("holds members that overlap")
        end_of_previous = member.start + member.size
        if crc32_of(file, member) != info.CRC:
            raise DamagedError(f"checksum mismatch in {info.filename}")
        members[info.filename] = member
    if PICKLE not in members or BYTE_ORDER not in members:
        raise DamagedError("not an infinito checkpoint (parts of it are missing)")
    return members


def read_member(file: BinaryIO, member: Member, limit: int) -> bytes:
    """The bytes of one small member; DamagedError where it is larger than ``limit`` bytes."""
    if member.size > limit:
        raise DamagedError("not an infinito checkpoint (its description is too large)")
    file.seek(member.start)
    return file.read(member.size)


def _directory_start(file: BinaryIO, file_size: int) -> int:
    """Offset of the central directory, which must end where the file's end record begins."""
    if file_size == 0:
        raise DamagedError("the file is empty")
    tail_bytes = _END_64.size + _LOCATOR_64_BYTES + _END.size
    file.seek(0)
    if file.read(4) != b"PK\x03\x04"[: min(4, file_size)]:
        raise DamagedError("not an infinito checkpoint")
    if file_size < tail_bytes:
        raise DamagedError("truncated")
    file.seek(file_size - tail_bytes)
    tail = file.read(tail_bytes)
    signature, *_, size, start, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\x05\x06" or comment:
        raise DamagedError("truncated, or something was appended to it")
    end = file_size - _END.size
    if tail[_END_64.size : _END_64.size + 4] == b"PK\x06\x07":
        signature_64, *_, size, start = _END_64.unpack(tail[: _END_64.size])
        end = file_size - tail_bytes
        if signature_64 != b"PK\x06\x06":
            raise DamagedError("its table of contents is damaged")
    if start + size != end:
        raise DamagedError("its table of contents is damaged")
    if size > MAX_DIRECTORY_BYTES:
        raise DamagedError("its table of contents is too large")
    return int(start)


def _directory(file: BinaryIO) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError) as error:
        raise DamagedError("its table of contents is damaged") from error


def _locate(file: BinaryIO, info: zipfile.ZipInfo) -> Member:
    """Check one entry against its local header and say where its bytes are."""
    name = info.filename
    known = name in (PICKLE, BYTE_ORDER) or name in _OTHER_MEMBERS or _STORAGE_NAME.fullmatch(name)
    if not known:
        raise DamagedError(f"holds {ascii(name)[:80]}, which a checkpoint never has")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise DamagedError("holds compressed parts, which a checkpoint never has")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise DamagedError("its table of contents is damaged")
    signature, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    stored_name = file.read(name_bytes)
    encrypted = (flags | info.flag_bits) & 1
    if signature != b"PK\x03\x04" or method or encrypted or stored_name != name.encode():
        raise DamagedError(f"the header of {name} is damaged")
    start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    return Member(start, info.file_size)


def crc32_of(file: BinaryIO, member: Member, before: str = "") -> int:
    """CRC-32 of a text and the bytes of ``member`` behind it. Raises DamagedError at their end."""
    file.seek(member.start)
    remaining, value = member.size, zlib.crc32(before.encode())
    while remaining:
        chunk = file.read(min(CHUNK_BYTES, remaining))
        if not chunk:
            raise DamagedError("truncated")
        value = zlib.crc32(chunk, value)
        remaining -= len(chunk)
    return value


def open_regular(path: Path) -> BinaryIO:
    """Open ``path`` for reading; DamagedError unless it is a regular file (or a link to one)."""
    # Asked before opening: opening a pipe would wait for someone to write to it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedError("not a regular file")
    return path.open("rb")
