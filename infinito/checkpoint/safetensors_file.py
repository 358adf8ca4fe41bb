"""Files of safetensors, read strictly: the header is checked before a byte of data is mapped.

A file is the header's length (8 bytes, little-endian), the header, a JSON object of
``{name: {"dtype", "shape", "data_offsets"}}`` and texts under ``__metadata__``, and the data,
tensor after tensor without a gap. Ours carry the rest of a checkpoint as such a text, and a
checksum, which the format lacks.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from infinito.checkpoint.archive import DamagedError, Member, crc32_of
from infinito.checkpoint.atomic import atomic_writer
from infinito.checkpoint.plain_pickle import MAX_DIMENSIONS, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 64 << 20  # the tokenizer of a large vocabulary is in it
_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I8": ("int8", 1), "U8": ("uint8", 1),
}  # fmt: skip
_NAMES = {name: key for key, (name, _) in _DTYPES.items()}
_METADATA, _CHECKPOINT, _CHECKSUM = "__metadata__", "infinito", "crc32"
#: What a checkpoint has for training to go on, and such a file has not.
_WITHOUT: dict[str, Any] = {
    "average": None, "optimizers": {}, "scaler": None, "random": {}, "log": {},
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """Texts, tensors by name, and the offset in the file of each tensor's data."""

    texts: dict[str, str]
    tensors: dict[str, TensorSpec]
    offsets: dict[str, int]


def is_safetensors(file: BinaryIO) -> bool:
    """Whether ``file`` starts like one; it is then a checkpoint of that kind, or nothing."""
    file.seek(8)
    return file.read(1) == b"{"


def read_header(file: BinaryIO, file_size: int) -> TensorHeader:
    """Check the header against the file. Raises DamagedError; reads no data."""
    file.seek(0)
    length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
    if not 2 <= length <= min(file_size - 8, MAX_HEADER_BYTES):
        raise DamagedError(f"its header of {length} bytes is too large for it")
    header = _strict_json(file.read(length))
    texts = header.pop(_METADATA, {})
    if type(texts) is not dict or not all(type(text) is str for text in texts.values()):
        raise DamagedError("its metadata are no texts")
    tensors, offsets, end = dict[str, TensorSpec](), dict[str, int](), 0
    found = [(*_tensor_spec(name, entry), name) for name, entry in header.items()]
    for begin, spec, name in sorted(found, key=lambda item: (item[0], item[1].n_bytes)):
        if begin != end:
            raise DamagedError("its tensors overlap, or leave gaps")
        tensors[name], offsets[name], end = spec, 8 + length + begin, begin + spec.n_bytes
    if 8 + length + end != file_size:
        raise DamagedError("truncated, or longer than its header says")
    return TensorHeader(texts, tensors, offsets)


def checkpoint_content(file: BinaryIO, header: TensorHeader, file_size: int) -> dict[str, Any]:
    """What a file of ours holds of a checkpoint, once its checksum agrees. Raises DamagedError."""
    if _CHECKPOINT not in header.texts:
        raise DamagedError(
            "not an infinito checkpoint (weights of another program: infinito import DIR)"
        )
    rest = header.texts[_CHECKPOINT]
    start = min(header.offsets.values(), default=file_size)
    if header.texts.get(_CHECKSUM) != str(crc32_of(file, Member(start, file_size - start), rest)):
        raise DamagedError("checksum mismatch")
    return {**_strict_json(rest.encode()), **_WITHOUT, "model": header.tensors}


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any] | None = None
) -> None:
    """Write ``tensors`` atomically, and the rest of a checkpoint's ``content``, if there is one.

    Raises ResourceError when the system refuses the write.
    """
    # The largest elements first, so that each tensor's data is aligned to them.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    rest, end = "", 0
    if content is not None:
        kept = {key: item for key, item in content.items() if key not in {*_WITHOUT, "model"}}
        rest = header[_METADATA][_CHECKPOINT] = json.dumps(kept)
    checksum = zlib.crc32(rest.encode())
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype = _NAMES[str(tensor.dtype).removeprefix("torch.")]
        entry = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        header[name], checksum = entry, zlib.crc32(_bytes(tensor), checksum)
    header[_METADATA][_CHECKSUM] = str(checksum)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_writer(path, 8 + len(text) + end) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            file.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return memoryview(numbers.numpy())  # type: ignore[arg-type]


def _strict_json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"its header cannot be read ({str(error)[:80]})") from error
    if type(value) is not dict:
        raise DamagedError("its header is no object")
    return value


def _without_repetition(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found = list(pairs)
    values = dict(found)
    if len(values) != len(found):
        raise ValueError("a name stands twice")
    return values


def _tensor_spec(name: str, entry: Any) -> tuple[int, TensorSpec]:
    """Where the data of an entry begins, and what it is; DamagedError where it makes no sense."""
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise DamagedError(f"the entry of {ascii(name)[:80]} is not a tensor's")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in _DTYPES:
        raise DamagedError(f"{ascii(name)[:80]} has the type {ascii(dtype)[:20]}, which is unknown")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise DamagedError(f"the shape or place of {ascii(name)[:80]} makes no sense")
    begin, end = offsets
    n_bytes = math.prod(shape) * _DTYPES[dtype][1]
    if len(shape) > MAX_DIMENSIONS or end - begin != n_bytes:
        raise DamagedError(f"the shape of {ascii(name)[:80]} does not fit its data")
    return begin, TensorSpec(_DTYPES[dtype][0], tuple(shape), name, n_bytes)


def _are_counts(value: Any) -> bool:
    return type(value) is list and all(type(x) is int and 0 <= x < 2**48 for x in value)
