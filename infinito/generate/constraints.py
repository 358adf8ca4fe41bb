"""What text and ids allow next: forbidden text, n-grams seen before, and stop strings.

Each keeps the little state that makes a new token cost nothing but itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import AnyStr

import torch
from torch import Tensor

UNKNOWN_TEXT = b"<unk>"


class ForbiddenText:
    """Which tokens would complete a forbidden byte string, however it is cut into tokens.

    A state is the length of the longest suffix of the text so far that is a proper prefix of the
    forbidden string; a match that is still possible must start inside that suffix.
    """

    def __init__(self, token_bytes: Sequence[bytes], forbidden: bytes = UNKNOWN_TEXT) -> None:
        """Prepare one mask a state for a vocabulary given as the bytes of each id."""
        self._token_bytes = token_bytes
        self._forbidden = forbidden
        self.masks = torch.zeros(len(forbidden), len(token_bytes), dtype=torch.bool)
        # Only a token with the last byte can complete it; the vocabulary is read once, for that.
        candidates = [n for n, text in enumerate(token_bytes) if forbidden[-1] in text]
        for state in range(len(forbidden)):
            for token in candidates:
                if forbidden in forbidden[:state] + token_bytes[token]:
                    self.masks[state, token] = True
        self._active = self.masks.any(dim=1).tolist()

    def state_after(self, state: int, token: int) -> int:
        """The state when ``token`` follows ``state``."""
        return _overlap(self._forbidden[:state] + self._token_bytes[token], self._forbidden)

    def mask(self, states: Sequence[int]) -> Tensor | None:
        """Forbidden tokens (B, V) bool, or None where no row has any."""
        if not any(self._active[state] for state in states):
            return None
        return self.masks[states[0]][None] if len(states) == 1 else self.masks[list(states)]


class RepeatedNgrams:
    """The ids that would complete an n-gram of the history a second time."""

    def __init__(self, size: int, history: Iterable[int]) -> None:
        """Start from the ids of a prompt; ``size`` is n, at least 1."""
        self._size = size
        self._tail: tuple[int, ...] = ()
        self._followers: dict[tuple[int, ...], set[int]] = {}
        for token in history:
            self.push(token)

    def push(self, token: int) -> None:
        """Append an id to the history."""
        if len(self._tail) == self._size - 1:
            self._followers.setdefault(self._tail, set()).add(token)
        self._tail = (*self._tail, token)[-(self._size - 1) :] if self._size > 1 else ()

    def banned(self) -> Collection[int]:
        """Ids that may not come next."""
        if len(self._tail) < self._size - 1:
            return ()
        return self._followers.get(self._tail, ())


class StopScanner:
    """Lets text through until a stop string appears; holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for any of ``stops``, none of them empty."""
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is now certain; after ``found`` there is no more."""
        if not self._stops:
            return piece
        text, self._held = self._held + piece, ""
        matches = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if matches:
            self.found = True
            return text[: min(matches)]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back and turned out to be harmless."""
        text, self._held = self._held, ""
        return text


def _overlap(text: AnyStr, stop: AnyStr) -> int:
    """Length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
