"""How fast a run goes, without its first steps and without evaluation and saving."""

from __future__ import annotations

import statistics
from collections import deque

# The first steps allocate, warm caches and, with fusion, compile.
_WARMUP_STEPS = 2
_RECENT = 200


class Speed:
    """Times of training steps, and of those since the last line of metrics.

    It keeps the recent steps only: a run may have any number of them.
    """

    def __init__(self) -> None:
        self.training_seconds = 0.0  # of all steps
        self._steps = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._window_seconds, self._window_tokens = 0.0, 0

    def add(self, seconds: float, tokens: int) -> None:
        """Take in one step."""
        if self._steps == _WARMUP_STEPS:
            self._recent.clear()
        self._steps += 1
        self._recent.append((seconds, tokens))
        self.training_seconds += seconds
        self._window_seconds += seconds
        self._window_tokens += tokens

    def take_window(self) -> float:
        """Tokens a second since the last call."""
        rate = self._window_tokens / max(self._window_seconds, 1e-9)
        self._window_seconds, self._window_tokens = 0.0, 0
        return rate

    @property
    def seconds_per_step(self) -> float:
        """Median over the recent steps, the first ones left out; 0 before the first."""
        return statistics.median(seconds for seconds, _ in self._recent) if self._recent else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Steady training speed; 0 before the first step."""
        seconds = self.seconds_per_step
        return statistics.median(tokens for _, tokens in self._recent) / seconds if seconds else 0.0
