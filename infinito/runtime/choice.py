"""A setting in force, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What was chosen and the reason, a short phrase for people."""

    value: str
    reason: str
