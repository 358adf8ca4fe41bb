"""A table of real small trainings: every assignment of a small space, trained once, for good.

    python benchmarks/search_table.py --config FILE --space FILE --output TABLE.jsonl [--jobs N]

Search methods are then compared on it as often as one likes, at no cost (search_proof.py --table).
What is in TABLE already is not trained again, so that filling it can be stopped and gone on with.

The format, one JSON object a line. The first line says what the table is of:
  {"format": "infinito search table 1", "metric": "valid_loss", "tokens": 200000,
   "config": {... the resolved base config ...},
   "space": [{"key": "training.learning_rate", "kind": "choice", "values": [...], "when": {}}, ...]}
Each other line is one training of ``fraction`` of the tokens (1, and with objective.rungs R also
1/2 ... 1/2^(R-1)); ``figures`` is null where it failed, and ``status`` says how:
  {"values": {"training.learning_rate": 0.001, ...}, "fraction": 1.0, "status": "done",
   "figures": {"valid_loss": 4.1, "valid_word_perplexity": 310.0, "tokens_per_second": 21000.0,
               "memory_mb": 300.0}}
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infinito.config.loading import load_config, to_plain
from infinito.config.schema import Config
from infinito.errors import ConfigError
from infinito.search.objective import ObjectiveSpec, TrialFailedError
from infinito.search.short_run import ShortRun
from infinito.search.space import Assignment, Parameter, Space, configured, key_of
from infinito.search.space_file import load_space
from infinito.train.automatic import resolve

FORMAT = "infinito search table 1"
MOST_ROWS = 2000
Row = dict[str, Any]


def read_table(path: Path) -> tuple[Row, list[Row]]:
    """The header and the rows. Raises ConfigError where the file is no table."""
    header, *rows = [json.loads(line) for line in path.read_text().splitlines()] or [{}]
    if header.get("format") != FORMAT:
        raise ConfigError(f"{path} is no search table")
    return header, rows


def table_space(header: Row) -> Space:
    """The space a table is of."""
    return Space(
        Parameter(p["key"], p["kind"], tuple(p["values"]), p["when"]) for p in header["space"]
    )


def train_one(trial: ShortRun, values: Assignment, fraction: float) -> Row:
    """The row of one training."""
    row: Row = {"values": values, "fraction": fraction, "status": "done", "figures": None}
    try:
        return row | {"figures": trial.figures(values, fraction)[0]}
    except TrialFailedError as failure:
        return row | {"status": failure.status}


def wanted(
    base: Config, objective: ObjectiveSpec, space: Space
) -> Iterator[tuple[Assignment, float]]:
    """Every valid assignment at every rung, the shortest first."""
    for below in reversed(range(objective.rungs)):
        for values in space.assignments():
            try:
                configured(base, values)
            except ConfigError:
                continue
            yield values, 1 / 2**below


def fill(base: Config, space_file: Path, path: Path, jobs: int) -> None:
    objective, space = load_space(space_file)
    if objective.tokens is None or space.size() > MOST_ROWS:
        raise ConfigError(
            f"{space_file}: a table needs tokens, and at most {MOST_ROWS} assignments"
        )
    header = {"format": FORMAT, "metric": objective.metric, "tokens": objective.tokens,
              "config": to_plain(base), "space": [asdict(p) for p in space.parameters]}  # fmt: skip
    header = json.loads(json.dumps(header))
    if not path.exists():
        path.write_text(json.dumps(header) + "\n")
    found, rows = read_table(path)
    if found != header:
        raise ConfigError(f"{path} is a table of another config or space")
    done = {(key_of(row["values"]), row["fraction"]) for row in rows}
    missing = [w for w in wanted(base, objective, space) if (key_of(w[0]), w[1]) not in done]
    context = multiprocessing.get_context("spawn")
    # A fresh process a training: its memory is its own.
    pool = ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1)
    with pool, path.open("a") as file:
        trial = ShortRun(resolve(base), objective, threads=1)
        futures = [pool.submit(train_one, trial, *pair) for pair in missing]
        for number, future in enumerate(as_completed(futures), 1):
            row = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{number}/{len(missing)} {row}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    try:
        base = load_config(arguments.config, arguments.settings)
        fill(base, arguments.space, arguments.output, arguments.jobs)
    except ConfigError as error:
        sys.exit(f"{error.message}\n{error.remedy}")


if __name__ == "__main__":
    main()
