"""What every search method promises, and what each is for."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from infinito.errors import ConfigError
from infinito.search import annealing, tree
from infinito.search.candidates import Candidates
from infinito.search.halving import Halving, Job, proposals_within
from infinito.search.method import Method, ranks
from infinito.search.methods import METHODS
from infinito.search.space import Assignment, Parameter, Space, key_of
from infinito.search.tree import Node, TreeSearch

MIXED = Space(
    [
        Parameter("kind", "choice", ("a", "b")),
        Parameter("rate", "log_range", (1e-4, 1.0)),
        Parameter("width", "range", (1, 1000)),
        Parameter("only_b", "range", (0.0, 1.0), {"kind": "b"}),
        Parameter("flag", "choice", (True, None)),
    ]
)
SMALL = Space(
    [
        Parameter("x", "choice", ("p", "q", "r")),
        Parameter("n", "range", (2, 5)),
        Parameter("m", "log_range", (1, 3), {"x": "q"}),
    ]
)
# By hand: p and r with 4 each, q with 4 x 3; those with n = 3 are refused.
SMALL_VALID = {
    *((x, n, None) for x in "pr" for n in (2, 4, 5)),
    *(("q", n, m) for n in (2, 4, 5) for m in (1, 2, 3)),
}


def refuse_three(values: Assignment) -> None:
    if values["n"] == 3:
        raise ConfigError("n is 3")


def mixed_value(v: Assignment) -> float:
    rate, width = v["rate"], v["width"]
    assert isinstance(rate, float)
    assert isinstance(width, int)
    if rate > 0.5:
        return math.inf  # diverges
    return (math.log10(rate) + 2) ** 2 + abs(width - 300) / 300 + (v["kind"] == "a")


def run(
    method: Method, n: int, function: Callable[[Assignment], float] = mixed_value
) -> list[tuple[str, float]]:
    """Ask and tell ``n`` times, or until there is nothing left."""
    found = []
    for _ in range(n):
        assignment = method.ask()
        if assignment is None:
            break
        value = function(assignment)
        method.tell(assignment, value)
        found.append((key_of(assignment), value))
    return found


def make(name: str, space: Space = MIXED, seed: int = 0, n: int = 40, **given: Any) -> Method:
    return METHODS[name](Candidates(space, seed=seed, **given), n)


@pytest.mark.parametrize("name", METHODS)
def test_a_space_is_used_up_without_repeats_or_invalid_ones(name: str) -> None:
    method = make(name, SMALL, check=refuse_three)
    asked: list[Assignment] = []

    def value(assignment: Assignment) -> float:
        asked.append(assignment)
        return float(len(asked) % 4)

    run(method, 100, value)
    assert Counter((a["x"], a["n"], a.get("m")) for a in asked) == dict.fromkeys(SMALL_VALID, 1)
    assert method.ask() is None


@pytest.mark.parametrize("name", METHODS)
def test_proposals_are_of_the_space_and_none_comes_twice(name: str) -> None:
    found = run(make(name), 60)
    assert len(found) == len({key for key, _ in found}) == 60
    assert {("only_b" in key) == ('"kind": "b"' in key) for key, _ in found} == {True}


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_decides_everything(name: str) -> None:
    assert run(make(name, seed=3), 40) == run(make(name, seed=3), 40)
    assert run(make(name, seed=3), 5) != run(make(name, seed=4), 5)


@pytest.mark.parametrize("name", METHODS)
def test_answers_told_again_rebuild_the_state(name: str) -> None:
    unbroken = run(make(name), 40)
    again = make(name)
    for key, value in unbroken[:25]:
        assignment = again.ask()
        assert assignment is not None
        assert key_of(assignment) == key
        again.tell(assignment, value)
    assert run(again, 15) == unbroken[25:]


@pytest.mark.parametrize("name", METHODS)
def test_what_was_told_has_a_say(name: str) -> None:
    """Only random search may go the same way whatever it hears."""
    up, down = (run(make(name), 40, lambda a, s=s: s * a["width"]) for s in (1, -1))  # type: ignore
    same = [key for key, _ in up] == [key for key, _ in down]
    assert same == (name == "random")


@pytest.mark.parametrize("name", METHODS)
def test_where_everything_fails_the_search_goes_on(name: str) -> None:
    assert len(run(make(name), 20, lambda _: math.inf)) == 20


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("space", [SMALL, MIXED])
def test_no_valid_config_at_all_is_said(name: str, space: Space) -> None:
    def refuse(_: Assignment) -> None:
        raise ConfigError("the moon is wrong")

    with pytest.raises(ConfigError, match=r"no assignment .* the moon is wrong"):
        make(name, space, check=refuse).ask()


@pytest.mark.parametrize("name", METHODS)
def test_each_assignment_is_checked_once(name: str) -> None:
    checked: Counter[str] = Counter()
    run(make(name, SMALL, check=lambda a: checked.update([key_of(a)])), 100, lambda _: 1.0)
    assert len(checked) == SMALL.size()
    assert set(checked.values()) == {1}


@pytest.mark.parametrize("name", ["random", "mcts", "tpe"])
def test_several_may_be_asked_for_before_the_first_answer(name: str) -> None:
    method = make(name)
    asked = [method.ask() for _ in range(4)]
    assert len({key_of(a) for a in asked if a is not None}) == 4
    for assignment in asked:
        assert assignment is not None
        method.tell(assignment, mixed_value(assignment))
    assert method.ask() is not None


def test_annealing_waits_for_the_answer_it_needs() -> None:
    method = make("annealing")
    first = method.ask()
    assert first is not None
    assert method.ask() is None
    method.tell(first, 1.0)
    assert method.ask() is not None


# -- finding what is there ---------------------------------------------------------------------

PLANTED = Space(Parameter(f"c{i}", "choice", tuple(range(4))) for i in range(5))
BEST = (2, 0, 3, 1, 2)


def planted_value(assignment: Assignment) -> float:
    """Wrong choices, counted; 1024 assignments."""
    return float(sum(assignment[f"c{i}"] != best for i, best in enumerate(BEST)))


def trials_to_optimum(name: str, seed: int) -> int:
    method = make(name, PLANTED, seed=seed, n=250)
    for trial in range(1, 1025):
        assignment = method.ask()
        assert assignment is not None
        if planted_value(assignment) == 0:
            return trial
        method.tell(assignment, planted_value(assignment))
    raise AssertionError("not found")


@pytest.mark.parametrize(("name", "most"), [("mcts", 250), ("annealing", 250), ("tpe", 250)])
def test_a_planted_optimum_is_found_far_before_the_space_is_used_up(name: str, most: int) -> None:
    """Random search needs 512 of the 1024 on average."""
    assert fmean(trials_to_optimum(name, seed) for seed in range(6)) < most


@pytest.mark.parametrize("name", ["mcts", "annealing"])
def test_better_than_random_at_equal_budget(name: str) -> None:
    def best(method: str, seed: int) -> float:
        return min(value for _, value in run(make(method, seed=seed, n=60), 60))

    gain = [best("random", seed) - best(name, seed) for seed in range(12)]
    assert fmean(gain) > 0
    assert sum(g > 0 for g in gain) >= 9


# -- tree search -------------------------------------------------------------------------------


def nodes(node: Node, depth: int = 0) -> list[tuple[int, Node]]:
    return [(depth, node), *(n for c in node.children.values() for n in nodes(c, depth + 1))]


def test_a_tree_has_a_parameter_a_level_and_widens_slowly() -> None:
    space = Space(Parameter(f"x{i}", "range", (0.0, 1.0)) for i in range(3))
    search = TreeSearch(Candidates(space))
    run(search, 100, lambda a: abs(a["x0"] - 0.3))  # type: ignore[operator]
    assert max(depth for depth, _ in nodes(search.root)) == 3
    for _, node in nodes(search.root):
        assert len(node.children) <= max(1, math.ceil(node.visits**tree.WIDENING_OF_RANGES))
        if node.children:
            assert sum(child.visits for child in node.children.values()) == node.visits
    assert len(search.root.children) < 40
    assert search.root.visits == 100


def test_the_first_walks_share_out_every_parameter() -> None:
    space = Space(Parameter(f"x{i}", "range", (0.0, 1.0)) for i in range(3))
    search = make("mcts", space)
    first = []
    for _ in range(5):  # the parameters and two more
        asked = search.ask()
        assert asked is not None
        search.tell(asked, float(str(asked["x0"])))
        first.append(asked)
    for key in first[0]:
        assert sorted(int(5 * float(str(values[key]))) for values in first) == [0, 1, 2, 3, 4]


def test_a_better_branch_is_visited_more() -> None:
    space = Space([Parameter("a", "choice", ("bad", "good")), Parameter("x", "range", (0.0, 1.0))])
    search = TreeSearch(Candidates(space))
    run(search, 80, lambda a: (a["a"] == "bad") + 0.1 * a["x"])  # type: ignore[operator]
    good, bad = search.root.children["good"], search.root.children["bad"]
    assert good.visits > 2 * bad.visits
    assert bad.visits > 4  # and the other is not forgotten
    assert search.mean_reward(good) > search.mean_reward(bad)


def test_exploration_is_what_c_says() -> None:
    def visits(exploration: float) -> int:
        space = Space([Parameter("a", "choice", (0, 1)), Parameter("x", "range", (0.0, 1.0))])
        search = TreeSearch(Candidates(space), exploration)
        run(search, 80, lambda a: float(a["a"] == 0))  # 1 is better
        return search.root.children[0].visits

    assert visits(0.0) < visits(1.414) < visits(50.0)
    assert visits(50.0) == pytest.approx(40, abs=3)  # blind: both alike


def test_the_depth_of_a_tree_is_bounded() -> None:
    search = TreeSearch(Candidates(PLANTED), max_depth=2)
    found = run(search, 1024, planted_value)
    assert max(depth for depth, _ in nodes(search.root)) == 2
    assert len({key for key, _ in found}) == 1024  # and all is found all the same
    search = TreeSearch(Candidates(PLANTED), max_depth=2)
    run(search, 100, planted_value)
    assert search.root.visits >= 100  # nothing is closed that has more below it


def test_a_range_so_narrow_that_values_come_again() -> None:
    """Of six digits, only a few lie in it; what is below each is soon used up."""
    space = Space(
        [Parameter("x", "range", (1.0, 1.00005)), Parameter("c", "choice", (1, 2)),
         Parameter("n", "range", (1, 2))]
    )  # fmt: skip
    for name in METHODS:
        found = run(make(name, space), 30, lambda a: float(a["c"]))  # type: ignore
        assert len({key for key, _ in found}) > 15


def test_large_ranges_of_ints_take_no_time() -> None:
    space = Space([Parameter("n", "log_range", (1, 2**62)), Parameter("m", "range", (0, 2**62))])
    for name in ("mcts", "annealing", "random"):
        assert len(run(make(name, space), 30, lambda a: float(a["n"]))) == 30  # type: ignore


def test_a_choice_of_very_many_values() -> None:
    space = Space([Parameter("n", "choice", tuple(range(3000)))])
    for name in ("mcts", "annealing", "random"):
        assert len(run(make(name, space), 30, lambda a: float(a["n"]))) == 30  # type: ignore


# -- annealing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("field", [1e-3, 0.1, 1.0])
def test_the_bond_of_a_choice_is_the_trotter_kernel(n: int, field: float) -> None:
    """Drawn beside two neighbours as the matrix exponential of the transverse field says."""
    search = annealing.QuantumAnnealing(Candidates(PLANTED, seed=1), 10)
    eigenvalues, vectors = np.linalg.eigh(field * np.ones((n, n)))
    kernel = (vectors * np.exp(eigenvalues)) @ vectors.T
    left, right = 0, 1
    exact = kernel[left] * kernel[:, right]
    exact /= exact.sum()
    parameter = Parameter("c", "choice", tuple(range(n)))
    places = [parameter.position(value) for value in (left, right)]
    drawn = Counter(int(search._drawn_choice(parameter, field, *places) * n) for _ in range(20_000))
    for value in range(n):
        assert drawn[value] / 20_000 == pytest.approx(exact[value], abs=0.015)


def test_the_bond_of_a_range_is_that_of_a_free_particle() -> None:
    """Between neighbours at x and y: mean (x + y) / 2, variance field / 2."""
    search = annealing.QuantumAnnealing(Candidates(PLANTED, seed=1), 10)
    drawn = [search._drawn_position(0.002, 0.4, 0.5) for _ in range(20_000)]
    assert np.mean(drawn) == pytest.approx(0.45, abs=0.001)
    assert np.var(drawn) == pytest.approx(0.001, rel=0.05)
    wide = [search._drawn_position(1.0, 0.1, 0.2) for _ in range(2000)]
    assert 0 <= min(wide) < max(wide) <= 1


def test_metropolis_accepts_by_the_difference_of_ranks() -> None:
    search = annealing.QuantumAnnealing(Candidates(PLANTED, seed=1), 10)
    states = list(PLANTED.assignments())[:101]  # ranks 0, .01, ... 1
    for at, state in enumerate(states):
        search._values[key_of(state)] = at * at * 1e6  # ranks count, not values
    up = fmean(search._is_accepted(states[50], states[53]) for _ in range(4000))
    assert up == pytest.approx(math.exp(-0.03 / annealing.TEMPERATURE), abs=0.03)
    assert all(search._is_accepted(states[50], states[at]) for at in (50, 49, 0))


def test_the_replicas_gather() -> None:
    """Late proposals lie much nearer to each other than early ones."""
    space = Space([Parameter("x", "range", (0.0, 1.0))])
    found = [
        float(key[6:-1])
        for key, _ in run(make("annealing", space, n=80), 80, lambda a: abs(a["x"] - 0.7))  # type: ignore
    ]
    assert np.ptp(found[-10:]) < 0.2 < 0.5 < np.ptp(found[:10])
    assert fmean(found[-10:]) == pytest.approx(0.7, abs=0.1)


# -- the rest ----------------------------------------------------------------------------------


def test_ranks() -> None:
    assert ranks([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]
    assert ranks([5.0, 5.0, 1.0]) == [0.75, 0.75, 0.0]
    assert ranks([math.inf, 1.0, math.inf]) == [1.0, 0.0, 1.0]
    assert ranks([math.inf]) == [1.0]
    assert ranks([7.0]) == [0.0]
    assert ranks([]) == []


def test_tpe_without_optuna_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError) as caught:
        make("tpe")
    assert "optuna" in caught.value.message
    assert caught.value.remedy == 'pip install "infinito[search]"'


def finished(schedule: Halving, n: int, value: Callable[[Assignment], float]) -> list[Job]:
    jobs = []
    for _ in range(n):
        job = schedule.ask()
        assert job is not None
        jobs.append(job)
        schedule.tell(job, value(job.values))
    return jobs


def test_halving_lets_the_best_half_of_a_rung_go_on() -> None:
    schedule = Halving(make("random", n=60), 3)
    jobs = finished(schedule, 200, mixed_value)
    assert {job.fraction for job in jobs} == {0.25, 0.5, 1.0}
    by_rung = {f: [j for j in jobs if j.fraction == f] for f in (0.25, 0.5, 1.0)}
    for rung in by_rung.values():
        assert len({key_of(job.values) for job in rung}) == len(rung)
    for low, high in ((0.25, 0.5), (0.5, 1.0)):
        promoted = {key_of(job.values) for job in by_rung[high]}
        assert promoted <= {key_of(job.values) for job in by_rung[low]}
        assert len(promoted) == pytest.approx(len(by_rung[low]) / 2, rel=0.35)
        values = {key_of(job.values): mixed_value(job.values) for job in by_rung[low]}
        ahead = fmean(value for key, value in values.items() if key in promoted)
        behind = fmean(min(v, 9.0) for key, v in values.items() if key not in promoted)
        assert ahead < behind
        assert math.isfinite(ahead)
    spent = sum(job.fraction for job in jobs)
    assert proposals_within(spent, 3) == pytest.approx(len(by_rung[0.25]), rel=0.35)


def test_halving_never_promotes_what_failed() -> None:
    jobs = finished(Halving(make("random"), 2), 30, lambda _: math.inf)
    assert {job.fraction for job in jobs} == {0.5}


def test_one_rung_is_no_halving() -> None:
    plain = [key for key, _ in run(make("mcts"), 20)]
    jobs = finished(Halving(make("mcts"), 1), 20, mixed_value)
    assert [key_of(job.values) for job in jobs] == plain
    assert {job.fraction for job in jobs} == {1.0}
