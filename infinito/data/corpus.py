"""A corpus: named splits of documents, each with an identity that changes when its text does."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from infinito.config.schema import SplitName
from infinito.data.cache import Cache, cache_key
from infinito.errors import DataError

_HELD_OUT_EVERY = 10
# With fewer documents than this, every tenth would be too coarse: the end of the text is taken.
_MANY_DOCUMENTS = 2 * _HELD_OUT_EVERY
# Lines with fewer letters and digits (headings, braces, rules of tables) recur by chance.
_LINE_LETTERS = 24
# Enough lines for a share that is right to a percent, and a bound on memory.
_SAMPLED_LINES = 200_000


class Documents(Protocol):
    """The text of one split before it is tokenised; what a source makes.

    Each iteration gives its documents from the first on; none is empty. The text is looked for
    when it is first needed: what nobody asks for may be missing.
    """

    @property
    def label(self) -> str:
        """What to call it in messages."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user of it should be told."""

    def __iter__(self) -> Iterator[str]:
        """Give the documents."""

    def identity(self, cache: Cache) -> str:
        """Hash of the documents, their cuts included, by the memory of ``cache``."""


@dataclass(frozen=True)
class Corpus:
    """The splits that a source has."""

    name: str
    splits: Mapping[SplitName, Documents]
    remedy: str = "ask for another split"

    def documents(self, split: SplitName) -> Documents:
        """One split. Raises ``DataError`` where the source lacks it."""
        if split not in self.splits:
            available = ", ".join(self.splits) or "none"
            raise DataError(f"{self.name} has no {split} split (it has: {available})", self.remedy)
        return self.splits[split]


def with_validation(corpus: Corpus) -> Corpus:
    """Hold out a tenth of the training text for validation where a corpus has nothing for it.

    Every tenth document is held out; of a text of few documents the last tenth, from a line end
    on. The same text always parts alike.
    """
    if "valid" in corpus.splits or "train" not in corpus.splits:
        return corpus
    whole = corpus.splits["train"]
    train, valid = _Share(whole, "train"), _Share(whole, "valid")
    return replace(corpus, splits={**corpus.splits, "train": train, "valid": valid})


@dataclass(frozen=True)
class _Share:
    """Nine tenths of a text for training, or the tenth that is held out."""

    whole: Documents
    split: SplitName

    @property
    def label(self) -> str:
        return f"{self.whole.label} ({self.split} share)"

    @property
    def notes(self) -> tuple[str, ...]:
        note = f"no validation text was given: a tenth of {self.whole.label} is held out for it"
        return (*self.whole.notes, note) if self.split == "valid" else self.whole.notes

    def __iter__(self) -> Iterator[str]:
        return share(self.whole, self.split)

    def identity(self, cache: Cache) -> str:
        return cache_key("split off", self.split, self.whole.identity(cache))


def share(documents: Iterable[str], split: SplitName) -> Iterator[str]:
    """The documents that are held out for validation, or for ``train`` the others."""
    documents = iter(documents)
    first = list(itertools.islice(documents, _MANY_DOCUMENTS))
    if len(first) < _MANY_DOCUMENTS:
        yield from _before_or_after(first, split)
        return
    for number, document in enumerate(itertools.chain(first, documents), start=1):
        if (number % _HELD_OUT_EVERY == 0) == (split == "valid"):
            yield document


def _before_or_after(documents: list[str], split: SplitName) -> Iterator[str]:
    total = sum(map(len, documents))
    mark = total - total // _HELD_OUT_EVERY
    for document in documents:
        cut = max(_boundary(document, mark) if 0 < mark < len(document) else mark, 0)
        if chosen := document[cut:] if split == "valid" else document[:cut]:
            yield chosen
        mark -= len(document)


def _boundary(text: str, mark: int) -> int:
    """A line end near ``mark``, else a space before it, else ``mark``.

    What is after it stays between half and twice what is after ``mark``.
    """
    rest = len(text) - mark
    low, high = max(mark - rest, 0), mark + rest // 2
    return (
        text.find("\n", mark - 1, high) + 1
        or text.rfind("\n", low, mark) + 1
        or text.rfind(" ", low, mark) + 1
        or mark
    )


def overlap(training: Iterable[str], validation: Iterable[str]) -> float:
    """Share of the validation text, by characters, whose lines stand in the training text too.

    Such a leak shows in no loss. Lines are compared without the space around them; short ones
    count only where there are no others. Of a large validation text the first 200000 lines are
    taken.
    """
    lines = _sample(line.strip() for document in validation for line in document.split("\n"))
    if not lines:
        return 0.0
    total = sum(len(line) * count for line, count in lines.items())
    missing = set(lines)
    for document in training:
        missing.difference_update(line.strip() for line in document.split("\n"))
    return 1.0 - sum(len(line) * lines[line] for line in missing) / total


def _sample(lines: Iterable[str]) -> Counter[str]:
    long, short = Counter[str](), Counter[str]()
    for line in lines:
        letters = sum(map(str.isalnum, line))
        if letters >= _LINE_LETTERS:
            long[line] += 1
        elif letters and len(short) < _SAMPLED_LINES:
            short[line] += 1
        if len(long) >= _SAMPLED_LINES:
            break
    return long or short
