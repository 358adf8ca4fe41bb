"""Paths as a person reads them, and as a shell does."""

from __future__ import annotations

import shlex
from pathlib import Path


def shown(path: Path) -> Path:
    """``path`` relative to the working directory where it lies below it, else as it is."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def command(*words: object) -> str:
    """The line that a user types to call this program with ``words``, quoted for a shell."""
    return shlex.join(["infinito", *map(str, words)])
