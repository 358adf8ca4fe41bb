"""Decoding: prompt ids in, samples out.

Shape legend: B samples in one batch, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from infinito.errors import DivergedError
from infinito.generate import processors
from infinito.generate.constraints import (
    UNKNOWN_TEXT,
    ForbiddenText,
    RepeatedNgrams,
    StopScanner,
)
from infinito.generate.context import Context
from infinito.generate.sampling_config import SamplingConfig
from infinito.model.language_model import LanguageModel
from infinito.model.mode import evaluation_mode
from infinito.tokenizer.tokenizer import Tokenizer

FinishReason = Literal["length", "eos", "stop"]
OnToken = Callable[[int, str], None]

# More samples than this are decoded one group after the other, which bounds the memory.
_GROUP = 32


@dataclass(frozen=True)
class Sample:
    """One continuation: its ids (an ending eos included), its text, and why it ended."""

    ids: list[int]
    text: str
    finish_reason: FinishReason


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    config: SamplingConfig,
    on_token: OnToken | None = None,
    *,
    use_cache: bool = True,
) -> list[Sample]:
    """Continue a prompt.

    Args:
        model: left as it was, its training mode included.
        tokenizer: the one the model was trained with.
        prompt_ids: ids of the prompt; empty starts a document. An eos is put before it, because
            that is what stood before every document in training.
        config: how to choose; equal arguments give equal samples.
        on_token: called with (sample index, text) as text becomes certain, whole characters only.
        use_cache: False encodes the whole window for each token: slow, and the proof of the cache.

    Returns:
        ``config.num_samples`` samples.

    Raises:
        DivergedError: the model's logits are not finite.
    """
    groups = sample_groups(model, tokenizer, prompt_ids, config, on_token, use_cache=use_cache)
    return [sample for group in groups for sample in group]


def sample_groups(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    config: SamplingConfig,
    on_token: OnToken | None = None,
    *,
    use_cache: bool = True,
) -> Iterator[list[Sample]]:
    """The samples of :func:`generate`, a group of at most 32 after the other, as each is done."""
    forbidden = None if config.allow_unknown else ForbiddenText(tokenizer.token_bytes())
    capacity = len(prompt_ids) + config.max_new_tokens
    for first in range(0, config.num_samples, _GROUP):
        indices = range(first, min(first + _GROUP, config.num_samples))
        chooser = _Chooser(tokenizer, prompt_ids, config, indices, forbidden)
        rows = [_Row(tokenizer, config, index, on_token) for index in indices]
        with evaluation_mode(model), torch.inference_mode():
            context = Context(model, [tokenizer.eos_id, *prompt_ids], capacity, use_cache)
            _decode(context, chooser, rows, config.max_new_tokens)
        yield [row.sample() for row in rows]


def _decode(context: Context, chooser: _Chooser, rows: list[_Row], max_new_tokens: int) -> None:
    """Write until every row has ended; rows that ended earlier are carried along unread."""
    for count in range(max_new_tokens):
        logits = context.next_logits()
        if count == 0:
            context.widen(len(rows))
        ids = chooser.choose(logits)
        running = [row.accept(token) for row, token in zip(rows, ids, strict=True)]
        if not any(running) or count + 1 == max_new_tokens:
            break
        context.append(ids)
    for row in rows:
        row.finish()


class _Chooser:
    """Picks each row's next id, remembering what the penalties need to know of the past."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        config: SamplingConfig,
        indices: Sequence[int],
        forbidden: ForbiddenText | None,
    ) -> None:
        self._config = config
        self._eos_id = tokenizer.eos_id
        self._rows = range(len(indices))
        # Python promises this sequence for a text seed, whatever the version or the platform.
        self._random = [random.Random(f"{config.seed}/{index}") for index in indices]
        self._forbidden = forbidden
        self._states = [self._state_of(prompt_ids)] * len(indices)
        self._seen: Tensor | None = None
        if config.repetition_penalty != 1:
            self._seen = torch.zeros(len(indices), tokenizer.vocab_size, dtype=torch.bool)
            self._seen[:, list(prompt_ids)] = True
            self._seen[:, self._eos_id] = False
        size = config.no_repeat_ngram_size
        self._ngrams = [RepeatedNgrams(size, prompt_ids) for _ in indices] if size else []

    def choose(self, logits: Tensor) -> list[int]:
        """The next id of each row, from logits (B, V), or (1, V) for all of them."""
        _refuse_not_finite(logits)
        logits = self._constrain(logits.expand(len(self._rows), -1))
        if self._config.greedy:
            ids: list[int] = logits.argmax(dim=-1).tolist()
        else:
            uniforms = [generator.random() for generator in self._random]
            ids = processors.sample(logits, self._config, uniforms).tolist()
        self._remember(ids)
        return ids

    def _constrain(self, logits: Tensor) -> Tensor:
        if self._seen is not None:
            penalty = self._config.repetition_penalty
            logits = processors.repetition_penalty(logits, self._seen, penalty)
        # Forbidden text goes first, since only the n-gram ban gives way when nothing is left.
        if self._forbidden is not None:
            mask = self._forbidden.mask(self._states)
            logits = logits if mask is None else processors.forbid(logits, mask)
        if self._ngrams:
            logits = processors.no_repeat_ngram(logits, [row.banned() for row in self._ngrams])
        return logits

    def _remember(self, ids: list[int]) -> None:
        if self._seen is not None:
            for row, token in enumerate(ids):
                if token != self._eos_id:
                    self._seen[row, token] = True
        if self._forbidden is not None:
            after = self._forbidden.state_after
            self._states = [after(s, token) for s, token in zip(self._states, ids, strict=True)]
        if self._ngrams:
            for ngrams, token in zip(self._ngrams, ids, strict=True):
                ngrams.push(token)

    def _state_of(self, prompt_ids: Sequence[int]) -> int:
        """A prompt that ends in the middle of the forbidden text may not be completed to it."""
        state = 0
        if self._forbidden is not None:
            for token in prompt_ids[-len(UNKNOWN_TEXT) :]:
                state = self._forbidden.state_after(state, token)
        return state


