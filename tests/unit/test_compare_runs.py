"""Arms that are compared at equal FLOPs, and the table of one seed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from infinito.config.loading import load_config
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare

SHAPE = ["tokenizer.vocab_size=512", "model.n_layers=2", "model.n_heads=2"]
ARMS = {"wide": ["model.d_model=64"], "narrow": ["model.d_model=32", "training.batch_size=4"]}


def _flops(width: int, rows: int, length: int = 256) -> float:
    """Six a weight and token (twelve squares of the width a layer, the head), and attention's."""
    weights = 2 * 12 * width**2 + 512 * width
    return rows * length * (6 * weights + 3 * 4 * 2 * length * width)


def test_each_arm_takes_the_steps_that_the_flops_pay_for() -> None:
    config = str(ROOT / "configs" / "wikitext2-cpu.yaml")
    plan = compare.Plan(config, [*SHAPE, "training.batch_size=8"], ARMS, [1.0], [1], 1e12)
    for arm, width, rows in (("wide", 64, 8), ("narrow", 32, 4)):
        steps = load_config(config, plan.settings(arm, 1.0, 1)).training.max_steps
        assert steps == round(1e12 / _flops(width, rows))


def test_one_seed_has_a_difference_and_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"config": "", "common": [], "arms": ARMS, "factors": [1.0], "seeds": [1]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for arm, perplexity in (("wide", 100.0), ("narrow", 90.0)):
        run = tmp_path / "runs" / f"{arm}-1-1"
        run.mkdir(parents=True)
        end = {"valid_loss": 4.0, "valid_word_perplexity": perplexity, "tokens": 7, "seconds": 60}
        (run / "metrics.jsonl").write_text(json.dumps(end) + "\n")
        (run / "finished").touch()
    compare.report(tmp_path)
    *_, wide, narrow = capsys.readouterr().out.splitlines()
    assert wide == "| wide | 1x | 100.00 | - | 7 | 1.0 |"
    assert narrow == "| narrow | 1x | 90.00 | -0.1054 | 7 | 1.0 |"
