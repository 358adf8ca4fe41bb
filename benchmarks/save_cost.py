"""The share of training time that saving takes at the default interval.

    python benchmarks/save_cost.py [--rounds 7] [--directory DIR] [--json]

One save (state, file, links, manifest, rotation, with their syncs) against training.save_every
steps of the default model with an average, float32. The promise: at most 2 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from measure import VOCABULARY, seconds

from infinito.checkpoint.run_directory import RunDirectory
from infinito.config.loading import load_config
from infinito.train.trainer import Trainer

PROMISE = 0.02


def build() -> Trainer:
    """The schema's default model on the embedded text, dropout and average on."""
    settings = [
        f"tokenizer.vocab_size={VOCABULARY}",
        "model.dropout=0.1",
        "training.ema_decay=0.99",
        "training.precision=float32",
        "device=cpu",
    ]
    return Trainer(load_config(None, settings))


def save(trainer: Trainer, directory: RunDirectory) -> None:
    """What the loop does when a save is due."""
    directory.save(trainer.progress.step, trainer.state(), is_best=True)


def measure(rounds: int, place: Path) -> dict[str, float]:
    """Medians over rounds in which steps and saves take turns."""
    trainer = build()
    save_every = trainer.config.training.save_every
    steps, saves = list[float](), list[float]()
    with RunDirectory.create(place / "run", "run") as directory:
        for _ in range(rounds + 1):
            steps.append(seconds(trainer.train_step))
            saves.append(seconds(lambda: save(trainer, directory)))
        size = (directory.path / "last.pt").stat().st_size
    step_seconds, save_seconds = statistics.median(steps[1:]), statistics.median(saves[1:])
    return {
        "save_every": save_every,
        "checkpoint_mb": size / 1e6,
        "step_seconds": step_seconds,
        "save_seconds": save_seconds,
        "share": save_seconds / (save_every * step_seconds),
        "promise": PROMISE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", type=Path, help="where to save; absent: a temporary one")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        result = measure(arguments.rounds, Path(place))
    result["seconds"] = time.monotonic() - began
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<20}{value:10.4f}")


if __name__ == "__main__":
    main()
