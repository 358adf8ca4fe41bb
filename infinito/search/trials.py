"""``trials.jsonl``: one line a trial."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from infinito.checkpoint.atomic import cannot_write
from infinito.errors import CheckpointError
from infinito.search.space import Assignment

TRIALS_FILE = "trials.jsonl"


@dataclass(frozen=True)
class Trial:
    """One line.

    Attributes:
        trial: Its number, from 1.
        values: The active parameters.
        fraction: Share of a full trial's budget that it had.
        objective: Its figure in the units of the metric; None where it has none.
        tokens: What it cost, in training tokens.
        status: ``done``, or why there is no figure.
        reason: More about the status; empty for ``done``.
    """

    trial: int
    values: Assignment
    fraction: float
    objective: float | None
    tokens: float
    status: str
    reason: str = ""


def read_trials(path: Path) -> list[Trial]:
    """The lines of ``path``, from which a last one that a crash cut short is taken away.

    Raises CheckpointError where another is not a trial, ResourceError where ``path`` is no file
    that can be changed.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
    except OSError as error:
        raise cannot_write(path, error) from error
    return [_trial(path, at, line) for at, line in enumerate(content[:whole].splitlines(), 1)]


def _trial(path: Path, number: int, line: bytes) -> Trial:
    try:
        trial = Trial(**json.loads(line))
        if trial.trial == number and math.isfinite(trial.objective or 0):
            return trial
    except (ValueError, TypeError, RecursionError):
        pass
    remedy = "restore the file, or search into another --output-dir"
    raise CheckpointError(f"{path}:{number}: not a line that a search wrote", remedy)
