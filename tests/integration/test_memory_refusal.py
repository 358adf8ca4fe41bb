"""A run that memory cannot hold is refused from its config, before anything is allocated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from infinito.config.loading import config_from_plain
from infinito.config.schema import Config
from infinito.data.prepare import prepare
from infinito.errors import ResourceError
from infinito.load import open_checkpoint
from infinito.model.step_memory import count_memory
from infinito.train import automatic, resumption, session, trainer
from infinito.train.lambdas import lambda_trainer
from infinito.train.trainer import Trainer
from tests.command_support import all_files, infinito, memory_at_most, write_config
from tests.support import tiny_settings

MODES = [[], ["--dry-run"]]


def too_early(*_: Any, **__: Any) -> Any:
    raise AssertionError("it went on instead of being refused")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFINITO_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.row("C-22")
@pytest.mark.parametrize("mode", MODES)
def test_train_refuses_a_model_beyond_memory_before_it_reads_text(
    place: Path, monkeypatch: pytest.MonkeyPatch, mode: list[str]
) -> None:
    config = write_config(place)
    before = all_files(place)
    monkeypatch.setattr(session, "prepare", too_early)
    with memory_at_most(1 << 30):
        outcome = infinito("train", "--config", config, "--set", "model.d_model=16384", *mode)
    message = outcome.refused(6)
    # 2 layers of 12 d_model^2 weights in float32, four times with gradients and two moments.
    needed, left = re.search(
        r"needs about ([\d.]+) GB .* ([\d.]+) [MG]B are left", message
    ).groups()  # type: ignore[union-attr]
    assert 16 * 2 * 12 * 16384**2 < float(needed) * 1e9 < 1.1 * 16 * 2 * 12 * 16384**2
    assert float(left) > 1
    assert "lower model.d_model" in message
    assert all_files(place) == before


@pytest.mark.row("C-22")
@pytest.mark.parametrize("mode", MODES)
def test_resume_refuses_a_step_beyond_memory_before_it_reads_text(
    place: Path, monkeypatch: pytest.MonkeyPatch, mode: list[str]
) -> None:
    assert infinito("train", "--config", write_config(place)).code == 0
    before = all_files(place)
    monkeypatch.setattr(trainer, "prepare", too_early)
    monkeypatch.setattr(resumption, "rehearse", too_early)
    with memory_at_most(400 << 20):
        outcome = infinito("resume", "run", "--max-steps", 20, "--batch-size", 60_000, *mode)
    assert "60000 x 16 tokens" in outcome.refused(6)
    assert all_files(place) == before


def counted(config: Config, vocab_size: int) -> int:
    return count_memory(config, vocab_size).total


@pytest.fixture
def config(tmp_path: Path) -> Config:
    plain = tiny_settings(
        tmp_path, tokenizer__kind="word", training__precision="float32", training__batch_size=200
    )
    return config_from_plain(plain, "test")


@pytest.mark.row("C-22")
@pytest.mark.parametrize("fits", [True, False])
def test_a_vocabulary_that_the_text_decides_counts_before_the_model_is_built(
    config: Config, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    words = Trainer(config).tokenizer.vocab_size
    assert words > 20
    left = counted(config, words) - (not fits)
    monkeypatch.setattr(automatic, "available_bytes", lambda _: left)
    if fits:
        Trainer(config)
        return
    automatic.resolve(config)  # by itself, the config could do with less
    monkeypatch.setattr(trainer, "build_model", too_early)
    with pytest.raises(ResourceError):
        Trainer(config)


@pytest.mark.row("C-17")
def test_the_batch_that_is_advised_fits_and_is_no_needlessly_small_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = counted(config, 300) * 2 // 3
    monkeypatch.setattr(automatic, "available_bytes", lambda _: left)
    with pytest.raises(ResourceError) as caught:
        automatic.require_memory(config, 300)
    advised = int(re.findall(r"--batch-size (\d+)", caught.value.remedy)[0])

    def with_batch(size: float) -> Config:
        training = config.training.model_copy(update={"batch_size": int(size)})
        return config.model_copy(update={"training": training})

    automatic.require_memory(with_batch(advised), 300)
    with pytest.raises(ResourceError):
        automatic.require_memory(with_batch(1.25 * advised), 300)


def test_where_no_batch_fits_the_model_is_to_blame_or_its_context(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = config.training.model_copy(update={"batch_size": 1})
    config = config.model_copy(update={"training": single})
    for left, advice in ((counted(config, 300) - 1, "sequence_length"), (1000, "model.d_model")):
        monkeypatch.setattr(automatic, "available_bytes", lambda _, left=left: left)
        with pytest.raises(ResourceError) as caught:
            automatic.require_memory(config, 300)
        assert advice in caught.value.remedy
        assert "--batch-size" not in caught.value.remedy


def test_fitting_lambda_needs_no_gradients_and_moments_of_what_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_settings(tmp_path, model__d_model=512, model__attention={"kind": "l1"})
    Trainer(config_from_plain(plain, "test")).save(tmp_path / "model.pt")
    opened = open_checkpoint(tmp_path / "model.pt")
    weights = sum(tensor.nbytes for tensor in opened.content["model"].values())
    step = count_memory(opened.config, 257).activations + count_memory(opened.config, 257).loss
    dataset = prepare(opened.config, tokenizer=opened.tokenizer)
    monkeypatch.setattr(automatic, "available_bytes", lambda _: 1.5 * weights + step)
    lambda_trainer(opened, dataset, device="cpu", max_steps=1)
    with pytest.raises(ResourceError):
        Trainer(opened.config, dataset)
    monkeypatch.setattr(automatic, "available_bytes", lambda _: 0.9 * weights + step)
    with pytest.raises(ResourceError):
        lambda_trainer(opened, dataset, device="cpu", max_steps=1)
