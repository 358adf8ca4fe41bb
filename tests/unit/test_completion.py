"""What a shell is offered behind --set, and where a run or a checkpoint is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infinito.cli.options import complete_key, complete_run
from tests.support import ROOT


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("wiki-1", "wiki-2", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "wiki-1" / "best.pt").touch()
    (tmp_path / "checkpoints" / "wiki-1" / "config.yaml").touch()
    (tmp_path / "[odd]").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_before_anything_is_typed_the_runs_are_offered(runs: Path) -> None:
    assert complete_run("") == [f"checkpoints/{name}" for name in ("other", "wiki-1", "wiki-2")]


def test_a_path_is_completed_to_runs_and_checkpoints_alone(runs: Path) -> None:
    assert complete_run("checkpoints/wiki-1/") == ["checkpoints/wiki-1/best.pt"]
    assert complete_run(f"{runs}/checkpoints/o") == [f"{runs}/checkpoints/other"]
    assert complete_run("[o") == ["[odd]"]


def test_keys_are_completed_with_their_sign() -> None:
    assert complete_key("model.n_l") == ["model.n_layers="]


@pytest.mark.parametrize(
    ("words", "offered"),
    [("infinito resume checkpoints/wi", "checkpoints/wiki-1"), ("infinito tra", "train")],
)
def test_the_shell_is_offered_them(runs: Path, words: str, offered: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_INFINITO_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = "import sys; from infinito.cli.main import app; app(prog_name='infinito')"
    shown = subprocess.run(
        [sys.executable, "-c", command], cwd=runs, env=environment, capture_output=True, text=True,
        check=False,
    ).stdout  # fmt: skip
    assert offered in shown.split()
