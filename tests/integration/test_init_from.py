"""training.init_from: a new run from what another learnt, on another text and schedule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from infinito.config.loading import load_config
from infinito.load import open_checkpoint
from infinito.train.trainer import Trainer
from tests.command_support import infinito, read_log, write_config
from tests.support import write_text


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose model has no default shape, with averaged weights."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("first")
        patch.setenv("INFINITO_CACHE", str(place / "cache"))
        config = write_config(
            place, model__activation="swiglu", tokenizer={"kind": "bpe", "vocab_size": 290},
            training__ema_decay=0.9, training__max_steps=30, training__learning_rate=0.01,
        )  # fmt: skip
        assert infinito("train", "--config", config).code == 0
        yield place / "run"


def second(place: Path, first: Path, **more: object) -> Path:
    """A config that names its own text and schedule, and no model."""
    plain = {
        "device": "cpu",
        "output_dir": str(place / "second"),
        "data": {"train_file": str(write_text(place / "own.txt", seed=5)), "sequence_length": 24},
        "training": {"max_steps": 3, "batch_size": 2, "init_from": str(first), "log_every": 1},
        **more,
    }
    path = place / "second.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def test_a_run_starts_from_the_weights_and_tokenizer(first: Path, tmp_path: Path) -> None:
    config = second(tmp_path, first, model={"dropout": 0.1})
    trainer, before = Trainer(load_config(config)), open_checkpoint(first / "best.pt")
    weights = before.weights()
    assert all(torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters())
    assert trainer.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert trainer.config.model.dropout == 0.1
    assert (trainer.config.model.activation, trainer.progress.step) == ("swiglu", 0)

    done = infinito("train", "--config", config)
    assert done.code == 0, done.err
    assert "starting from the weights and the tokenizer of" in done.err
    losses = [line["loss"] for line in read_log(tmp_path / "second")]
    assert losses[0] < 4.5  # log 290 is 5.7: it starts from what was learnt
    stored = open_checkpoint(tmp_path / "second" / "last.pt").config
    assert stored.training.init_from == str(first)
    again = infinito("train", "--config", tmp_path / "second" / "config.yaml",
                     "--output-dir", tmp_path / "again")  # fmt: skip
    assert again.code == 0, again.err
    assert [line["loss"] for line in read_log(tmp_path / "again")] == losses


def test_resuming_does_not_read_it_again(first: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes((first / "best.pt").read_bytes())
    config = second(tmp_path, copy)
    dry = infinito("train", "--config", config, "--dry-run")
    assert (dry.code, "starting from" in dry.err) == (0, True), dry.err
    assert infinito("train", "--config", config).code == 0
    copy.unlink()
    resume = ("resume", tmp_path / "second", "--max-steps", 5)
    assert "init_from" in infinito(*resume, "--set", "training.init_from=x.pt").refused(4)
    done = infinito(*resume)
    assert done.code == 0, done.err
    assert len(read_log(tmp_path / "second")) == 5
    missing = infinito("train", "--config", config, "--output-dir", tmp_path / "third")
    assert str(copy) in missing.refused(4)
    assert not (tmp_path / "third").exists()


def test_each_field_that_does_not_fit_is_named(first: Path, tmp_path: Path) -> None:
    config = second(tmp_path, first, model={"d_model": 64, "n_layers": 2, "d_ff": 64},
                    tokenizer={"kind": "byte"})  # fmt: skip
    message = infinito("train", "--config", config).refused(4)
    assert "model.d_model: checkpoint 32, config 64" in message
    assert "model.d_ff: checkpoint 96, config 64" in message
    assert "tokenizer.kind: checkpoint bpe, config byte" in message
    assert "n_layers" not in message
    assert not (tmp_path / "second").exists()
    int8 = tmp_path / "int8.pt"
    assert infinito("export", first, "--to", "int8", "--output", int8).code == 0
    assert "eight bits" in infinito("train", "--config", second(tmp_path, int8)).refused(4)


def test_an_export_is_a_start_too(first: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    assert infinito("export", first, "--to", "safetensors", "--output", file).code == 0
    done = infinito("train", "--config", second(tmp_path, file), "--set", "data.sequence_length=16")
    assert done.code == 0, done.err
    report = infinito("evaluate", tmp_path / "second", "--json")
    assert json.loads(report.out)["step"] == 3
