"""What a kind of tokenizer has to do, and the simplest one: the 256 byte values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from infinito.errors import DataError

UNKNOWN = "<unk>"
END = "<eos>"


class Coder(Protocol):
    """Text to ids and back for one kind; ``Tokenizer`` adds what all kinds share."""

    kind: str
    eos_id: int
    # Bytes that each id stands for; text is their concatenation. Its length is the vocabulary.
    token_bytes: list[bytes]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. The texts are valid Unicode: no half surrogate pairs."""

    def state(self) -> dict[str, Any]:
        """Plain JSON data from which the coder can be rebuilt."""


class ByteCoder:
    """Ids 0 to 255 are the bytes of UTF-8; 256 is the reserved end of a document."""

    kind = "byte"
    eos_id = 256

    def __init__(self) -> None:
        """Build the one byte coder there is."""
        self.token_bytes = [bytes([value]) for value in range(256)] + [b""]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The bytes of each text."""
        return [list(text.encode()) for text in texts]

    def state(self) -> dict[str, Any]:
        """Nothing: there is only one such coder."""
        return {}


def damaged(reason: str) -> DataError:
    """The error for a stored state that no coder can be rebuilt from."""
    return DataError(f"the tokenizer is damaged: {reason}", "use an undamaged checkpoint or file")
