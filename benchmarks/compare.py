"""Configs against each other at equal tokens (or FLOPs) and equal tuning: runs, and a table.

    python benchmarks/compare.py train --config FILE --output DIRECTORY
        --arm relu2 --arm swiglu:model.activation=swiglu [--set KEY=VALUE ...] [--flops N]
    python benchmarks/compare.py report --output DIRECTORY

An arm is a name and what it changes in the config (KEY=VALUE, separated by commas). Each is
trained at the config's learning rates times each of ``--factors`` on one seed; the factor of the
lowest validation loss is then trained on fresh ``--seeds``, and only those are reported, paired by
seed with the first arm. With ``--flops`` each arm is trained for as many steps as that many
counted FLOPs pay for, whatever its shape, vocabulary or batch; one seed makes a ranking without
an interval. All runs see the same text in the same order for the same seed. Runs are
``infinito train`` in OUTPUT/runs, one thread each: what was stopped goes on where it stood, and
what is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from infinito.config.loading import load_config
from infinito.config.schema import Config
from infinito.model.count import count_flops

SWEEP_SEED = 1
#: Student's t of a 95 % interval, by the number of paired seeds.
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


@dataclass(frozen=True)
class Plan:
    """What is compared: arms by name, with the settings that each adds to those of all."""

    config: str
    common: list[str]
    arms: dict[str, list[str]]
    factors: list[float]
    seeds: list[int]
    flops: float | None = None

    def settings(self, arm: str, factor: float, seed: int) -> list[str]:
        """All that one run changes in the config."""
        settings = [*self.common, *self.arms[arm]]
        config = load_config(self.config, settings)
        rates = ("learning_rate", "muon_learning_rate")
        scaled = [
            f"training.{name}={getattr(config.training, name) * factor:.6g}" for name in rates
        ]
        if self.flops is not None:
            scaled.append(f"training.max_steps={round(self.flops / flops_of_a_step(config))}")
        return [*settings, *scaled, f"seed={seed}", "device=cpu"]


def flops_of_a_step(config: Config) -> int:
    """Counted FLOPs, forward and backward."""
    vocabulary = config.tokenizer.vocab_size
    assert vocabulary is not None, "tokenizer.vocab_size must be set"
    rows, length = config.training.sequences_per_step, config.data.sequence_length
    return count_flops(config.model, vocabulary, rows, length).training


@dataclass(frozen=True)
class Finished:
    """What a run ended with; seconds are those of its training."""

    loss: float
    word_perplexity: float
    tokens: int
    seconds: float


def read_finished(directory: Path) -> Finished | None:
    """The end of a run's log; None while it is not finished."""
    log = directory / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    scored = [line for line in lines if line.get("valid_loss") is not None]
    if not (directory / "finished").exists() or not scored:
        return None
    last = scored[-1]
    return Finished(
        last["valid_loss"], last["valid_word_perplexity"], last["tokens"], last["seconds"]
    )