class _Row:
    """One sample as it grows."""

    def __init__(
        self, tokenizer: Tokenizer, config: SamplingConfig, index: int, on_token: OnToken | None
    ) -> None:
        self._index = index
        self._on_token = on_token
        self._final_eos = None if tokenizer.per_line_eos else tokenizer.eos_id
        self._decoder = tokenizer.stream()
        self._stop = StopScanner(config.stop)
        self._ids: list[int] = []
        self._text: list[str] = []
        self._reason: FinishReason | None = None

    def accept(self, token: int) -> bool:
        """Take an id, unless the sample has ended; whether it goes on."""
        if self._reason is not None:
            return False
        self._ids.append(token)
        if token == self._final_eos:
            self.finish("eos")
        else:
            self._emit(self._stop.push(self._decoder.push(token)))
            if self._stop.found:
                self._reason = "stop"
        return self._reason is None

    def finish(self, reason: FinishReason = "length") -> None:
        """End the sample, unless it has ended, and let go of the text still held back."""
        if self._reason is not None:
            return
        self._emit(self._stop.push(self._decoder.flush()))
        self._reason = "stop" if self._stop.found else reason
        if not self._stop.found:
            self._emit(self._stop.flush())

    def sample(self) -> Sample:
        """The finished sample."""
        assert self._reason is not None
        return Sample(self._ids, "".join(self._text), self._reason)

    def _emit(self, text: str) -> None:
        if text:
            self._text.append(text)
            if self._on_token is not None:
                self._on_token(self._index, text)


def _refuse_not_finite(logits: Tensor) -> None:
    """A sum is not finite if a summand is not: one cheap pass, and a second only on suspicion."""
    if not math.isfinite(float(logits.sum())) and not bool(torch.isfinite(logits).all()):
        raise DivergedError(
            "the model's predictions are not finite (NaN or infinity): its weights are broken",
            "use an earlier checkpoint of the run (`infinito runs` lists them)",
        )
