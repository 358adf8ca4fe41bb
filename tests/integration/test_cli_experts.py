"""Mixture of experts through the commands: train, resume, evaluate, generate, export, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from infinito.checkpoint.format import read_checkpoint
from tests.command_support import infinito, read_log, write_config

EXPERTS = {"model__moe": {"n_experts": 4, "top_k": 2, "n_shared": 1}, "model__d_ff": 48}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("experts")
    config = write_config(place, training__optimizer="muon", **EXPERTS)
    outcome = infinito("train", "--config", config)
    assert outcome.code == 0, outcome.err
    assert "of them active a token" in outcome.err
    return place


def test_each_line_of_metrics_tells_the_loads_and_stays_in_nats(place: Path) -> None:
    lines = [line for line in read_log(place / "run") if "loss" in line]
    assert len(lines) == 8
    for line in lines:
        assert len(line["expert_load"]) == len(line["router_entropy"]) == 2
        for loads in line["expert_load"]:
            assert sum(loads) == pytest.approx(1)
            assert len(loads) == 4
        assert 0.02 <= line["balance_loss"] < 0.03
        assert 0 < line["router_z_loss"] < 0.02
        assert all(0 < entropy <= 1.3863 for entropy in line["router_entropy"])
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["valid_loss"], abs=0.3)


def test_a_resumed_run_ends_with_the_same_bits_and_lines(place: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, training__optimizer="muon", **EXPERTS)
    run, other = place / "run", tmp_path / "run"
    (tmp_path / "text.txt").write_bytes((place / "text.txt").read_bytes())
    assert infinito("train", "--config", config, "--max-steps", 8).code == 0
    assert infinito("resume", other / "step-000004.pt").code == 0
    assert read_log(other) == read_log(run)
    weights = [read_checkpoint(path / "step-000008.pt")["model"] for path in (other, run)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_evaluating_generating_and_exporting(place: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.pt"
    assert infinito("export", place / "run", "--to", "int8", "--output", small).code == 0
    outcome = infinito("evaluate", place / "run", small, "--json")
    assert outcome.code == 0, outcome.err
    exact, near = (report["loss"] for report in json.loads(outcome.out))
    assert exact != near
    assert near == pytest.approx(exact, rel=0.005)
    for source in (place / "run", small):
        outcome = infinito(
            "generate", source, "--prompt", "the cat", "--greedy", "--max-new-tokens", 30
        )
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith("the cat")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"moe": {"n_experts": 2, "top_k": 3}}, "top_k 3 is more than n_experts 2"),
        ({"moe": {"n_shared": 1}}, "n_shared needs at least 2 n_experts"),
        ({"moe": {"n_expert": 2}}, "n_experts"),
        ({"moe": {"n_experts": 2}, "block": "double", "second_d_ff": 8}, "double has no experts"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write_config(tmp_path)
    plain = yaml.safe_load(path.read_text())
    plain["model"] |= changes
    path.write_text(yaml.safe_dump(plain))
    assert reason in infinito("config", "validate", path).refused(2)
