"""Our safetensors files: the library reads them, they read back, and a flipped bit is noticed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from infinito.checkpoint.format import read_checkpoint
from infinito.config.loading import config_from_plain
from infinito.errors import CheckpointError
from infinito.load import open_checkpoint
from infinito.train.trainer import Trainer
from tests.command_support import infinito
from tests.support import tiny_settings


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint with averaged weights, and its export."""
    settings = tiny_settings(tmp_path, training__ema_decay=0.5, model__d_model=16)
    trainer = Trainer(config_from_plain(settings, "test"))
    trainer.train_step()
    trainer.save(tmp_path / "model.pt")
    done = infinito(
        "export", tmp_path / "model.pt", "--to", "safetensors", "--output", tmp_path / "x"
    )
    assert done.code == 0, done.err
    return tmp_path / "model.pt", tmp_path / "x"


def test_what_reads_back_is_what_was_averaged(exported: tuple[Path, Path]) -> None:
    before, after = map(open_checkpoint, exported)
    assert (before.config, before.content["data"]) == (after.config, after.content["data"])
    assert before.tokenizer.fingerprint == after.tokenizer.fingerprint
    weights = after.weights()
    assert weights.keys() == before.weights().keys()
    assert all(torch.equal(weights[name], w) for name, w in before.content["average"].items())
    assert not torch.equal(weights["embedding.weight"], before.content["model"]["embedding.weight"])
    with safe_open(exported[1], "pt") as library:
        assert set(library.keys()) == weights.keys()
        assert all(torch.equal(library.get_tensor(name), w) for name, w in weights.items())


@pytest.mark.row("S-05")
def test_a_flipped_bit_is_noticed_or_changes_nothing(exported: tuple[Path, Path]) -> None:
    path, draw = exported[1], random.Random(0)
    good, expected = path.read_bytes(), open_checkpoint(path)
    for place in [*range(16), *(draw.randrange(len(good)) for _ in range(200))]:
        data = bytearray(good)
        data[place] ^= 1 << draw.randrange(8)
        path.unlink()
        path.write_bytes(data)
        try:
            found = open_checkpoint(path)
        except CheckpointError:
            continue
        assert found.config == expected.config
        assert read_checkpoint(path)["tokenizer"] == expected.content["tokenizer"]
        weights = found.weights()
        assert all(torch.equal(weights[name], w) for name, w in expected.weights().items()), place


def test_training_cannot_go_on_from_it(exported: tuple[Path, Path]) -> None:
    assert "training.init_from" in infinito("resume", exported[1]).refused(4)
