"""Negative log-likelihood of a whole split, token by token, and the perplexities made of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinito.data.token_store import TokenStore
from infinito.errors import ConfigError, DataError, DivergedError
from infinito.evaluate.predictor import Predictor
from infinito.evaluate.windows import Window, batches, sliding_windows
from infinito.model.loss import IGNORED
from infinito.runtime.events import progress

Floats = NDArray[np.float64]
_PASS_TOKENS = 2048
_LARGEST_EXPONENT = 700.0  # exp of more than 709 overflows


def perplexity(nats: float, units: int) -> float:
    """exp(nats / units); infinite where there is no unit or no float to hold it."""
    exponent = nats / units if units else math.inf
    return math.exp(exponent) if exponent < _LARGEST_EXPONENT else math.inf


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Bits a UTF-8 byte; infinite where there is none."""
    return nats / (math.log(2.0) * n_bytes) if n_bytes else math.inf


@dataclass(frozen=True)
class Score:
    """Total nats of a text under a model, and what they may be divided by.

    Attributes:
        nll_total: nats of all tokens.
        n_tokens: tokens scored: all of the split.
        n_words: whitespace-separated words and line ends (the count of the AWD-LSTM code).
        n_bytes: UTF-8 bytes of the text.
        context: tokens a window.
        stride: tokens by which windows advance.
        token_nll: (n_tokens,) float64, nats of each token.
    """

    nll_total: float
    n_tokens: int
    n_words: int
    n_bytes: int
    context: int
    stride: int
    token_nll: Floats = field(repr=False, compare=False)

    @property
    def loss(self) -> float:
        """Mean nats a token."""
        return self.nll_total / self.n_tokens

    @property
    def token_perplexity(self) -> float:
        """exp(nats a token); comparable only between models with the same tokenizer."""
        return perplexity(self.nll_total, self.n_tokens)

    @property
    def word_perplexity(self) -> float:
        """exp(nats a word or line end), whatever the tokenizer."""
        return perplexity(self.nll_total, self.n_words)

    @property
    def bits_per_byte(self) -> float:
        """Bits that the text costs a UTF-8 byte."""
        return bits_per_byte(self.nll_total, self.n_bytes)


def score(
    predictor: Predictor,
    store: TokenStore,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
) -> Score:
    """Score every token of ``store`` exactly once, the split read as one stream.

    The stream starts after one ``eos_id``, so the first token is scored too. The separators that
    bpe and byte tokenizers put behind each document are scored like any token: together with the
    freedom to spell a text in other tokens, this makes ``nll_total`` an upper bound on the text's
    own negative log-likelihood. Sums are float64 and do not depend on ``batch_size`` beyond the
    rounding of matrix products. What a window taught is known only to windows scored later.

    Args:
        predictor: a model, for example, by the tokenizer that ``store`` was made with.
        store: the tokenised split.
        context: tokens a window; what the predictor was made for if None.
        stride: new tokens each window scores after the first; half the context if None.
            Equal to the context it is cheapest: windows do not overlap.
        batch_size: windows a forward pass; as many as hold 2048 tokens if None.

    Raises:
        ConfigError: context, stride or batch size make no sense, or the predictor cannot read
            as much context.
        DataError: the split has no tokens.
        DivergedError: a loss is not finite.
    """
    context, stride, batch_size = resolve_windows(predictor, context, stride, batch_size)
    length = len(store.tokens)
    if not length:
        raise DataError("the text to evaluate has no tokens", "choose a split or file with text")
    windows = sliding_windows(0, length, context, stride)
    token_nll = stream_nats(predictor, store.tokens, windows, batch_size)
    return Score(
        nll_total=float(token_nll.sum()),
        n_tokens=length,
        n_words=store.n_words,
        n_bytes=store.n_bytes,
        context=context,
        stride=stride,
        token_nll=token_nll,
    )


def windows_a_pass(context: int) -> int:
    """How many windows fill a forward pass: with few tokens it reads weights more than it works."""
    return max(1, _PASS_TOKENS // context)


def resolve_windows(
    predictor: Predictor, context: int | None, stride: int | None, batch_size: int | None
) -> tuple[int, int, int]:
    """Context, stride and batch size in force; raises ConfigError as :func:`score` says."""
    context = predictor.context if context is None else context
    if context < 1:
        raise ConfigError(f"context {context} is too short", "give at least 1 token")
    limit = predictor.largest_context
    if limit is not None and context > limit:
        raise ConfigError(
            f"context {context} exceeds the {limit} learned positions of this model",
            f"use --context {limit} or less",
        )
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(
            f"stride {stride} is not between 1 and the context {context}",
            "a larger stride would leave tokens unscored, a smaller one would never end",
        )
    batch_size = windows_a_pass(context) if batch_size is None else batch_size
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size} is too small", "give at least 1")
    return context, stride, batch_size


def stream_nats(
    predictor: Predictor,
    tokens: NDArray[np.integer],
    windows: Iterable[Window],
    batch_size: int,
    restart: bool = False,
) -> Floats:
    """Nats (N,) float64 of each of ``tokens`` (N,) that a window scores, 0 elsewhere.

    Token 0 is predicted after an eos, every other one from the tokens before it in its window;
    with ``restart``, the first token that each window reads is replaced by an eos. The predictor
    may learn from windows once their nats are known.

    Raises:
        DivergedError: a loss is not finite.
    """
    nats, start_id = np.zeros(len(tokens)), predictor.tokenizer.eos_id
    predictor.restart()
    with progress(len(tokens), "evaluating", "tokens") as advance:
        for group in batches(windows, batch_size):
            inputs, targets = window_batch(tokens, group, start_id, restart)
            losses = predictor.nats(inputs, targets)
            if not bool(losses.isfinite().all()):
                raise DivergedError(
                    f"the loss is not finite near token {group[0].begin} of the text",
                    "the weights are broken: take an earlier checkpoint",
                )
            for window, row in zip(group, losses.numpy(), strict=True):
                begin, end, scored = window
                nats[scored:end] = row[scored - begin : end - begin]
                advance(end - scored)
            predictor.learn(inputs, targets)
    return nats


def window_batch(
    tokens: NDArray[np.integer], windows: list[Window], start_id: int, restart: bool = False
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) int64; short windows are padded behind, where nothing looks."""
    width = max(window.end - window.begin for window in windows)
    inputs = np.full((len(windows), width), start_id, dtype=np.int64)
    targets = np.full((len(windows), width), IGNORED, dtype=np.int64)
    for row, (begin, end, scored) in enumerate(windows):
        skipped = 1 if restart or begin == 0 else 0
        inputs[row, skipped : end - begin] = tokens[begin - 1 + skipped : end - 1]
        targets[row, scored - begin : end - begin] = tokens[scored:end]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
