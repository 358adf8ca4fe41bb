"""Monte Carlo tree search over assignments: UCT with progressive widening, a parameter a level.

A node is the choice of the first parameters; its children are values of the next active one. A
walk from the root takes, at each level, a new value or the child with the greatest upper
confidence bound (Kocsis and Szepesvari, 2006)

    mean reward + C sqrt(ln(visits of the node) / visits of the child).

The first walks are laid out: a few more than there are parameters, each in another share of every
parameter's positions (a Latin hypercube: McKay, Beckman and Conover, 1979), so that what follows
does not hang on the first value or two. New values come while children < visits ** a (progressive
widening, Couetoux et al., 2011), so that ranges can be searched too. Below the tree a walk is all
new values; as programs that play games do (move-average sampling, Finnsson and Bjornsson, 2008), it
draws most of them from what did well elsewhere: each walk has a guide among the best trials so far,
and takes its choices, and values near its own in a range, the nearer the more values are known. The
reward of a trial is made of its rank among all so far.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import partial

from infinito.config.yaml_loader import Plain
from infinito.search.candidates import Candidates
from infinito.search.method import ranks
from infinito.search.space import Assignment, Parameter, key_of

EXPLORATION = 1.414
MAX_DEPTH = 20
#: Exponents of progressive widening. Two values of a choice have nothing in common; of a range
#: there are always finer ones.
WIDENING_OF_CHOICES, WIDENING_OF_RANGES = 0.33, 0.75
#: Share of new values that are drawn evenly, whatever the guide says.
UNIFORM = 0.2
#: A value near the guide's lies between the known ones so many places to each side.
NEIGHBOURS = 2
#: How many more walks are laid out than there are parameters.
LAID_OUT = 2
#: Walks that end at nothing fresh before a candidate is drawn at random.
_WALKS = 1000


@dataclass
class Node:
    """A value chosen at one level, after those of its ancestors."""

    value: Plain = None
    parameter: Parameter | None = None  # whose values the children are
    children: dict[Plain, Node] = field(default_factory=dict)
    trials: list[int] = field(default_factory=list)
    visits: int = 0  # walks, also those that ended at nothing fresh
    closed: bool = False  # nothing fresh can lie below


class TreeSearch:
    """UCT. Beyond ``max_depth`` levels, values are drawn at random."""

    def __init__(
        self, candidates: Candidates, exploration: float = EXPLORATION, max_depth: int = MAX_DEPTH
    ) -> None:
        self.root = Node()
        self._candidates, self._random = candidates, candidates.random
        self._exploration, self._max_depth = exploration, max_depth
        self._trials: list[Assignment] = []
        self._values: dict[str, float] = {}  # in the order of the trials; infinite until told
        self._rewards: list[float] = []
        self._best_first: list[int] = []
        self._guide: Assignment = {}
        parameters = candidates.space.parameters
        shares = range(len(parameters) + LAID_OUT)
        self._shares = {p.key: self._random.sample(shares, len(shares)) for p in parameters}

    def ask(self) -> Assignment | None:
        """The next that is laid out; after these, walk until a fresh assignment is met."""
        if len(self._trials) < len(self._candidates.space.parameters) + LAID_OUT:
            laid_out = self._candidates.space.build(self._laid_out)
            if self._candidates.is_fresh(laid_out):
                self.begin_with(laid_out)
                return laid_out
        for _ in range(_WALKS):
            if self.root.closed:
                break
            path = [self.root]
            self._choose_guide()
            assignment = self._candidates.space.build(partial(self._step, path))
            fresh = self._candidates.is_fresh(assignment)
            self._record(path, fresh, is_whole=len(path) > len(assignment))
            if fresh:
                return self._await(self._candidates.take(assignment))
        drawn = self._candidates.draw()
        return None if drawn is None else self._await(drawn)

    def begin_with(self, assignment: Assignment) -> None:
        """Take a fresh assignment as the next trial, as if a walk had led to it.

        Its answer is awaited.
        """
        path = [self.root]
        for parameter in self._candidates.space.parameters:
            if parameter.key in assignment and len(path) <= self._max_depth:
                self._enter(path, parameter, assignment[parameter.key])
        self._record(path, fresh=True, is_whole=len(path) > len(assignment))
        self._await(self._candidates.take(assignment))

    def tell(self, assignment: Assignment, value: float) -> None:
        """Remember the value, which changes the rewards of all."""
        self._values[key_of(assignment)] = value
        self._rewards = [1 - rank for rank in ranks(list(self._values.values()))]
        self._best_first = sorted(range(len(self._trials)), key=lambda at: -self._rewards[at])

    def mean_reward(self, node: Node) -> float:
        """Mean reward of the walks through ``node``, 0 where there was none."""
        return sum(self._rewards[trial] for trial in node.trials) / max(node.visits, 1)

    def _await(self, assignment: Assignment) -> Assignment:
        self._trials.append(assignment)
        self.tell(assignment, math.inf)  # as long as nothing better is known
        return assignment

    def _laid_out(self, parameter: Parameter) -> Plain:
        shares = self._shares[parameter.key]
        share = shares[len(self._trials)] + self._random.random()
        return parameter.at(share / len(shares))

    def _choose_guide(self) -> None:
        if self._trials:
            place = min(int(self._random.expovariate(1.0)), len(self._trials) - 1)
            self._guide = self._trials[self._best_first[place]]

    def _record(self, path: list[Node], fresh: bool, is_whole: bool) -> None:
        """Count the walk, and close what it has used up; a whole path ends at an assignment."""
        for node in path:
            node.visits += 1
            node.trials += [len(self._trials)] if fresh else []
        path[-1].closed = is_whole
        for node in reversed(path[:-1]):
            assert node.parameter is not None
            is_full = len(node.children) == node.parameter.count
            node.closed = is_full and all(child.closed for child in node.children.values())

    def _step(self, path: list[Node], parameter: Parameter) -> Plain:
        node = path[-1]
        if len(path) > self._max_depth:
            return parameter.at(self._random.random())
        node.parameter = parameter
        widening = WIDENING_OF_CHOICES if parameter.kind == "choice" else WIDENING_OF_RANGES
        has_room = len(node.children) < max(1.0, node.visits**widening)
        is_full = len(node.children) == parameter.count
        children = list(node.children.values())
        open_children = [child for child in children if not child.closed]
        if not is_full and (has_room or not open_children):
            return self._enter(path, parameter, self._new_value(node, parameter))
        # Below a value of a range that was drawn twice, all may be closed.
        child = max(open_children or children, key=lambda child: self._bound(node, child))
        return self._enter(path, parameter, child.value)

    def _enter(self, path: list[Node], parameter: Parameter, value: Plain) -> Plain:
        path[-1].parameter = parameter
        path.append(path[-1].children.setdefault(value, Node(value)))
        return value

    def _bound(self, node: Node, child: Node) -> float:
        spread = math.sqrt(math.log(node.visits) / child.visits)
        return self.mean_reward(child) + self._exploration * spread

    def _new_value(self, node: Node, parameter: Parameter) -> Plain:
        is_guided = parameter.key in self._guide and self._random.random() >= UNIFORM
        guide = self._guide.get(parameter.key)
        if parameter.kind == "choice":
            left = [value for value in parameter.values if value not in node.children]
            return guide if is_guided and guide in left else self._random.choice(left)
        position = self._random.random()
        if is_guided:
            position = self._near(parameter, parameter.position(guide), position)
        value = parameter.at(position)
        while parameter.count is not None and value in node.children:
            value = parameter.at(self._random.random())
        return value

    def _near(self, parameter: Parameter, position: float, share: float) -> float:
        """A position between the known ones ``NEIGHBOURS`` places to either side."""
        values = {trial[parameter.key] for trial in self._trials if parameter.key in trial}
        known = sorted(parameter.position(value) for value in values)
        at = bisect_left(known, position)
        low = known[at - NEIGHBOURS] if at >= NEIGHBOURS else 0.0
        high = known[at + NEIGHBOURS] if at + NEIGHBOURS < len(known) else 1.0
        return low + share * (high - low)
