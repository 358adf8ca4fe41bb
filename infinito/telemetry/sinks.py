"""Where records go. ``metrics.jsonl`` is the source of truth; everything else may be rebuilt."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from infinito.checkpoint.atomic import cannot_write
from infinito.errors import ConfigError
from infinito.runtime.events import Event, Metrics

Record = Mapping[str, Any]


class Sink(Protocol):
    """A reader of events that holds something open."""

    def __call__(self, event: Event) -> None:
        """Take in what concerns it."""

    def close(self) -> None:
        """Finish."""


class JsonLines:
    """One JSON object a line, flushed at once: what was logged survives a kill."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Append a line of metrics."""
        if isinstance(event, Metrics):
            self.write(event.values)

    def write(self, record: Record) -> None:
        """Append a line; numbers that JSON lacks become null. Raises ResourceError."""
        clean = {k: None if _not_finite(v) else v for k, v in record.items()}
        try:
            self._file.write(json.dumps(clean, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def write_again(self) -> None:
        """Write all lines anew, where the file was deleted: while it is open it can be read."""
        self._file.seek(0)
        with self._file as deleted:
            self._file = self._path.open("a+", encoding="utf-8")
            shutil.copyfileobj(deleted, self._file)
        self._file.flush()

    def close(self) -> None:
        """Close the file; a line that could not be written is tried, and was told, before."""
        with contextlib.suppress(OSError):
            self._file.close()


class TensorBoard:
    """Scalars for TensorBoard (extra ``tensorboard``); a resumed run purges what it will redo."""

    def __init__(self, directory: Path, from_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "training.tensorboard needs the package tensorboard",
                'pip install "infinito[tensorboard]"',
            ) from error
        self._directory = directory
        self._open = partial(SummaryWriter, str(directory))
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

    def _add(self, values: Record) -> None:
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Flush and close; what cannot be written is in the log."""
        with contextlib.suppress(OSError):
            self._writer.close()


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
