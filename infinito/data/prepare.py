"""From a config to memory-mapped tokens: open, train the tokenizer, tokenise, check, cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infinito.config.schema import Config, SplitName, TokenizerConfig
from infinito.data.cache import Cache, cache_key
from infinito.data.corpus import Documents, overlap
from infinito.data.files import TextFiles
from infinito.data.order import require_sequence
from infinito.data.sources import open_corpus
from infinito.data.token_store import DamagedStoreError, TokenStore, open_store, write_store
from infinito.errors import DataError, ResourceError
from infinito.runtime.events import note
from infinito.tokenizer.bpe import DEFAULT_VOCAB_SIZE, TRAINING_CHARACTERS
from infinito.tokenizer.tokenizer import Tokenizer, train_tokenizer

# A smaller overlap is what any two texts of one kind share.
_OVERLAP_WORTH_A_WARNING = 0.01


@dataclass(frozen=True)
class Dataset:
    """Tokenised splits, and the tokenizer that made them.

    Attributes:
        text_sha256: of the canonical text of each split.
        cached: whether the tokens of a split were in the cache already.
    """

    tokenizer: Tokenizer
    splits: dict[SplitName, TokenStore]
    text_sha256: dict[SplitName, str]
    cached: dict[SplitName, bool] = field(default_factory=dict)


def prepare(
    config: Config,
    *,
    tokenizer: Tokenizer | None = None,
    splits: Sequence[SplitName] | None = ("train", "valid"),
    cache: Cache | None = None,
) -> Dataset:
    """Make, or take from the cache, the tokens of ``splits``; notes say what surprises.

    Args:
        config: its ``data`` and ``tokenizer`` sections count.
        tokenizer: used instead of training one on the training split (resume, evaluation).
        splits: which to prepare, None for all there are; the others are not read.
        cache: the user's unless given; where it cannot be written, the tokens are temporary.

    Raises:
        DataError: text missing, unreadable, blank, too short; hub out of reach.
        ResourceError: neither the cache nor a temporary file can be written.
    """
    cache = cache or Cache()
    corpus = open_corpus(config.data)
    texts = {split: corpus.documents(split) for split in splits or corpus.splits}
    # Both shares of one text bring the note of its files: it is told once.
    for line in dict.fromkeys(line for text in texts.values() for line in text.notes):
        note(line)
    if tokenizer is None:
        tokenizer = _tokenizer(config.tokenizer, corpus.documents("train"), cache)
    stores, cached = dict[SplitName, TokenStore](), dict[SplitName, bool]()
    for split, text in texts.items():
        stores[split], cached[split] = _tokens(text, tokenizer, cache)
    if "train" in stores:
        label = f"the training text, {texts['train'].label},"
        require_sequence(stores["train"].n_tokens, config.data.sequence_length, label)
        if tokenizer.kind == "bpe" and stores["train"].n_bytes > TRAINING_CHARACTERS:
            sample = f"the first {TRAINING_CHARACTERS} characters of the text"
            note(f"the tokenizer was trained on {sample}")
    if "train" in texts and "valid" in texts:
        _note_overlap(texts["train"], texts["valid"], cache)
    _note_refusal(cache)
    hashes = {split: store.text_sha256 for split, store in stores.items()}
    return Dataset(tokenizer, stores, hashes, cached)


def tokenize_text(path: str, tokenizer: Tokenizer, text_field: str = "text") -> TokenStore:
    """Tokens of a text of the user's: a file, directory, glob, .gz, .jsonl or .parquet.

    Raises:
        DataError: it is missing, unreadable, blank or a single token.
    """
    text, cache = TextFiles(path, "--text", text_field), Cache()
    for line in text.notes:
        note(line)
    store, _ = _tokens(text, tokenizer, cache)
    _note_refusal(cache)
    return store


def _tokenizer(config: TokenizerConfig, documents: Documents, cache: Cache) -> Tokenizer:
    key = cache_key("tokenizer", config.kind, config.vocab_size, documents.identity(cache))
    stored = cache.read_value("tokenizer", key)
    if isinstance(stored, str):
        tokenizer = Tokenizer.from_json(stored)
    else:
        tokenizer = train_tokenizer(config, documents)
        cache.write_value("tokenizer", key, tokenizer.to_json())
    wanted = config.vocab_size or (DEFAULT_VOCAB_SIZE if config.kind == "bpe" else 0)
    if tokenizer.vocab_size < wanted:
        note(f"the training text fills a vocabulary of {tokenizer.vocab_size}, not of {wanted}")
    return tokenizer


def _tokens(documents: Documents, tokenizer: Tokenizer, cache: Cache) -> tuple[TokenStore, bool]:
    """The tokens of ``documents``, and whether they were in the cache."""
    identity = documents.identity(cache)
    key = cache_key("tokens", identity, tokenizer.fingerprint)
    store = _from_cache(cache.path("tokens", key))
    cached = store is not None
    if store is None:
        try:
            store = _made(cache, key, documents, tokenizer)
        except ResourceError as refusal:
            with cache.replaced(refusal) as temporary:
                store = _made(temporary, key, documents, tokenizer)
        if documents.identity(cache) != identity:
            with contextlib.suppress(OSError):  # not there, where the tokens are temporary
                cache.path("tokens", key).unlink()
            raise DataError(f"{documents.label} changed while it was read", "start again")
    if store.n_tokens < 2:
        raise DataError(
            f"the text of {documents.label} is a single token, and 2 are needed to predict one",
            "give more text",
        )
    return store, cached


def _from_cache(path: Path) -> TokenStore | None:
    if not os.path.exists(path):  # os.path: a cache that is closed to us is no exception
        return None
    try:
        return open_store(path)
    except DamagedStoreError as damage:
        note(f"warning: a cache entry is damaged and is made again: {damage}")
        return None


def _made(cache: Cache, key: str, documents: Documents, tokenizer: Tokenizer) -> TokenStore:
    path = write_store(cache, key, documents, tokenizer, documents.label)
    try:
        return open_store(path)
    except DamagedStoreError as damage:
        raise ResourceError(
            f"a cache entry vanished or was damaged as soon as it was written: {damage}",
            "start again; if it recurs, set INFINITO_CACHE to a directory on another disk",
        ) from damage


def _note_refusal(cache: Cache) -> None:
    if cache.refusal is not None:
        note(
            f"warning: {cache.refusal.message}; the next run prepares the text again "
            f"({cache.refusal.remedy})"
        )


def _note_overlap(training: Documents, validation: Documents, cache: Cache) -> None:
    identities = training.identity(cache), validation.identity(cache)
    key = cache_key("overlap", *identities)
    share = cache.read_value("overlap", key)
    if not isinstance(share, float):
        share = overlap(training, validation)
        cache.write_value("overlap", key, share)
    if share >= _OVERLAP_WORTH_A_WARNING:
        note(
            f"warning: {100 * share:.1f} % of the validation text ({validation.label}) is in the "
            "training text too: the validation loss will look better than it is"
        )
