"""Exact resume through the commands: rows R-01 to R-12, whole files compared byte by byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from infinito.checkpoint.format import read_checkpoint
from infinito.cli.main import main
from infinito.train import trainer as trainer_module
from tests.support import tiny_settings, write_text

# 400 bytes and the end of the document make 24 sequences of 16: three steps of 8 an epoch.
STEPS_PER_EPOCH = 3
EVERYTHING = {
    "data__valid_file": None,  # set below
    "model__dropout": 0.2,
    "model__word_dropout": 0.1,
    "training__gradient_accumulation_steps": 2,
    "training__max_steps": 8,
    "training__ema_decay": 0.9,
    "training__optimizer": "muon",
    "training__eval_every": 3,
    "training__save_every": 1,
    "training__keep_last": 50,
    "training__log_every": 2,
}
TIMING = {"seconds", "tokens_per_second", "memory_mb", "eta_seconds"}

Start = Callable[..., Path]


@pytest.fixture
def start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    """Train a run with all that a checkpoint must carry; returns its directory."""
    (tmp_path / "text.txt").write_bytes(write_text(tmp_path / "source.txt").read_bytes()[:400])
    valid = write_text(tmp_path / "valid.txt", paragraphs=3, seed=1)

    def train(**changes: Any) -> Path:
        options = {**EVERYTHING, "data__valid_file": str(valid), **changes}
        settings = tiny_settings(tmp_path, **options)
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        assert main(["train", "--config", str(config)]) == 0, capsys.readouterr().err
        return Path(str(settings["output_dir"]))

    return train


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what a clock or a memory meter says."""
    text = (run / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMING} for x in text.splitlines()]


