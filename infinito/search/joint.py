"""Choices taken together where each measurement is dear: a short, informed tree search."""

from __future__ import annotations

from collections.abc import Callable

from infinito.config.yaml_loader import Plain
from infinito.search.candidates import Candidates, Check
from infinito.search.space import Assignment, Space
from infinito.search.tree import TreeSearch

#: Less than the default: what is known at the start is worth more than what is not.
_EXPLORATION = 0.5


def search_jointly(
    space: Space,
    measure: Callable[[Assignment], float],
    trials: int,
    check: Check = lambda _: None,
) -> list[tuple[float, Assignment]]:
    """Assignments of choices with their values, the best first; none is measured twice.

    Measured are: the first value of every parameter, which must be a valid assignment; each other
    value alone among these; the best of each together; and ``trials`` that the search asks for,
    which makes all there are where there are no more.

    Args:
        measure: small is good; infinity where it cannot be had.
        check: raises ConfigError for what is not to be tried.
    """
    candidates = Candidates(space, check)
    search = TreeSearch(candidates, _EXPLORATION)
    found: list[tuple[float, Assignment]] = []

    def tell(assignment: Assignment) -> float:
        found.append((measure(assignment), assignment))
        search.tell(assignment, found[-1][0])
        return found[-1][0]

    def begin_with(assignment: Assignment) -> float:
        if not candidates.is_fresh(assignment):
            return float("inf")
        search.begin_with(assignment)
        return tell(assignment)

    base = {parameter.key: parameter.values[0] for parameter in space.parameters}
    as_it_is, best = begin_with(base), dict[str, Plain]()
    for parameter in space.parameters:
        key, first = parameter.key, parameter.values[0]
        alone = {value: begin_with(base | {key: value}) for value in parameter.values[1:]}
        best[key] = min([first, *alone], key=lambda value: alone.get(value, as_it_is))
    begin_with(best)
    for _ in range(trials):
        asked = search.ask()
        if asked is None:
            break
        tell(asked)
    return sorted(found, key=lambda pair: pair[0])
