"""Five attention kinds on WikiText-2 at equal parameters, equal tokens and equal tuning.

    python benchmarks/attention_comparison.py train --data DIRECTORY --output DIRECTORY
    python benchmarks/attention_comparison.py speed --output DIRECTORY
    python benchmarks/attention_comparison.py report --output DIRECTORY [--plot FILE.svg]

Each kind is trained with the learning rates of the config times 1/2, 1 and 2 on one seed; the best
factor by validation loss is then trained on three fresh seeds, and only those are reported. All
runs see the same tokens in the same order for the same seed. ``dot-rope`` is the dot product as the
project ships it (rotary positions, no lambda), beside the five that differ in the score alone.
``train`` does the runs that are not in OUTPUT/runs.jsonl yet, one thread each. ``--set`` changes
the config of all runs (with an OUTPUT of its own); ``--factor`` skips the sweep.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parent.parent / "configs" / "attention-comparison.yaml"
ARMS = {
    **{kind: (f"model.attention.kind={kind}",) for kind in ("dot", "l1", "l2", "l2sq", "cosine")},
    "dot-rope": ("model.position=rope", "model.attention.learnable_lambda=false"),
}
FACTORS = (0.5, 1.0, 2.0)
SWEEP_SEED, SEEDS = 1, (2, 3, 4)
PEAK = {"learning_rate": 0.003, "muon_learning_rate": 0.02}
T_95 = 4.303  # Student's t for a 95 % interval with 2 degrees of freedom
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run: what is compared, at which learning rate, on which seed."""

    arm: str
    factor: float
    seed: int

    def settings(self, common: Iterable[str]) -> list[str]:
        """What this run changes in the config; ``common`` holds what all runs change."""
        rates = [f"training.{name}={value * self.factor}" for name, value in PEAK.items()]
        return [*common, *ARMS[self.arm], *rates, f"seed={self.seed}", "device=cpu"]


def train_one(run: Run, common: list[str]) -> Record:
    """Train, then score the whole validation split in windows without overlap."""
    import torch

    from infinito import Trainer, load_config

    torch.set_num_threads(1)
    trainer = Trainer(load_config(CONFIG, run.settings(common)))
    losses = []
    while not trainer.finished:
        losses.append(trainer.train_step().loss)
    evaluation = trainer.validate()
    assert evaluation is not None
    parameters = dict(trainer.model.named_parameters())
    return {
        "arm": run.arm,
        "factor": run.factor,
        "seed": run.seed,
        "tokens": trainer.progress.tokens,
        "parameters": sum(p.numel() for p in parameters.values()),
        "train_loss": statistics.fmean(losses[-50:]),
        "valid_loss": evaluation.score.loss,
        "valid_word_perplexity": evaluation.score.word_perplexity,
        "lambda": [p.exp().tolist() for name, p in parameters.items() if "log_lambda" in name],
    }


