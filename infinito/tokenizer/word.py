"""The closed vocabulary of the language-modelling literature: one id a word, one a line end.

Words are what whitespace separates; each line end is ``<eos>`` and any other word ``<unk>``
(Merity et al. 2016, arXiv 1609.07843). On WikiText-2 that gives its 33,278 entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from infinito.errors import DataError
from infinito.tokenizer.coder import END, UNKNOWN, damaged

# More distinct words than this are no closed vocabulary, and counting them would eat the memory.
MAX_DISTINCT_WORDS = 4_000_000
MAX_VOCAB_SIZE = 1_000_000


class WordCoder:
    """A word stands for itself after a space, a line end for a line feed.

    So decoding gives ``" the cat sat\\n the dog"``: WikiText's own layout (without the space
    before its line ends), and text that can be put behind a prompt as it is.
    """

    kind = "word"

    def __init__(self, words: Sequence[str]) -> None:
        """Build from the words in the order of their ids, ``<eos>`` and ``<unk>`` among them.

        Raises:
            DataError: a word is empty, holds whitespace, is given twice or lacks.
        """
        self.words = list(words)
        self._ids = {word: identifier for identifier, word in enumerate(self.words)}
        if len(self._ids) != len(self.words) or not {END, UNKNOWN} <= self._ids.keys():
            raise damaged("a word is given twice, or <eos> or <unk> lacks")
        if any(word.split() != [word] for word in self.words):
            raise damaged("a word is empty or holds whitespace")
        # Not to be found by a lookup: a word "<eos>" in the text is a word, and unknown.
        self.eos_id = self._ids.pop(END)
        self.unknown_id = self._ids[UNKNOWN]
        self.token_bytes = [_bytes(word) for word in self.words]
        self.token_bytes[self.eos_id] = b"\n"

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the words of each text, and one ``<eos>`` for each line feed."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        find, unknown, ids = self._ids.get, self.unknown_id, list[int]()
        for line in text.split("\n"):
            ids.extend([find(word, unknown) for word in line.split()])
            ids.append(self.eos_id)
        ids.pop()  # n line feeds part n + 1 lines
        return ids

    def state(self) -> dict[str, Any]:
        """The words."""
        return {"words": self.words}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WordCoder:
        """Rebuild from :meth:`state`. Raises ``DataError`` for anything that is not one."""
        words = state.get("words")
        if not isinstance(words, list) or len(words) > MAX_VOCAB_SIZE:
            raise damaged("its words are no list, or too many")
        if not all(isinstance(word, str) for word in words):
            raise damaged("a word is not text")
        return cls(words)

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int | None) -> WordCoder:
        """Take the most frequent words (all of them without ``vocab_size``), ties by alphabet."""
        counts = _count(documents)
        required = {word: counts.pop(word) for word in (END, UNKNOWN)}
        size = vocab_size or len(counts) + len(required)
        if size > MAX_VOCAB_SIZE:
            raise DataError(
                f"the training text has {size} distinct words, more than {MAX_VOCAB_SIZE}",
                "set tokenizer.vocab_size, or tokenizer.kind to bpe",
            )
        kept = dict(_ranked(counts)[: size - len(required)])
        return cls([word for word, _ in _ranked(kept | required)])


def _count(documents: Iterable[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    line_ends = 0
    for document in documents:
        counts.update(document.split())
        line_ends += document.count("\n")
        if len(counts) > MAX_DISTINCT_WORDS:
            raise DataError(
                f"the training text has more than {MAX_DISTINCT_WORDS} distinct words",
                "set tokenizer.kind to bpe",
            )
    return {**counts, END: line_ends, UNKNOWN: counts[UNKNOWN]}


def _ranked(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _bytes(word: str) -> bytes:
    try:
        return b" " + word.encode()
    except UnicodeEncodeError as error:
        raise damaged("a word is not valid Unicode") from error
