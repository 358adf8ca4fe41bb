"""Signals that end a run: the first lets it finish its step and save, a second ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

# A row more would shift a live panel, which is drawn over itself: the notice takes the place of
# its last row, without wrapping, until the panel is drawn again.
_IN_ONE_ROW = "\r\x1b[2K\x1b[?7l{}\x1b[?7h"
_SHOW_CURSOR = b"\x1b[?25h"  # a live display may have hidden it


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGHUP set ``requested`` instead of ending the process.

    A second SIGINT or SIGTERM exits at once with 128 + its number, also within a save: files get
    their names only when whole, so nothing is lost. SIGHUP, which a closed terminal sends, is
    never such a second one, nor does it make the next one second: the shell and the kernel both
    send it, and a session's manager sends SIGTERM with it. Where it is ignored (``nohup``) it
    stays so. On leaving, the handlers that were there before are put back. Python allows handlers
    in the main thread only.
    """

    def __init__(self, patient: bool = False) -> None:
        """Nothing is caught until the object is entered.

        ``patient``: a SIGTERM is never the second signal, because several senders may send the same
        one (a cluster to all processes of a job, and their launcher to each).
        """
        self.signal_number = 0
        self._never_second = {signal.SIGHUP, *([signal.SIGTERM] if patient else [])}
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come; ``signal_number`` says which."""
        return self.signal_number != 0

    def __enter__(self) -> StopRequest:
        """Install the handlers."""
        assert threading.current_thread() is threading.main_thread(), "signals need the main thread"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal_number in (0, signal.SIGHUP):
            self.signal_number = number
            notice = f"{name}: stopping after this step and its checkpoint"
            notice += "" if number == signal.SIGHUP else " (again: exit at once)"
            _write_stderr((_IN_ONE_ROW if _on_terminal() else "\n{}\n").format(notice).encode())
        elif number not in self._never_second:
            _write_stderr(f"\nsecond {name}: exiting at once\n".encode())
            _restore_terminal()
            os._exit(128 + number)


def _write_stderr(text: bytes) -> None:
    # Straight to the descriptor: the signal may have come in the middle of a print.
    with contextlib.suppress(OSError):
        os.write(2, text)


def _on_terminal() -> bool:
    is_open = sys.stderr is not None and not sys.stderr.closed
    return is_open and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _restore_terminal() -> None:
    if _on_terminal():
        _write_stderr(_SHOW_CURSOR)
