"""Text to token ids and back. The whole state of a tokenizer is one JSON string.

No text ever becomes the end-of-document id of ``bpe`` and ``byte``: a user who types ``<eos>``
or the like gets its characters. For ``word`` that id is the line end, and only a line end.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property

from infinito.config.schema import TokenizerConfig
from infinito.errors import ConfigError, DataError
from infinito.tokenizer.bpe import DEFAULT_VOCAB_SIZE, BytePairCoder
from infinito.tokenizer.coder import ByteCoder, Coder
from infinito.tokenizer.imported import ImportedCoder
from infinito.tokenizer.word import WordCoder

FORMAT = "infinito-tokenizer"
FORMAT_VERSION = 1
MAX_JSON_CHARACTERS = 1 << 26
#: Ids that a tokenizer of each kind has whatever the text: all bytes, and what ends or is unknown.
LEAST_VOCABULARY = {"bpe": 257, "byte": 257, "word": 2, "imported": 1}


class Tokenizer:
    """A trained tokenizer of any kind; immutable.

    Attributes:
        kind: ``bpe``, ``word``, ``byte`` or ``imported``.
        vocab_size: number of ids.
        eos_id: ``bpe`` and ``byte``: the last id, which follows each document; ``word``: the id
            of a line end.
        per_line_eos: whether ``eos_id`` stands for a line end (``word``) and not a document's.
    """

    def __init__(self, coder: Coder) -> None:
        """Wrap a coder; made by :func:`train_tokenizer` and :meth:`from_json`."""
        self._coder = coder
        self.kind = coder.kind
        self.vocab_size = len(coder.token_bytes)
        self.eos_id = coder.eos_id
        self.per_line_eos = isinstance(coder, WordCoder)

    @property
    def unknown_id(self) -> int | None:
        """The id of words outside a closed vocabulary; None where every text has its own ids."""
        return self._coder.unknown_id if isinstance(self._coder, WordCoder) else None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; of ``word``, line feeds give ``eos_id``, of the others nothing does.

        Raises:
            DataError: ``text`` holds half a surrogate pair (bytes of another encoding, often).
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as :meth:`encode` gives them, on several cores where that helps."""
        for text in texts:
            _check_unicode(text)
        return self._coder.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        ``bpe`` and ``byte`` give back exactly what was encoded, their ``eos_id`` nothing;
        ``word`` gives a space and the word for each word, a line feed for each ``eos_id``.
        """
        return b"".join([self._bytes(identifier) for identifier in ids]).decode(errors="replace")

    def token_bytes(self) -> list[bytes]:
        """The bytes that each id contributes to decoded text, by id."""
        return list(self._coder.token_bytes)

    def stream(self) -> StreamDecoder:
        """A decoder that takes ids one at a time and gives complete characters only."""
        return StreamDecoder(self)

    def to_json(self) -> str:
        """The whole state; equal tokenizers give equal strings."""
        state = {"format": FORMAT, "version": FORMAT_VERSION, "kind": self.kind}
        return json.dumps(
            {**state, **self._coder.state()}, ensure_ascii=False, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Rebuild a tokenizer from :meth:`to_json`; ``text`` may come from a stranger.

        Raises:
            DataError: it is not a tokenizer that this version can read.
        """
        if len(text) > MAX_JSON_CHARACTERS:
            raise _unreadable(f"longer than {MAX_JSON_CHARACTERS} characters")
        try:
            state = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _unreadable(str(error)) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise _unreadable("not written by infinito")
        if state.get("version") != FORMAT_VERSION:
            raise _unreadable(f"its format version is not {FORMAT_VERSION}")
        kind = state.get("kind")
        if kind == "byte":
            return cls(ByteCoder())
        if kind == "word":
            return cls(WordCoder.from_state(state))
        if kind == "bpe":
            return cls(BytePairCoder.from_state(state))
        if kind == "imported":
            library = state.get("library")
            if not isinstance(library, str):
                raise _unreadable("it has no library's form")
            return cls(ImportedCoder(library, state.get("eos_id"), state.get("vocab_size")))
        raise _unreadable("its kind is unknown")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of :meth:`to_json`: equal for tokenizers that do the same."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def _bytes(self, identifier: int) -> bytes:
        if not 0 <= identifier < self.vocab_size:
            raise DataError(
                f"token id {identifier} is outside the vocabulary of {self.vocab_size}",
                "use the tokenizer that made the ids",
            )
        return self._coder.token_bytes[identifier]


class StreamDecoder:
    """Decodes ids as they come; what it returns, joined, is ``decode`` of all of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start at the beginning of a text."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, identifier: int) -> str:
        """The characters that are complete with this id; "" while one is still open."""
        return self._decoder.decode(self._tokenizer._bytes(identifier))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, or ""."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def train_tokenizer(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
    """Make the tokenizer that ``config`` asks for, from training documents only.

    The vocabulary is smaller than ``config.vocab_size`` where the text does not fill it. Equal
    documents in equal order give an equal tokenizer.

    Raises:
        ConfigError: the kind is ``imported``, which no text makes.
        DataError: ``word`` finds too many distinct words.
    """
    if config.kind == "bpe":
        size = config.vocab_size or DEFAULT_VOCAB_SIZE
        return Tokenizer(BytePairCoder.train(documents, size))
    if config.kind == "imported":
        raise ConfigError(
            "tokenizer.kind imported comes with a checkpoint", "name it: training.init_from"
        )
    if config.kind == "word":
        return Tokenizer(WordCoder.train(documents, config.vocab_size))
    return Tokenizer(ByteCoder())


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text is not valid Unicode at character {error.start}", "give it as UTF-8"
        ) from error


def _unreadable(reason: str) -> DataError:
    return DataError(f"cannot read the tokenizer: {reason}", "use an undamaged checkpoint or file")
