"""A search from its parts: space, objective, method, schedule, directory."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from infinito.config.loading import to_yaml
from infinito.config.schema import Config
from infinito.config.yaml_loader import Plain
from infinito.errors import Interrupted
from infinito.runtime.cores import available_cores
from infinito.runtime.paths import shown
from infinito.search.candidates import Candidates
from infinito.search.halving import Halving, proposals_within
from infinito.search.methods import METHODS
from infinito.search.search_plots import write_plots
from infinito.search.short_run import ShortRun
from infinito.search.space import Assignment, configured
from infinito.search.space_file import load_space
from infinito.search.study import Study
from infinito.search.trials import Trial
from infinito.train.automatic import resolve
from infinito.train.initial import inherited

#: Full trials of a cycle, after five of which without progress a search ends.
CYCLE_TRIALS = 4.0


def tune(
    base: Config, space_file: Path, method: str, budget: float, seed: int, directory: Path
) -> tuple[Study, str, list[Path]]:
    """Search ``space_file`` around ``base``; returns the study, why it ended, and its plots.

    Raises:
        ConfigError: the space is wrong, or an extra is missing.
        ResourceError: the directory is in use or holds another search.
        Interrupted: Ctrl-C; what was measured is kept.
    """
    spec, space = load_space(space_file)
    base = resolve(inherited(base)[0])
    candidates = Candidates(space, partial(configured, base), seed)
    proposer = METHODS[method](candidates, proposals_within(budget, spec.rungs))
    # Annealing needs the answer to one proposal before it makes the next.
    workers = 1 if method == "annealing" else _workers(base, spec.metric)
    objective = ShortRun(base, spec, threads=1 if workers > 1 else None)
    identity: dict[str, Plain] = {
        "space": space_file.read_text(encoding="utf-8"),
        "config": to_yaml(base.model_copy(update={"output_dir": None})),
        "method": method,
        "seed": seed,
        "budget": budget if method == "annealing" else None,  # that of its schedule
    }

    def best_text(values: Assignment) -> str:
        return to_yaml(objective.config(values).model_copy(update={"output_dir": None}))

    with _processes(workers, fresh=spec.memory_mb is not None) as run_all:
        study = Study(
            directory, Halving(proposer, spec.rungs), objective, budget, identity, best_text,
            spec.to_minimise, cycle=CYCLE_TRIALS, workers=workers, run_all=run_all,
        )  # fmt: skip
        try:
            why = study.run()
            plots = write_plots(study, space, spec.metric, proposer)
        except KeyboardInterrupt:
            kept = f"interrupted: {len(study.trials)} trials are kept in {shown(directory)}"
            again = "the same command goes on where it stood"
            raise Interrupted(kept, again, signal.SIGINT) from None
        finally:
            study.close()
    return study, why, plots


def _workers(base: Config, metric: str) -> int:
    """Trials at once: one a core, unless they share a device or their speed is what counts."""
    if base.device != "cpu" or metric in ("tokens_per_second", "weighted"):
        return 1
    return available_cores()


@contextmanager
def _processes(workers: int, fresh: bool) -> Iterator[Callable[..., Iterable[Trial]]]:
    """What carries a batch out; ``fresh``: each trial in a process that did nothing before."""
    if workers == 1 and not fresh:
        yield map
        return
    most = 1 if fresh else None
    pool = ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=most)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
