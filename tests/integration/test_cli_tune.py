"""``tune``: real short runs, a directory that goes on where it stood, a config that trains."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from infinito.cli.main import main
from infinito.config.loading import load_config
from infinito.search import tuning
from infinito.search.short_run import ShortRun
from infinito.search.space import Assignment
from tests.support import tiny_settings

SPACE = """
objective: {metric: valid_loss, tokens: 1024}
space:
  training.learning_rate: {log_range: [1e-4, 3e-2]}
  model.n_layers: {range: [1, 2]}
  model.n_heads: {choice: [2, 3, 4]}  # 3 does not divide the width: never tried
"""


class Place:
    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.capsys = path, capsys
        self.config, self.space = path / "base.yaml", path / "space.yaml"
        settings = tiny_settings(path, training__warmup_steps=0, output_dir=None)
        del settings["training"]["max_steps"]  # type: ignore[attr-defined]
        self.config.write_text(yaml.safe_dump(settings))
        self.space.write_text(SPACE)

    def tune(self, *words: object, method: str = "random", budget: int = 4) -> tuple[int, str, str]:
        command = ["tune", "--config", self.config, "--space", self.space, "--method", method]
        command += ["--budget", budget, "--output-dir", self.path / "search", *words]
        code = main([str(word) for word in command])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def trials(self) -> list[dict[str, Any]]:
        lines = (self.path / "search" / "trials.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.setattr(tuning, "_workers", lambda *_: 1)  # in this process
    return Place(tmp_path, capsys)


@pytest.mark.parametrize("method", ["mcts", "annealing", "random"])
def test_a_search_trains_for_real_and_its_best_config_trains(place: Place, method: str) -> None:
    code, out, err = place.tune(method=method)
    assert code == 0, err
    trials = place.trials()
    assert [trial["trial"] for trial in trials] == [1, 2, 3, 4]
    assert all(trial["status"] == "done" and trial["tokens"] == 1024 for trial in trials)
    assert all(trial["values"]["model.n_heads"] != 3 for trial in trials)
    assert len({json.dumps(trial["values"]) for trial in trials}) == 4
    best = min(trials, key=lambda trial: trial["objective"])
    assert f"{best['objective']:.6g}" in out
    written = load_config(place.path / "search" / "best.yaml")
    assert written.training.learning_rate == best["values"]["training.learning_rate"]
    assert written.training.max_steps == 16
    run = place.path / "run"
    train = [
        "train",
        "--config",
        str(place.path / "search" / "best.yaml"),
        "--output-dir",
        str(run),
    ]
    assert main(train) == 0
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The trial was this very run: the same seed, text, order and steps.
    assert losses[-1]["valid_loss"] == pytest.approx(best["objective"], rel=1e-6)


def test_the_same_command_goes_on_where_it_stood(place: Place) -> None:
    assert place.tune("--seed", 3, method="mcts", budget=3)[0] == 0
    whole = place.trials()
    log = place.path / "search" / "trials.jsonl"
    first, *_ = log.read_text().splitlines(keepends=True)
    log.write_text(first + '{"trial": 2, "val')  # as a kill leaves it
    code, _, err = place.tune("--seed", 3, method="mcts", budget=3)
    assert code == 0, err
    assert [(t["values"], t["objective"]) for t in place.trials()] == [
        (t["values"], t["objective"]) for t in whole
    ]
    code, _, err = place.tune("--seed", 4, method="mcts", budget=3)
    assert (code, "another search" in err) == (6, True), err


def test_a_trial_that_diverges_counts_as_the_worst(place: Place) -> None:
    place.space.write_text(
        "objective: {metric: valid_loss, tokens: 1024}\n"
        "space:\n  training.learning_rate: {choice: [0.003, 1e30]}\n"
    )
    code, out, err = place.tune()
    assert code == 0, err
    status = {t["values"]["training.learning_rate"]: t["status"] for t in place.trials()}
    assert status == {0.003: "done", 1e30: "diverged"}
    assert "0.003" in out


def test_a_trial_that_is_measured_for_memory_has_a_process_of_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak of a process is that of all it ever did."""
    with tuning._processes(1, fresh=True) as run_all:
        found = list(run_all(process_of, [1, 2, 3]))
    assert len({os.getpid(), *found}) == 4
    asked: list[bool] = []

    def processes(workers: int, fresh: bool) -> Any:
        asked.append(fresh)
        return nullcontext(map)

    monkeypatch.setattr(tuning, "_processes", processes)
    assert place.tune(budget=1)[0] == 0
    place.space.write_text(SPACE.replace("1024}", "1024, memory_mb: 90000}"))
    assert place.tune("--output-dir", place.path / "other", budget=1)[0] == 0
    assert asked == [False, True]


def process_of(_: int) -> int:
    return os.getpid()


def test_annealing_that_is_given_another_budget_says_so(place: Place) -> None:
    """Its schedule depends on it; the other methods just go on."""
    assert place.tune(method="annealing", budget=2)[0] == 0
    code, _, err = place.tune(method="annealing", budget=3)
    assert (code, "holds another search: another budget" in err) == (6, True), err
    assert place.tune("--output-dir", place.path / "other", budget=1)[0] == 0
    assert place.tune("--output-dir", place.path / "other", budget=2)[0] == 0


def test_an_interrupted_search_says_how_to_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    figures = ShortRun.figures

    def stopped(self: ShortRun, values: Assignment, fraction: float) -> Any:
        calls.append(values)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return figures(self, values, fraction)

    monkeypatch.setattr(ShortRun, "figures", stopped)
    code, out, err = place.tune()
    assert (code, out, len(place.trials())) == (130, "", 2)
    assert "interrupted: 2 trials are kept in" in err
    assert "the same command goes on" in err
    assert place.tune()[0] == 0
    assert len(place.trials()) == 4


def test_faults_of_a_space_are_told_together(place: Place) -> None:
    place.space.write_text(
        "objective: {metric: valid_loss, tokens: 0}\n"
        "space:\n  training.learning_rat: {range: [1, 2]}\n  model.n_layers: {range: [3, 1]}\n"
    )
    code, _, err = place.tune()
    assert code == 2
    assert "training.learning_rate" in err  # the nearest key
    assert "model.n_layers" in err
    assert "tokens" in err
    assert not (place.path / "search").exists()
