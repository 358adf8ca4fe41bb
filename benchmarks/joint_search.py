"""How near a joint search with few measurements comes to the best combination there is.

    python benchmarks/joint_search.py [--trials N] [--draws N]

Costs are made up: each value of a row has its own, and values of two rows interact; every
measurement has 1 % noise. Printed is the mean distance of the best found from the optimum, in
logarithms of time, for several constants of exploration and for greedy selection, and how many
measurements either took.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from random import Random

from infinito.search import joint
from infinito.search.space import Assignment, Parameter, Space

ROWS = {"80 combinations": (2, 4, 5, 2), "256": (2,) * 8, "729": (3,) * 6}
INTERACTIONS = (0.05, 0.15)
EXPLORATIONS = (0.3, 0.5, 1.414)
NOISE = 0.01
Cost = Callable[[Assignment], float]


def costs(rows: tuple[int, ...], interaction: float, seed: int) -> Cost:
    """Logarithm of the time of a combination; the first value of a row costs nothing."""
    random = Random(seed)
    single = {(r, v): random.gauss(-0.1, 0.25) for r, n in enumerate(rows) for v in range(1, n)}
    pairs = {pair: random.gauss(0, interaction) for pair in itertools.combinations(single, 2)}

    def cost(values: Assignment) -> float:
        chosen = [(int(row), int(str(value))) for row, value in values.items() if value]
        together = sum(pairs[pair] for pair in itertools.combinations(chosen, 2))
        return sum(single[one] for one in chosen) + together

    return cost


def greedy(space: Space, cost: Cost) -> tuple[Assignment, int]:
    """The best change of one row, until none is better, and the measurements that it took."""
    known: dict[str, float] = {}

    def measured(values: Assignment) -> float:
        return known.setdefault(str(values), cost(values))

    now: Assignment = {p.key: p.values[0] for p in space.parameters}
    while True:
        steps = [now | {p.key: value} for p in space.parameters for value in p.values]
        best = min(steps, key=measured)
        if measured(best) >= measured(now):
            return now, len(known)
        now = best


def distances(rows: tuple[int, ...], interaction: float, trials: int, seed: int) -> list[float]:
    """From the optimum: of each exploration, and of greedy selection; then both measurements."""
    cost, random = costs(rows, interaction, seed), Random(seed)
    space = Space(Parameter(str(r), "choice", tuple(range(n))) for r, n in enumerate(rows))
    optimum = min(map(cost, space.assignments()))

    def noisy(values: Assignment) -> float:
        return cost(values) + random.gauss(0, NOISE)

    far = []
    for joint._EXPLORATION in EXPLORATIONS:
        found = joint.search_jointly(space, noisy, trials)
        far.append(cost(found[0][1]) - optimum)
    picked, count = greedy(space, noisy)
    return [*far, cost(picked) - optimum, len(found), count]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--draws", type=int, default=60)
    given = parser.parse_args()
    heads = [f"C = {c}" for c in EXPLORATIONS] + ["greedy", "measurements", "of greedy"]
    print(f"| rows | interaction | {' | '.join(heads)} |")
    print("|---" * (2 + len(heads)) + "|")
    for (name, rows), interaction in itertools.product(ROWS.items(), INTERACTIONS):
        found = [distances(rows, interaction, given.trials, seed) for seed in range(given.draws)]
        *far, ours, greedys = (statistics.fmean(column) for column in zip(*found, strict=True))
        cells = [*(f"{mean:.4f}" for mean in far), f"{ours:.1f}", f"{greedys:.1f}"]
        print(f"| {name} | {interaction:.0%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
