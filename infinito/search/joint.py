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
    value alone among these; the best of each together; and ``trials`` more, which makes all there
    are where there are no more: the best so far with one value changed, what was best alone first,
    and where all of these are known, what the tree search asks for, which learns from all.

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
    as_it_is, best, alone = begin_with(base), dict[str, Plain](), list[tuple[float, Assignment]]()
    for parameter in space.parameters:
        changes = [{parameter.key: value} for value in parameter.values[1:]]
        tried = [(begin_with(base | change), change) for change in changes]
        stay: Assignment = {parameter.key: parameter.values[0]}
        best |= min([(as_it_is, stay), *tried], key=lambda pair: pair[0])[1]
        alone += [(as_it_is, stay), *tried]
    begin_with(best)
    alone.sort(key=lambda pair: pair[0])
    for _ in range(trials):
        now = min(found, key=lambda pair: pair[0])[1]
        near = next((now | c for _, c in alone if candidates.is_fresh(now | c)), None)
        if near is not None:
            begin_with(near)
        elif (asked := search.ask()) is not None:
            tell(asked)
    return sorted(found, key=lambda pair: pair[0])
