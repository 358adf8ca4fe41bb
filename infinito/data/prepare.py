"""From a config to memory-mapped tokens: open, train the tokenizer, tokenise, check, cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infinito.config.schema import Config, SplitName, TokenizerConfig
from infinito.data.bpe import DEFAULT_VOCAB_SIZE, TRAINING_CHARACTERS
from infinito.data.cache import Cache, cache_key
from infinito.data.corpus import Part, file_part
from infinito.data.find import find_files
from infinito.data.order import require_sequence
from infinito.data.overlap import overlap
from infinito.data.sources import open_corpus
from infinito.data.token_store import DamagedStoreError, TokenStore, open_store, write_store
from infinito.data.tokenizer import Tokenizer, train_tokenizer
from infinito.errors import DataError, ResourceError

# A smaller overlap is what any two texts of one kind share.
_OVERLAP_WORTH_A_WARNING = 0.01


@dataclass(frozen=True)
class Dataset:
    """Tokenised splits, and the tokenizer that made them.

    Attributes:
        text_sha256: of the canonical text of each split.
        notes: what a user should be told: a validation part split off, an overlap, a damaged
            cache entry. Those that warn begin with ``warning:``.
        cached: whether the tokens of a split were in the cache already.
    """

    tokenizer: Tokenizer
    splits: dict[SplitName, TokenStore]
    text_sha256: dict[SplitName, str]
    notes: list[str] = field(default_factory=list)
    cached: dict[SplitName, bool] = field(default_factory=dict)


def prepare(
    config: Config,
    *,
    tokenizer: Tokenizer | None = None,
    splits: Sequence[SplitName] | None = ("train", "valid"),
) -> Dataset:
    """Make, or take from the cache, the tokens of ``splits``.

    Args:
        config: its ``data`` and ``tokenizer`` sections count.
        tokenizer: used instead of training one on the training split (resume, evaluation).
        splits: which to prepare, None for all there are; the others are not read.

    Raises:
        DataError: text missing, unreadable, blank, too short; hub out of reach.
        ResourceError: the cache cannot be written.
    """
    cache, notes = Cache(), list[str]()
    corpus = open_corpus(config.data)
    parts = {split: corpus.part(split) for split in splits or corpus.splits}
    notes += [part.note for part in parts.values() if part.note]
    if tokenizer is None:
        tokenizer = _tokenizer(config.tokenizer, corpus.part("train"), cache, notes)
    stores, cached = dict[SplitName, TokenStore](), dict[SplitName, bool]()
    for split, part in parts.items():
        stores[split], cached[split] = _tokens(part, tokenizer, cache, notes)
    if "train" in stores:
        require_sequence(stores["train"].n_tokens, config.data.sequence_length)
        _note_small_sample(tokenizer, stores["train"], notes)
    if "train" in parts and "valid" in parts:
        _note_overlap(parts["train"], parts["valid"], cache, notes)
    hashes = {split: store.text_sha256 for split, store in stores.items()}
    return Dataset(tokenizer, stores, hashes, notes, cached)


def tokenize_text(path: str, tokenizer: Tokenizer, text_field: str = "text") -> TokenStore:
    """Tokens of a text of the user's: a file, directory, glob, .gz or .jsonl.

    Raises:
        DataError: it is missing, unreadable, blank or a single token.
    """
    part = file_part(path, find_files(path, "--text"), text_field)
    return _tokens(part, tokenizer, Cache(), [])[0]


def _tokenizer(config: TokenizerConfig, part: Part, cache: Cache, notes: list[str]) -> Tokenizer:
    key = cache_key("tokenizer", config.kind, config.vocab_size, part.identity(cache))
    stored = cache.read_value("tokenizer", key)
    if isinstance(stored, str):
        tokenizer = Tokenizer.from_json(stored)
    else:
        cache.require_writable("tokenizer")
        tokenizer = train_tokenizer(config, part.documents())
        cache.write_value("tokenizer", key, tokenizer.to_json())
    wanted = config.vocab_size or (DEFAULT_VOCAB_SIZE if config.kind == "bpe" else 0)
    if tokenizer.vocab_size < wanted:
        notes.append(
            f"the training text fills a vocabulary of {tokenizer.vocab_size}, not of {wanted}"
        )
    return tokenizer


def _tokens(
    part: Part, tokenizer: Tokenizer, cache: Cache, notes: list[str]
) -> tuple[TokenStore, bool]:
    """The tokens of ``part``, and whether they were in the cache."""
    identity = part.identity(cache)
    key = cache_key("tokens", identity, tokenizer.fingerprint)
    path = cache.path("tokens", key)
    store = _from_cache(path, notes)
    cached = store is not None
    if store is None:
        write_store(cache, key, part.documents(), tokenizer, part.label)
        if part.identity(cache) != identity:
            path.unlink(missing_ok=True)
            raise DataError(f"{part.label} changed while it was read", "start again")
        store = _just_written(path)
    if store.n_tokens < 2:
        raise DataError(
            f"the text of {part.label} is a single token, and 2 are needed to predict one",
            "give more text",
        )
    return store, cached


def _from_cache(path: Path, notes: list[str]) -> TokenStore | None:
    if not path.exists():
        return None
    try:
        return open_store(path)
    except DamagedStoreError as damage:
        notes.append(f"warning: a cache entry is damaged and is made again: {damage}")
        return None


def _just_written(path: Path) -> TokenStore:
    try:
        return open_store(path)
    except DamagedStoreError as damage:
        raise ResourceError(
            f"a cache entry vanished or was damaged as soon as it was written: {damage}",
            "start again; if it recurs, set INFINITO_CACHE to a directory on another disk",
        ) from damage


def _note_overlap(training: Part, validation: Part, cache: Cache, notes: list[str]) -> None:
    identities = training.identity(cache), validation.identity(cache)
    key = cache_key("overlap", *identities)
    share = cache.read_value("overlap", key)
    if not isinstance(share, float):
        share = overlap(training.documents(), validation.documents())
        cache.write_value("overlap", key, share)
    if share >= _OVERLAP_WORTH_A_WARNING:
        notes.append(
            f"warning: {100 * share:.1f} % of the validation text ({validation.label}) is in the "
            "training text too: the validation loss will look better than it is"
        )


def _note_small_sample(tokenizer: Tokenizer, store: TokenStore, notes: list[str]) -> None:
    if tokenizer.kind == "bpe" and store.n_bytes > TRAINING_CHARACTERS:
        notes.append(
            f"the tokenizer was trained on the first {TRAINING_CHARACTERS} characters of the text"
        )
