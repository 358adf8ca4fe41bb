"""What happens, as typed events, and the one way in which a user or a program hears of it.

Code that has something to tell calls ``emit``, ``note`` or ``progress``; it neither knows nor is
handed who listens. Readers are functions of an event: the terminal, the lines of metrics.jsonl, a
search. Without one (in a script of one's own), notes go to stderr and the rest goes nowhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Note:
    """A line for people: a choice and its reason, a warning, what to do next."""

    text: str


@dataclass(frozen=True)
class Metrics:
    """Numbers of a run at a step: what a line of metrics.jsonl holds (contract, "Commands")."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """How far a long piece of work is; ``ended`` once, at its end or where it failed."""

    what: str
    unit: str
    done: int
    total: int
    ended: bool = False


Event = Note | Metrics | Work
Reader = Callable[[Event], object]


def notes_to_stderr(event: Event) -> None:
    """The reader of those who asked for none."""
    if isinstance(event, Note):
        print(event.text, file=sys.stderr, flush=True)


_readers: ContextVar[tuple[Reader, ...]] = ContextVar("readers", default=(notes_to_stderr,))


@contextmanager
def reading(*readers: Reader, alone: bool = False) -> Iterator[None]:
    """In the body, ``readers`` hear of every event, beside those from outside or ``alone``.

    It counts for this thread and this task: runs side by side do not hear each other.
    """
    token = _readers.set(readers if alone else (*_readers.get(), *readers))
    try:
        yield
    finally:
        _readers.reset(token)


def emit(event: Event) -> None:
    """Hand ``event`` to every reader, in the order in which they came."""
    for reader in _readers.get():
        reader(event)


def note(text: str) -> None:
    """Tell people one line."""
    emit(Note(text))


@contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """For long work: yields a function that takes the units done since its last call."""
    done = 0
    emit(Work(what, unit, done, total))

    def advance(units: int) -> None:
        nonlocal done
        done += units
        emit(Work(what, unit, done, total))

    try:
        yield advance
    finally:
        emit(Work(what, unit, done, total, ended=True))
