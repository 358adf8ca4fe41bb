"""``infinito runs`` says of a run what its own trainer says: finished, or steps are left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from infinito.train.trainer import Trainer
from tests.command_support import at_step, infinito, write_config


def state_of(run: Path) -> str:
    [listed] = json.loads(infinito("runs", run, "--json").out)["runs"]
    return str(listed["state"])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"training__max_steps": 3}, 3),
        ({"training__max_steps": None, "training__epochs": 0.1}, None),
        ({"training__early_stopping_patience": 1, "training__learning_rate": 9.0,
          "training__eval_every": 1, "training__max_steps": 50}, None),
    ],
    ids=["steps", "epochs", "patience"],
)  # fmt: skip
def test_a_run_that_came_to_its_end_is_finished(
    tmp_path: Path, settings: dict[str, object], steps: int | None
) -> None:
    assert infinito("train", "--config", write_config(tmp_path, **settings)).code == 0
    trainer = Trainer.load(tmp_path / "run" / "last.pt")
    assert trainer.finished
    assert trainer.progress.step == (steps or trainer.progress.step) < 50
    assert state_of(tmp_path / "run") == "finished"


@pytest.mark.parametrize("end", [{"training__max_steps": 8}, {"training__epochs": 0.5}])
def test_a_run_that_was_interrupted_is_stopped(
    tmp_path: Path, end: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, **{"training__max_steps": None, **end})
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert infinito("train", "--config", config).code == 143
    assert not Trainer.load(tmp_path / "run" / "last.pt").finished
    assert state_of(tmp_path / "run") == "stopped"
    assert infinito("resume", tmp_path / "run").code == 0
    assert state_of(tmp_path / "run") == "finished"
