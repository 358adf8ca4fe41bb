"""Where records go. ``metrics.jsonl`` is the source of truth; everything else may be rebuilt."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from infinito.checkpoint.atomic import cannot_write
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


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
