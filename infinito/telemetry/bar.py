"""A bar for long work on a terminal; nothing anywhere else."""

from __future__ import annotations

import sys
from typing import Any

from infinito.runtime.events import Event, Work

#: Seconds of work after which a bar appears: what is quicker needs none.
DELAY_SECONDS = 2.0


class TerminalBar:
    """Reads how far a piece of work is and draws it on stderr; nothing is left of it."""

    def __init__(self) -> None:
        """No bar until there is work."""
        self._bar: Any = None

    def __call__(self, event: Event) -> None:
        """Draw, move or wipe the bar."""
        # Not tqdm's ``disable``: a disabled bar, too, starts tqdm's monitor thread.
        if not isinstance(event, Work) or not sys.stderr.isatty():
            return
        if event.ended:
            if self._bar is not None:
                self._bar.close()
            self._bar = None
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=event.total, desc=event.what, unit=f" {event.unit}", unit_scale=True,
                leave=False, delay=DELAY_SECONDS,
            )  # fmt: skip
        self._bar.update(event.done - self._bar.n)
