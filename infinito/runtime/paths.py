"""Paths as a person reads them."""

from __future__ import annotations

from pathlib import Path


def shown(path: Path) -> Path:
    """``path`` relative to the working directory where it lies below it, else as it is."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path
