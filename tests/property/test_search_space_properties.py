"""Any search space: values, listing, conditions, and what every method makes of it."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinito.config.yaml_loader import Plain
from infinito.search.candidates import Candidates
from infinito.search.methods import METHODS
from infinito.search.space import Assignment, Parameter, Space, key_of

plain = st.none() | st.booleans() | st.text(max_size=3) | st.integers(-9, 9) | st.floats(0.1, 0.9)
choices = st.lists(plain, min_size=1, max_size=4, unique=True).map(
    lambda values: ("choice", tuple(values))
)
ints = st.tuples(st.integers(1, 10**9), st.integers(1, 6)).map(lambda t: (t[0], t[0] + t[1]))
floats = st.tuples(st.floats(1e-6, 1e6), st.floats(1.001, 1e6)).map(lambda t: (t[0], t[0] * t[1]))
kinds = st.sampled_from(["range", "log_range"])
finite = choices | st.tuples(kinds, ints)
anything = finite | st.tuples(kinds, floats)


@st.composite
def spaces(draw: st.DrawFn, values: st.SearchStrategy[tuple[str, tuple[Plain, ...]]]) -> Space:
    """Up to five parameters, each perhaps under conditions on some before it, in any order."""
    made: list[Parameter] = []
    for index in range(draw(st.integers(1, 5))):
        kind, ends = draw(values)
        parents = draw(st.lists(st.sampled_from(made), max_size=2)) if made else []
        when = {p.key: p.at(draw(st.floats(0, 1))) for p in parents}
        made.append(Parameter(f"p{index}", kind, ends, when))
    return Space(draw(st.permutations(made)))


def is_right(space: Space, assignment: Assignment) -> bool:
    """By the words of the contract: there if and only if its conditions hold, with one value."""
    return all(
        (p.key in assignment)
        == all(k in assignment and assignment[k] == v for k, v in p.when.items())
        and (p.key not in assignment or p.includes(assignment[p.key]))
        for p in space.parameters
    )


@given(anything, st.floats(0, 1))
def test_a_position_and_its_value(given: tuple[str, tuple[Plain, ...]], position: float) -> None:
    parameter = Parameter("x", *given)
    value = parameter.at(position)
    assert parameter.includes(value)
    assert type(value) in {type(end) for end in parameter.values}
    place = parameter.position(value)
    assert 0 <= place <= 1
    again = parameter.at(place)
    if parameter.count is None:
        assert isinstance(value, float)
        assert math.isclose(again, value, rel_tol=1e-5)  # type: ignore[arg-type]
    else:
        assert (again, type(again)) == (value, type(value))


@given(anything, st.lists(st.floats(0, 1), min_size=2))
def test_ranges_rise(given: tuple[str, tuple[Plain, ...]], positions: list[float]) -> None:
    parameter = Parameter("x", *given)
    if parameter.kind != "choice":
        values = [parameter.at(position) for position in sorted(positions)]
        assert values == sorted(values)  # type: ignore[type-var]
        for position, end in zip((0.0, 1.0), parameter.ends, strict=True):
            assert math.isclose(parameter.at(position), end, rel_tol=1e-5)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(spaces(finite))
def test_the_listing_of_a_finite_space_is_all_of_it(space: Space) -> None:
    """Against every combination of values, each brought to its form."""
    listed = [key_of(a) for a in space.assignments()]
    everything = product(*(list(p.all_values()) for p in space.parameters))
    keys = [p.key for p in space.parameters]
    wanted = {key_of(space.canonical(dict(zip(keys, row, strict=True)))) for row in everything}
    assert len(listed) == len(set(listed)) == space.size()
    assert set(listed) == wanted
    assert all(is_right(space, a) for a in space.assignments())


@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("name", METHODS)
@given(space=spaces(anything), seed=st.integers(0, 99), data=st.data())
def test_every_method_keeps_to_the_space(
    name: str, space: Space, seed: int, data: st.DataObject
) -> None:
    method = METHODS[name](Candidates(space, seed=seed), 12)
    seen: set[str] = set()
    for _ in range(12):
        assignment = method.ask()
        if assignment is None:
            assert len(seen) == space.size()
            break
        assert is_right(space, assignment)
        assert space.canonical(assignment) == assignment
        assert key_of(assignment) not in seen
        seen.add(key_of(assignment))
        method.tell(assignment, data.draw(st.sampled_from([1.0, 2.0, 3.5, math.inf])))
