"""What activation checkpointing and the chunked loss save of a step's memory, and what they cost.

    python benchmarks/memory.py [--set KEY=VALUE ...] [--vocab-size N] [--rounds N] [--json]

Each row's memory is the rise of a process of its own over three steps, above the model's weights
(Linux). Times are those of one more process, in which all rows take turns. The plain row keeps
every activation, and the logits of the whole batch as ``torch.nn.functional.cross_entropy`` does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.bench.machine import interleaved_seconds, median_interval, median_ratio
from infinito.config.loading import load_config
from infinito.config.schema import Config
from infinito.model.language_model import TrainingLoss
from infinito.model.transformer import Transformer
from infinito.optim.optimizers import Optimizers
from infinito.runtime.memory import keep_freed_memory
from infinito.train.step import training_step

#: (chunked loss, activation checkpointing)
ROWS = {
    "plain": (False, False),
    "chunked loss": (True, False),
    "activation checkpointing": (False, True),
    "both": (True, True),
}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TINY = ["model.d_model=16", "model.n_layers=1", "training.batch_size=1"]


class PlainLossTransformer(Transformer):
    """With the loss of every tutorial: all logits, and as large a gradient."""

    def forward(self, tokens: Tensor, targets: Tensor) -> TrainingLoss:
        """The same number as the model's own."""
        logits = self.logits(self.hidden(tokens)).flatten(0, 1)
        nats = F.cross_entropy(logits, targets.flatten(), reduction="sum")
        return TrainingLoss(nats, auxiliary={}, measurements={})


def step_of(row: str, config: Config, vocab_size: int) -> Callable[[], object]:
    """A training step on random tokens."""
    chunked, checkpointing = ROWS[row]
    training, length = config.training, config.data.sequence_length
    torch.manual_seed(config.seed)
    model = (Transformer if chunked else PlainLossTransformer)(config.model, vocab_size, length)
    model.train().checkpoint_activations = checkpointing
    optimizers, scaler = Optimizers(model, training), torch.amp.GradScaler("cpu", enabled=False)
    sequences = torch.randint(vocab_size, (training.sequences_per_step, length + 1))
    return lambda: training_step(
        model, optimizers, scaler, sequences, training.batch_size, training.precision, 1.0
    )


def kilobytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def peak_mb(row: str, settings: list[str], vocab_size: int) -> float:
    """Of this process, above the weights; what a first step imports is paid by a tiny model."""
    step_of(row, load_config(None, [*settings, *TINY]), 300)()
    step = step_of(row, load_config(None, settings), vocab_size)
    CLEAR.write_text("5")  # the high-water mark starts anew
    before = kilobytes("VmRSS")
    for _ in range(3):
        step()
    return (kilobytes("VmHWM") - before) * 1024 / 1e6


def measure(settings: list[str], vocab_size: int, rounds: int) -> list[dict[str, object]]:
    command = [sys.executable, os.path.abspath(__file__), "--vocab-size", str(vocab_size)]
    command += [part for setting in settings for part in ("--set", setting)]
    peaks = {
        row: float(subprocess.run([*command, "--row", row], check=True, capture_output=True).stdout)
        for row in ROWS
    }
    keep_freed_memory()  # as `infinito train` does
    config = load_config(None, settings)
    actions = {row: step_of(row, config, vocab_size) for row in ROWS}
    times = interleaved_seconds(actions, torch.device("cpu"), rounds)
    result = []
    for row, peak in peaks.items():
        ratios = [a / b for a, b in zip(times[row], times["plain"], strict=True)]
        low, high = median_interval(ratios)
        result.append(
            {
                "row": row, "peak_mb": peak, "saved": 1 - peak / peaks["plain"],
                "time_ratio": median_ratio(times[row], times["plain"]), "low": low, "high": high,
            }
        )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings = ["device=cpu", "training.precision=float32", *arguments.set]
    if arguments.row:
        print(peak_mb(arguments.row, settings, arguments.vocab_size))
        return
    rows = measure(settings, arguments.vocab_size, arguments.rounds)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'':<26}{'peak MB':>8}{'saved':>8}{'time':>8}  95 % interval")
    for row in rows:
        print(
            f"{row['row']:<26}{row['peak_mb']:>8.0f}{row['saved']:>8.1%}{row['time_ratio']:>7.2f}x"
            f"  {row['low']:.2f} to {row['high']:.2f}"
        )


if __name__ == "__main__":
    main()
