"""Byte-level pair encoding: trained and applied by the ``tokenizers`` library, stored by us.

The stored state is the list of merges as pairs of ids, nothing else: ids 0 to 255 are the byte
values, and each merge whose bytes are new adds one id. Everything the library needs is rebuilt
from that, so that a stranger's tokenizer is checked number by number and never configures it.
(Sennrich et al. 2016, arXiv 1508.07909; bytes as the alphabet: Radford et al. 2019.)
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from infinito.tokenizer.coder import UNKNOWN, damaged

if TYPE_CHECKING:
    import tokenizers

DEFAULT_VOCAB_SIZE = 8192
# Training looks at this much text; merges hardly change after it, and memory stays bounded.
TRAINING_CHARACTERS = 1 << 28
MAX_MERGES = 2_000_000
MAX_TOKEN_BYTES = 1024
_TRAINED_TOKEN_BYTES = 64

# GPT-2's classes of pieces (contractions, words, numbers, other signs, space), and before them
# the "<unk>" of prepared corpora as one piece: three tokens otherwise, for 6 % of WikiText-2.
# A piece has at most 64 characters: without a limit, training takes hours on text without spaces.
_PIECES = (
    rf" ?{UNKNOWN}|'(?:[sdmt]|ll|ve|re)| ?\p{{L}}{{1,64}}| ?\p{{N}}{{1,64}}"
    rf"| ?(?:(?!{UNKNOWN})[^\s\p{{L}}\p{{N}}]){{1,64}}|\s{{1,64}}(?!\S)|\s{{1,64}}"
)


def _byte_names() -> list[str]:
    """The printable character by which the library's byte-level alphabet calls each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(0x100)
    return [chr(value if value in printable else next(spare)) for value in range(256)]


BYTE_NAMES = _byte_names()


class BytePairCoder:
    """Any text round-trips exactly; the last id is the reserved end of a document."""

    kind = "bpe"

    def __init__(self, merges: Sequence[tuple[int, int]]) -> None:
        """Build from ``merges`` in the order they were learnt.

        Raises:
            DataError: a merge refers to an id that does not exist yet, or makes a monster.
        """
        self.merges = list(merges)
        self.token_bytes = [*_merged(self.merges), b""]
        self.eos_id = len(self.token_bytes) - 1
        self._library = _library(_model(self.token_bytes[:-1], self.merges))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; the same for any grouping of the texts."""
        encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [item.ids for item in encoded]

    def library(self) -> tokenizers.Tokenizer:
        """A copy in the library's own form, without the end of a document."""
        from tokenizers import decoders

        copy = _library(_model(self.token_bytes[:-1], self.merges))
        copy.decoder = decoders.ByteLevel()
        return copy

    def state(self) -> dict[str, Any]:
        """The merges."""
        return {"merges": [list(pair) for pair in self.merges]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> BytePairCoder:
        """Rebuild from :meth:`state`. Raises ``DataError`` for anything that is not one."""
        merges = state.get("merges")
        if not isinstance(merges, list) or len(merges) > MAX_MERGES:
            raise damaged("its merges are no list, or too many")
        pairs = []
        for merge in merges:
            # type() and not isinstance(): true is an int in Python
            if type(merge) is not list or [type(part) for part in merge] != [int, int]:
                raise damaged("a merge is not a pair of ids")
            pairs.append((merge[0], merge[1]))
        return cls(pairs)

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> BytePairCoder:
        """Learn up to ``vocab_size - 257`` merges; pairs that occur once are not learnt."""
        from tokenizers import models, trainers

        library = _library(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,  # the last id is the end of a document
            min_frequency=2,
            initial_alphabet=sorted(BYTE_NAMES),
            max_token_length=_TRAINED_TOKEN_BYTES,
            show_progress=False,
        )
        library.train_from_iterator(_limited(documents), trainer)
        ids = {name: value for value, name in enumerate(BYTE_NAMES)}
        merges = []
        for left, right in json.loads(library.to_str())["model"]["merges"]:
            merges.append((ids[left], ids[right]))
            ids.setdefault(left + right, len(ids))
        return cls(merges)


def _limited(documents: Iterable[str]) -> Iterator[str]:
    room = TRAINING_CHARACTERS
    for document in documents:
        yield document[:room]
        room -= len(document)
        if room <= 0:
            return


def _merged(merges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Bytes of every id: the alphabet, then what each merge adds."""
    tokens = [bytes([value]) for value in range(256)]
    known = set(tokens)
    for left, right in merges:
        if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
            raise damaged(f"merge ({left}, {right}) uses an id that is not defined before it")
        token = tokens[left] + tokens[right]
        if len(token) > MAX_TOKEN_BYTES:
            raise damaged(f"a token is longer than {MAX_TOKEN_BYTES} bytes")
        if token not in known:
            known.add(token)
            tokens.append(token)
    return tokens


def _model(tokens: Sequence[bytes], merges: Sequence[tuple[int, int]]) -> tokenizers.models.BPE:
    from tokenizers import models

    names = ["".join(BYTE_NAMES[value] for value in token) for token in tokens]
    pairs = [(names[left], names[right]) for left, right in merges]
    return models.BPE({name: identifier for identifier, name in enumerate(names)}, pairs)


def _library(model: tokenizers.models.BPE) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    library = Tokenizer(model)
    pieces = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    return library
