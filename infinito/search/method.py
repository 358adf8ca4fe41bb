"""What every search method is: ask for an assignment, tell what came of it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Protocol

from infinito.search.space import Assignment


class Method(Protocol):
    """A search method. Telling the same answers again rebuilds its state exactly.

    Its seed and the space come with its ``Candidates``; small numbers are good, and a trial that
    failed is told as infinity.
    """

    def ask(self) -> Assignment | None:
        """The next assignment to try, valid and never asked before.

        None while answers to earlier ones are awaited; without any such, the space is used up.
        """

    def tell(self, assignment: Assignment, value: float) -> None:
        """The number that an assignment asked for came to."""


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value from 0 (the smallest) to 1, equal values sharing the mean of theirs.

    What failed (infinity) has rank 1, also where there is nothing else. Ranks are what methods
    reason with: one diverged trial says nothing about the scale of losses.
    """
    ordered = sorted(values)
    last = max(len(values) - 1, 1)
    places = ((bisect_left(ordered, x) + bisect_right(ordered, x) - 1) / 2 for x in values)
    return [p / last if x < math.inf else 1.0 for x, p in zip(values, places, strict=True)]
