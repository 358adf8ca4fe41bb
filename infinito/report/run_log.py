"""A run as its directory tells it: the lines of metrics, the config, run.json, the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from infinito.checkpoint.discover import CONFIG_FILE, METRICS_FILE, holds_run
from infinito.checkpoint.record import json_object, read_record
from infinito.checkpoint.survey import finite, survey_run
from infinito.config.loading import load_config
from infinito.config.schema import Config
from infinito.errors import CheckpointError

#: Lines that are drawn; of more, every second, third, ... and all evaluations.
_MOST_LINES = 1200
SECONDS_A_MINUTE = 60.0


@dataclass(frozen=True)
class RunLog:
    """A run, read once.

    Attributes:
        path: its directory, as it was given.
        lines: of metrics.jsonl, in their order, thinned to what can be seen.
        thinning: of the lines without an evaluation, one in so many is here.
        config: None where the directory has none.
        record: what run.json says.
        flops_per_token: of training; None while unknown (``infinito.report.model_view``).
    """

    path: Path
    lines: list[dict[str, Any]] = field(repr=False)
    thinning: int
    config: Config | None
    record: dict[str, Any]
    flops_per_token: float | None = None

    @property
    def name(self) -> str:
        """What a legend calls it."""
        return self.path.resolve().name

    @cached_property
    def survey(self) -> dict[str, Any]:
        """Its state and checkpoints, each verified."""
        return survey_run(self.path)

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """Its lines with a validation loss."""
        return [line for line in self.lines if finite(line.get("valid_loss")) is not None]

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the lowest validation loss, the earliest on ties."""
        return min(self.evaluations, key=lambda line: float(line["valid_loss"]), default=None)

    def axes(self) -> dict[str, list[float | None]]:
        """What curves are drawn against: {steps, tokens, FLOPs, minutes: a number a line}."""
        tokens = [finite(line.get("tokens")) for line in self.lines]
        seconds = [finite(line.get("seconds")) for line in self.lines]
        cost = self.flops_per_token
        return {
            "steps": [float(line["step"]) for line in self.lines],
            "tokens": tokens,
            "FLOPs": [None if cost is None or x is None else x * cost for x in tokens],
            "minutes": [None if x is None else x / SECONDS_A_MINUTE for x in seconds],
        }


def read_run(path: Path) -> RunLog:
    """Read a run directory, also of a run that goes on or was interrupted.

    Raises:
        CheckpointError: ``path`` is no run directory, or a line of metrics is damaged.
        ConfigError: its config is damaged.
    """
    if not path.is_dir() or not holds_run(path):
        wrong = "is no run directory" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {wrong}", "give run directories; `infinito runs` lists them")
    metrics, config = path / METRICS_FILE, path / CONFIG_FILE
    lines = list(_read_lines(metrics)) if metrics.is_file() else []
    thinning = -(-len(lines) // _MOST_LINES) or 1
    drawn = [
        line
        for number, line in enumerate(lines, 1)
        if number % thinning == 0 or number == len(lines) or "valid_loss" in line
    ]
    known = load_config(config) if config.is_file() else None
    return RunLog(path, drawn, thinning, known, read_record(path))


def _read_lines(metrics: Path) -> Iterator[dict[str, Any]]:
    """Lines that have a step; one that is still being written at the end is left out."""
    with metrics.open("rb") as file:
        for number, line in enumerate(file, 1):
            record = json_object(line)
            if record is None and line.endswith(b"\n"):
                raise CheckpointError(
                    f"{metrics}, line {number}: not a line of metrics (a JSON object)",
                    "mend or remove that line",
                )
            if record is not None and type(record.get("step")) is int:
                yield record
