"""Eight experts, two of half width a token, against the dense model of equal active FLOPs.

    python benchmarks/experts.py speed [--rounds N] [--set KEY=VALUE] [--json]
    python benchmarks/experts.py train --output DIRECTORY [--data DIRECTORY] [--set KEY=VALUE]
    python benchmarks/experts.py report --output DIRECTORY

``speed`` times whole training steps of both in turns. ``train`` is quality at equal active
parameters (but the router), tokens and tuning: each arm is trained with the learning rates of the
config times 1/2, 1 and 2 on one seed, and at the best of them by validation loss on three fresh
seeds; ``report`` prints only those. What was stopped goes on where it stood (compare.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from compare import Plan, read_plan, rows, train
from measure import VOCABULARY, interleaved_medians

from infinito import load_config
from infinito.bench.training import training_action
from infinito.config.schema import Config
from infinito.load import open_checkpoint
from infinito.model.count import count_flops, count_parameters
from infinito.runtime.memory import keep_freed_memory

CONFIG = Path(__file__).parent.parent / "configs" / "attention-comparison.yaml"
DENSE = "dense"
FACTORS = (0.5, 1.0, 2.0)
SEEDS = (2, 3, 4)
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


def plan(common: list[str]) -> Plan:
    """Both arms, at three learning rates on one seed, and at the best of them on three more."""
    given = [*DOT, *common]
    return Plan(str(CONFIG), given, arms(load_config(CONFIG, given)), list(FACTORS), list(SEEDS))


def report(output: Path) -> None:
    """The table of finished runs."""
    known = read_plan(output)
    print("| model | parameters | active | learning rate | valid word perplexity, mean ± deviation "
          "| nats a word against dense, 95 % | largest load |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for arm, row in rows(known, output).items():
        runs = [output / "runs" / f"{arm}-{row.factor:g}-{seed}" for seed in known.seeds]
        opened = open_checkpoint(runs[0] / "last.pt")
        length = opened.config.data.sequence_length
        parts = count_parameters(opened.config.model, opened.tokenizer.vocab_size, length)
        mean, deviation = statistics.fmean(row.perplexities), statistics.stdev(row.perplexities)
        difference = f"{row.difference:+.4f} ± {row.half_interval:.4f}" if arm != DENSE else "-"
        print(
            f"| {arm} | {parts.total} | {parts.active} | {row.factor:g}x "
            f"| {mean:.2f} ± {deviation:.2f} | {difference} | {_largest_load(runs)} |"
        )


def _largest_load(runs: list[Path]) -> str:
    """The greatest share of the tokens that one expert of a layer took at the end of a run."""
    loads = list[float]()
    for run in runs:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        layers = [line["expert_load"] for line in lines if "expert_load" in line]
        loads += [max(layer) / sum(layer) for layer in (layers[-1] if layers else [])]
    return f"{max(loads):.2f}" if loads else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=["speed", "train", "report"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", help="directory of a local WikiText-2; absent: the hub's")
    parser.add_argument("--output", type=Path, help="directory of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
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
        train(plan([*data, *arguments.settings]), arguments.output, arguments.jobs)
    else:
        report(arguments.output)


if __name__ == "__main__":
    main()
