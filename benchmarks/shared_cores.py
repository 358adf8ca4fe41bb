"""Two training runs at once on the cores of one machine, against one alone.

    python benchmarks/shared_cores.py [--seconds 15] [--rounds 3] [--json]

The reference step (6 layers, d 256, 16 x 256, float32) in processes of their own, with OpenMP's
default waiting and with the program's, in turns. The marks: two at once at >= 0.45x each of one
alone; alone at >= 0.95x of OpenMP's default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

_WORKER = """
import importlib, statistics, sys, time
importlib.import_module(sys.argv[2])  # OpenMP takes its settings when torch is first imported
from measure import VOCABULARY
from infinito.bench.training import training_action
from infinito.config.loading import load_config
step = training_action(load_config(None, ["device=cpu", "training.precision=float32"]), VOCABULARY)
step()
times, end = [], time.perf_counter() + float(sys.argv[1])
while time.perf_counter() < end:
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
print(statistics.median(times))
"""
#: What is imported first decides: torch with OpenMP's own default, or the program's setting.
_FIRST = {"default": "torch", "brief": "infinito"}


def seconds_a_step(waiting: str, processes: int, seconds: float) -> float:
    """Median step of the slowest of ``processes`` that run at once."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(seconds), _FIRST[waiting]],
            cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(processes)
    ]  # fmt: skip
    return max(float(process.communicate()[0]) for process in started)


def measure(seconds: float, rounds: int) -> dict[str, float]:
    """Medians over rounds in which all four cases take turns."""
    cases = [(waiting, count) for waiting in _FIRST for count in (1, 2)]
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            times[case].append(seconds_a_step(*case, seconds))
    median = {case: statistics.median(values) for case, values in times.items()}
    return {
        "default_alone_seconds": median["default", 1],
        "brief_alone_seconds": median["brief", 1],
        "alone_ratio": median["default", 1] / median["brief", 1],
        "default_two_ratio": median["default", 1] / median["default", 2],
        "brief_two_ratio": median["brief", 1] / median["brief", 2],
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.seconds, arguments.rounds)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name.replace('_', ' '):<24}{value:.3f}")


if __name__ == "__main__":
    main()
