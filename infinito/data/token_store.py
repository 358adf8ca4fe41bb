"""One tokenised split on disk: a single file, memory-mapped, checked before it is used.

Layout: token ids (little-endian uint16 or uint32) | zeros up to a multiple of 8 | document
starts (int64) | a JSON description | a trailer of fixed size with the lengths and checksums.
The trailer comes last because counts are known last: text streams through without being held.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from infinito.data.cache import Cache
from infinito.data.documents import gathered
from infinito.data.lines import CHUNK_BYTES
from infinito.errors import DataError
from infinito.tokenizer.coder import UNKNOWN
from infinito.tokenizer.tokenizer import Tokenizer

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

# Documents are encoded in batches of about this size: large enough for several cores.
BATCH_CHARACTERS = 1 << 21
_MAGIC = b"infinito"
_TRAILER = struct.Struct("<8sQII")  # magic, bytes of the description, CRC-32 of body and of it
# Scripts that put no spaces between words: Thai, Lao, Tibetan and Burmese; Khmer; Japanese and
# Chinese with their punctuation.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff]"
)
_SAMPLES, _SAMPLE_TOKENS = 16, 512


@dataclass(frozen=True)
class TokenStore:
    """One tokenised split, memory-mapped.

    Each document is stored as ``encode(document)``, followed by ``eos_id`` for bpe and byte.

    Attributes:
        tokens: ``(n_tokens,)`` uint16, or uint32 where the vocabulary exceeds 65536; documents
            one after the other, in the order of the text.
        document_starts: ``(n_documents,)`` int64; the first is 0, strictly increasing.
        n_words: words separated by whitespace, and one for each line end.
        n_lines: line ends.
        n_bytes: bytes of the text in UTF-8.
        n_unknown: words that are ``<unk>`` in the text or, with a closed vocabulary, become it.
        text_sha256: of the canonical text (all documents joined); for a clean file of its bytes.
    """

    tokens: Tokens
    document_starts: npt.NDArray[np.int64]
    n_words: int
    n_lines: int
    n_bytes: int
    n_unknown: int
    text_sha256: str

    @property
    def n_tokens(self) -> int:
        """Number of tokens, ends of documents included."""
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.document_starts)


class DamagedStoreError(Exception):
    """A file is not a complete, undamaged token store. It can be made again."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id: little-endian uint16 or uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write_store(
    cache: Cache, key: str, documents: Iterable[str], tokenizer: Tokenizer, label: str
) -> Path:
    """Tokenise ``documents`` into the cache entry ``key``; holds one batch of text at a time.

    Raises:
        DataError: there is no word in the text; ``label`` names it. Nothing is left behind.
        ResourceError: the cache cannot be written.
    """
    dtype, counts, digest = token_dtype(tokenizer.vocab_size), Counter[str](), hashlib.sha256()
    starts = array("q")  # compact: there may be many millions
    ending = [] if tokenizer.per_line_eos else [tokenizer.eos_id]
    checksum = 0
    with cache.writing("tokens", key) as stream:
        for batch in gathered(documents, lambda _, size: size >= BATCH_CHARACTERS):
            ids: list[int] = []
            for document, encoded in zip(batch, tokenizer.encode_batch(batch), strict=True):
                own = encoded + ending
                if own:  # a closed vocabulary finds no word in a document of spaces
                    starts.append(counts["n_tokens"])
                digest.update(document.encode())
                counts.update(_counts(document, own, tokenizer.unknown_id))
                ids += own
            checksum = _write(stream, np.array(ids, dtype=dtype).tobytes(), checksum)
        if counts["n_words"] == counts["n_lines"]:
            what = "holds nothing but blank lines" if counts["n_bytes"] else "is empty"
            raise DataError(f"the text of {label} {what}", "name a file that holds text")
        padding = bytes(-counts["n_tokens"] * dtype.itemsize % 8)
        checksum = _write(stream, padding + np.array(starts, dtype="<i8").tobytes(), checksum)
        sizes = {"n_documents": len(starts), "dtype": dtype.str, "vocab_size": tokenizer.vocab_size}
        names = {"text_sha256": digest.hexdigest(), "label": label}
        description = json.dumps({**counts, **sizes, **names}).encode()
        trailer = _TRAILER.pack(_MAGIC, len(description), checksum, zlib.crc32(description))
        stream.write(description + trailer)
    return cache.path("tokens", key)


