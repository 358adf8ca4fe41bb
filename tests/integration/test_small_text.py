"""A text with fewer sequences than a step wants: the step is made smaller, said and stored."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from infinito.config.loading import config_from_plain
from infinito.train.trainer import Trainer
from tests.command_support import at_step, infinito, read_log, result_files, write_config
from tests.support import tiny_settings

# 300 bytes and their separator: 10 sequences of 27 tokens at most, whatever is dropped at the head.
TEXT = "a few words on one line .\n" * 12
LENGTH, SEQUENCES, EPOCHS = 27, 10, 3


def small(place: Path, **changes: object) -> Path:
    """A config for ``EPOCHS`` over a training text of ``SEQUENCES`` sequences."""
    (place / "text.txt").write_text(TEXT)
    (place / "valid.txt").write_text("another line of words .\n" * 4)
    wanted = {"data__sequence_length": LENGTH, "data__valid_file": str(place / "valid.txt")}
    ends = {"training__max_steps": None, "training__epochs": EPOCHS, "training__batch_size": 64}
    return write_config(place, **{**wanted, **ends, **changes})


def stored(run: Path) -> tuple[int, int]:
    training = yaml.safe_load((run / "config.yaml").read_text())["training"]
    content = torch.load(run / "last.pt", weights_only=True)["config"]["training"]
    keys = ("batch_size", "gradient_accumulation_steps")
    assert [training[key] for key in keys] == [content[key] for key in keys]
    return training["batch_size"], training["gradient_accumulation_steps"]


@pytest.mark.parametrize(
    ("asked", "given"),
    [((64, 1), (10, 1)), ((4, 16), (4, 2)), ((3, 4), (3, 3)), ((1, 11), (1, 10)), ((7, 2), (7, 1))],
)
def test_a_step_takes_no_sequence_twice(
    tmp_path: Path, asked: tuple[int, int], given: tuple[int, int]
) -> None:
    keys = ("training__batch_size", "training__gradient_accumulation_steps")
    config = small(tmp_path, **dict(zip(keys, asked, strict=True)))
    done = infinito("train", "--config", config)
    assert done.code == 0, done.err
    assert f"warning: the training text has {SEQUENCES} sequences of {LENGTH} tokens" in done.err
    assert stored(tmp_path / "run") == given
    steps = read_log(tmp_path / "run")
    assert len(steps) == -(-EPOCHS * SEQUENCES // (given[0] * given[1]))
    assert steps[0]["tokens"] == given[0] * given[1] * LENGTH
    dry = infinito("train", "--config", config, "--dry-run", "--output-dir", tmp_path / "other")
    assert f"{len(steps)} of " in dry.err


@pytest.mark.parametrize("asked", [(10, 1), (5, 2), (2, 1)])
def test_a_run_whose_text_suffices_is_left_alone(tmp_path: Path, asked: tuple[int, int]) -> None:
    keys = ("training__batch_size", "training__gradient_accumulation_steps")
    done = infinito("train", "--config", small(tmp_path, **dict(zip(keys, asked, strict=True))))
    assert done.code == 0, done.err
    assert "the training text has" not in done.err
    assert stored(tmp_path / "run") == asked


@pytest.mark.parametrize("with_config", [False, True])
def test_a_resumed_run_goes_on_with_the_smaller_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_config: bool
) -> None:
    config = small(tmp_path, training__save_every=1)
    assert infinito("train", "--config", config).code == 0
    whole = result_files(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "whole")
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert infinito("train", "--config", config).code == 143
    extra = ("--config", config) if with_config else ()
    resumed = infinito("train", "--resume", tmp_path / "run", *extra)
    assert resumed.code == 0, resumed.err
    assert "training.batch_size:" not in resumed.err
    assert result_files(tmp_path / "run") == whole


def test_a_larger_batch_asked_for_on_resume_is_fitted_too(tmp_path: Path) -> None:
    assert infinito("train", "--config", small(tmp_path, training__batch_size=2)).code == 0
    longer = infinito("resume", tmp_path / "run", "--batch-size", 64, "--epochs", 6)
    assert longer.code == 0, longer.err
    assert "training.batch_size: 2 -> 10" in longer.err
    assert stored(tmp_path / "run") == (10, 1)


def test_an_older_run_with_a_larger_step_goes_on_as_it_began(tmp_path: Path) -> None:
    plain = tiny_settings(
        tmp_path, data__sequence_length=LENGTH, data__train_file=str(tmp_path / "text.txt"),
        data__valid_file=str(tmp_path / "valid.txt"), training__batch_size=16,
    )  # fmt: skip
    small(tmp_path)
    trainer = Trainer(config_from_plain(plain, "test"))
    trainer.train_step()
    (tmp_path / "run").mkdir()
    trainer.save(tmp_path / "run" / "step-000001.pt")
    resumed = infinito("resume", tmp_path / "run")
    assert resumed.code == 0, resumed.err
    assert "the training text has" not in resumed.err
    assert stored(tmp_path / "run") == (16, 1)
