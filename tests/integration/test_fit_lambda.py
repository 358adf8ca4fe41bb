"""Fitting lambda: nothing else moves, the result is never worse, and it is a checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infinito.cli.main import main
from infinito.config.loading import config_from_plain
from infinito.data.prepare import prepare
from infinito.errors import CheckpointError, ConfigError
from infinito.export.int8_export import export_int8
from infinito.load import load_model, open_checkpoint
from infinito.train import lambdas
from infinito.train.lambdas import (
    LambdaFit,
    fit_lambda,
    lambda_trainer,
    save_fitted,
    standard_error,
)
from infinito.train.trainer import Trainer
from tests.support import tiny_settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of an L1 model and one of a dot-product model without lambda, both trained."""
    directory = tmp_path_factory.mktemp("fit")
    paths = {}
    for kind in ("l1", "dot"):
        settings = tiny_settings(
            directory,
            model__attention={"kind": kind},
            training__max_steps=60,
            training__learning_rate=0.01,
        )
        trainer = Trainer(config_from_plain(settings, "test"))
        while not trainer.finished:
            trainer.train_step()
        paths[kind] = directory / f"{kind}.pt"
        trainer.save(paths[kind])
    return paths


def opened(path: Path, **options: Any) -> Trainer:
    checkpoint = open_checkpoint(path)
    dataset = prepare(checkpoint.config, tokenizer=checkpoint.tokenizer)
    return lambda_trainer(checkpoint, dataset, device="cpu", **options)


def loss_of_start(path: Path) -> float:
    return fit_lambda(opened(path, max_steps=1, learning_rate=1e-12)).loss_before


def spoil(trainer: Trainer, factor: float) -> None:
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name.endswith("log_lambda"):
                parameter += math.log(factor)


def test_a_wrong_lambda_is_mended_and_nothing_else_moves(trained: dict[str, Path]) -> None:
    trainer = opened(trained["l1"], max_steps=40, learning_rate=0.2)
    spoil(trainer, 0.05)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    fit = fit_lambda(trainer)
    assert fit.change < -0.005
    assert -fit.change > 2 * fit.noise > 0
    assert fit.best_step > 0
    assert fit.tokens == 40 * 4 * 16
    assert [step for step, _ in fit.history] == [0, 10, 20, 30, 40]
    assert np.mean(fit.after) > 1.5 * np.mean(fit.before)
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {name for name in before if name.endswith("log_lambda")}


def test_never_worse_than_the_start(trained: dict[str, Path]) -> None:
    start = loss_of_start(trained["l1"])
    trainer = opened(trained["l1"], max_steps=4, learning_rate=8.0)  # far too much
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    fit = fit_lambda(trainer)
    assert min(loss for _, loss in fit.history[1:]) > start
    assert (fit.best_step, fit.change, fit.after) == (0, 0.0, fit.before)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_lambda_is_what_the_loss_after_belongs_to(trained: dict[str, Path], tmp_path: Path) -> None:
    trainer = opened(trained["l1"], max_steps=12, learning_rate=0.2)
    spoil(trainer, 0.1)
    fit = fit_lambda(trainer)
    save_fitted(open_checkpoint(trained["l1"]), trainer, tmp_path / "fitted.pt")
    assert loss_of_start(tmp_path / "fitted.pt") == fit.loss_after
    again = opened(tmp_path / "fitted.pt")
    assert fit.after == [torch.as_tensor(b.attention.lam).tolist() for b in again.model.blocks]


def test_a_model_without_lambda_gets_one(trained: dict[str, Path], tmp_path: Path) -> None:
    trainer = opened(trained["dot"], max_steps=8)
    plain = Trainer.load(trained["dot"]).validate()
    fit = fit_lambda(trainer)
    assert plain is not None
    assert fit.before == [[1.0, 1.0], [1.0, 1.0]]
    assert fit.loss_before == pytest.approx(plain.score.loss, abs=1e-6)
    save_fitted(open_checkpoint(trained["dot"]), trainer, tmp_path / "fitted.pt")
    loaded = load_model(tmp_path / "fitted.pt", "cpu")
    assert loaded.config.model.attention.learnable_lambda is True
    assert fit.after == [torch.as_tensor(b.attention.lam).tolist() for b in loaded.model.blocks]