def run(plan: Plan, output: Path, arm: str, factor: float, seed: int) -> Finished:
    """Train one run to its end, from where it stood."""
    directory = output / "runs" / f"{arm}-{factor:g}-{seed}"
    done = read_finished(directory)
    if done is not None:
        return done
    begun = any(directory.glob("step-*.pt"))
    options = ["--resume", str(directory)] if begun else ["--config", plan.config]
    for setting in [] if begun else plan.settings(arm, factor, seed):
        options += ["--set", setting]
    command = [sys.executable, "-m", "infinito", "train", *options, "--output-dir", str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(directory.suffix + ".log").open("a") as log:
        code = subprocess.run(command, check=False, env=environment, stderr=log).returncode
    if code:
        raise SystemExit(f"a run ended with {code}; {log.name} says why. The same command goes on.")
    (directory / "finished").touch()
    done = read_finished(directory)
    assert done is not None
    print(f"{directory.name}: {done.word_perplexity:.2f}", file=sys.stderr, flush=True)
    return done


def run_all(
    plan: Plan, output: Path, wanted: Iterable[tuple[str, float, int]], jobs: int
) -> dict[tuple[str, float, int], Finished]:
    """Several at once, in processes of their own."""
    listed = list(wanted)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            ends = list(pool.map(lambda w: run(plan, output, *w), listed))
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise
    return dict(zip(listed, ends, strict=True))


def best_factors(plan: Plan, output: Path, jobs: int) -> dict[str, float]:
    """The factor of the lowest validation loss of each arm on the sweep's seed."""
    if len(plan.factors) == 1:
        return dict.fromkeys(plan.arms, plan.factors[0])
    sweep = [(arm, factor, SWEEP_SEED) for factor in plan.factors for arm in plan.arms]
    ends = run_all(plan, output, sweep, jobs)
    return {
        arm: min(plan.factors, key=lambda factor: ends[arm, factor, SWEEP_SEED].loss)
        for arm in plan.arms
    }


def train(plan: Plan, output: Path, jobs: int) -> None:
    """All runs of the plan, which is kept beside them for the report."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "plan.json").write_text(json.dumps(asdict(plan), indent=1) + "\n")
    best = best_factors(plan, output, jobs)
    final = [(arm, best[arm], seed) for seed in plan.seeds for arm in plan.arms]
    run_all(plan, output, final, jobs)


@dataclass(frozen=True)
class Row:
    """An arm at its best rates over the seeds.

    The difference is nats a word, paired with the first arm; its half interval is infinite for
    one seed.
    """

    factor: float
    perplexities: list[float]
    difference: float
    half_interval: float
    tokens: int
    minutes: float


def half_interval(values: list[float]) -> float:
    """Half the 95 % interval of their mean by Student's t."""
    if len(values) < 2:
        return math.inf
    return T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def rows(plan: Plan, output: Path) -> dict[str, Row]:
    """A row an arm, from finished runs."""
    best = best_factors(plan, output, 1)
    ends = {
        arm: [run(plan, output, arm, best[arm], seed) for seed in plan.seeds] for arm in plan.arms
    }
    first = ends[next(iter(plan.arms))]
    found = {}
    for arm, runs in ends.items():
        paired = [
            math.log(end.word_perplexity / other.word_perplexity)
            for end, other in zip(runs, first, strict=True)
        ]
        found[arm] = Row(
            best[arm],
            [end.word_perplexity for end in runs],
            statistics.fmean(paired),
            half_interval(paired),
            runs[0].tokens,
            statistics.fmean(end.seconds for end in runs) / 60,
        )
    return found


def read_plan(output: Path) -> Plan:
    """The plan of the runs in ``output``."""
    return Plan(**json.loads((output / "plan.json").read_text()))


def report(output: Path) -> None:
    """The table."""
    plan = read_plan(output)
    first = next(iter(plan.arms))
    print("| arm | rates | valid word perplexity, mean ± deviation "
          f"| nats a word against {first}, 95 % | tokens | core minutes |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for arm, row in rows(plan, output).items():
        mean, difference = f"{statistics.fmean(row.perplexities):.2f}", f"{row.difference:+.4f}"
        if len(plan.seeds) > 1:
            mean += f" ± {statistics.stdev(row.perplexities):.2f}"
            difference += f" ± {row.half_interval:.4f}"
        print(f"| {arm} | {row.factor:g}x | {mean} | {difference if arm != first else '-'} "
              f"| {row.tokens} | {row.minutes:.1f} |")  # fmt: skip


def read_arms(texts: list[str]) -> dict[str, list[str]]:
    """``NAME[:KEY=VALUE,...]`` each."""
    split = (text.partition(":") for text in texts)
    return {name: settings.split(",") if settings else [] for name, _, settings in split}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("stage", choices=["train", "report"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--flops", type=float, help="counted FLOPs of each run, in place of steps")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.stage == "report":
        report(given.output)
        return
    if given.config is None or not given.arm:
        parser.error("train needs --config and --arm")
    arms = read_arms(given.arm)
    plan = Plan(given.config, given.settings, arms, given.factors, given.seeds, given.flops)
    train(plan, given.output, given.jobs)


if __name__ == "__main__":
    main()
