"""Equal bits across processes, and how far threads may differ: rows X-01, X-05, X-06.

The tolerances are those of docs/determinism.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from infinito.checkpoint.format import read_checkpoint
from infinito.cli.main import main
from infinito.config.loading import config_from_plain
from infinito.train.trainer import Trainer
from tests.checkpoint_support import same
from tests.support import ROOT, tiny_settings

THREADS_TOLERANCE = 1e-5


def content_of(run: Path) -> dict[str, Any]:
    """The last checkpoint but for the one key that may differ."""
    content = read_checkpoint(run / "last.pt")
    del content["config"]["output_dir"]
    return content


@pytest.mark.row("X-01", "X-06")
def test_processes_side_by_side_write_what_one_alone_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, other hash seeds, one cache that both fill; then a third, alone, without."""
    settings = tiny_settings(
        tmp_path, output_dir="run", model__dropout=0.1, tokenizer__kind="bpe",
        tokenizer__vocab_size=300,
    )  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    running, homes = [], [tmp_path / name for name in ("one", "two", "alone")]
    for seed, home in enumerate(homes[:2]):
        home.mkdir()
        environment = {
            **os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT), "INFINITO_CACHE": str(tmp_path / "shared"),
        }  # fmt: skip
        command = [sys.executable, "-m", "infinito", "train", "--config", str(config)]
        running.append(subprocess.Popen(command, cwd=home, env=environment))
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    homes[2].mkdir()
    monkeypatch.chdir(homes[2])
    monkeypatch.setenv("INFINITO_CACHE", str(tmp_path / "own"))
    assert main(["train", "--config", str(config)]) == 0
    one, two, alone = (content_of(home / "run") for home in homes)
    assert same(one, two)
    assert same(one, alone)


def trained(tmp_path: Path, threads: int) -> Trainer:
    """Eight steps of a model large enough for torch to share its work among threads."""
    settings = tiny_settings(
        tmp_path, data__sequence_length=64, model__d_model=128, model__n_heads=4,
        training__batch_size=8,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trainer = Trainer(config_from_plain(settings, "test"))
        for _ in range(8):
            trainer.train_step()
    finally:
        torch.set_num_threads(before)
    return trainer


@pytest.mark.row("X-05")
def test_one_and_two_threads_agree_within_the_tolerance(tmp_path: Path) -> None:
    one, two = (trained(tmp_path, threads) for threads in (1, 2))
    losses = [trainer.progress.window.loss_sum / 8 for trainer in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=THREADS_TOLERANCE)
    for (name, a), b in zip(one.model.named_parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=0, atol=THREADS_TOLERANCE, msg=lambda m, n=name: n + m
        )
    differences = [
        float((a - b).detach().abs().max())
        for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True)
    ]
    print(f"largest difference of a weight: {max(differences):.1e}")