def test_a_fitted_checkpoint_resumes(trained: dict[str, Path], tmp_path: Path) -> None:
    trainer = opened(trained["dot"], max_steps=2)
    fit_lambda(trainer)
    save_fitted(open_checkpoint(trained["dot"]), trainer, tmp_path / "fitted.pt")
    resumed = Trainer.load(tmp_path / "fitted.pt")
    resumed.train_step()
    assert resumed.progress.step == 61


def test_numbers_that_make_no_sense(trained: dict[str, Path]) -> None:
    for wrong in ({"epochs": 0.0}, {"learning_rate": -1.0}, {"learning_rate": math.nan}):
        with pytest.raises(ConfigError, match="positive"):
            opened(trained["l1"], **wrong)


def test_weights_of_eight_bits_are_refused_by_name(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    export_int8(open_checkpoint(trained["l1"]), tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match=r"small\.pt holds weights of eight bits"):
        opened(tmp_path / "small.pt")


def test_the_standard_error_is_that_of_block_means() -> None:
    generator = np.random.default_rng(0)
    values = np.repeat(generator.normal(size=50), 8)  # blocks of equal tokens
    blocks = values.reshape(50, 8).mean(1)
    assert standard_error(values, 8) == pytest.approx(blocks.std(ddof=1) / 50**0.5)
    assert standard_error(values[:8], 8) == 0.0


def test_a_change_is_shown_beyond_twice_its_noise() -> None:
    fit = LambdaFit([[1.0]], [[1.1]], 5.0, 4.9, 0.04, [], 4, 100)
    assert fit.is_shown
    assert not replace(fit, noise=0.051).is_shown
    assert not replace(fit, loss_after=5.0, noise=0.0).is_shown  # the start was kept


def test_the_command(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, before = tmp_path / "new.pt", trained["l1"].read_bytes()
    command = ["fit-lambda", str(trained["l1"]), "--max-steps", "4", "--device", "cpu"]
    assert main([*command, "--output", str(target), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["change"] <= 0
    assert len(result["before"]) == len(result["after"]) == 2
    assert load_model(target, "cpu").step == 60
    assert trained["l1"].read_bytes() == before

    assert main([*command, "--output", str(target)]) == 6
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "other.pt")]) == 0
    out = capsys.readouterr().out
    assert "valid loss:" in out
    is_shown = result["change"] < -2 * result["noise"]
    assert ("(standard error): nothing is shown" in out) != is_shown
    assert main([*command, "--set", "model.n_layers=3", "--output", str(tmp_path / "3.pt")]) == 2


def test_a_missing_device_comes_before_a_missing_text(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit-lambda", str(trained["l1"]), "--device", "cuda:77"]
    gone = ["--set", f"data.train_file={tmp_path / 'gone.txt'}"]
    assert main([*command, *gone, "--output", str(tmp_path / "new.pt")]) == 6
    assert "device cuda:77 is not there" in capsys.readouterr().err


def test_a_file_that_appears_meanwhile_is_kept(
    trained: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, fit = tmp_path / "new.pt", lambdas.fit_lambda

    def slow_fit(*arguments: Any, **options: Any) -> lambdas.LambdaFit:
        result = fit(*arguments, **options)
        target.write_text("of somebody else")
        return result

    monkeypatch.setattr(lambdas, "fit_lambda", slow_fit)
    command = ["fit-lambda", str(trained["l1"]), "--max-steps", "1", "--device", "cpu"]
    assert main([*command, "--output", str(target)]) == 6
    assert f"{target} exists" in capsys.readouterr().err
    assert target.read_text() == "of somebody else"
    assert list(tmp_path.iterdir()) == [target]
