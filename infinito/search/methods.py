"""The methods by their names in ``tune --method``, and the yardstick of all others."""

from __future__ import annotations

from collections.abc import Callable

from infinito.search.annealing import QuantumAnnealing
from infinito.search.candidates import Candidates
from infinito.search.method import Method
from infinito.search.space import Assignment
from infinito.search.tpe import TpeSearch
from infinito.search.tree import TreeSearch


class RandomSearch:
    """Each assignment at random, none twice (Bergstra and Bengio, 2012)."""

    def __init__(self, candidates: Candidates) -> None:
        self.ask = candidates.draw

    def tell(self, assignment: Assignment, value: float) -> None:
        """Nothing is learned."""


#: Each takes the candidates and how many assignments it will be asked for, about.
METHODS: dict[str, Callable[[Candidates, int], Method]] = {
    "mcts": lambda candidates, _: TreeSearch(candidates),
    "annealing": QuantumAnnealing,
    "random": lambda candidates, _: RandomSearch(candidates),
    "tpe": lambda candidates, _: TpeSearch(candidates),
}
