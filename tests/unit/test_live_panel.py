"""The live panel on a terminal whose window changes: drawn over itself, and over nothing else."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, closing

import pytest

from infinito.runtime import signals
from infinito.runtime.events import Metrics
from infinito.runtime.signals import StopRequest
from infinito.telemetry.console import LiveConsole

RECORD = {"step": 20, "epoch": 0.5, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 0.7}
CODES = re.compile(r"\x1b\[([?0-9;]*)([a-zA-Z])|([\r\n])|([^\x1b\r\n])")


class Terminal:
    """The rows of a terminal that wraps long lines anew when its width changes, as most do."""

    def __init__(self, width: int) -> None:
        self.width, self.wraps = width, True
        self.rows, self.goes_on = [""], [False]  # whether a row is the rest of the one above
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        for code in CODES.finditer(text):
            number, letter, end, character = code.groups()
            if character:
                self._put(character)
            elif end == "\r":
                self.column = 0
            elif end == "\n":
                self._down(goes_on=False)
            elif letter == "A":
                self.row = max(self.row - int(number or 1), 0)
            elif letter == "K":
                assert number == "2"
                self.rows[self.row] = ""
            elif number == "?7":
                self.wraps = letter == "h"

    def _down(self, goes_on: bool) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")
            self.goes_on.append(False)
        self.goes_on[self.row] = goes_on

    def _put(self, character: str) -> None:
        if self.column == self.width:
            if self.wraps:
                self._down(goes_on=True)
            else:
                self.column -= 1
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
        self.column += 1

    def resize(self, width: int) -> None:
        del self.rows[self.row + 1 :], self.goes_on[self.row + 1 :]
        lines: list[str] = []
        for row, goes_on in zip(self.rows, self.goes_on, strict=True):
            if goes_on:
                lines[-1] = lines[-1].ljust(self.width) + row
            else:
                lines.append(row)
        self.width, self.rows, self.goes_on = width, [], []
        for line in lines:
            parts = [line[at : at + width] for at in range(0, max(len(line), 1), width)]
            self.rows += parts
            self.goes_on += [False] + [True] * (len(parts) - 1)
        self.row, self.column = len(self.rows) - 1, len(self.rows[-1])

    def cut(self, width: int) -> None:
        self.width, self.column = width, min(self.column, width)
        self.rows = [row[:width] for row in self.rows]


class Window:
    """A panel on such a terminal."""

    def __init__(self, width: int, capfd: pytest.CaptureFixture[str]) -> None:
        self.terminal, self.capfd = Terminal(width), capfd
        self.terminal.feed("printed before\r\n")
        self.live = LiveConsole("my run", 100)
        self.resize(width)

    def resize(self, width: int) -> None:
        self.live.live.console.width = width
        self.show()
        self.terminal.resize(width)

    def show(self) -> None:
        self.terminal.feed(self.capfd.readouterr().err.replace("\n", "\r\n"))

    def draw(self) -> None:
        self.live(Metrics(RECORD))
        self.show()

    def close(self) -> None:
        self.live.close()
        self.show()

    @property
    def rows(self) -> list[str]:
        return "\n".join(row.rstrip() for row in self.terminal.rows).rstrip("\n").split("\n")


Open = Callable[[], AbstractContextManager[Window]]


@pytest.fixture
def window(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opened by the test itself: pytest changes stderr between setting up and calling."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured stream for a terminal
    monkeypatch.setenv("TERM", "xterm")
    for name in ("XTERM_VERSION", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(signals, "_on_terminal", lambda: True)
    return lambda: closing(Window(120, capfd))


def assert_one_panel(rows: list[str]) -> None:
    assert rows[0] == "printed before"
    assert rows[1].startswith("╭─ my run ─")
    assert rows[-1].startswith("╰──")
    assert [row[:1] for row in rows[2:-1]] == ["│"] * (len(rows) - 3)


@pytest.mark.parametrize("widths", [[70, 50], [100, 50, 60, 120, 40, 80], [20, 120], [72, 36, 24]])
def test_a_window_that_changes_leaves_one_panel(window: Open, widths: list[int]) -> None:
    with window() as shown:
        shown.draw()
        for width in widths:
            shown.resize(width)
            shown.draw()
    assert_one_panel(shown.rows)


@pytest.mark.parametrize("width", [30, 80, 120])
@pytest.mark.parametrize("is_drawn", [True, False])
def test_a_signal_is_told_without_shifting_the_panel(
    window: Open, width: int, is_drawn: bool
) -> None:
    with window() as shown:
        shown.resize(width)
        if is_drawn:
            shown.draw()
        shown.terminal.feed("^C")  # what the terminal itself shows
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
        shown.show()
        assert "SIGINT: stopping" in shown.terminal.rows[-1]
        shown.draw()
    assert_one_panel(shown.rows)


def test_a_terminal_that_cuts_long_lines_loses_nothing_above_the_panel(
    window: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTERM_VERSION", "XTerm(390)")
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setattr(Terminal, "resize", Terminal.cut)
    with window() as shown:
        shown.draw()
        shown.resize(40)
        shown.draw()
    assert_one_panel(shown.rows)
