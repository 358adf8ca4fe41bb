"""Decide whether a checkpoint file may be used, without importing torch or running any of it."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from infinito.checkpoint.archive import (
    BYTE_ORDER,
    PICKLE,
    STORAGES,
    DamagedError,
    Member,
    open_regular,
    read_member,
    read_members,
)
from infinito.checkpoint.plain_pickle import MAX_PICKLE_BYTES, TensorSpec, interpret
from infinito.checkpoint.safetensors_file import (
    checkpoint_content,
    is_safetensors,
    read_header,
)
from infinito.checkpoint.structure import check_structure
from infinito.errors import CheckpointError

REMEDY = (
    "use another checkpoint of the run (`infinito runs` lists them), or copy the file again "
    "from where it came"
)


@dataclass(frozen=True)
class VerifiedFile:
    """An open checkpoint whose every part was checked.

    ``content`` is the checkpoint with a TensorSpec in place of each tensor; ``offsets`` says at
    which byte of ``file`` the data of a TensorSpec's key starts.
    """

    file: BinaryIO
    size: int
    content: dict[str, Any]
    offsets: dict[str, int]


@contextlib.contextmanager
def verified(
    path: Path, check: Callable[[BinaryIO], VerifiedFile] | None = None
) -> Iterator[VerifiedFile]:
    """Open ``path`` and check all of it. Raises CheckpointError that names the file and why.

    ``check`` is how; a checkpoint's unless given.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}", REMEDY) from error
    except (OSError, DamagedError) as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}", REMEDY) from error
    with file:
        try:
            checked = (check or _check)(file)
        except (OSError, DamagedError) as error:
            raise CheckpointError(f"cannot use {path}: {_reason(error)}", REMEDY) from error
        yield checked


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """Verify ``path`` and return its content with a TensorSpec for each tensor. No torch."""
    with verified(path) as checked:
        return checked.content


def weights_only(file: BinaryIO) -> VerifiedFile:
    """Check any program's safetensors; its content are the tensors. Raises DamagedError."""
    if not is_safetensors(file):
        raise DamagedError("no safetensors file")
    size = file.seek(0, 2)
    header = read_header(file, size)
    return VerifiedFile(file, size, dict(header.tensors), header.offsets)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(file: BinaryIO) -> VerifiedFile:
    size = file.seek(0, 2)
    if is_safetensors(file):
        header = read_header(file, size)
        content = check_structure(checkpoint_content(file, header, size))
        return VerifiedFile(file, size, content, header.offsets)
    members = read_members(file, size)
    if read_member(file, members[BYTE_ORDER], 16).decode("ascii", "replace") != sys.byteorder:
        raise DamagedError("written on a machine with another byte order")
    value, tensors = interpret(read_member(file, members[PICKLE], MAX_PICKLE_BYTES))
    return VerifiedFile(file, size, check_structure(value), _offsets(members, tensors))


def _offsets(members: dict[str, Member], tensors: list[TensorSpec]) -> dict[str, int]:
    """Give each tensor bytes of its own, so that tensors take no more memory than the file."""
    storages = {name: member for name, member in members.items() if name.startswith(STORAGES)}
    sizes = {STORAGES + spec.key: spec.n_bytes for spec in tensors}
    if len(sizes) != len(tensors):
        raise DamagedError("holds tensors that share data")
    if sizes != {name: member.size for name, member in storages.items()}:
        raise DamagedError("its tensors do not match their data")
    return {name.removeprefix(STORAGES): member.start for name, member in storages.items()}


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
