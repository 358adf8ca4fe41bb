"""A bar for long work on a terminal; nothing where a library user or a pipe is the reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Seconds of work after which a bar appears: what is quicker needs none.
DELAY_SECONDS = 2.0

_shown: ContextVar[bool] = ContextVar("progress shown", default=False)


@contextmanager
def progress_on_terminal() -> Iterator[None]:
    """Within the block, long work shows a bar on stderr if that is a terminal."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of units done since its last call."""
    if not _shown.get():
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(
        total=total, desc=what, unit=f" {unit}", unit_scale=True, leave=False,
        delay=DELAY_SECONDS, disable=None,  # None: only on a terminal
    ) as bar:  # fmt: skip
        yield bar.update
