"""Signals that end a run: the first lets it finish its step and save, a second ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# A row more would shift a live panel, which is drawn over itself: the notice takes the place of
# its last row, without wrapping, until the panel is drawn again.
_IN_ONE_ROW = "\r\x1b[2K\x1b[?7l{}\x1b[?7h"
_SHOW_CURSOR = b"\x1b[?25h"  # a live display may have hidden it


@contextlib.contextmanager
def handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """In the body ``handle`` gets SIGINT, SIGTERM, and SIGHUP unless that is ignored (``nohup``).

    On leaving, the handlers that were there before are put back. Python allows handlers in the
    main thread only.
    """
    assert threading.current_thread() is threading.main_thread(), "signals need the main thread"
    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopRequest(contextlib.ExitStack):
    """While entered, the signals that end a run set ``signal_number`` and do not end the process.

    A second SIGINT or SIGTERM exits at once with 128 + its number, also within a save: files get
    their names only when whole, so nothing is lost. SIGHUP, which a closed terminal sends, is
    never such a second one, nor does it make the next one second: the shell and the kernel both
    send it, and a session's manager sends SIGTERM with it. Where it is ignored (``nohup``) it
    stays so.
    """

    def __init__(self, patient: bool = False) -> None:
        """Nothing is caught until the object is entered.

        ``patient``: a SIGTERM is never the second signal, because several senders may send the same
        one (a cluster to all processes of a job, and their launcher to each).
        """
        super().__init__()
        self.signal_number = 0
        self._never_second = {signal.SIGHUP, *([signal.SIGTERM] if patient else [])}

    def __enter__(self) -> StopRequest:
        """Install the handlers."""
        self.enter_context(handled(self._handle))
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal_number in (0, signal.SIGHUP):
            self.signal_number = number
            notice = f"{name}: stopping after this step and its checkpoint"
            notice += "" if number == signal.SIGHUP else " (again: exit at once)"
            _write_stderr((_IN_ONE_ROW if _on_terminal() else "\n{}\n").format(notice).encode())
        elif number not in self._never_second:
            _write_stderr(f"\nsecond {name}: exiting at once\n".encode())
            if _on_terminal():
                _write_stderr(_SHOW_CURSOR)
            os._exit(128 + number)


def _write_stderr(text: bytes) -> None:
    # Straight to the descriptor: the signal may have come in the middle of a print.
    with contextlib.suppress(OSError):
        os.write(2, text)


def _on_terminal() -> bool:
    is_open = sys.stderr is not None and not sys.stderr.closed
    return is_open and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
