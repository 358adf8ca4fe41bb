"""How far long work has come: a bar on a terminal, a line of a panel, or nothing by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

#: Is called with the number of units done since its last call.
Advance = Callable[[int], object]
#: Shows the progress of one piece of work: (total, what it is, name of a unit).
Reporter = Callable[[int, str, str], AbstractContextManager[Advance]]

#: Seconds of work after which a bar appears: what is quicker needs none.
DELAY_SECONDS = 2.0


@contextmanager
def silent(_total: int, _what: str, _unit: str) -> Iterator[Advance]:
    """The reporter of library users."""
    yield lambda _: None


@contextmanager
def terminal_bar(total: int, what: str, unit: str) -> Iterator[Advance]:
    """A bar on stderr if that is a terminal; nothing is left of it."""
    # Not tqdm's ``disable``: a disabled bar, too, starts tqdm's monitor thread.
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(
        total=total, desc=what, unit=f" {unit}", unit_scale=True, leave=False,
        delay=DELAY_SECONDS,
    ) as bar:  # fmt: skip
        yield bar.update


_reporter: ContextVar[Reporter] = ContextVar("progress reporter", default=silent)


@contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Within the block, long work tells ``reporter`` how far it is."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def progress(total: int, what: str, unit: str) -> AbstractContextManager[Advance]:
    """For the worker: a context whose value takes the units done."""
    return _reporter.get()(total, what, unit)
