"""R-13: a checkpoint on a user's disk outlives the program that wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from infinito.cli.main import main
from infinito.config.loading import config_from_plain
from infinito.load import open_checkpoint
from infinito.train.trainer import Trainer
from tests.golden.make_checkpoint import NEW_TOKENS, PENALTY, PROMPT, TEXT

HERE = Path(__file__).resolve().parent
KEPT = sorted(HERE.glob("checkpoint-v*.pt"))
COMMANDS = (["evaluate", "--text", str(TEXT)], ["generate", "--prompt", PROMPT], ["resume"])


@pytest.mark.row("R-13")
@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_checkpoint_evaluates_and_generates_as_it_did(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    assert main(["evaluate", str(path), "--text", str(TEXT), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    greedy = ["--max-new-tokens", str(NEW_TOKENS), "--repetition-penalty", str(PENALTY)]
    assert main(["generate", str(path), "--prompt", PROMPT, "--greedy", *greedy]) == 0
    assert capsys.readouterr().out == expected["text"] + "\n"


@pytest.mark.row("R-13")
@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_checkpoint_is_trained_on(path: Path) -> None:
    content = read_checkpoint(path)
    config = config_from_plain(content["config"], str(path))
    # Its text is Python's own documentation, which is another one in every version of Python.
    trainer = Trainer.from_checkpoint(open_checkpoint(path), config, allow_data_change=True)
    assert trainer.progress.step == content["step"] > 0
    before = trainer.optimizers.state()["embedding.weight"]["exp_avg"].clone()
    assert before.any()
    trainer.train_step()
    assert not trainer.optimizers.state()["embedding.weight"]["exp_avg"].equal(before)


@pytest.mark.row("R-13")
def test_a_checkpoint_of_a_later_format_is_refused_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert KEPT
    path = tmp_path / "later.pt"
    write_checkpoint(path, read_checkpoint(KEPT[-1]) | {"format_version": 999})
    for command, *options in COMMANDS:
        assert main([command, str(path), *options]) == 4
        message = capsys.readouterr().err
        assert "newer infinito (format 999" in message
        assert "later.pt" in message
        assert "Traceback" not in message
