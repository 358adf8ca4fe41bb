"""The driver of a search: one trial after the other until the budget is spent.

Its directory holds all there is to know: ``run`` first asks and tells the method again what
``trials.jsonl`` says, which brings it to where it stood. A kill loses the trial in progress only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from infinito.checkpoint.atomic import make_directory, write_text_atomic
from infinito.checkpoint.lock import RunLock
from infinito.config.explain import show_value
from infinito.config.yaml_loader import Plain
from infinito.errors import CheckpointError, ResourceError
from infinito.runtime.events import note
from infinito.search.halving import Halving, Job
from infinito.search.objective import Objective, TrialFailedError
from infinito.search.space import Assignment
from infinito.search.trials import TRIALS_FILE, Trial, read_trials
from infinito.telemetry.sinks import JsonLines

BEST_FILE, IDENTITY_FILE = "best.yaml", "search.json"
_ANOTHER = "repeat the command it was started with, in its version, or give another --output-dir"
_ROUNDING = 1e-9  # shares of a budget add up to it but for this


@dataclass
class Study:
    """A search in a directory, which it locks until ``close``.

    Making one raises ResourceError where the directory is in use, cannot be written or holds
    another search, and CheckpointError where its files are damaged.

    Attributes:
        budget: Full trials.
        identity: What the course of the search depends on; kept, and compared on going on.
        to_minimise: Makes of a figure the number that the methods make small.
        best_text: The text of ``best.yaml``, a config, for an assignment.
        cycle: Full trials of a cycle: when each of ``cycles`` cycles in a row has made the best
            less by under ``threshold`` (nats of loss; a share of speed or perplexity), it ends.
        workers: Trials under way at once. The answers of a batch are told in its order, so that
            a search depends on how many there are, and not on which is quicker.
        run_all: ``map``, or that of an executor, which carries a batch out.
    """

    directory: Path
    schedule: Halving
    objective: Objective
    budget: float
    identity: Mapping[str, Plain]
    best_text: Callable[[Assignment], str]
    to_minimise: Callable[[float], float] = lambda value: value
    cycle: float = math.inf
    cycles: int = 5
    threshold: float = 0.01
    workers: int = 1
    run_all: Callable[..., Iterable[Trial]] = map

    def __post_init__(self) -> None:
        """Lock the directory and read its trials."""
        self._spent, self._n_told, self._cycle_bests = 0.0, 0, [math.inf]
        self._held: Job | None = None  # asked for, but longer than what is left of the budget
        make_directory(self.directory)
        self._lock = RunLock(self.directory)
        try:
            _claim(self.directory, {**self.identity, "workers": self.workers})
            #: Every trial in the log.
            self.trials = read_trials(self.directory / TRIALS_FILE)
            self._log = JsonLines(self.directory / TRIALS_FILE)
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Release the directory."""
        self._log.close()
        self._lock.release()

    @property
    def best(self) -> Trial | None:
        """The best of the longest trials; None while all have failed."""
        done = (trial for trial in self.trials if trial.objective is not None)
        return min(done, key=lambda trial: (-trial.fraction, self.number(trial)), default=None)

    def number(self, trial: Trial) -> float:
        """What is minimised: small where a trial is good, infinite where it failed."""
        return math.inf if trial.objective is None else self.to_minimise(trial.objective)

    def run(self) -> str:
        """Search to the end, over what the log holds already; returns why it ended."""
        self._write_best()
        while not self._is_stalled():
            jobs = self._next_batch()
            if not jobs:
                is_spent = self._held is not None or self.budget - self._spent <= _ROUNDING
                return "the budget is spent" if is_spent else "the space is used up"
            for job, trial in zip(jobs, self._carried_out(jobs), strict=True):
                self._tell(job, trial)
        return "the best has stopped improving"

    def _next_batch(self) -> list[Job]:
        jobs: list[Job] = []
        left = self.budget - self._spent + _ROUNDING
        while len(jobs) < self.workers and left > 2 * _ROUNDING:
            self._held = self._held or self.schedule.ask()
            if self._held is None or self._held.fraction > left:
                break
            left -= self._held.fraction
            jobs.append(self._held)
            self._held = None
        return jobs

    def _carried_out(self, jobs: list[Job]) -> list[Trial]:
        """The trial of each job: from the log as far as it reaches, then for real."""
        first = self._n_told
        known = self.trials[first : first + len(jobs)]
        for job, trial in zip(jobs, known, strict=False):
            if (job.values, job.fraction) != (trial.values, trial.fraction):
                what = f"trial {trial.trial} is not what this search would try"
                raise ResourceError(f"{self.directory}: {what}", _ANOTHER)
        new = list(enumerate(jobs, first + 1))[len(known) :]
        for trial in self.run_all(partial(carry_out_job, self.objective), new):
            self._log.write(asdict(trial))
            self.trials.append(trial)
            if self.best is trial:
                self._write_best()
            note(_line(trial, self.best))
        return self.trials[first : first + len(jobs)]

    def _tell(self, job: Job, trial: Trial) -> None:
        self.schedule.tell(job, self.number(trial))
        self._spent += trial.fraction
        self._n_told += 1
        best = min(self.number(told) for told in self.trials[: self._n_told])
        while self._spent >= self.cycle * len(self._cycle_bests) - _ROUNDING:
            self._cycle_bests.append(best)

    def _is_stalled(self) -> bool:
        latest = self._cycle_bests[-self.cycles - 1 :]
        small = (old - new < self.threshold for old, new in pairwise(latest))
        return len(latest) > self.cycles and all(small)

    def _write_best(self) -> None:
        if self.best is not None:
            write_text_atomic(self.directory / BEST_FILE, self.best_text(self.best.values))


def carry_out_job(objective: Objective, numbered: tuple[int, Job]) -> Trial:
    """The trial of a numbered job; a function of its own, so that another process can run it."""
    number, job = numbered
    try:
        found = objective(job.values, job.fraction)
        if not math.isfinite(found.value):
            raise TrialFailedError("diverged", f"the figure is {found.value}", found.cost)
    except TrialFailedError as failure:
        outcome = (None, failure.cost, failure.status, failure.reason)
        return Trial(number, job.values, job.fraction, *outcome)
    return Trial(number, job.values, job.fraction, found.value, found.cost, "done")


def _line(trial: Trial, best: Trial | None) -> str:
    """A trial as a line for people."""
    length = "" if trial.fraction == 1 else f" ({trial.fraction:g} of the length)"
    failed = f"{trial.status} {trial.reason}".rstrip()
    came_to = failed if trial.objective is None else f"{trial.objective:.6g}"
    ahead = f"  best {best.objective:.6g} (trial {best.trial})" if best else ""
    values = " ".join(f"{key}={show_value(value)}" for key, value in trial.values.items())
    return f"trial {trial.trial}{length}: {came_to}{ahead}  {values}"


def _claim(directory: Path, identity: dict[str, Plain]) -> None:
    """Write down what this search is, or compare it with what the one in ``directory`` is."""
    path = directory / IDENTITY_FILE
    if not path.exists():
        write_text_atomic(path, json.dumps(identity, indent=2) + "\n")
    try:
        before = json.loads(path.read_bytes())
        names = [name for name in before | identity if before.get(name) != identity.get(name)]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a file that a search wrote", _ANOTHER) from error
    if names:
        what = f"{directory} holds another search: another {', '.join(names)}"
        raise ResourceError(what, _ANOTHER)
