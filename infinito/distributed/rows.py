"""Which rows of a batch this process computes: its share, known where random masks are drawn.

Every process draws from the same streams as a single one would, for the whole batch, and takes its
own rows. So masks do not depend on the number of processes, and all generators stay alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Share:
    """The rows ``first`` to ``stop`` of a batch of ``total``."""

    first: int
    stop: int
    total: int

    @property
    def rows(self) -> slice:
        """To take them out of the batch."""
        return slice(self.first, self.stop)

    def whole(self, shape: torch.Size) -> torch.Size:
        """The shape that a tensor of (rows of the share, ...) has in the whole batch."""
        assert shape[0] == self.stop - self.first, "only what has a row a sequence is shared"
        return torch.Size((self.total, *shape[1:]))


# A global, no context variable: recomputed blocks run in the threads of the backward pass.
_current: Share | None = None


def current_share() -> Share | None:
    """What the pass under way computes; None where that is the whole batch."""
    return _current


@contextmanager
def computing(share: Share) -> Iterator[None]:
    """In the body, passes (forward and backward) see the rows of ``share`` alone."""
    global _current
    _current = share if share.stop - share.first < share.total else None
    try:
        yield
    finally:
        _current = None
