"""A typed search space over config keys: what each may be, and when it is there at all.

An assignment is the plain data ``{config key: value}`` of the *active* parameters alone, in the
order of the space. A parameter with conditions is active while every parameter it depends on is
active and has the value asked for, so that two configs which differ only in what has no effect
are one assignment. Methods work with positions from 0 to 1, which ``Parameter`` turns into values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from infinito.config.loading import config_from_plain, to_plain
from infinito.config.overrides import Overrides
from infinito.config.schema import Config
from infinito.config.yaml_loader import Plain
from infinito.errors import ConfigError

Assignment = dict[str, Plain]
#: Digits of a value from a range of fractions: readable, and finer than any measurement.
_DIGITS = 6


@dataclass(frozen=True)
class Parameter:
    """One config key and the values it may take.

    Attributes:
        kind: ``choice`` of listed values, or a ``range``, uniform or in the logarithm.
        values: The choices, no two equal; or (low, high), both included, ints for a range of ints.
        when: ``{key of another parameter: value}``; all must hold.
    """

    key: str
    kind: str
    values: tuple[Plain, ...]
    when: Mapping[str, Plain] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high of a range: ints if it holds ints only."""
        return cast("tuple[float, float]", self.values)

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of ints."""
        return self.kind != "choice" and all(isinstance(end, int) for end in self.values)

    @property
    def count(self) -> int | None:
        """How many values there are; None for a range of fractions."""
        if self.kind == "choice":
            return len(self.values)
        return int(self.ends[1] - self.ends[0] + 1) if self.is_whole else None

    def all_values(self) -> Iterator[Plain]:
        """Every value in order. Only where ``count`` is known."""
        if self.kind == "choice":
            return iter(self.values)
        return iter(range(int(self.ends[0]), int(self.ends[1]) + 1))

    def at(self, position: float) -> Plain:
        """The value at a position from 0 to 1: equal shares of it for equally likely values."""
        if self.kind == "choice":
            return self.values[min(int(position * len(self.values)), len(self.values) - 1)]
        low, end = self._span
        value = low + position * (end - low)
        value = math.exp(value) if self.kind == "log_range" else value
        value = math.floor(value) if self.is_whole else float(f"{value:.{_DIGITS}g}")
        return type(value)(min(max(value, self.ends[0]), self.ends[1]))

    def position(self, value: Plain) -> float:
        """The middle of the positions at which ``value`` stands."""
        if self.kind == "choice":
            return (self.values.index(value) + 0.5) / len(self.values)
        low, end = self._span
        assert isinstance(value, int | float)
        middle = value + 0.5 if self.is_whole else value
        return ((math.log(middle) if self.kind == "log_range" else middle) - low) / (end - low)

    @property
    def _span(self) -> tuple[float, float]:
        """Where positions 0 and 1 lie: each int of a range has the share up to the next."""
        low, end = self.ends[0], self.ends[1] + self.is_whole
        return (math.log(low), math.log(end)) if self.kind == "log_range" else (low, end)

    def includes(self, value: Plain) -> bool:
        """Whether ``value`` is one of the values."""
        if self.kind == "choice":
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            return False
        return self.ends[0] <= value <= self.ends[1]


class Space:
    """Parameters, each after those it depends on, else in the order given."""

    def __init__(self, parameters: Iterable[Parameter], where: str = "the search space") -> None:
        """Order the parameters. Raises ConfigError, naming ``where``, for circular conditions."""
        pending = {parameter.key: parameter for parameter in parameters}
        self.parameters: list[Parameter] = []
        while pending:
            free = (p for p in pending.values() if not any(key in pending for key in p.when))
            ready = next(free, None)
            if ready is None:
                raise ConfigError(f"{where}: the conditions of {', '.join(pending)} form a circle")
            self.parameters.append(pending.pop(ready.key))

    def build(self, choose: Callable[[Parameter], Plain]) -> Assignment:
        """An assignment: ``choose`` is asked for the value of each active parameter in turn."""
        assignment: Assignment = {}
        for parameter in self.parameters:
            if _is_active(parameter, assignment):
                assignment[parameter.key] = choose(parameter)
        return assignment

    def canonical(self, values: Mapping[str, Plain]) -> Assignment:
        """``values`` without what is inactive or not of the space, in its order."""
        return self.build(lambda parameter: values[parameter.key])

    def size(self) -> float:
        """How many assignments there are; infinite where a range of fractions can be active."""
        wanted = {(key, value) for p in self.parameters for key, value in p.when.items()}
        return self._count(self.parameters, {}, wanted)

    def _count(
        self, left: list[Parameter], chosen: Assignment, wanted: set[tuple[str, Plain]]
    ) -> float:
        if not left:
            return 1
        parameter, *rest = left
        if not _is_active(parameter, chosen):
            return self._count(rest, chosen, wanted)
        # Only values that a condition asks for make a difference to what follows.
        asked = [{**chosen, key: value} for key, value in wanted if key == parameter.key]
        others = (parameter.count or math.inf) - len(asked)
        total = sum(self._count(rest, branch, wanted) for branch in asked)
        return total + (others * self._count(rest, chosen, wanted) if others else 0)

    def assignments(self, chosen: Assignment | None = None, index: int = 0) -> Iterator[Assignment]:
        """Every assignment, the last parameter fastest. Only where ``size`` is known."""
        chosen = chosen or {}
        if index == len(self.parameters):
            yield chosen
            return
        parameter = self.parameters[index]
        if not _is_active(parameter, chosen):
            yield from self.assignments(chosen, index + 1)
            return
        for value in parameter.all_values():
            yield from self.assignments({**chosen, parameter.key: value}, index + 1)


def _is_active(parameter: Parameter, chosen: Assignment) -> bool:
    return all(key in chosen and chosen[key] == value for key, value in parameter.when.items())


def key_of(assignment: Assignment) -> str:
    """What tells assignments of one space apart, as text."""
    return json.dumps(assignment)


def configured(base: Config, values: Assignment) -> Config:
    """``base`` with the values of an assignment. Raises ConfigError where that is no config."""
    given = Overrides({tuple(key.split(".")): value for key, value in values.items()})
    return config_from_plain(given.apply(to_plain(base)), "the search space")
