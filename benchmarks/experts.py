"""Eight experts, two of half width a token, against the dense model of equal active FLOPs.

    python benchmarks/experts.py speed [--rounds N] [--set KEY=VALUE] [--json]
    python benchmarks/experts.py train --output DIRECTORY [--data DIRECTORY] [--set KEY=VALUE]
    python benchmarks/experts.py report --output DIRECTORY

``speed`` times whole training steps of both in turns. ``train`` is quality at equal active
parameters (but the router), tokens and tuning: each arm is trained with the learning rates of the
config times 1/2, 1 and 2 on one seed, and at the best of them by validation loss on three fresh
seeds; ``report`` prints only those. Runs that stand in DIRECTORY/runs.jsonl are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from measure import VOCABULARY, interleaved_medians

from infinito import Trainer, load_config
from infinito.bench.training import training_action
from infinito.config.schema import Config
from infinito.model.count import count_flops, count_parameters
from infinito.runtime.memory import keep_freed_memory

CONFIG = Path(__file__).parent.parent / "configs" / "attention-comparison.yaml"
DENSE = "dense"
FACTORS = (0.5, 1.0, 2.0)
SWEEP_SEED, SEEDS = 1, (2, 3, 4)
T_95 = 4.303  # Student's t for a 95 % interval with 2 degrees of freedom
DOT = ("model.position=rope", "model.attention.learnable_lambda=false", "device=cpu")
Record = dict[str, Any]


def arms(config: Config) -> dict[str, list[str]]:
    """What each arm changes in the config."""
    half = config.model.resolved_d_ff // 2
    moe = ["model.moe.n_experts=8", "model.moe.top_k=2", f"model.d_ff={half}"]
    return {DENSE: [f"model.d_ff={2 * half}"], "8 experts, top 2": moe}


def speed(settings: list[str], rounds: int) -> dict[str, Record]:
    """Tokens a second of both in each precision, and what a token costs in either."""
    results = {}
    for precision in ("float32", "bfloat16"):
        common = [*DOT[2:], *settings, f"training.precision={precision}"]
        plain = load_config(None, common)
        configs = {arm: load_config(None, [*common, *own]) for arm, own in arms(plain).items()}
        steps = {arm: training_action(config, VOCABULARY) for arm, config in configs.items()}
        times = interleaved_medians(steps, rounds)
        length = plain.data.sequence_length
        tokens = plain.training.sequences_per_step * length
        results[precision] = {
            arm: {
                "tokens_per_second": tokens / times[arm],
                "ratio_to_dense": times[DENSE] / times[arm],
                "active_flops_a_token": count_flops(config.model, VOCABULARY, 1, length).training
                / length,
                "parameters": count_parameters(config.model, VOCABULARY, length).total,
            }
            for arm, config in configs.items()
        }
    return results


class Run(NamedTuple):
    """One training run: what is compared, at which learning rates, on which seed."""

    arm: str
    factor: float
    seed: int


def train_one(run: Run, common: list[str]) -> Record:
    """Train, then score the whole validation split in windows without overlap."""
    plain = load_config(CONFIG, [*DOT, *common])
    rates = [
        f"training.{name}={getattr(plain.training, name) * run.factor}"
        for name in ("learning_rate", "muon_learning_rate")
    ]
    settings = [*DOT, *common, *arms(plain)[run.arm], *rates, f"seed={run.seed}"]
    trainer = Trainer(load_config(CONFIG, settings))
    while not trainer.finished:
        trainer.train_step()
    evaluation = trainer.validate()
    assert evaluation is not None
    loads = trainer.progress.window.measurements.get("expert_load")
    return {
        **run._asdict(),
        "tokens": trainer.progress.tokens,
        "valid_loss": evaluation.score.loss,
        "valid_word_perplexity": evaluation.score.word_perplexity,
        "largest_load": None if loads is None else float((loads / loads.sum(1, True)).max()),
        **{name: trainer.performance_report()["parameters"][name] for name in ("total", "active")},
    }


def read_records(output: Path) -> dict[Run, Record]:
    path = output / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {Run(r["arm"], r["factor"], r["seed"]): r for r in map(json.loads, lines)}


def best_factor(records: dict[Run, Record], arm: str) -> float:
    """That of the lowest validation loss on the sweep's seed."""
    return min(FACTORS, key=lambda f: float(records[Run(arm, f, SWEEP_SEED)]["valid_loss"]))


def train_missing(runs: list[Run], common: list[str], output: Path) -> dict[Run, Record]:
    for run in runs:
        if run not in read_records(output):
            record = train_one(run, common)
            with (output / "runs.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{run}: {record['valid_word_perplexity']:.2f}", file=sys.stderr, flush=True)
    return read_records(output)


def train(common: list[str], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    names = arms(load_config(CONFIG, common))
    sweep = [Run(arm, factor, SWEEP_SEED) for factor in FACTORS for arm in names]
    records = train_missing(sweep, common, output)
    best = {arm: best_factor(records, arm) for arm in names}
    train_missing([Run(arm, best[arm], seed) for seed in SEEDS for arm in names], common, output)


def report(output: Path) -> None:
    records = read_records(output)
    print("| model | parameters | active | learning rate | valid word perplexity, mean ± deviation "
          "| nats a token against dense, 95 % | largest load |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for arm in dict.fromkeys(run.arm for run in records):
        factor = best_factor(records, arm)
        dense = [records[Run(DENSE, best_factor(records, DENSE), seed)] for seed in SEEDS]
        ours = [records[Run(arm, factor, seed)] for seed in SEEDS]
        perplexities = [r["valid_word_perplexity"] for r in ours]
        paired = [a["valid_loss"] - b["valid_loss"] for a, b in zip(ours, dense, strict=True)]
        half = T_95 * statistics.stdev(paired) / len(SEEDS) ** 0.5
        difference = f"{statistics.fmean(paired):+.4f} ± {half:.4f}" if arm != DENSE else "-"
        load = max((r["largest_load"] or 0.0) for r in ours)
        print(
            f"| {arm} | {ours[0]['total']} | {ours[0]['active']} | {factor:g}x "
            f"| {statistics.fmean(perplexities):.2f} ± {statistics.stdev(perplexities):.2f} "
            f"| {difference} | {f'{load:.2f}' if load else '-'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=["speed", "train", "report"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", help="directory of a local WikiText-2; absent: the hub's")
    parser.add_argument("--output", type=Path, help="directory of the runs' records")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.stage == "speed":
        keep_freed_memory()
        results = speed(arguments.settings, arguments.rounds)
        if arguments.json:
            print(json.dumps(results, indent=2))
            return
        for precision, rows in results.items():
            for arm, row in rows.items():
                figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
                print(f"{precision} {arm}: {figures}")
        return
    if arguments.output is None:
        parser.error("--output DIRECTORY is needed")
    if arguments.stage == "train":
        data = [f"data.path={Path(arguments.data).resolve()}"] if arguments.data else []
        train([*data, *arguments.settings], arguments.output)
    else:
        report(arguments.output)


if __name__ == "__main__":
    main()
