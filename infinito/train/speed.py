"""How fast a run goes, without its first steps and without evaluation and saving."""

from __future__ import annotations

import statistics

# The first steps allocate, warm caches and, with fusion, compile.
_WARMUP_STEPS = 2
_RECENT = 200


class Speed:
    """Times of training steps, and of those since the last line of metrics."""

    def __init__(self) -> None:
        self.step_seconds: list[float] = []
        self.step_tokens: list[int] = []
        self._window_start = 0

    def add(self, seconds: float, tokens: int) -> None:
        """Take in one step."""
        self.step_seconds.append(seconds)
        self.step_tokens.append(tokens)

    def take_window(self) -> float:
        """Tokens a second since the last call."""
        start, self._window_start = self._window_start, len(self.step_seconds)
        return sum(self.step_tokens[start:]) / max(sum(self.step_seconds[start:]), 1e-9)

    @property
    def seconds_per_step(self) -> float:
        """Median over the recent steps, the first ones left out; 0 before the first."""
        steady = self.step_seconds[_WARMUP_STEPS:] or self.step_seconds
        return statistics.median(steady[-_RECENT:]) if steady else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Steady training speed; 0 before the first step."""
        seconds = self.seconds_per_step
        return statistics.median(self.step_tokens[-_RECENT:]) / seconds if seconds else 0.0
