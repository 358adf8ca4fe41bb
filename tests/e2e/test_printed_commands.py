"""What the program says to type next is typed into a shell as it stands."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from infinito.train.trainer import Trainer
from tests.command_support import all_files, at_step, infinito, write_config

NAME = "it's my $HOME run"


def commands(text: str) -> list[list[str]]:
    """The words of every command that ``text`` names, as a shell reads them."""
    after = [line.partition("infinito ")[2] for line in text.splitlines() if "infinito " in line]
    return [shlex.split(rest.partition("`")[0]) for rest in after]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, output_dir=str(tmp_path / NAME))
    return tmp_path


def test_after_training_and_where_a_run_is_already(place: Path) -> None:
    done = infinito("train", "--config", "tiny.yaml")
    assert commands(done.err) == [
        ["evaluate", NAME], ["generate", NAME, "--prompt", "..."], ["report", NAME],
    ]  # fmt: skip
    again = infinito("train", "--config", "tiny.yaml").refused(6)
    [[resume, run]] = commands(again)
    assert (resume, Path(run)) == ("resume", place / NAME)


def test_after_an_interruption(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert commands(infinito("train", "--config", "tiny.yaml").err) == [["resume", NAME]]


def test_after_writing_a_config(place: Path) -> None:
    written = infinito("config", "init", f"{NAME}.yaml")
    assert commands(written.err) == [["train", "--config", f"{NAME}.yaml"]]


@pytest.mark.parametrize("moment", ["from_checkpoint", "probe"])
def test_after_an_interruption_before_the_first_step_of_a_resume(
    place: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    assert infinito("train", "--config", "tiny.yaml").code == 0
    before = all_files(place)
    arguments = ["resume", NAME, "--max-steps", "12"]
    monkeypatch.setattr(sys, "argv", ["infinito", *arguments])
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, moment, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        stopped = infinito(*arguments)
    assert stopped.code == 130
    assert "interrupted; nothing was lost" in stopped.err
    assert commands(stopped.err) == [arguments]
    assert all_files(place) == before
    assert infinito(*arguments).code == 0