def read_records(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key_of(record: Record) -> Run:
    return Run(record["arm"], record["factor"], record["seed"])


def train_missing(runs: Iterable[Run], common: list[str], output: Path, jobs: int) -> None:
    path = output / "runs.jsonl"
    done = {key_of(record) for record in read_records(path)}
    missing = [run for run in runs if run not in done]
    # A fresh process a run: nothing of one run reaches the next.
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        futures = [pool.submit(train_one, run, common) for run in missing]
        for number, future in enumerate(as_completed(futures), 1):
            record = future.result()
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            place = f"{number}/{len(missing)} {key_of(record)}"
            print(f"{place}: {record['valid_word_perplexity']:.2f}", file=sys.stderr, flush=True)


def best_factors(records: Iterable[Record]) -> dict[str, float]:
    """The factor of the lowest validation loss of each arm on the sweep's seed."""
    best: dict[str, Record] = {}
    for record in records:
        held = best.get(record["arm"])
        swept = record["seed"] == SWEEP_SEED
        if swept and (held is None or record["valid_loss"] < held["valid_loss"]):
            best[record["arm"]] = record
    return {arm: record["factor"] for arm, record in best.items()}


def train(common: list[str], output: Path, jobs: int, factor: float | None) -> None:
    from infinito.config.loading import load_config
    from infinito.data.prepare import prepare

    output.mkdir(parents=True, exist_ok=True)
    prepare(load_config(CONFIG, common))  # one process fills the cache
    best = dict.fromkeys(ARMS, factor or 1.0)
    if factor is None:
        sweep = [Run(arm, swept, SWEEP_SEED) for swept in FACTORS for arm in ARMS]
        train_missing(sweep, common, output, jobs)
        best = best_factors(read_records(output / "runs.jsonl"))
    final = [Run(arm, best[arm], seed) for seed in SEEDS for arm in ARMS]
    train_missing(final, common, output, jobs)


def speed(common: list[str], output: Path, rounds: int) -> None:
    """Speed in turns with ``dot``, and peak memory; all threads, a process for each arm."""
    figures: dict[str, list[Record]] = {arm: [] for arm in ARMS}
    against = [part for setting in ARMS["dot"] for part in ("--against", setting)]
    for _ in range(rounds):
        for arm, settings in ARMS.items():
            options = [part for setting in (*common, *settings) for part in ("--set", setting)]
            command = ["bench", "train", "--config", str(CONFIG), "--vocab-size", "4096", "--json"]
            shown = subprocess.run(
                [sys.executable, "-m", "infinito.cli.main", *command, *options, *against],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            figures[arm].append(json.loads(shown))
    names = ("tokens_per_second", "speed_ratio", "peak_memory_mb")
    medians = {
        arm: {name: statistics.median(x[name] for x in rows) for name in names}
        for arm, rows in figures.items()
    }
    (output / "speed.json").write_text(json.dumps(medians, indent=2) + "\n")
    print(json.dumps(medians, indent=2))


def summarise(output: Path) -> Iterator[Record]:
    """One record an arm: mean and spread over the seeds, the paired difference to ``dot``."""
    records = read_records(output / "runs.jsonl")
    by_arm = {
        arm: {r["seed"]: r for r in records if r["arm"] == arm and r["seed"] in SEEDS}
        for arm in ARMS
    }
    figures = json.loads((output / "speed.json").read_text())
    for arm, runs in by_arm.items():
        perplexities = [runs[seed]["valid_word_perplexity"] for seed in SEEDS]
        paired = [runs[seed]["valid_loss"] - by_arm["dot"][seed]["valid_loss"] for seed in SEEDS]
        yield {
            "arm": arm,
            "factor": runs[SEEDS[0]]["factor"],
            "parameters": runs[SEEDS[0]]["parameters"],
            "tokens": runs[SEEDS[0]]["tokens"],
            "word_perplexity": statistics.fmean(perplexities),
            "deviation": statistics.stdev(perplexities),
            "loss_minus_dot": statistics.fmean(paired),
            "half_interval": T_95 * statistics.stdev(paired) / len(SEEDS) ** 0.5,
            "perplexities": perplexities,
            **figures[arm],
        }


def report(output: Path, plot: Path | None) -> None:
    rows = list(summarise(output))
    print("| kind | parameters | learning rate | valid word perplexity, mean ± deviation "
          "| nats a token against dot, 95 % | speed against dot | memory MB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        difference = f"{row['loss_minus_dot']:+.4f} ± {row['half_interval']:.4f}"
        print(
            f"| {row['arm']} | {row['parameters']} | {row['factor']:g}x "
            f"| {row['word_perplexity']:.2f} ± {row['deviation']:.2f} "
            f"| {difference if row['arm'] != 'dot' else '-'} "
            f"| {row['speed_ratio']:.2f}x | {row['peak_memory_mb']:.0f} |"
        )
    if plot is not None:
        draw(rows, read_records(output / "runs.jsonl"), plot)


def draw(rows: list[Record], records: list[Record], path: Path) -> None:
    """Left: the seeds of each kind at its best rate. Right: the sweep that chose the rate."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "infinito", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, (seeds, sweep) = pyplot.subplots(1, 2, figsize=(8, 3), sharey=False)
    for place, row in enumerate(rows):
        colour = f"C{place}"
        seeds.plot([place] * len(SEEDS), row["perplexities"], "o", color=colour, alpha=0.6)
        seeds.plot([place - 0.25, place + 0.25], [row["word_perplexity"]] * 2, color=colour)
        swept = sorted(
            (r["factor"], r["valid_word_perplexity"])
            for r in records
            if r["arm"] == row["arm"] and r["seed"] == SWEEP_SEED
        )
        sweep.plot(*zip(*swept, strict=True), "o-", color=colour, label=row["arm"], markersize=3)
    seeds.set_xticks(range(len(rows)), [row["arm"] for row in rows])
    seeds.set_ylabel("validation word perplexity")
    seeds.set_title(f"three seeds, best rate, {rows[0]['tokens'] / 1e6:.1f} M tokens")
    sweep.set_xscale("log", base=2)
    sweep.set_xticks(FACTORS, [f"{factor:g}x" for factor in FACTORS])
    sweep.set_xlabel("learning rates of the config, times")
    sweep.set_title("the sweep of rates, one seed")
    sweep.legend(frameon=False, fontsize=7, loc="upper right", ncol=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("stage", choices=["train", "speed", "report"])
    parser.add_argument("--data", help="directory of a local WikiText-2; absent: the hub's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--factor", type=float, help="times the config's rates, without a sweep")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.stage == "train":
        data = [f"data.path={Path(arguments.data).resolve()}"] if arguments.data else []
        train([*data, *arguments.settings], arguments.output, arguments.jobs, arguments.factor)
    elif arguments.stage == "speed":
        speed(arguments.settings, arguments.output, arguments.rounds)
    else:
        report(arguments.output, arguments.plot)


if __name__ == "__main__":
    main()
