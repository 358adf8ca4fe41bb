"""The same model and text under the other conventions in use, so that numbers can be compared.

Sources: salesforce/awd-lstm-lm (main.py, data.py), the perplexity page of the transformers
documentation, EleutherAI lm-evaluation-harness (task ``wikitext`` v2), llama.cpp's perplexity tool.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infinito.data.token_store import TokenStore
from infinito.evaluate.detokenise import detokenise_wikitext
from infinito.evaluate.interval import document_texts, word_perplexity_interval
from infinito.evaluate.perplexity import Score, bits_per_byte, perplexity, stream_nats
from infinito.evaluate.predictor import Predictor
from infinito.evaluate.windows import (
    document_windows,
    rolling_windows,
    second_half_windows,
    sliding_windows,
    strided_windows,
)
from infinito.tokenizer.coder import UNKNOWN

_HUGGING_FACE_STRIDE = 512
_LLAMA_CPP_CHUNK = 512


class Figure(NamedTuple):
    """One number under another convention, and by article its interval where there is one."""

    key: str
    value: float
    meaning: str
    interval: tuple[float, float] | None = None


class Measured(NamedTuple):
    """What is measured, and in which batches."""

    predictor: Predictor
    store: TokenStore
    score: Score
    batch_size: int
    is_wikitext: bool


def all_conventions(measured: Measured) -> list[Figure]:
    """Every further figure that makes sense for the tokenizer; costs several passes."""
    others = _second_halves(measured)
    # The rest re-tokenises text, which the words of a closed vocabulary may not cover.
    if measured.predictor.tokenizer.kind != "word":
        others += _hugging_face(measured) + _lm_eval(measured)
    if measured.store.n_unknown:  # what others publish is of the text as it was written
        others = [
            figure._replace(meaning=f"{figure.meaning}; of a text with {UNKNOWN}: not comparable")
            for figure in others
        ]
    return _denominators(measured) + _contexts(measured) + others


def _denominators(measured: Measured) -> list[Figure]:
    """The headline's nats over the words that other codes divide by; no pass is needed."""
    score, store = measured.score, measured.store
    unscored_first = score.nll_total - float(score.token_nll[0])
    words = store.n_words - store.n_lines
    return [
        Figure(
            "word_perplexity_first_unscored",
            perplexity(unscored_first, store.n_words),
            f"word ppl, first token unscored, over {store.n_words} (AWD-LSTM to the letter)",
        ),
        Figure(
            "word_perplexity_no_line_ends",
            perplexity(score.nll_total, words),
            f"word ppl over {words} words, line ends not counted",
        ),
    ]


