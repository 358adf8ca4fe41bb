"""The coherence table: prompts and human text part the corpus cleanly, and every row is filled."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from infinito.config.loading import config_from_plain
from infinito.evaluate.repetition import words_of
from infinito.train.trainer import Trainer
from tests.support import ROOT, tiny_settings, write_text


@pytest.fixture(scope="module")
def coherence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coherence", ROOT / "benchmarks" / "coherence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coherence"] = module  # NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


def test_prompt_and_human_text_are_one_stretch(coherence: ModuleType) -> None:
    lines = [" ".join(f"w{i}.{j}" for j in range(7)) for i in range(60)]
    text = " " + " \n ".join(lines) + " \n"
    for prompt, human in coherence.pairs(text, 9, 50):
        assert prompt + human in text
        assert len(words_of(human)) == 50


def test_every_row_is_filled(
    coherence: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    valid = write_text(tmp_path / "valid.txt", paragraphs=4, seed=1)
    settings = tiny_settings(tmp_path, training__max_steps=1, data__valid_file=str(valid))
    trainer = Trainer(config_from_plain(settings, "test"))
    trainer.train_step()
    trainer.save(tmp_path / "model.pt")
    path = str(tmp_path / "model.pt")
    arguments = ["coherence", path, path, "ngram", "--prompts", "2", "--words", "12"]
    monkeypatch.setattr(sys, "argv", arguments)
    coherence.main()
    lines = capsys.readouterr().out.splitlines()
    [entry] = json.loads((tmp_path / "tuned.json").read_text())["found"]
    for line, weight in zip(lines[1:3], entry["answer"]["weights"], strict=True):
        assert line.startswith(f"- weight {weight:.3f}: ")
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + len(coherence.DECODING)
    assert all(len(row.split("|")) == 11 for row in rows)
    human = rows[1].split("|")
    assert 0.2 < float(human[2]) < 60  # n-grams know the text by heart
    assert 0 < float(human[3]) <= 1
