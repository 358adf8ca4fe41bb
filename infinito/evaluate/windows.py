"""Which tokens a model reads and which of them it is scored on, as windows over one stream.

A window [begin, end) makes the model read tokens begin to end - 1 (shifted by one, so that each
is predicted from those before it) and scores those from ``scored_from`` on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Token positions read [begin, end) and scored [scored_from, end)."""

    begin: int
    end: int
    scored_from: int


def sliding_windows(begin: int, end: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of ``context`` tokens over [begin, end), each token scored exactly once.

    The first window scores all of its tokens, each later one the ``stride`` tokens that are new;
    the last may be shorter.
    """
    if begin >= end:
        return
    window = Window(begin, min(begin + context, end), begin)
    yield window
    while window.end < end:
        start = window.begin + stride
        window = Window(start, min(start + context, end), window.end)
        yield window


def rolling_windows(begin: int, end: int, context: int) -> Iterator[Window]:
    """Windows over [begin, end) that score ``context`` tokens each; the last may score fewer.

    It then begins earlier instead, as in lm-evaluation-harness, so that it reads as many.
    """
    for scored_from in range(begin, end, context):
        stop = min(scored_from + context, end)
        yield Window(max(begin, stop - context), stop, scored_from)


def document_windows(
    starts: Sequence[int], length: int, context: int, stride: int
) -> Iterator[Window]:
    """Sliding windows that never look beyond the start of a document."""
    for begin, end in zip(starts, [*starts[1:], length], strict=True):
        yield from sliding_windows(begin, end, context, stride)


def second_half_windows(length: int, context: int) -> Iterator[Window]:
    """Disjoint chunks of ``context`` tokens of which the second half is scored, the tail dropped.

    A chunk's first token is only read, as the token that every window reads before ``begin``:
    context / 2 - 1 tokens are scored a chunk, as in llama.cpp's perplexity tool.
    """
    for begin in range(0, length - context + 1, context):
        yield Window(begin + 1, begin + context, begin + context // 2 + 1)


def strided_windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """Windows that read ``context`` tokens and score the new ones, never the text's first token.

    As in the transformers documentation: what ``context`` counts there holds the token predicted
    last, so one less is read than in :func:`sliding_windows`.
    """
    scored_from = 1
    for begin in range(0, length - 1, stride):
        end = min(begin + context, length)
        yield Window(begin + 1, end, scored_from)
        if end == length:
            return
        scored_from = end


def batches(windows: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Groups of ``size`` windows, the last perhaps smaller."""
    group: list[Window] = []
    for window in windows:
        group.append(window)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
