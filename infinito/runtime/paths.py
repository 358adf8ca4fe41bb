"""Paths as a person reads them, and as a shell does."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path


def shown(path: Path) -> Path:
    """``path`` relative to the working directory where it lies below it, else as it is."""
    with contextlib.suppress(ValueError, FileNotFoundError):  # not below it, or it was deleted
        return path.relative_to(Path.cwd())
    return path


def command(*words: object) -> str:
    """The line that a user types to call this program with ``words``, quoted for a shell."""
    return shlex.join(["infinito", *map(str, words)])
