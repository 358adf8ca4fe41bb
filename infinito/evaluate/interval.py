"""Texts, words and losses of single documents, and the interval that their spread implies."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from infinito.data.token_store import TokenStore
from infinito.evaluate.perplexity import Floats, perplexity
from infinito.tokenizer.tokenizer import Tokenizer

_RESAMPLES = 1000
_SEED = 0
_FEWEST_DOCUMENTS = 5


def document_texts(store: TokenStore, tokenizer: Tokenizer) -> list[str]:
    """The text of each document; exact for byte and bpe tokenizers."""
    edges = [*store.document_starts.tolist(), len(store.tokens)]
    return [tokenizer.decode(store.tokens[begin:end].tolist()) for begin, end in pairwise(edges)]


def count_words(text: str) -> int:
    """Words between whitespace, plus one for each line end."""
    return len(text.split()) + text.count("\n")


def document_words(store: TokenStore, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Words and line ends (n_documents,) of each document."""
    if tokenizer.kind == "word":  # there, tokens are words and line ends
        return np.diff(store.document_starts, append=len(store.tokens))
    return np.array([count_words(text) for text in document_texts(store, tokenizer)])


def word_perplexity_interval(
    token_nll: Floats, store: TokenStore, tokenizer: Tokenizer
) -> tuple[float, float] | None:
    """95 % interval of the word perplexity by bootstrap over documents; None with under five.

    ``token_nll`` (n_tokens,): nats of each token of ``store``.

    Percentiles of 1000 seeded resamples (Efron & Tibshirani 1993, ch. 13). Documents and not
    tokens are drawn, because the losses of one article are not independent.
    """
    if len(store.document_starts) < _FEWEST_DOCUMENTS:
        return None
    nats: Floats = np.add.reduceat(token_nll, store.document_starts)
    words = document_words(store, tokenizer)
    if not words.sum():
        return None
    generator = np.random.default_rng(_SEED)
    ratios = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        drawn = generator.integers(len(nats), size=len(nats))
        ratios[index] = nats[drawn].sum() / max(words[drawn].sum(), 1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return perplexity(float(low), 1), perplexity(float(high), 1)
