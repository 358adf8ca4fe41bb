"""The bar of long work: on a terminal, when asked for, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from infinito.runtime.events import progress, reading
from infinito.telemetry import bar as module
from infinito.telemetry.bar import TerminalBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, asked: bool) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "DELAY_SECONDS", 0)
    readers = [TerminalBar()] if asked else []
    with reading(*readers), progress(100, "evaluating", "tokens") as advance:
        advance(100)
    return stream.getvalue()


def test_a_terminal_sees_a_bar_and_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch, asked=True)
    assert "evaluating" in text
    assert text.rsplit("\r", 1)[-1].strip() == ""  # wiped at the end


def test_pipes_and_library_users_see_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), monkeypatch, asked=True) == ""
    assert shown(Terminal(), monkeypatch, asked=False) == ""
