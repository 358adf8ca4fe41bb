"""Twenty steps of every attention kind under both optimizers, as committed: no number may move.

Set INFINITO_UPDATE_GOLDEN=1 to write traces.json anew, and say in the commit which number moved
and why. On one machine `scripts/loss_compare` says whether two commits agree in every bit.

The tolerances are between processors. Instruction sets and back ends were seen to part by 5e-7 in
the loss and 2e-5 in the norm under AdamW; by 4e-5 and 6e-4 under Muon, which orthogonalises in
bfloat16. An RMSNorm epsilon of 1e-5 for 1e-6 moves the loss by more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

import pytest

from infinito.config.loading import config_from_plain
from infinito.config.model_config import AttentionConfig
from infinito.train.trainer import Trainer

TRACES = Path(__file__).with_name("traces.json")
KINDS = get_args(AttentionConfig.model_fields["kind"].annotation)
STEPS = 20
TOLERANCES = {"adamw": {"loss": 2e-6, "grad_norm": 1e-4}, "muon": {"loss": 2e-4, "grad_norm": 3e-3}}
WORDS = ["the", "a", "cat", "dog", "house", "river", "sees", "follows", "small", "old", "and"]


def trace(tmp_path: Path, kind: str, optimizer: str) -> dict[str, list[float]]:
    """Loss and gradient norm of each step; the text is the same in every version of Python."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(WORDS[k * k % 509 % len(WORDS)] for k in range(900)))
    settings = {
        "seed": 11,
        "device": "cpu",
        "data": {"train_file": str(text), "sequence_length": 40},
        "tokenizer": {"kind": "byte"},
        "model": {
            "d_model": 32, "n_layers": 2, "n_heads": 2, "attention": {"kind": kind},
            "qk_norm": False,  # under which dot, l2sq and cosine are one function
            "dropout": 0.1, "output_dropout": 0.1, "word_dropout": 0.05,
        },
        "training": {
            "optimizer": optimizer, "max_steps": STEPS, "batch_size": 2, "warmup_steps": 5,
            "gradient_accumulation_steps": 2, "learning_rate": 0.003, "precision": "float32",
        },
    }  # fmt: skip
    trainer = Trainer(config_from_plain(settings, "golden trace"))
    steps = [trainer.train_step() for _ in range(STEPS)]
    return {
        "loss": [float(f"{step.loss:.7g}") for step in steps],
        "grad_norm": [float(f"{step.grad_norm:.7g}") for step in steps],
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_number_moves(tmp_path: Path, kind: str, optimizer: str) -> None:
    name, found = f"{kind}-{optimizer}", trace(tmp_path, kind, optimizer)
    kept = json.loads(TRACES.read_text()) if TRACES.exists() else {}
    if os.environ.get("INFINITO_UPDATE_GOLDEN") == "1":
        kept[name] = found
        lines = (f' "{key}": {json.dumps(kept[key])}' for key in sorted(kept))
        TRACES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for quantity, tolerance in TOLERANCES[optimizer].items():
        assert found[quantity] == pytest.approx(kept[name][quantity], rel=tolerance), quantity
