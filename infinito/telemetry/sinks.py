"""Where records go. ``metrics.jsonl`` is the source of truth; everything else may be rebuilt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from infinito.errors import ConfigError

Record = Mapping[str, Any]


class Sink(Protocol):
    """A receiver of records; each has ``step`` and some of the fields of the contract."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Finish."""


class JsonLines:
    """One JSON object a line, flushed at once: what was logged survives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append a line; numbers that JSON lacks become null."""
        clean = {k: None if _not_finite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
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
        self._writer = SummaryWriter(str(directory), purge_step=from_step + 1)

    def write(self, record: Record) -> None:
        """Add each number as a scalar of its own name."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
