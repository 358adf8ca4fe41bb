"""Peak memory of training steps against what is counted, in a process of its own.

    python benchmarks/training_memory.py [--vocab-size N] [--precision P] [--json]

The promise: the peak stays below the memory after the imports, plus weights, gradients, moments
and activations as counted, plus 300 MB.
"""

from __future__ import annotations

import argparse
import json

import torch

from infinito.config.loading import load_config
from infinito.model.step_memory import count_memory
from infinito.model.transformer import Transformer
from infinito.optim.optimizers import Optimizers
from infinito.runtime.memory import peak_memory_mb
from infinito.train.step import training_step

ALLOWANCE_MB = 300.0


def take_steps(vocab_size: int, settings: list[str]) -> float:
    """Train a few steps; returns the counted MB."""
    config = load_config(None, settings)
    length, training = config.data.sequence_length, config.training
    model = Transformer(config.model, vocab_size, length).train()
    optimizers = Optimizers(model, training)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    sequences = torch.randint(vocab_size, (training.batch_size, length + 1))
    for _ in range(4):
        training_step(
            model, optimizers, scaler, sequences, training.batch_size, training.precision, 1.0
        )
    return count_memory(config, vocab_size).total / 1e6


def measure(vocab_size: int, precision: str) -> dict[str, float]:
    settings = ["device=cpu", f"training.precision={precision}", "model.dropout=0.1"]
    # The first step imports as well (torch's optimizers load torch.compile); a tiny model takes it.
    take_steps(300, [*settings, "model.d_model=16", "model.n_layers=1", "training.batch_size=1"])
    before = peak_memory_mb("cpu")
    counted = take_steps(vocab_size, settings)
    peak, limit = peak_memory_mb("cpu"), before + counted + ALLOWANCE_MB
    return {
        "after_imports_mb": before,
        "counted_mb": counted,
        "peak_mb": peak,
        "limit_mb": limit,
        "peak_over_limit": peak / limit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.vocab_size, arguments.precision)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<20}{value:10.2f}")


if __name__ == "__main__":
    main()
