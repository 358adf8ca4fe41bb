"""How much of a validation text was seen in training: a leak that no loss shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

# Lines with fewer letters and digits (headings, braces, rules of tables) recur by chance.
_LINE_LETTERS = 24
# Enough lines for a share that is right to a percent, and a bound on memory.
_SAMPLED_LINES = 200_000


def overlap(training: Iterable[str], validation: Iterable[str]) -> float:
    """Share of the validation text, by characters, whose lines stand in the training text too.

    Lines are compared without the space around them; short ones count only where there are no
    others. Of a large validation text the first 200000 lines are taken.
    """
    lines = _sample(validation)
    if not lines:
        return 0.0
    total = sum(len(line) * count for line, count in lines.items())
    missing = set(lines)
    for document in training:
        missing.difference_update(line.strip() for line in document.split("\n"))
    return 1.0 - sum(len(line) * lines[line] for line in missing) / total


def _sample(documents: Iterable[str]) -> Counter[str]:
    long, short = Counter[str](), Counter[str]()
    for line in _lines(documents):
        letters = sum(map(str.isalnum, line))
        if letters >= _LINE_LETTERS:
            long[line] += 1
        elif letters and len(short) < _SAMPLED_LINES:
            short[line] += 1
        if len(long) >= _SAMPLED_LINES:
            break
    return long or short


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        for line in document.split("\n"):
            yield line.strip()
