"""Simulated quantum annealing: path-integral Monte Carlo, on an ordinary computer.

Nothing here is quantum but the mathematics. A system with energy E and a transverse field G is, by
Trotter's formula, the limit of P classical replicas in a ring, each with energy E / P, neighbours
bound to each other the stronger the weaker the field (Martonak, Santoro and Tosatti, 2002). The
field starts strong, so that replicas roam freely, and falls to almost nothing, so that they
gather at what the best of them have found.

The bonds are exact for each kind of parameter, with t the imaginary time of a slice:
- a choice among q values (a Potts spin; q = 2 is the Ising spin of the papers): equal neighbours
  weigh 1 + q / (exp(q t G) - 1) against 1;
- a range (a free particle with the field as its inverse mass): neighbours at positions x and y
  weigh exp(-(x - y)^2 / (2 t G)).

A move draws parameters of one replica from what its two neighbours' bonds say and accepts
by Metropolis on the energy, which samples the path integral. The energy of a trial is its rank
among all so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from infinito.search.candidates import Candidates
from infinito.search.method import ranks
from infinito.search.space import Assignment, Parameter, key_of

REPLICAS = 4
#: Rank that is given up with probability 1 - 1/e: the temperature of a slice.
TEMPERATURE = 0.03
#: Field times slice at the start, where a bond is next to nothing, and at the end.
FIELD_START, FIELD_END = 1.0, 1e-3
#: A field may be chosen for each kind of parameter. Where that of choices is not greater, replicas
#: agree on all choices while they still roam over the ranges.
CHOICE_FIELD = 10.0
#: Share of the parameters that a move draws anew.
MOVED = 0.5
#: Moves in a row that need no trial, after which a candidate is drawn at random instead.
_FREE_MOVES = 200

Positions = dict[str, float]


class QuantumAnnealing:
    """Path-integral Monte Carlo whose field falls over ``n_trials``; one ask at a time."""

    def __init__(self, candidates: Candidates, n_trials: int) -> None:
        self._candidates, self._random = candidates, candidates.random
        self._n_trials = n_trials
        self._values: dict[str, float] = {}
        self._walk = self._measured()
        self._is_waiting = False

    def ask(self) -> Assignment | None:
        """The next assignment whose energy the walk needs."""
        wanted = None if self._is_waiting else next(self._walk, None)
        self._is_waiting |= wanted is not None
        return wanted

    def tell(self, assignment: Assignment, value: float) -> None:
        """Let the walk go on."""
        self._values[key_of(assignment)] = value
        self._is_waiting = False

    def _measured(self) -> Iterator[Assignment]:
        """The walk: yields what must be measured before it goes on; ends with the space."""
        ring: list[Positions] = []
        while len(ring) < REPLICAS:
            start = self._candidates.draw()
            if start is None:
                return
            yield start
            ring.append(self._positions(start))
        index = free_moves = 0
        while True:
            index = (index + 1) % REPLICAS
            moved = self._moved(ring[index], ring[index - 1], ring[(index + 1) % REPLICAS])
            assignment = self._assignment(moved)
            free_moves += 1
            if self._candidates.is_fresh(assignment):
                free_moves = 0
                yield self._candidates.take(assignment)
            elif free_moves > _FREE_MOVES:
                free_moves = 0
                start = self._candidates.draw()
                if start is None:
                    return
                yield start
                assignment, moved = start, self._positions(start)
            if self._is_accepted(self._assignment(ring[index]), assignment):
                ring[index] = moved

    def _assignment(self, positions: Positions) -> Assignment:
        return self._candidates.space.build(lambda p: p.at(positions[p.key]))

    def _positions(self, assignment: Assignment) -> Positions:
        """Positions of an assignment; those of inactive parameters at random."""
        return {
            p.key: p.position(assignment[p.key]) if p.key in assignment else self._random.random()
            for p in self._candidates.space.parameters
        }

    def _moved(self, replica: Positions, left: Positions, right: Positions) -> Positions:
        """``replica`` with some of its parameters drawn from the bonds with its neighbours."""
        parameters = self._candidates.space.parameters
        progress = min(len(self._values) / self._n_trials, 1)
        field = FIELD_START * (FIELD_END / FIELD_START) ** progress  # a constant factor a trial
        chosen = [p for p in parameters if self._random.random() < MOVED]
        moved = dict(replica)
        for p in chosen or [self._random.choice(parameters)]:
            beside = left[p.key], right[p.key]
            if p.kind == "choice":
                moved[p.key] = self._drawn_choice(p, CHOICE_FIELD * field, *beside)
            else:
                moved[p.key] = self._drawn_position(field, *beside)
        return moved

    def _drawn_choice(self, p: Parameter, field: float, left: float, right: float) -> float:
        n = len(p.values)
        bond = 1 + n / math.expm1(min(n * field, 700.0))
        weights = [1.0] * n
        for neighbour in (left, right):
            weights[min(int(neighbour * n), n - 1)] *= bond
        return (self._random.choices(range(n), weights)[0] + 0.5) / n

    def _drawn_position(self, field: float, left: float, right: float) -> float:
        position = self._random.gauss((left + right) / 2, math.sqrt(field / 2))
        position %= 2.0  # walls at 0 and 1 reflect
        return 2.0 - position if position > 1 else position

    def _is_accepted(self, old: Assignment, new: Assignment) -> bool:
        """Metropolis: a better rank always, a worse one by its difference and the temperature."""
        rank = dict(zip(self._values, ranks(list(self._values.values())), strict=True))
        if key_of(new) not in rank:
            return False  # no valid config
        rise = rank[key_of(new)] - rank[key_of(old)]
        return self._random.random() < math.exp(-max(rise, 0.0) / TEMPERATURE)
