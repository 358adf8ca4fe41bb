"""What the model writes at each evaluation: shown, kept in the metrics, and no part of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.runtime.events import Metrics
from infinito.telemetry.console import LiveConsole
from tests.command_support import infinito, write_config


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def plain(value: Any) -> Any:
    """A checkpoint's content with lists for tensors, to be compared bit for bit."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def trained(place: Path, **changes: object) -> tuple[dict[str, Any], str]:
    """The last checkpoint of a run with dropout and averaged weights, and what was printed."""
    place.mkdir()
    config = write_config(place, model__dropout=0.2, training__ema_decay=0.5, **changes)
    outcome = infinito("train", "--config", config)
    assert outcome.code == 0, outcome.err
    content = torch.load(place / "run" / "last.pt", weights_only=True)
    for key in ("output_dir", "data"):
        content["config"].pop(key)
    return content, outcome.err


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_sample_at_each_evaluation_and_the_same_bits_of_training(
    tmp_path: Path, precision: str
) -> None:
    silent, _ = trained(tmp_path / "a", training__precision=precision)
    loud, printed = trained(
        tmp_path / "b", training__precision=precision, training__sample_prompt="the cat"
    )
    samples = [line["sample"] for line in lines(tmp_path / "b" / "run") if "valid_loss" in line]
    assert len(samples) == 2
    assert all(text.startswith("the cat") and len(text) > len("the cat") for text in samples)
    assert printed.count("\nsample: the cat") == 2
    assert not any("sample" in line for line in lines(tmp_path / "a" / "run"))

    assert loud["config"]["training"].pop("sample_prompt") == "the cat"
    assert silent["config"]["training"].pop("sample_prompt") is None
    assert plain(loud) == plain(silent)


def test_an_empty_prompt_starts_a_document(tmp_path: Path) -> None:
    trained(tmp_path / "a", training__sample_prompt="")
    assert all(line["sample"] for line in lines(tmp_path / "a" / "run") if "valid_loss" in line)


def test_a_prompt_that_is_no_text_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    outcome = infinito("train", "--config", config, "--set", "training.sample_prompt=\udcff")
    assert "training.sample_prompt" in outcome.refused(2)


def test_the_panel_prints_samples_above_itself(capsys: pytest.CaptureFixture[str]) -> None:
    panel = LiveConsole("run", 100)
    panel(Metrics({"step": 20, "epoch": 0.5, "sample": "two\n\n lines [bold]"}))
    panel.close()
    assert "sample: two lines [bold]\n" in capsys.readouterr().err
