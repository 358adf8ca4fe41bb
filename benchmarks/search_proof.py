"""Every search method against random search at equal budget, over many seeds.

    python benchmarks/search_proof.py [--budget N] [--seeds N] [--methods a,b] [--table TABLE.jsonl]

Prints one Markdown table: for each problem and method the mean distance of the best found from the
optimum (in the function's units; less is better) with its 95 % interval, and in brackets the
difference to random search with its interval, marked where it lies on one side of 0. The problems
are functions with known optima (search_functions.py) or tables of real trainings (search_table.py).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from search_functions import LANDSCAPES, Landscape
from search_table import read_table, table_space

from infinito.search.candidates import Candidates
from infinito.search.methods import METHODS
from infinito.search.space import key_of

FEWEST_SEEDS = 20
FIRST_SEED = 1000  # the constants of the methods were chosen on the first five functions, below it
T_95 = 2.093  # Student's t for a 95 % interval with the 19 degrees of freedom of 20 seeds


def table_landscape(path: Path) -> Landscape:
    """The full trainings of a table."""
    header, rows = read_table(path)
    metric = header["metric"]
    sign = -1 if metric == "tokens_per_second" else 1
    found = {
        key_of(row["values"]): sign * row["figures"][metric] if row["figures"] else math.inf
        for row in rows
        if row["fraction"] == 1
    }
    space = table_space(header)
    return Landscape(space, lambda v: found[key_of(space.canonical(v))], min(found.values()), found)


def best_distance(name: str, landscape: Landscape, budget: int, seed: int) -> float:
    """How far the best of ``budget`` trials is from the optimum."""
    candidates = Candidates(landscape.space, landscape.check, seed)
    method = METHODS[name](candidates, budget)
    best = math.inf
    for _ in range(budget):
        assignment = method.ask()
        if assignment is None:
            break
        value = landscape.function(assignment)
        method.tell(assignment, value)
        best = min(best, value)
    if math.isinf(best) and landscape.known:  # as bad as the worst that did not fail
        best = max(value for value in landscape.known.values() if value < math.inf)
    return best - landscape.optimum


def half_interval(deviations: list[float], n: int) -> float:
    """Half of a 95 % interval of a mean, or of a difference of means, of ``n`` seeds each."""
    return T_95 * math.sqrt(sum(deviation**2 for deviation in deviations) / n)


def cell(distances: list[float], baseline: list[float]) -> str:
    n, mean = len(distances), statistics.fmean(distances)
    own, random = statistics.stdev(distances), statistics.stdev(baseline)
    text = f"{mean:.3f} ± {half_interval([own], n):.3f}"
    if distances is baseline:
        return text
    difference, half = mean - statistics.fmean(baseline), half_interval([own, random], n)
    verdict = "" if abs(difference) <= half else " better" if difference < 0 else " worse"
    return f"{text} ({difference:+.3f} ± {half:.3f}{verdict})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=FEWEST_SEEDS)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--table", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, help="also write every distance here")
    arguments = parser.parse_args()
    if arguments.seeds < FEWEST_SEEDS:
        parser.error(f"--seeds: at least {FEWEST_SEEDS}, or the intervals say nothing")
    methods = ["random", *(m for m in arguments.methods.split(",") if m != "random")]
    landscapes = {path.stem: table_landscape(path) for path in arguments.table} or LANDSCAPES
    print(
        f"| problem, {arguments.budget} trials, {arguments.seeds} seeds | {' | '.join(methods)} |"
    )
    print("|---" * (len(methods) + 1) + "|")
    everything: dict[str, Any] = {}
    for problem, landscape in landscapes.items():
        distances = everything[problem] = {
            method: [
                best_distance(method, landscape, arguments.budget, seed)
                for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds)
            ]
            for method in methods
        }
        cells = [cell(distances[method], distances["random"]) for method in methods]
        print(f"| {problem} | {' | '.join(cells)} |", flush=True)
        print(f"{problem} done", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything) + "\n")


if __name__ == "__main__":
    main()
