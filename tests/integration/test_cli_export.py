"""Exports: what is written reads back, and what cannot be is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from infinito.cli.main import main
from infinito.config.loading import config_from_plain
from infinito.load import load_model
from infinito.train.callbacks import standard_callbacks
from infinito.train.run import run
from infinito.train.trainer import Trainer
from tests.support import tiny_settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export")
    settings = tiny_settings(
        directory, model__d_model=64, training__max_steps=60, training__learning_rate=0.01,
        training__eval_every=0,
    )  # fmt: skip
    trainer = Trainer(config_from_plain(settings, "test"))
    run(trainer, standard_callbacks(trainer))
    trainer.save(directory / "model.pt")
    return directory / "model.pt"


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_int8_evaluates_and_generates_almost_alike_from_a_third_of_the_bytes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.pt"
    code, out, err = command(capsys, "export", trained, "--to", "int8", "--output", target)
    assert (code, "int8" in out) == (0, True), err
    content, before = read_checkpoint(target), read_checkpoint(trained)
    sizes = [
        sum(t.numel() * t.element_size() for t in file["model"].values())
        for file in (content, before)
    ]
    assert sizes[0] < 0.35 * sizes[1]
    assert target.stat().st_size < 0.2 * trained.stat().st_size  # no moments either
    code, out, err = command(capsys, "evaluate", trained, target, "--json")
    assert code == 0, err
    exact, near = (report["loss"] for report in json.loads(out))
    assert exact != near
    assert near == pytest.approx(exact, rel=0.005)
    code, out, err = command(
        capsys, "generate", target, "--prompt", "the cat", "--seed", 1, "--max-new-tokens", 20
    )
    assert code == 0, err
    assert out.startswith("the cat")


def test_int8_is_no_start_for_training_and_is_not_made_twice(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.pt"
    export = ("export", trained, "--to", "int8", "--output", target)
    assert command(capsys, *export)[0] == 0
    code, _, err = command(capsys, "resume", target)
    assert (code, "cannot be trained" in err) == (4, True), err
    code, _, err = command(capsys, *export)
    assert (code, f"{target} exists" in err) == (6, True), err
    again = tmp_path / "again.pt"
    code, _, err = command(capsys, "export", target, "--to", "int8", "--output", again)
    assert (code, "int8 weights already" in err) == (4, True), err
    assert not again.exists()


@pytest.mark.row("S-07")
@pytest.mark.parametrize("fault", ["gain", "scales", "shape", "float", "infinite"])
def test_foreign_int8_files_are_refused(
    fault: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.pt"
    assert command(capsys, "export", trained, "--to", "int8", "--output", target)[0] == 0
    content: dict[str, Any] = read_checkpoint(target)
    model, name = content["model"], "blocks.0.attention.query"
    if fault == "gain":
        model["final_norm.weight"] = model["final_norm.weight"].to(torch.int8)
    elif fault == "scales":
        del model[f"{name}.scales"]
    elif fault == "shape":
        model[f"{name}.scales"] = torch.ones(64, 2)
    elif fault == "float":
        model[f"{name}.weight"] = model[f"{name}.weight"].float()
    else:
        model[f"{name}.scales"] = model[f"{name}.scales"] * torch.inf
    write_checkpoint(target, content)
    for words in (("evaluate", target), ("generate", target, "--prompt", "x")):
        code, _, err = command(capsys, *words)
        assert code == (5 if fault == "infinite" else 4), err
        assert "Traceback" not in err


def test_the_model_from_the_file_is_the_one_that_was_measured(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.pt"
    assert command(capsys, "export", trained, "--to", "int8", "--output", target)[0] == 0
    near, exact = load_model(target, "cpu").model, load_model(trained, "cpu").model
    error = near.embedding.matrix() - exact.embedding.matrix()
    largest = exact.embedding.matrix().abs().max()
    assert 0 < float(error.abs().max()) <= float(largest) / 127 / 2 * 1.001
