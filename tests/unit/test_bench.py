"""The benches measure what they say; how fast is for their reader to judge."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from infinito.bench import training
from infinito.bench.generation import bench_generation, made_up_tokenizer
from infinito.bench.machine import (
    interleaved_seconds,
    matmul,
    median_ratio,
    median_seconds,
    read_bandwidth,
)
from infinito.bench.training import bench_training
from infinito.cli.main import main
from infinito.config.loading import load_config
from infinito.kernels import native
from infinito.model.count import count_parameters
from infinito.model.language_model import LanguageModel

SMALL = ["model.d_model=32", "model.n_layers=1", "model.n_heads=2", "data.sequence_length=16"]


def test_training_bench_counts_its_own_model() -> None:
    config = load_config(None, [*SMALL, "training.batch_size=2"])
    result = bench_training(config, vocab_size=300, rounds=1)
    assert result["parameters"] == count_parameters(config.model, 300, 16).total
    assert result["tokens_per_step"] == 32
    assert result["tokens_per_second"] == pytest.approx(32 / result["seconds_per_step"])
    assert result["share_of_floor"] == pytest.approx(
        result["floor_seconds"] / result["seconds_per_step"]
    )
    assert "speed_ratio" not in result


def test_training_bench_compiles_and_recomputes_where_the_config_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled, recomputed = list[LanguageModel](), list[bool]()

    def look(model: LanguageModel, step: Callable[[], object]) -> bool:
        compiled.append(model)
        step()
        recomputed.append(model.checkpoint_activations)
        return True

    monkeypatch.setattr(training, "compile_blocks", look)
    keys = ["training.batch_size=2", "training.activation_checkpointing=true"]
    bench_training(load_config(None, [*SMALL, *keys]), vocab_size=300, rounds=1)
    assert compiled == []
    keys.append("training.fusion=aggressive")
    bench_training(load_config(None, [*SMALL, *keys]), vocab_size=300, rounds=1)
    assert (len(compiled), recomputed) == (1, [True])


def test_training_bench_against_a_model_forty_times_as_deep() -> None:
    config = load_config(None, [*SMALL, "training.batch_size=2"])
    deeper = load_config(None, [*SMALL, "training.batch_size=1", "model.n_layers=40"])
    result = bench_training(config, vocab_size=300, rounds=1, against=deeper)
    ours, theirs = result["tokens_per_second"], result["tokens_per_second_against"]
    assert result["speed_ratio"] == pytest.approx(ours / theirs)  # one round: its own median
    assert result["speed_ratio"] > 1


def test_generation_bench_reads_every_weight_once_a_token() -> None:
    result = bench_generation(load_config(None, SMALL), vocab_size=300, tokens=4, rounds=1)
    config = load_config(None, SMALL)
    assert result["weight_bytes"] == 4 * count_parameters(config.model, 300, 16).total
    assert result["tokens_per_second"] == pytest.approx(1e3 / result["milliseconds_per_token"])
    expected = "cpu: one call of compiled code" if native.available_isas() else "torch: "
    assert result["decode_step"].startswith(expected)


def test_made_up_tokenizer_has_the_size_asked_for() -> None:
    assert made_up_tokenizer(300).vocab_size == 300


def test_rates_are_those_of_the_work_done() -> None:
    device = torch.device("cpu")
    assert matmul(3, 5, 7, torch.float32, device)().shape == (3, 7)
    assert 1e8 < read_bandwidth(device, n_bytes=1 << 24) < 1e13
    calls: list[int] = []
    assert median_seconds(lambda: calls.append(1), device, rounds=3) >= 0
    assert len(calls) == 5
    actions = {"a": lambda: calls.append(2), "b": lambda: calls.append(3)}
    times = interleaved_seconds(actions, device, rounds=2, warm_up=1)
    assert calls[5:] == [2, 3] * 3
    assert [len(own) for own in times.values()] == [2, 2]
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_the_command_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    assert main(["bench", "train", *settings, "--rounds", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "float32"
    assert main(["bench", "train", "--rounds", "0"]) == 2
