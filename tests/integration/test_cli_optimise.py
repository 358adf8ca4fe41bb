"""``infinito optimise`` from end to end on a tiny text; no timing decides anything here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infinito.config.loading import load_config
from infinito.load import load_model
from infinito.optimise import int8_trial, measuring, optimisations, pipeline
from tests.command_support import infinito, write_config


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds, and none that compiles."""
    monkeypatch.setattr(measuring, "ROUNDS", 6)
    monkeypatch.setattr(pipeline, "COMBINATIONS", 2)
    monkeypatch.setattr(pipeline, "HOPELESS", 0.0)  # a busy machine drops nothing
    monkeypatch.setattr(int8_trial, "ROUNDS", 6)
    rows = [row for row in optimisations.OPTIMISATIONS if row.name != "fusion"]
    monkeypatch.setattr(optimisations, "OPTIMISATIONS", rows)


def test_a_config(tmp_path: Path) -> None:
    config, target = write_config(tmp_path), tmp_path / "out"
    done = infinito("optimise", config, "--output-dir", target, "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert json.loads((target / "optimise.json").read_text()) == {
        key: value for key, value in figures.items() if key != "output_dir"
    }
    tried = [trial["names"] for trial in figures["speeds"] if not trial["on_top_of"]]
    alone = [names[0] for names in tried if len(names) == 1]
    assert alone == list(figures["reasons"])
    assert len(tried) > len(alone)  # combinations
    assert all(figures["reasons"].values())
    optimised, base = load_config(target / "optimised.yaml"), load_config(config)
    assert optimised.model == base.model
    assert optimised.training.sequences_per_step == base.training.sequences_per_step
    report = (target / "report.md").read_text()
    assert all(name in report for name in alone)
    assert infinito("train", "--config", target / "optimised.yaml", "--dry-run").code == 0


def test_what_is_kept_is_proved_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = measuring.TrainingMeasurer.speed

    def speed(self, before, after, threads=None):  # type: ignore[no-untyped-def]
        found = real(self, before, after, threads)
        better = after.training.precision == "bfloat16" != before.training.precision
        low, high = (1.9, 2.1) if better else (0.4, 0.6)
        return measuring.SpeedRatio(
            2.0 if better else 0.5, low, high, found.before, found.after,
            found.memory_before, found.memory_after,
        )  # fmt: skip

    monkeypatch.setattr(measuring.TrainingMeasurer, "speed", speed)
    config, target = write_config(tmp_path), tmp_path / "out"
    done = infinito("optimise", config, "--output-dir", target)
    assert done.code == 0, done.err
    assert "training.precision: float32 -> bfloat16" in done.out
    figures = json.loads((target / "optimise.json").read_text())
    assert figures["changed"] == {"training.precision": "bfloat16"}
    [quality] = figures["qualities"]
    assert len(quality["baseline"]) == len(quality["losses"]) == 3
    assert len(set(quality["baseline"])) == 3
    assert quality["baseline"] != quality["losses"]
    text = (target / "optimised.yaml").read_text()
    assert text.startswith("# ")
    assert "2.00x" in text
    assert infinito("train", "--config", target / "optimised.yaml").code == 0


def test_a_checkpoint_brings_int8(tmp_path: Path) -> None:
    assert infinito("train", "--config", write_config(tmp_path)).code == 0
    target, before = tmp_path / "out", (tmp_path / "run" / "best.pt").read_bytes()
    done = infinito("optimise", tmp_path / "run", "--output-dir", target)
    assert done.code == 0, done.err
    figures = json.loads((target / "optimise.json").read_text())
    int8 = figures["int8"]
    assert int8["bytes_after"] < int8["bytes_before"] / 2
    assert abs(int8["loss_change"]) < 0.1
    assert (target / "int8.pt").exists() == int8["kept"]
    if int8["kept"]:
        load_model(target / "int8.pt", "cpu")
    assert "int8" in done.out
    assert (tmp_path / "run" / "best.pt").read_bytes() == before
    assert load_config(target / "optimised.yaml").output_dir is None


def test_faults_are_those_of_training(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__train_file=str(tmp_path / "no.txt"))
    out = tmp_path / "out"
    assert infinito("optimise", config, "--output-dir", out).refused(3)
    assert infinito("optimise", tmp_path / "no.yaml", "--output-dir", out).refused(2)
    assert infinito("optimise", tmp_path / "no.pt", "--output-dir", out).refused(4)
    assert not out.exists()


def test_a_config_that_diverges_does_so_as_in_training(tmp_path: Path) -> None:
    changes = {"training__learning_rate": 1e30, "training__max_grad_norm": 0.0}
    done = infinito("optimise", write_config(tmp_path, **changes), "--output-dir", tmp_path / "out")
    assert "diverged" in done.refused(5)
    assert not (tmp_path / "out").exists()


def test_an_earlier_report_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "report.md").write_text("of somebody else")
    done = infinito("optimise", write_config(tmp_path), "--output-dir", target)
    assert "report.md exists" in done.refused(6)
    assert (target / "report.md").read_text() == "of somebody else"
