"""The driver: what it writes, how it goes on after a kill, what it refuses, when it stops."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infinito.config.yaml_loader import Plain
from infinito.errors import CheckpointError, ResourceError
from infinito.runtime.events import reading
from infinito.search.candidates import Candidates
from infinito.search.halving import Halving, Job, proposals_within
from infinito.search.methods import METHODS
from infinito.search.objective import Measurement, Objective, TrialFailedError
from infinito.search.search_plots import write_plots
from infinito.search.space import Assignment, Parameter, Space, key_of
from infinito.search.study import Study
from infinito.search.trials import Trial, read_trials

SPACE = Space(
    [
        Parameter("kind", "choice", ("a", "b")),
        Parameter("rate", "log_range", (1e-4, 1.0)),
        Parameter("width", "range", (1, 9), {"kind": "b"}),
    ]
)


def measure(values: Assignment, fraction: float) -> Measurement:
    """Deterministic; fails for great rates, in three ways."""
    rate = values["rate"]
    assert isinstance(rate, float)
    if rate > 0.6:
        raise TrialFailedError("out_of_memory", "9 GB", cost=7.0)
    if rate > 0.4:
        raise TrialFailedError("refused")
    if rate > 0.2:
        return Measurement(math.nan, 1000 * fraction)
    loss = (math.log10(rate) + 2) ** 2 + (values["kind"] == "a") + 1 / fraction
    return Measurement(loss, 1000 * fraction)


def make(directory: Path, objective: Objective = measure, method: str = "mcts", budget: float = 20,
         rungs: int = 1, seed: int = 0, space: Space = SPACE, **given: Any) -> Study:  # fmt: skip
    search = METHODS[method](Candidates(space, seed=seed), proposals_within(budget, rungs))
    identity: dict[str, Plain] = {"method": method, "seed": seed, "rungs": rungs}
    given = {"identity": identity, "best_text": lambda values: key_of(values) + "\n", **given}
    return Study(directory, Halving(search, rungs), objective, budget, **given)


@contextmanager
def opened(*args: Any, **given: Any) -> Iterator[Study]:
    study = make(*args, **given)
    try:
        yield study
    finally:
        study.close()


def finish(*args: Any, **given: Any) -> tuple[str, list[Trial]]:
    with opened(*args, **given) as study:
        return study.run(), study.trials


def killed_after(n: int, calls: list[str]) -> Objective:
    """``measure`` that is interrupted in call ``n``, and notes what it was asked."""

    def objective(values: Assignment, fraction: float) -> Measurement:
        if len(calls) == n:
            raise KeyboardInterrupt
        calls.append(f"{key_of(values)} {fraction}")
        return measure(values, fraction)

    return objective


def files(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != ".lock"}


# -- what it writes ----------------------------------------------------------------------------


def test_a_line_a_trial(tmp_path: Path) -> None:
    reason, trials = finish(tmp_path / "s")
    assert reason == "the budget is spent"
    lines = [
        json.loads(line) for line in (tmp_path / "s" / "trials.jsonl").read_text().splitlines()
    ]
    assert [line["trial"] for line in lines] == list(range(1, 21))
    assert all(
        {"trial", "values", "objective", "tokens", "status"} <= line.keys() for line in lines
    )
    assert [Trial(**line) for line in lines] == trials
    for line in lines:
        assert ("width" in line["values"]) == (line["values"]["kind"] == "b")
        assert (line["objective"] is None) == (line["values"]["rate"] > 0.2)
    best = min((line for line in lines if line["objective"]), key=lambda line: line["objective"])
    assert json.loads((tmp_path / "s" / "best.yaml").read_text()) == best["values"]


def test_failures_have_a_status_and_no_figure(tmp_path: Path) -> None:
    _, trials = finish(tmp_path / "s", method="random", budget=80)
    failed = {t.status: t for t in trials if t.objective is None}
    assert failed.keys() == {"out_of_memory", "refused", "diverged"}
    assert (failed["out_of_memory"].reason, failed["out_of_memory"].tokens) == ("9 GB", 7.0)
    assert failed["diverged"].reason == "the figure is nan"
    assert {t.status for t in trials if t.objective is not None} == {"done"}


def test_where_all_fail_there_is_no_best(tmp_path: Path) -> None:
    def refuse(values: Assignment, fraction: float) -> Measurement:
        raise TrialFailedError("refused")

    with opened(tmp_path / "s", refuse) as study:
        assert study.run() == "the budget is spent"
        assert study.best is None
    assert not (tmp_path / "s" / "best.yaml").exists()


def test_each_new_trial_is_told(tmp_path: Path) -> None:
    heard: list[str] = []
    with reading(lambda event: heard.append(getattr(event, "text", "")), alone=True):
        finish(tmp_path / "s", budget=4)
        assert len(heard) == 4
        assert re.fullmatch(
            r"trial 3: [\d.]+  best [\d.]+ \(trial \d\)  kind='\w' rate=[\d.]+( width=\d)?",
            heard[2],
        )
        finish(tmp_path / "s", budget=6)
    assert len(heard) == 6


def test_speed_is_made_great(tmp_path: Path) -> None:
    def speed(values: Assignment, fraction: float) -> Measurement:
        return Measurement(1000 / (1 + abs(math.log10(values["rate"]) + 2)), 1)  # type: ignore

    with opened(tmp_path / "s", speed, budget=40, to_minimise=lambda v: -math.log(v)) as study:
        study.run()
        assert study.best is not None
        assert study.best.objective == max(t.objective or 0 for t in study.trials)
        assert study.best.objective > 900


def test_the_best_is_of_the_longest_trials(tmp_path: Path) -> None:
    """Even where short trials look better."""

    def shorter_is_better(values: Assignment, fraction: float) -> Measurement:
        return Measurement(measure(values, 1.0).value + fraction, 1)

    with opened(tmp_path / "s", shorter_is_better, rungs=3, budget=12) as study:
        study.run()
        assert study.best is not None
        longest = [t for t in study.trials if t.fraction == 1 and t.objective is not None]
        assert study.best.objective == min(t.objective or 9 for t in longest)
        best_text = (tmp_path / "s" / "best.yaml").read_text()
        assert best_text == key_of(study.best.values) + "\n"


# -- budget and stopping -----------------------------------------------------------------------


@pytest.mark.parametrize("rungs", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 5, 12.5])
def test_the_budget_counts_full_trials(tmp_path: Path, rungs: int, budget: float) -> None:
    _, trials = finish(tmp_path / "s", rungs=rungs, budget=budget)
    spent = sum(trial.fraction for trial in trials)
    assert budget - 1 < spent <= budget


def test_nothing_is_asked_for_that_the_budget_cannot_pay(tmp_path: Path) -> None:
    asked: list[Job | None] = []

    class Watched(Halving):
        def ask(self) -> Job | None:
            asked.append(super().ask())
            return asked[-1]

    search = METHODS["mcts"](Candidates(SPACE), 5)
    study = Study(tmp_path / "s", Watched(search), measure, 5, identity={}, best_text=str)
    assert study.run() == "the budget is spent"
    study.close()
    assert len(asked) == 5  # one more would stand in the tree as the worst there is


def test_a_space_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    space = Space(
        [Parameter("rate", "choice", (0.1, 0.01, 0.001)), Parameter("kind", "choice", "b")]
    )
    for method in METHODS:
        reason, trials = finish(tmp_path / method, method=method, space=space)
        assert (reason, len(trials)) == ("the space is used up", 3)


def constant_then(gain: float, cycle: int) -> Objective:
    """Each cycle of trials the best gets better by ``gain``; all but the first trial are worse."""
    calls = []

    def objective(values: Assignment, fraction: float) -> Measurement:
        calls.append(values)
        at, place = divmod(len(calls) - 1, cycle)
        return Measurement(10 - gain * at + (place > 0), 1)

    return objective


def test_it_stops_when_the_best_improves_by_too_little_five_cycles_in_a_row(tmp_path: Path) -> None:
    reason, trials = finish(tmp_path / "a", constant_then(0.009, 3), budget=90, cycle=3)
    assert (reason, len(trials)) == ("the best has stopped improving", 3 * 6)
    reason, trials = finish(tmp_path / "b", constant_then(0.011, 3), budget=90, cycle=3)
    assert (reason, len(trials)) == ("the budget is spent", 90)
    given = {"cycle": 3, "threshold": 0.02, "cycles": 2}
    reason, trials = finish(tmp_path / "c", constant_then(0.011, 3), budget=90, **given)
    assert (reason, len(trials)) == ("the best has stopped improving", 3 * 3)
    reason, trials = finish(tmp_path / "d", constant_then(0.0, 3), budget=90)
    assert (reason, len(trials)) == ("the budget is spent", 90)  # without a cycle it never stops


def test_one_good_cycle_starts_the_count_again(tmp_path: Path) -> None:
    calls = []

    def objective(values: Assignment, fraction: float) -> Measurement:
        calls.append(values)
        return Measurement(5.0 if len(calls) >= 9 else 6.0, 1)

    _, trials = finish(tmp_path / "s", objective, budget=90, cycle=2)
    assert len(trials) == 10 + 2 * 5  # the gain falls into the fifth cycle, which ends at 10


# -- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rungs", [1, 3])
def test_a_killed_search_ends_as_an_unbroken_one(tmp_path: Path, method: str, rungs: int) -> None:
    given: dict[str, Any] = {"method": method, "rungs": rungs, "budget": 16, "cycle": 8}
    finish(tmp_path / "whole", **given)
    calls: list[str] = []
    for n in (0, 7, 8, 13):
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path / "killed", killed_after(n, calls), **given)
        assert len(read_trials(tmp_path / "killed" / "trials.jsonl")) == n
    reason, trials = finish(tmp_path / "killed", killed_after(10**6, calls), **given)
    assert reason == "the budget is spent"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert len(calls) == len(set(calls)) == len(trials)  # and nothing was measured twice


def test_a_finished_search_measures_nothing_more(tmp_path: Path) -> None:
    finish(tmp_path / "s")
    before = files(tmp_path / "s")
    reason, _ = finish(tmp_path / "s", killed_after(0, []))
    assert reason == "the budget is spent"
    assert files(tmp_path / "s") == before


def test_a_greater_budget_goes_on(tmp_path: Path) -> None:
    for rungs in (1, 3):
        finish(tmp_path / f"whole{rungs}", budget=20, rungs=rungs)
        for budget in (5, 11, 20):
            finish(tmp_path / f"parts{rungs}", budget=budget, rungs=rungs)
        assert files(tmp_path / f"parts{rungs}") == files(tmp_path / f"whole{rungs}")


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_cut_short_is_measured_again(tmp_path: Path, cut: int) -> None:
    finish(tmp_path / "s")
    whole = files(tmp_path / "s")
    path = tmp_path / "s" / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    calls: list[str] = []
    finish(tmp_path / "s", killed_after(10**6, calls))
    assert len(calls) == 1
    assert files(tmp_path / "s") == whole


def test_a_best_that_was_not_written_is(tmp_path: Path) -> None:
    finish(tmp_path / "s")
    whole = files(tmp_path / "s")
    (tmp_path / "s" / "best.yaml").unlink()
    finish(tmp_path / "s")
    assert files(tmp_path / "s") == whole


@pytest.mark.parametrize("method", ["random", "mcts", "tpe"])
def test_several_workers_search_as_their_number_says(tmp_path: Path, method: str) -> None:
    given: dict[str, Any] = {"method": method, "budget": 20, "rungs": 2, "workers": 3}
    with ThreadPoolExecutor(3) as pool:
        finish(tmp_path / "pool", run_all=pool.map, **given)
    finish(tmp_path / "alone", **given)
    calls: list[str] = []
    for n in (4, 5, 12):
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path / "killed", killed_after(n, calls), **given)
    finish(tmp_path / "killed", **given)
    assert files(tmp_path / "pool") == files(tmp_path / "alone") == files(tmp_path / "killed")


# -- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [({"method": "random"}, "method"), ({"seed": 1}, "seed"), ({"rungs": 2}, "rungs"),
     ({"workers": 2}, "workers")],
)  # fmt: skip
def test_another_search_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    finish(tmp_path / "s", budget=3)
    before = files(tmp_path / "s")
    with pytest.raises(ResourceError, match=f"holds another search: another {named}"):
        make(tmp_path / "s", **change)
    assert files(tmp_path / "s") == before
    finish(tmp_path / "s", budget=4)  # the lock was let go


def test_trials_of_another_program_are_refused(tmp_path: Path) -> None:
    finish(tmp_path / "s", budget=5)
    path = tmp_path / "s" / "trials.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["values"]["rate"] /= 2
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ResourceError, match="trial 4 is not what this search would try"):
        finish(tmp_path / "s", budget=6)


@pytest.mark.parametrize(
    "damage",
    [lambda line: line[: len(line) // 2], lambda line: "[]", lambda line: "[" * 99999,
     lambda line: line.replace('"trial": 3', '"trial": 4'),
     lambda line: line.replace('"status"', '"state"'),
     lambda line: '{"trial": 3, "values": {}, "fraction": 1, "objective": NaN, "tokens": 1, '
                  '"status": "done"}'],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path: Path, damage: Callable[[str], str]) -> None:
    finish(tmp_path / "s", budget=5)
    path = tmp_path / "s" / "trials.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = damage(lines[2])
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"trials.jsonl:3: not a line that a search wrote"):
        make(tmp_path / "s")
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 99999])
def test_a_damaged_identity_is_named(tmp_path: Path, content: str) -> None:
    finish(tmp_path / "s", budget=2)
    (tmp_path / "s" / "search.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"search.json: not a file that a search wrote"):
        make(tmp_path / "s")


def test_one_search_a_directory_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path / "s"), pytest.raises(ResourceError, match="in use by another process"):
        make(tmp_path / "s")


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        make(tmp_path / "file" / "s")


# -- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "n_plots"), [("mcts", 3), ("random", 2)])
@pytest.mark.parametrize("budget", [0, 1, 20])
def test_plots(tmp_path: Path, method: str, n_plots: int, budget: int) -> None:
    search = METHODS[method](Candidates(SPACE), 20)
    study = Study(tmp_path / "s", Halving(search, 2), measure, budget, identity={}, best_text=str)
    study.run()
    paths = write_plots(study, SPACE, "valid_loss", search)
    study.close()
    assert len(paths) == n_plots
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
