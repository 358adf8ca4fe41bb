"""Assignments that may still be tried: valid as a config, and not asked for before."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from infinito.errors import ConfigError
from infinito.search.space import Assignment, Space, key_of

#: Draws at random before a space that is small enough is listed instead.
_DRAWS = 200
_LISTABLE = 100_000
#: Draws at random after which a space too large to list is taken for one without valid configs.
_MOST_DRAWS = 20_000


#: Raises ConfigError for an assignment that makes no valid config.
Check = Callable[[Assignment], object]


class Candidates:
    """The one gate that every method's proposals go through, and its one source of chance."""

    def __init__(self, space: Space, check: Check = lambda _: None, seed: int = 0) -> None:
        self.space, self._check, self.random = space, check, Random(seed)
        self._taken: set[str] = set()
        self._refusals: dict[str, str | None] = {}

    def is_fresh(self, assignment: Assignment) -> bool:
        """Whether it is valid, which is checked once, and was not taken."""
        key = key_of(assignment)
        if key not in self._refusals:
            self._refusals[key] = None
            try:
                self._check(assignment)
            except ConfigError as error:
                self._refusals[key] = error.message
        return self._refusals[key] is None and key not in self._taken

    def take(self, assignment: Assignment) -> Assignment:
        """Hand a fresh one out: it will not be fresh again."""
        assert self.is_fresh(assignment)
        self._taken.add(key_of(assignment))
        return assignment

    def draw(self) -> Assignment | None:
        """Take a fresh one at random, each parameter evenly over its positions; None: none left.

        Raises ConfigError where no assignment at all is valid.
        """
        is_listable = self.space.size() <= _LISTABLE
        for _ in range(_DRAWS if is_listable else _MOST_DRAWS):
            drawn = self.space.build(lambda parameter: parameter.at(self.random.random()))
            if self.is_fresh(drawn):
                return self.take(drawn)
        left = [a for a in self.space.assignments() if self.is_fresh(a)] if is_listable else []
        if not left and not self._taken:
            first = next(filter(None, self._refusals.values()))
            what = f"no assignment of the search space is a valid config; the first: {first}"
            raise ConfigError(what, "change the base config or the space")
        return self.take(self.random.choice(left)) if left else None
