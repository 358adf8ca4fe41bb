"""The tokens that the model sees while it writes, with or without a key/value cache."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from infinito.model.decode import DECODE, PlainStep
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.language_model import LanguageModel


def tokens_kept(length: int, limit: int) -> int:
    """How many tokens, the last ones, of a window of ``length`` a model of ``limit`` reads."""
    return length if length <= limit else limit // 2


class Context:
    """A window of at most ``model.max_positions`` tokens, equal in length for every sample.

    When a token more is needed, the last half of the window is kept and encoded again from
    position 0, so no position is ever used that training has not seen, and a token costs two
    encodings at most on average.
    """

    def __init__(
        self, model: LanguageModel, prompt: Sequence[int], capacity: int, use_cache: bool
    ) -> None:
        """Start with one window; ``capacity`` tokens are the most that will ever be held."""
        self._model = model
        self._limit = model.max_positions
        self._capacity = min(self._limit, max(capacity, 1))
        self._windows = [list(prompt)]
        self._cache: KeyValueCache | None = None
        self._step = PlainStep(model, None)
        if use_cache:
            self._use(model.new_cache(1, self._capacity))
        self._unread = 0
        self._restart()

    def next_logits(self) -> Tensor:
        """Logits (B, V) float32 on the CPU of the token that follows each window."""
        logits = self._step([window[-self._unread :] for window in self._windows])
        if self._cache is not None:
            self._unread = 0
        return logits

    def append(self, tokens: Sequence[int]) -> None:
        """Add one token to each window."""
        for window, token in zip(self._windows, tokens, strict=True):
            window.append(token)
        self._unread += 1
        if len(self._windows[0]) > self._limit:
            self._restart()

    def widen(self, batch: int) -> None:
        """Turn the one window, and what the cache knows of it, into ``batch`` equal ones."""
        self._windows = [list(self._windows[0]) for _ in range(batch)]
        if self._cache is not None and batch > 1:
            self._use(self._cache.widened(batch))

    def _use(self, cache: KeyValueCache) -> None:
        """Decode with ``cache`` from here on."""
        self._cache = cache
        self._step = DECODE.variants[DECODE.select(self._model)].run(self._model, cache)

    def _restart(self) -> None:
        """Cut windows that are too long to their last half, and encode from the start."""
        kept = tokens_kept(len(self._windows[0]), self._limit)
        self._windows = [window[-kept:] for window in self._windows]
        if self._cache is not None:
            self._cache.reset()
        self._unread = len(self._windows[0])
