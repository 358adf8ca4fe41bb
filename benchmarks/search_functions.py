"""Functions with known optima for the search methods: ``{name: Landscape}``.

Each is a space like those of ``tune --space`` and a function to make small. Nothing here trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from infinito.errors import ConfigError
from infinito.search.space import Assignment, Parameter, Space, key_of

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Landscape:
    """A search problem: its space, the function, and the smallest value there is."""

    space: Space
    function: Callable[[Values], float]
    optimum: float
    known: Mapping[str, float] | None = None  # the assignments of a table: others are not valid

    def check(self, values: Assignment) -> None:
        """Raise ConfigError for an assignment that a table does not have."""
        if self.known is not None and key_of(values) not in self.known:
            raise ConfigError(f"not in the table: {values}")


def _reals(n: int, low: float, high: float) -> Space:
    return Space(Parameter(f"x{i}", "range", (low, high)) for i in range(n))


def branin(v: Values) -> float:
    """Two ranges, three equal valleys (Dixon and Szego, 1978)."""
    x, y = 15 * v["x0"] - 5, 15 * v["x1"]
    valley = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return float(valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


_HARTMANN_A = (
    (10, 3, 17, 3.5, 1.7, 8),
    (0.05, 10, 17, 0.1, 8, 14),
    (3, 3.5, 1.7, 10, 17, 8),
    (17, 8, 0.05, 10, 0.1, 14),
)
_HARTMANN_P = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)


def hartmann6(v: Values) -> float:
    """Six ranges, four wells of unequal depth (Hartmann, 1973)."""
    x = [v[f"x{i}"] for i in range(6)]
    wells = (
        height * math.exp(-sum(a * (xi - p) ** 2 for a, p, xi in zip(row, place, x, strict=True)))
        for height, row, place in zip((1, 1.2, 3, 3.2), _HARTMANN_A, _HARTMANN_P, strict=True)
    )
    return -sum(wells)


def rastrigin(v: Values) -> float:
    """Three ranges, about a thousand local minima (Rastrigin, 1974); the best off the centre."""
    x = [v[f"x{i}"] - 0.7 for i in range(3)]
    return float(sum(xi**2 - 10 * math.cos(2 * math.pi * xi) + 10 for xi in x))


PLANTED = (3, 0, 2, 1, 3, 2)


def planted(v: Values) -> float:
    """Six choices of four; neighbours must be right together, so that single ones mislead."""
    right = [v[f"c{i}"] == wanted for i, wanted in enumerate(PLANTED)]
    pairs = sum(right[i] and right[i + 1] for i in range(5))
    wrong = sum(0.3 for i, ok in enumerate(right) if not ok and v[f"c{i}"] == (PLANTED[i] + 1) % 4)
    return float(5 - pairs - wrong)


def recipe(v: Values) -> float:
    """A training recipe in small: logarithmic rates, a condition, whole widths, an interaction."""
    rate, width = math.log10(v["rate"]), math.log2(v["width"])
    best_rate = -2.5 - 0.25 * (width - 6)
    loss = 3 + 0.08 * (9 - width) + 0.4 * (rate - best_rate) ** 2
    if v["optimizer"] == "muon":
        return float(loss - 0.3 + 0.3 * (math.log10(v["muon_rate"]) + 1.7) ** 2)
    return float(loss + 0.1 * abs(v["beta"] - 0.9))


def levy(v: Values) -> float:
    """Four ranges, ridges across a slope (Levy and Montalvo, 1985)."""
    w = [1 + (v[f"x{i}"] - 1) / 4 for i in range(4)]
    ridges = ((a - 1) ** 2 * (1 + 10 * math.sin(math.pi * a + 1) ** 2) for a in w[:-1])
    end = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    return float(math.sin(math.pi * w[0]) ** 2 + sum(ridges) + end)


def _nk_tables(n: int, k: int) -> list[list[float]]:
    generator = Random(7)
    return [[generator.random() for _ in range(2 ** (k + 1))] for _ in range(n)]


_NK, _K = 10, 3
_TABLES = _nk_tables(_NK, _K)


def nk(v: Values) -> float:
    """Ten switches, each with an effect of its own for every setting of the next three (NK)."""
    bits = [int(v[f"s{i}"]) for i in range(_NK)]
    found = (sum(bits[(i + j) % _NK] << j for j in range(_K + 1)) for i in range(_NK))
    return sum(table[at] for table, at in zip(_TABLES, found, strict=True)) / _NK


_RECIPE_SPACE = Space(
    [
        Parameter("optimizer", "choice", ("adamw", "muon")),
        Parameter("rate", "log_range", (1e-5, 1e-1)),
        Parameter("width", "log_range", (16, 512)),
        Parameter("muon_rate", "log_range", (1e-4, 1.0), {"optimizer": "muon"}),
        Parameter("beta", "range", (0.5, 0.999), {"optimizer": "adamw"}),
    ]
)

_NK_SPACE = Space(Parameter(f"s{i}", "choice", (False, True)) for i in range(_NK))

LANDSCAPES = {
    "branin": Landscape(_reals(2, 0.0, 1.0), branin, 0.397887),
    "hartmann6": Landscape(_reals(6, 0.0, 1.0), hartmann6, -3.322368),
    "rastrigin": Landscape(_reals(3, -5.12, 5.12), rastrigin, 0.0),
    "planted": Landscape(
        Space(Parameter(f"c{i}", "choice", tuple(range(4))) for i in range(6)), planted, 0.0
    ),
    "recipe": Landscape(_RECIPE_SPACE, recipe, 2.7),
    # Nothing of the methods was chosen on these two.
    "levy": Landscape(_reals(4, -10.0, 10.0), levy, 0.0),
    "nk": Landscape(_NK_SPACE, nk, min(nk(v) for v in _NK_SPACE.assignments())),
}
