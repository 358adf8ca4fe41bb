"""Five attention kinds on WikiText-2 at equal parameters, equal tokens and equal tuning.

    python benchmarks/attention_comparison.py train --data DIRECTORY --output DIRECTORY
    python benchmarks/attention_comparison.py speed --output DIRECTORY
    python benchmarks/attention_comparison.py report --output DIRECTORY [--plot FILE.svg]

The runs are those of benchmarks/compare.py: a sweep of learning rates on one seed, the best on
three fresh ones. ``dot-rope`` is the dot product as the project ships it (rotary positions, no
lambda), beside the five that differ in the score alone. ``--set`` changes the config of all runs
(with an OUTPUT of its own).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import compare

CONFIG = Path(__file__).parent.parent / "configs" / "attention-comparison.yaml"
ARMS = {
    **{kind: [f"model.attention.kind={kind}"] for kind in ("dot", "l1", "l2", "l2sq", "cosine")},
    "dot-rope": ["model.position=rope", "model.attention.learnable_lambda=false"],
}
FACTORS = [0.5, 1.0, 2.0]
SEEDS = [2, 3, 4]


def speed(common: list[str], output: Path, rounds: int) -> None:
    """Speed in turns with ``dot``, and peak memory; all threads, a process for each arm."""
    figures: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
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


def report(output: Path, plot: Path | None) -> None:
    """The table of losses, the table of speeds, and the plot."""
    compare.report(output)
    print("\n| arm | speed against dot | memory MB |\n|---|---|---|")
    for arm, row in json.loads((output / "speed.json").read_text()).items():
        print(f"| {arm} | {row['speed_ratio']:.2f}x | {row['peak_memory_mb']:.0f} |")
    if plot is not None:
        draw(output, plot)


def draw(output: Path, path: Path) -> None:
    """Left: the seeds of each kind at its best rate. Right: the sweep that chose the rate."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "infinito", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    plan = compare.read_plan(output)
    rows = compare.rows(plan, output)
    figure, (seeds, sweep) = pyplot.subplots(1, 2, figsize=(8, 3), sharey=False)
    for place, (arm, row) in enumerate(rows.items()):
        colour = f"C{place}"
        seeds.plot([place] * len(SEEDS), row.perplexities, "o", color=colour, alpha=0.6)
        mean = statistics.fmean(row.perplexities)
        seeds.plot([place - 0.25, place + 0.25], [mean] * 2, color=colour)
        swept = [
            compare.run(plan, output, arm, factor, compare.SWEEP_SEED).word_perplexity
            for factor in plan.factors
        ]
        sweep.plot(plan.factors, swept, "o-", color=colour, label=arm, markersize=3)
    seeds.set_xticks(range(len(rows)), list(rows))
    seeds.set_ylabel("validation word perplexity")
    tokens = next(iter(rows.values())).tokens / 1e6
    seeds.set_title(f"three seeds, best rate, {tokens:.1f} M tokens")
    sweep.set_xscale("log", base=2)
    sweep.set_xticks(plan.factors, [f"{factor:g}x" for factor in plan.factors])
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
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.stage == "train":
        data = [f"data.path={Path(given.data).resolve()}"] if given.data else []
        common = [*data, *given.settings]
        plan = compare.Plan(str(CONFIG), common, ARMS, FACTORS, SEEDS)
        compare.train(plan, given.output, given.jobs)
    elif given.stage == "speed":
        speed(given.settings, given.output, given.rounds)
    else:
        report(given.output, given.plot)


if __name__ == "__main__":
    main()
