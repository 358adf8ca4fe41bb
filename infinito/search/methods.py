"""The methods by their names in ``tune --method``."""

from __future__ import annotations

from collections.abc import Callable

from infinito.search.annealing import QuantumAnnealing
from infinito.search.candidates import Candidates
from infinito.search.method import Method
from infinito.search.random_search import RandomSearch
from infinito.search.tpe import TpeSearch
from infinito.search.tree import TreeSearch

#: Each takes the candidates and how many assignments it will be asked for, about.
METHODS: dict[str, Callable[[Candidates, int], Method]] = {
    "mcts": lambda candidates, _: TreeSearch(candidates),
    "annealing": QuantumAnnealing,
    "random": lambda candidates, _: RandomSearch(candidates),
    "tpe": lambda candidates, _: TpeSearch(candidates),
}