def _counts(document: str, ids: list[int], unknown_id: int | None) -> dict[str, int]:
    lines = document.count("\n")
    return {
        "n_words": len(document.split()) + lines,
        "n_lines": lines,
        "n_bytes": len(document.encode()),
        "n_unknown": document.count(UNKNOWN) if unknown_id is None else ids.count(unknown_id),
        "n_tokens": len(ids),
    }


def _write(stream: BinaryIO, data: bytes, checksum: int) -> int:
    stream.write(data)
    return zlib.crc32(data, checksum)


def read_description(path: Path) -> dict[str, Any]:
    """What a store says of itself: counts, dtype, text hash, label.

    Raises:
        DamagedStoreError: it is no store, or its end is damaged. The tokens are not looked at.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            stream.seek(max(size - _TRAILER.size, 0))
            trailer = stream.read(_TRAILER.size)
            magic, length, body, expected = _TRAILER.unpack(trailer)
            if magic != _MAGIC or length > size - _TRAILER.size:
                raise DamagedStoreError(f"{path} is not a token store")
            stream.seek(size - _TRAILER.size - length)
            data = stream.read(length)
    except (OSError, struct.error) as error:
        raise DamagedStoreError(f"{path}: {error}") from error
    if zlib.crc32(data) != expected:
        raise DamagedStoreError(f"{path}: the checksum of its description differs")
    return {**json.loads(data), "body_bytes": size - _TRAILER.size - length, "body_crc32": body}


def open_store(path: Path) -> TokenStore:
    """Map a store into memory after checking sizes and checksums (about 1 s for 2 GB).

    Raises:
        DamagedStoreError: it is missing, cut short or changed.
    """
    info = read_description(path)
    dtype = np.dtype(info["dtype"])
    token_bytes = info["n_tokens"] * dtype.itemsize
    starts_at = token_bytes + -token_bytes % 8
    if starts_at + 8 * info["n_documents"] != info["body_bytes"]:
        raise DamagedStoreError(f"{path}: its size is not what its description says")
    if _checksum(path, info["body_bytes"]) != info["body_crc32"]:
        raise DamagedStoreError(f"{path}: the checksum of its tokens differs")
    tokens = np.memmap(path, dtype=dtype, mode="r", shape=(info["n_tokens"],))
    starts = np.fromfile(path, dtype="<i8", count=info["n_documents"], offset=starts_at)
    names = ("n_words", "n_lines", "n_bytes", "n_unknown", "text_sha256")
    return TokenStore(tokens, starts.astype(np.int64), **{name: info[name] for name in names})


def _checksum(path: Path, length: int) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while length and (chunk := stream.read(min(length, CHUNK_BYTES))):
            checksum = zlib.crc32(chunk, checksum)
            length -= len(chunk)
    return checksum


def why_bits_lead(store: TokenStore, tokenizer: Tokenizer, source: str | None) -> str:
    """Why bits per byte say more of this text than word perplexity does; empty if they do not."""
    if source == "python-docs":
        return "the words of documentation are half code"
    return "there are no spaces between words" if lacks_spaces(store, tokenizer) else ""


def lacks_spaces(store: TokenStore, tokenizer: Tokenizer) -> bool:
    """Whether counting words says nothing: most characters are of scripts without spaces.

    Judged by samples from all of the text.
    """
    length = len(store.tokens)
    places = range(0, length, max(_SAMPLE_TOKENS, length // _SAMPLES))
    samples = (store.tokens[place : place + _SAMPLE_TOKENS].tolist() for place in places)
    visible = "".join("".join(map(tokenizer.decode, samples)).split())
    return 2 * len(_UNSPACED.findall(visible)) > len(visible)