def _half(context: int) -> int:
    """A stride of 512 where the context has room for it, else half the context."""
    return _HUGGING_FACE_STRIDE if context > _HUGGING_FACE_STRIDE else max(1, context // 2)


def _contexts(measured: Measured) -> list[Figure]:
    store, context = measured.store, measured.score.context
    length, starts = len(store.tokens), store.document_starts.tolist()
    half = _half(context)
    roads = (
        ("no_overlap", sliding_windows(0, length, context, context), "windows do not overlap"),
        (f"stride_{half}", sliding_windows(0, length, context, half), f"stride {half}"),
        (
            "document_reset",
            document_windows(starts, length, context, measured.score.stride),
            "each document alone",
        ),
    )
    figures = []
    for key, windows, meaning in roads:
        nats = stream_nats(measured.predictor, store.tokens, windows, measured.batch_size)
        value = perplexity(float(nats.sum()), store.n_words)
        interval = word_perplexity_interval(nats, store, measured.predictor.tokenizer)
        figures.append(Figure(f"word_perplexity_{key}", value, f"word ppl, {meaning}", interval))
    return figures


def _second_halves(measured: Measured) -> list[Figure]:
    """llama.cpp: an eos and the text in disjoint chunks, the second half of each scored.

    The first token of each chunk is read as an eos, as the tool does with the start id of a file
    that ``export --to gguf`` writes.
    """
    tokenizer, tokens = measured.predictor.tokenizer, measured.store.tokens.astype(np.int64)
    if tokenizer.kind != "word":  # its text has no separators
        text = "".join(document_texts(measured.store, tokenizer))
        tokens = np.array([tokenizer.eos_id, *tokenizer.encode(text)], dtype=np.int64)
    chunk = min(_LLAMA_CPP_CHUNK, measured.score.context)
    windows = list(second_half_windows(len(tokens), chunk))
    scored = sum(window.end - window.scored_from for window in windows)
    if not scored:
        return []
    nats = stream_nats(measured.predictor, tokens, windows, measured.batch_size, restart=True)
    return [
        Figure(
            "token_perplexity_second_half",
            perplexity(float(nats.sum()), scored),
            f"token ppl, second half of each chunk of {chunk} (llama.cpp)",
        )
    ]


def _hugging_face(measured: Measured) -> list[Figure]:
    """The transformers documentation to the letter: rows joined by blank lines, after one eos.

    Blank lines are empty rows there. Its mean over windows counts one token less than was scored
    in each but the first.
    """
    tokenizer, context = measured.predictor.tokenizer, max(2, measured.score.context)
    text = "".join(document_texts(measured.store, tokenizer))
    rows = [row if row.strip() else "" for row in text.splitlines(keepends=True)]
    tokens = np.array([tokenizer.eos_id, *tokenizer.encode("\n\n".join(rows))], dtype=np.int64)
    stride = _half(context)
    windows = list(strided_windows(len(tokens), context, stride))
    nats = stream_nats(measured.predictor, tokens, windows, measured.batch_size)
    counts = [end - scored - bool(i) for i, (_, end, scored) in enumerate(windows)]
    means = [nats[scored:end].mean() for _, end, scored in windows]
    return [
        Figure(
            "token_perplexity_hugging_face",
            perplexity(float(np.dot(means, counts)), sum(counts)),
            f"token ppl, lines joined by blank lines, stride {stride} (transformers docs)",
        )
    ]


def _lm_eval(measured: Measured) -> list[Figure]:
    """lm-evaluation-harness: each page alone, detokenised, over the page's own words and bytes."""
    pages = document_texts(measured.store, measured.predictor.tokenizer)
    prepare = detokenise_wikitext if measured.is_wikitext else str
    encoded = [measured.predictor.tokenizer.encode(prepare(page)) for page in pages]
    encoded = [ids for ids in encoded if ids]
    if not encoded:
        return []
    nats = _alone(measured, encoded)
    words = sum(len(re.split(r"\s+", page)) for page in pages)
    n_bytes = sum(len(page.encode()) for page in pages)
    return [
        Figure(f"lm_eval_{name}", value, f"{label}, pages alone{detokenised} (lm-eval wikitext)")
        for detokenised in [", detokenised" if measured.is_wikitext else ""]
        for name, value, label in (
            ("word_perplexity", perplexity(nats, words), "word ppl"),
            ("byte_perplexity", perplexity(nats, n_bytes), "byte ppl"),
            ("bits_per_byte", bits_per_byte(nats, n_bytes), "bits per byte"),
        )
    ]


def _alone(measured: Measured, encoded: list[list[int]]) -> float:
    """Nats of texts that each follow one eos, in lm-eval's rolling windows."""
    separator = measured.predictor.tokenizer.eos_id
    tokens: NDArray[np.int64] = np.concatenate([[*ids, separator] for ids in encoded])
    ends = np.cumsum([len(ids) + 1 for ids in encoded])
    context = measured.score.context
    windows = [
        window
        for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)
        for window in rolling_windows(begin, end - 1, context)
    ]
    nats = stream_nats(measured.predictor, tokens, windows, measured.batch_size)
    return float(nats.sum())
