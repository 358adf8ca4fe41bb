"""Successive halving without waiting (ASHA: Li et al., 2020) over a method's proposals.

New assignments start on the lowest rung, at the smallest share of a full trial's budget; each rung
is twice as long as the one below. An assignment among the best half of its rung goes on to the
next, so that most of the budget is spent on what does well. With one rung every trial is full.

The method is told results of the lowest rung alone: they are what it can compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from infinito.search.method import Method
from infinito.search.space import Assignment, key_of

FACTOR = 2


@dataclass(frozen=True)
class Job:
    """An assignment to try at a rung; ``fraction`` is the share of a full trial's budget."""

    values: Assignment
    rung: int
    fraction: float


@dataclass
class _Rung:
    fraction: float
    results: dict[str, tuple[float, Assignment]] = field(default_factory=dict)
    promoted: set[str] = field(default_factory=set)

    def best_left(self) -> Assignment | None:
        """The best assignment among the upper half that did not go on yet."""
        ordered = sorted(self.results.values(), key=lambda result: result[0])
        for value, assignment in ordered[: len(ordered) // FACTOR]:
            if key_of(assignment) not in self.promoted and value < math.inf:
                self.promoted.add(key_of(assignment))
                return assignment
        return None


class Halving:
    """A schedule of jobs on ``n_rungs`` rungs around a method."""

    def __init__(self, method: Method, n_rungs: int = 1) -> None:
        self._method = method
        self._rungs = [_Rung(1 / FACTOR**below) for below in reversed(range(n_rungs))]

    def ask(self) -> Job | None:
        """A promotion, from the highest rung down, else a new assignment on the lowest.

        None as of a method: answers are awaited, or without any such the space is used up.
        """
        for rung in reversed(range(len(self._rungs) - 1)):
            assignment = self._rungs[rung].best_left()
            if assignment is not None:
                return Job(assignment, rung + 1, self._rungs[rung + 1].fraction)
        new = self._method.ask()
        return None if new is None else Job(new, 0, self._rungs[0].fraction)

    def tell(self, job: Job, value: float) -> None:
        """What a job came to; small is good, infinity has failed."""
        self._rungs[job.rung].results[key_of(job.values)] = (value, job.values)
        if job.rung == 0:
            self._method.tell(job.values, value)


def proposals_within(budget: float, n_rungs: int) -> int:
    """How many assignments a method is asked for in a budget of so many full trials, about."""
    return max(1, round(budget / n_rungs * float(FACTOR) ** (n_rungs - 1)))
