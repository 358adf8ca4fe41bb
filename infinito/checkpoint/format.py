"""The checkpoint file: plain data and tensors in, the same bytes for the same content out.

A file is what ``torch.save`` writes (any program reads it with ``torch.load(weights_only=True)``),
made from fresh containers and tensors, so that its bytes depend on the content alone and not on
which objects happened to be shared. Reading does not use ``torch.load``: the verifier
has already interpreted every instruction of the file, and what it understood is what is built.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from infinito.checkpoint.atomic import atomic_writer
from infinito.checkpoint.plain_pickle import PLAIN_DTYPES, TensorSpec, contiguous_strides
from infinito.checkpoint.verify import VerifiedFile, verified, weights_only

_OVERHEAD_BYTES = 1 << 20  # more than the archive's headers and the plain data usually take


def write_checkpoint(path: Path, content: dict[str, Any]) -> str:
    """Write ``content`` to ``path`` atomically and return the SHA-256 of the file.

    ``content`` is made of dict (str keys), list, str, int, float, bool, None and tensors of plain
    dtypes on any device; anything else is a bug of the caller. The order of dict keys is kept.
    Raises ResourceError when the system refuses the write; ``path`` then is what it was.
    """
    canonical = _Canonical()
    plain = canonical.copy(content)
    with atomic_writer(path, canonical.tensor_bytes + _OVERHEAD_BYTES) as file:
        return _write(plain, file)


def write_nowhere(content: dict[str, Any]) -> None:
    """Do the work of ``write_checkpoint`` but for the disk's, to see how long it takes."""
    with open(os.devnull, "wb") as file:
        _write(_Canonical().copy(content), file)


def _write(plain: Any, file: BinaryIO) -> str:
    sink = _HashingSink(file)
    # A file object: a path would give the archive another prefix.
    torch.save(plain, cast(IO[bytes], sink))
    if sink.error is not None:
        raise sink.error
    return sink.digest.hexdigest()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verify all of ``path``, then return its content. Raises CheckpointError.

    Tensors are on the CPU and map the file privately: they cost memory once touched, may be
    written to, and never change the file. Copy what outlives the next minutes: a file that
    someone shortens in place while it is mapped takes the process with it.
    """
    return _read(path, None)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of any program's file by name, as :func:`read_checkpoint` maps them."""
    return _read(path, weights_only)


def _read(path: Path, check: Callable[[BinaryIO], VerifiedFile] | None) -> dict[str, Any]:
    with verified(path, check) as checked:
        mapping = mmap.mmap(checked.file.fileno(), checked.size, access=mmap.ACCESS_COPY)
        content: dict[str, Any] = _fill(checked.content, mapping, checked.offsets)
    return content


class _Canonical:
    """Copies plain data so that no object, string or storage occurs twice by accident of history.

    Pickle writes a second occurrence of an object as a reference to the first, and torch does so
    for storages: equal content would give unequal bytes.
    """

    def __init__(self) -> None:
        self.storages: set[int] = set()
        self.tensor_bytes = 0

    def copy(self, value: Any) -> Any:
        kind = type(value)
        if kind is dict:
            assert all(type(key) is str for key in value), "keys of a checkpoint are strings"
            return {sys.intern(key): self.copy(item) for key, item in value.items()}
        if kind is list:
            return [self.copy(item) for item in value]
        if kind is str:
            return sys.intern(value)
        if isinstance(value, torch.Tensor):
            return self.copy_tensor(value)
        assert kind in (int, float, bool, type(None)), f"{kind} is not plain data"
        return value

    def copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach().cpu()
        assert str(plain.dtype).removeprefix("torch.") in PLAIN_DTYPES, (
            f"{plain.dtype} is not plain"
        )
        assert plain.layout is torch.strided, "sparse tensors are not plain"
        n_bytes = plain.numel() * plain.element_size()
        storage = plain.untyped_storage()
        owns_its_bytes = (
            type(plain) is torch.Tensor
            and plain.stride() == contiguous_strides(plain.shape)
            and plain.storage_offset() == 0
            and storage.nbytes() == n_bytes
            and storage._cdata not in self.storages
        )
        if not owns_its_bytes:
            plain = torch.empty(plain.shape, dtype=plain.dtype).copy_(plain)
        self.storages.add(plain.untyped_storage()._cdata)
        self.tensor_bytes += n_bytes
        return plain


class _HashingSink:
    """Hashes what passes through to ``file``, and keeps the first error instead of raising it.

    torch writes from C++ and ends the archive in a destructor, where a Python exception from a
    full disk would end the process. After an error the rest is dropped; the caller raises it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
                self.digest.update(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing to do: the caller flushes and syncs the file when all is written."""


def _tensor(spec: TensorSpec, mapping: mmap.mmap, offset: int) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if spec.n_bytes == 0:
        return torch.empty(spec.shape, dtype=dtype)
    count = spec.n_bytes // dtype.itemsize
    if offset % dtype.itemsize:
        # torch aligns what it writes; data moved by others is copied to where it can be read.
        data = bytearray(mapping[offset : offset + spec.n_bytes])
        return torch.frombuffer(data, dtype=dtype, count=count).reshape(spec.shape)
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).reshape(spec.shape)


def _fill(value: Any, mapping: mmap.mmap, offsets: dict[str, int]) -> Any:
    if isinstance(value, TensorSpec):
        return _tensor(value, mapping, offsets[value.key])
    if isinstance(value, dict):
        return {key: _fill(item, mapping, offsets) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, mapping, offsets) for item in value]
    return value
