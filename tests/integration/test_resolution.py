"""A run is resolved first: what cannot run here is refused before any text is read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.attention import dispatch
from infinito.config.loading import config_from_plain
from infinito.config.schema import Config
from infinito.model.transformer import Transformer
from infinito.train.automatic import attention_reason
from tests.command_support import all_files, infinito, write_config
from tests.support import tiny_settings

# Each is refused by itself, and more so together with a text that is not there.
IMPOSSIBLE = {
    "device": (6, ["--device", "cuda:99"]),
    "back end": (2, ["--set", "model.attention.backend=sdpa", "--set", "model.dropout=0.1"]),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFINITO_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_train_refuses_what_cannot_run_before_it_looks_for_text(
    place: Path, case: str, mode: list[str]
) -> None:
    config = write_config(place, data__train_file=str(place / "none.txt"))
    before = all_files(place)
    assert "none.txt" in infinito("train", "--config", config, *mode).refused(3)
    code, options = IMPOSSIBLE[case]
    assert "none.txt" not in infinito("train", "--config", config, *mode, *options).refused(code)
    assert all_files(place) == before


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_resume_refuses_what_cannot_run_before_it_looks_for_text(
    place: Path, mode: list[str]
) -> None:
    assert infinito("train", "--config", write_config(place)).code == 0
    (place / "text.txt").unlink()
    shutil.rmtree(place / "cache")
    before = all_files(place)
    more = ["--max-steps", 20, *mode]
    assert "text.txt" in infinito("resume", "run", *more).refused(3)
    assert "cuda:99 is not there" in infinito(
        "resume", "run", *more, "--device", "cuda:99"
    ).refused(6)
    assert all_files(place) == before


def route_taken(config: Config, monkeypatch: pytest.MonkeyPatch) -> str:
    """The back end that a training model of the config calls off the CPU; nothing is computed."""
    taken: list[str] = []

    def recording(name: str) -> Any:
        def run(first: Any, *_: Any) -> torch.Tensor:
            taken.append(name)
            return torch.empty_like(first if isinstance(first, torch.Tensor) else first.query)

        return run

    with monkeypatch.context() as patch:
        for name, backend in dispatch.ATTENTION.variants.items():
            patch.setitem(dispatch.ATTENTION.variants, name, replace(backend, run=recording(name)))
        with torch.device("meta"):
            model = Transformer(config.model, 257, config.data.sequence_length)
            model.hidden(torch.zeros(1, config.data.sequence_length, dtype=torch.int64))
    assert len(set(taken)) == 1
    return taken[0]


@pytest.mark.parametrize("kind", ["dot", "l2sq", "l2"])
@pytest.mark.parametrize("learnable", [None, True, False])
@pytest.mark.parametrize("lambda_init", [1.0, 2.0])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_the_back_end_that_is_told_is_the_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: str, learnable: bool | None, lambda_init: float, dropout: float, position: str,
) -> None:  # fmt: skip
    attention = {"kind": kind, "learnable_lambda": learnable, "lambda_init": lambda_init}
    changes = {"model__dropout": dropout, "model__position": position}
    plain = tiny_settings(tmp_path, model__attention=attention, **changes)
    config = config_from_plain(plain, "test")
    training = config.training.model_copy(update={"precision": "float32"})
    config = config.model_copy(update={"device": "meta", "training": training})
    told = attention_reason(config)
    assert told.partition(":")[0] == route_taken(config, monkeypatch)
