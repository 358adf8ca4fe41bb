"""A byte-level pair code that others trained, kept and applied in the ``tokenizers`` form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from infinito.tokenizer.bpe import BYTE_NAMES
from infinito.tokenizer.coder import damaged

MAX_VOCAB_SIZE = 1_000_000


class ImportedCoder:
    """Texts to the ids of the library, but that none becomes a special token (:class:`Coder`).

    Special tokens stand for no bytes, and neither do the ids up to ``vocab_size`` that the
    library does not have: models have more rows than tokens.
    """

    kind = "imported"

    def __init__(self, library: str, eos_id: Any, vocab_size: Any) -> None:
        """Build from a ``tokenizer.json``; the first texts follow the id ``eos_id``.

        Raises:
            DataError: it is no byte-level pair code, or has ids that the model has not.
        """
        import tokenizers

        self.text, self.eos_id = library, eos_id
        if not (type(eos_id) is int and type(vocab_size) is int and vocab_size <= MAX_VOCAB_SIZE):
            raise damaged("its sizes make no sense")
        try:
            if json.loads(library)["model"]["type"] != "BPE":
                raise damaged("it is no pair code (BPE)")
            self.library = tokenizers.Tokenizer.from_str(library)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library panics at some, which is no Exception
            raise damaged(str(error)[:200]) from error
        self.library.no_truncation()
        self.library.no_padding()
        self.library.encode_special_tokens = True
        ids = self.library.get_vocab(with_added_tokens=True)
        if not 0 <= eos_id < vocab_size or max(ids.values(), default=0) >= vocab_size:
            raise damaged(f"it has ids that a vocabulary of {vocab_size} has not")
        added = self.library.get_added_tokens_decoder()
        self.token_bytes = [b""] * vocab_size
        for name, identifier in ids.items():
            if identifier not in added:
                self.token_bytes[identifier] = _bytes_of(name)
            elif not added[identifier].special and identifier != eos_id:
                self.token_bytes[identifier] = added[identifier].content.encode()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        encoded = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [item.ids for item in encoded]

    def state(self) -> dict[str, Any]:
        """What it was built from."""
        sizes = {"eos_id": self.eos_id, "vocab_size": len(self.token_bytes)}
        return {"library": self.text, **sizes}


_BYTE_OF = {name: value for value, name in enumerate(BYTE_NAMES)}


def _bytes_of(name: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in name])
    except KeyError as error:
        raise damaged(f"its token {ascii(name)[:40]} is not byte-level") from error
