"""Other programs' records of a run (``training.tracker``): TensorBoard, Weights & Biases, trackio.

A resumed run goes on in the same record, and no step comes twice. TensorBoard forgets what is done
again. The other two cannot: what they have stays, and what comes after it is added. The record's
id and its last step stand in ``tracker.json`` of the run, and no checkpoint knows of them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from infinito.checkpoint.atomic import write_text_atomic
from infinito.checkpoint.discover import METRICS_FILE
from infinito.checkpoint.record import json_object, read_object
from infinito.checkpoint.survey import finite
from infinito.distributed.ranks import is_first
from infinito.errors import ConfigError, ResourceError
from infinito.runtime.events import Event, Metrics, note
from infinito.telemetry.sinks import Sink

TRACKER_FILE = "tracker.json"
_PROJECT = "infinito"
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def tracker(name: str, run: Path, from_step: int, config: Mapping[str, Any]) -> list[Sink]:
    """The reader that ``training.tracker`` names, of a run that stands at ``from_step``.

    Raises:
        ConfigError: its package is missing, or it cannot be used.
    """
    makers: dict[str, Callable[[Path, int, Mapping[str, Any]], Sink]] = {
        "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio,
    }  # fmt: skip
    return [makers[name](run, from_step, config)] if name != "none" else []


def require_tracker(name: str) -> None:
    """Raise ConfigError where the package of ``training.tracker`` is missing; the first uses it."""
    if name != "none" and is_first():
        _package(name)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise ConfigError(
            f"training.tracker needs the package {name}", f'pip install "infinito[{name}]"'
        ) from error


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: finite(value) for name, value in values.items() if name != "step"}
    return {name: number for name, number in numbers.items() if number is not None}


class TensorBoard:
    """Scalars for TensorBoard, in ``tensorboard/`` of the run; what will be redone is purged."""

    def __init__(self, run: Path, from_step: int, config: Mapping[str, Any]) -> None:
        self._directory = run / "tensorboard"
        writer = _package("tensorboard").SummaryWriter
        self._open = partial(writer, str(self._directory))
        self._writer = self._open(purge_step=from_step + 1)

    def __call__(self, event: Event) -> None:
        """Add each metric as a scalar of its own name, also where the directory was deleted."""
        if not isinstance(event, Metrics):
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            self._add(event.values)
        except OSError:  # the writer's thread ended, which found no directory
            self._writer = self._open()
            self._add(event.values)

    def _add(self, values: Mapping[str, Any]) -> None:
        for name, number in _scalars(values).items():
            self._writer.add_scalar(name, number, values["step"])

    def close(self) -> None:
        """Flush and close; what cannot be written is in the log."""
        with contextlib.suppress(OSError):
            self._writer.close()


class _Continued(ABC):
    """A record that is only ever added to; it begins with the lines of metrics it lacks."""

    name: str

    def __init__(self, run: Path, from_step: int, config: Mapping[str, Any]) -> None:
        self._package, self._path = _package(self.name), run / TRACKER_FILE
        known = read_object(self._path, 1 << 16) or {}
        self._id, self._last = uuid.uuid4().hex[:8], 0
        if known.get("tracker") == self.name and type(known.get("step")) is int:
            self._id, self._last = str(known.get("id")), known["step"]
        if self._last > from_step:
            note(
                f"{self.name}: steps up to {self._last} are recorded already, and stay as they are"
            )
        # Both packages print to stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            self._run = self._open(run, dict(config))
        for line in (run / METRICS_FILE).read_bytes().splitlines():
            self(Metrics(json_object(line) or {}))

    @abstractmethod
    def _open(self, run: Path, config: dict[str, Any]) -> Any:
        """Begin or continue the record ``self._id``; what is returned takes metrics (``log``)."""

    def __call__(self, event: Event) -> None:
        """Add the metrics of a step that is new to the record."""
        if not isinstance(event, Metrics):
            return
        step = event.values.get("step")
        if type(step) is not int or step <= self._last:
            return
        self._last = step
        # Noted first: a crash in between loses a point, and makes no second one. A directory that
        # was deleted is made again at the next save.
        with contextlib.suppress(ResourceError):
            state = {"tracker": self.name, "id": self._id, "step": step}
            write_text_atomic(self._path, json.dumps(state) + "\n")
        self._run.log(_scalars(event.values), step=step)

    def close(self) -> None:
        """Wait until all is handed over."""
        with contextlib.redirect_stdout(sys.stderr):
            self._package.finish()


class WeightsAndBiases(_Continued):
    """A run of Weights & Biases; with ``WANDB_MODE=offline`` it stays in ``wandb/`` of the run."""

    name = "wandb"

    def _open(self, run: Path, config: dict[str, Any]) -> Any:
        try:
            return self._package.init(
                project=_PROJECT, name=run.name, id=self._id, resume="allow", dir=str(run),
                config=config, settings=self._package.Settings(console="off"),
            )  # fmt: skip
        except self._package.errors.Error as error:
            raise ConfigError(
                f"training.tracker wandb: {error}", "wandb login, or set WANDB_MODE=offline"
            ) from error


class Trackio(_Continued):
    """A run of trackio, which keeps its records on this machine (``trackio show``)."""

    name = "trackio"

    def _open(self, run: Path, config: dict[str, Any]) -> Any:
        # It knows runs by their names.
        return self._package.init(
            project=_PROJECT, name=f"{run.name}-{self._id}", resume="allow", config=config
        )
