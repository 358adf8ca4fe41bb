"""The functions that the proof of the search methods stands on, and its tables of trainings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from infinito.config.loading import config_from_plain
from infinito.errors import ConfigError
from infinito.search.candidates import Candidates
from infinito.search.methods import RandomSearch
from tests.support import ROOT, tiny_settings

sys.path.insert(0, str(ROOT / "benchmarks"))
import search_functions
import search_proof
import search_table

HARTMANN = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
# Where the literature says that the optimum of each lies.
OPTIMA: dict[str, dict[str, Any]] = {
    "branin": {"x0": (9.42478 + 5) / 15, "x1": 2.475 / 15},
    "hartmann6": {f"x{i}": x for i, x in enumerate(HARTMANN)},
    "rastrigin": dict.fromkeys(("x0", "x1", "x2"), 0.7),
    "planted": {f"c{i}": c for i, c in enumerate(search_functions.PLANTED)},
    "recipe": {"optimizer": "muon", "rate": 10**-3.25, "width": 512, "muon_rate": 10**-1.7},
    "levy": {f"x{i}": 1.0 for i in range(4)},
}


@pytest.mark.parametrize("name", search_functions.LANDSCAPES)
def test_an_optimum_is_where_it_should_be_and_nothing_lies_below(name: str) -> None:
    landscape = search_functions.LANDSCAPES[name]
    if name in OPTIMA:
        assert landscape.function(OPTIMA[name]) == pytest.approx(landscape.optimum, abs=1e-4)
        at = landscape.space.canonical(OPTIMA[name])
        assert all(p.includes(at[p.key]) for p in landscape.space.parameters if p.key in at)
    search = RandomSearch(Candidates(landscape.space))
    for _ in range(1000):
        assignment = search.ask()
        assert assignment is not None
        assert landscape.function(assignment) >= landscape.optimum - 1e-6


def test_the_planted_optimum_is_the_only_one() -> None:
    landscape = search_functions.LANDSCAPES["planted"]
    values = sorted(landscape.function(a) for a in landscape.space.assignments())
    assert values[0] == 0 < values[1]


def test_a_verdict_needs_an_interval_on_one_side_of_nought() -> None:
    random = [1.0, 2.0] * 10
    assert search_proof.cell(random, random) == "1.500 ± 0.240"
    assert search_proof.cell([0.5, 1.5] * 10, random).endswith("(-0.500 ± 0.340 better)")
    assert search_proof.cell([2.5, 1.5] * 10, random).endswith("(+0.500 ± 0.340 worse)")
    assert search_proof.cell([1.4, 2.4] * 10, random).endswith("(+0.400 ± 0.340 worse)")
    assert search_proof.cell([1.3, 2.3] * 10, random).endswith("(+0.300 ± 0.340)")


SPACE = """\
objective: {metric: valid_loss, tokens: 128, rungs: 2}
space:
  training.learning_rate: {choice: [1e-3, 1e-2]}
  model.n_heads: {choice: [2, 3, 4]}
"""


def test_a_table_is_filled_once_and_searched(tmp_path: Path) -> None:
    """Real trainings of two steps; three heads do not divide the width and are left out."""
    base = config_from_plain({**tiny_settings(tmp_path), "output_dir": None}, "base")
    space, table = tmp_path / "space.yaml", tmp_path / "table.jsonl"
    space.write_text(SPACE)
    search_table.fill(base, space, table, jobs=1)
    header, *rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert (header["format"], header["tokens"]) == ("infinito search table 1", 128)
    assert [row["fraction"] for row in rows] == [0.5] * 4 + [1.0] * 4
    assert {row["values"]["model.n_heads"] for row in rows} == {2, 4}
    assert all(0 < row["figures"]["valid_loss"] < 7 for row in rows)
    before = table.read_bytes()
    search_table.fill(base, space, table, jobs=1)
    assert table.read_bytes() == before
    landscape = search_proof.table_landscape(table)
    full = [row["figures"]["valid_loss"] for row in rows if row["fraction"] == 1]
    assert landscape.optimum == min(full)
    assert search_proof.best_distance("mcts", landscape, 4, seed=0) == 0
    space.write_text(SPACE.replace("128", "256"))
    with pytest.raises(ConfigError, match="a table of another config or space"):
        search_table.fill(base, space, table, jobs=1)


def test_what_failed_in_a_table_is_the_worst(tmp_path: Path) -> None:
    space = [{"key": "x", "kind": "choice", "values": [1, 2, 3], "when": {}}]
    header = {"format": search_table.FORMAT, "metric": "tokens_per_second", "space": space}
    figures = [None, {"tokens_per_second": 90.0}, {"tokens_per_second": 100.0}]
    rows = [{"values": {"x": i + 1}, "fraction": 1.0, "figures": f} for i, f in enumerate(figures)]
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *rows)))
    landscape = search_proof.table_landscape(path)
    assert landscape.optimum == -100.0  # speed is made great
    found = {search_proof.best_distance("random", landscape, 1, seed) for seed in range(20)}
    assert found == {0.0, 10.0}  # a failure alone counts as the worst that did not fail
