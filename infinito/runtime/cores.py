"""Cores that other programs use too: how OpenMP waits, and how long a run waits for a core."""

from __future__ import annotations

import os
from pathlib import Path

#: Turns of a loop, some ten microseconds, before a thread that waits for work goes to sleep. GNU
#: OpenMP's default is milliseconds, in which it holds a core that another run could use: two runs
#: at once on two cores had 0.3x of the speed of one alone, and 0.5x with this, while one alone
#: loses nothing that could be measured (`benchmarks/shared_cores.py`, docs/log.md).
SPIN_TURNS = 1500
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
#: From this share on, the speed of a run suffers visibly.
BUSY_SHARE = 0.2


def wait_briefly() -> None:
    """Ask OpenMP for short waits, unless the user has asked for something.

    OpenMP reads its settings once, when torch is imported: this comes before.
    """
    if not any(name in os.environ for name in _SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_TURNS)


def available_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class CoreWatch:
    """How long the threads of this process stood ready without a core to run on (Linux)."""

    def __init__(self) -> None:
        self._ran, self._waited = _scheduled_nanoseconds()

    def busy_note(self) -> str | None:
        """A line for the user if cores were short since the watch began, else None."""
        ran, waited = _scheduled_nanoseconds()
        ran, waited = ran - self._ran, waited - self._waited
        if waited <= 0 or waited / (ran + waited) < BUSY_SHARE:
            return None
        return (
            f"the cores are busy: this program waited for one for {waited / (ran + waited):.0%} of "
            "its time; other programs (or more threads than cores) make it slower"
        )


def _scheduled_nanoseconds() -> tuple[int, int]:
    """Time that the living threads ran, and that they were ready to run, since they started.

    The first two numbers of /proc/PID/schedstat (Linux, Documentation/scheduler/sched-stats.rst);
    zeros where the system has none.
    """
    ran = waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            first, second, *_ = path.read_text(encoding="ascii").split()
        except (OSError, ValueError):  # the thread has ended
            continue
        ran, waited = ran + int(first), waited + int(second)
    return ran, waited