@pytest.mark.row("R-01", "R-03", "R-12")
def test_hops_inside_at_and_after_the_end_of_an_epoch_end_with_the_same_files(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start()
    names = [f"step-{step:06d}.pt" for step in range(1, 9)]
    whole = {name: (run / name).read_bytes() for name in names}
    metrics = lines(run)
    assert read_checkpoint(run / names[STEPS_PER_EPOCH - 1])["epoch"] == 1.0
    for stop in (STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1):
        # Each hop starts from a file that the hop before has written.
        assert main(["resume", str(run / f"step-{stop:06d}.pt")]) == 0, capsys.readouterr().err
        assert "set aside" in capsys.readouterr().err
        again = {name: (run / name).read_bytes() for name in names}
        assert [name for name in names if again[name] != whole[name]] == []
    assert lines(run) == metrics
    steps = [line["step"] for line in metrics]
    assert steps == sorted(set(steps))
    assert steps[-1] == 8


@pytest.mark.row("R-04")
def test_resuming_a_finished_run_changes_nothing(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert main(["resume", str(run)]) == 0
    assert "already at step 8 of 8" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.row("R-05")
def test_evaluating_and_saving_often_or_never_gives_the_same_weights(
    start: Start, tmp_path: Path
) -> None:
    busy = start(output_dir=str(tmp_path / "busy"), training__eval_every=1)
    quiet = start(
        output_dir=str(tmp_path / "quiet"), training__eval_every=0, training__save_every=0
    )
    ends = [read_checkpoint(run / "last.pt") for run in (busy, quiet)]
    assert [len(end["evaluations"]) for end in ends] == [8, 1]
    for part in ("model", "average", "random"):
        for name, value in ends[0][part].items():
            other = ends[1][part][name]
            same = torch.equal(value, other) if torch.is_tensor(value) else value == other
            assert same, f"{part} {name}"


@pytest.mark.row("R-06")
def test_other_shapes_are_all_refused_at_once_with_both_values(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    wanted = ("model.d_model=64", "model.n_layers=3", "tokenizer.kind=word",
              "tokenizer.vocab_size=300", "model.attention.kind=l2sq")  # fmt: skip
    assert main(["resume", str(run), *(part for x in wanted for part in ("--set", x))]) == 4
    message = capsys.readouterr().err
    for expected in (
        "model.d_model: checkpoint 32, asked for 64",
        "model.n_layers: checkpoint 2, asked for 3",
        "tokenizer.kind: checkpoint byte, asked for word",
        "tokenizer.vocab_size: checkpoint None, asked for 300",
        "model.attention.kind: checkpoint dot, asked for l2sq",
    ):
        assert expected in message
    assert "Traceback" not in message
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.row("R-10", "R-11")
def test_the_sequences_of_a_resumed_run_join_without_repeat_or_gap(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each step was trained on, across two epochs, a resume, and another batch size."""
    seen: list[torch.Tensor] = []
    step = trainer_module.training_step

    def recording(model: Any, optimizers: Any, scaler: Any, sequences: torch.Tensor, *rest: Any):  # type: ignore[no-untyped-def]
        seen.extend(sequences)
        return step(model, optimizers, scaler, sequences, *rest)

    monkeypatch.setattr(trainer_module, "training_step", recording)
    run = start()
    whole = seen.copy()
    assert len(whole) == 8 * 8
    per_epoch = STEPS_PER_EPOCH * 8
    for epoch in (whole[:per_epoch], whole[per_epoch : 2 * per_epoch]):
        assert len({tuple(row.tolist()) for row in epoch}) == per_epoch
    seen.clear()
    # Two steps of 8 were taken: ten of 4 bring the run to 56 sequences, past an epoch's end.
    small = ["--batch-size", "2", "--max-steps", "12"]
    assert main(["resume", str(run / "step-000002.pt"), *small]) == 0
    assert len(seen) == 10 * 4
    assert torch.equal(torch.stack(seen), torch.stack(whole[16 : 16 + 40]))
    assert read_checkpoint(run / "last.pt")["sequences"] == 16 + 40


@pytest.mark.row("R-12")
def test_the_learning_rate_goes_on_where_it_was(start: Start) -> None:
    run = start(training__log_every=1)
    rates = {line["step"]: line["learning_rate"] for line in lines(run) if "learning_rate" in line}
    assert main(["resume", str(run / "step-000005.pt")]) == 0
    again = [(line["step"], line["learning_rate"]) for line in lines(run)]
    assert again == list(rates.items())
    assert [step for step, _ in again] == list(range(1, 9))
    assert len(set(rates.values())) > 4, "a constant rate would prove nothing"


FIELDS = {
    "step": int, "epoch": float, "tokens": int, "sequences": int, "vocab_size": int,
    "config": dict, "tokenizer": str, "data": dict, "versions": dict, "best": dict,
    "evaluations": list, "log": dict, "scaler": dict, "random": dict, "optimizers": dict,
}  # fmt: skip


@pytest.mark.row("R-07")
def test_a_checkpoint_lists_all_that_a_resumed_run_needs(start: Start) -> None:
    run = start(training__precision="float16", training__early_stopping_patience=5)
    content = torch.load(run / "step-000004.pt", weights_only=True)
    for name, kind in FIELDS.items():
        assert type(content[name]) is kind, name
        assert content[name], f"{name} is empty"
    assert set(content["random"]) == {"python", "numpy", "torch", "device"}
    assert set(content["data"]) == {"train", "valid"}
    assert content["model"].keys() == content["average"].keys() == content["optimizers"].keys()
    kinds = {frozenset(fields) for fields in content["optimizers"].values()}
    assert kinds == {frozenset({"step", "exp_avg", "exp_avg_sq"}), frozenset({"momentum_buffer"})}
    # Patience is counted from the evaluations; the position is `sequences`, the rate `step`.
    assert content["best"] in content["evaluations"]
    assert content["sequences"] == 4 * 8
    assert {"torch", "numpy", "python", "infinito"} <= set(content["versions"])
    assert {"scale", "_growth_tracker"} <= set(content["scaler"])
