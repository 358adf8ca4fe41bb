"""Random search: the yardstick of every other method (Bergstra and Bengio, 2012)."""

from __future__ import annotations

from infinito.search.candidates import Candidates
from infinito.search.space import Assignment


class RandomSearch:
    """Each assignment at random, none twice."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates

    def ask(self) -> Assignment | None:
        """A fresh assignment at random."""
        return self._candidates.draw()

    def tell(self, assignment: Assignment, value: float) -> None:
        """Nothing is learned."""
