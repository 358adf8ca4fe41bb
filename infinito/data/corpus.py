"""A corpus: named splits of documents, each with an identity that changes when its text does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from infinito.config.schema import SplitName
from infinito.data.cache import Cache, cache_key
from infinito.data.find import FoundFiles, file_documents
from infinito.errors import DataError

HELD_OUT_EVERY = 10
# With fewer documents than this, every tenth would be too coarse: the end of the text is taken.
_MANY_DOCUMENTS = 2 * HELD_OUT_EVERY


@dataclass(frozen=True)
class Part:
    """One split before it is tokenised.

    Attributes:
        label: what to call it in messages.
        documents: its documents, from the first on at each call; none is empty.
        identity: hash of its documents, their cuts included, by the memory of a cache.
        notes: what a user of it should be told.
    """

    label: str
    documents: Callable[[], Iterator[str]]
    identity: Callable[[Cache], str]
    notes: tuple[str, ...] = ()


@dataclass
class Corpus:
    """The splits that a source has; each is looked up when it is asked for."""

    name: str
    splits: Mapping[SplitName, Callable[[], Part]]
    remedy: str = "ask for another split"

    def part(self, split: SplitName) -> Part:
        """One split. Raises ``DataError`` where the source lacks it or its files are gone."""
        if split not in self.splits:
            available = ", ".join(self.splits) or "none"
            raise DataError(
                f"{self.name} has no {split} split (it has: {available})",
                self.remedy,
            )
        return self.splits[split]()


def file_part(label: str, found: FoundFiles, text_field: str) -> Part:
    """The part that a list of files makes."""
    return Part(
        label,
        lambda: file_documents(found.paths, text_field),
        lambda cache: cache_key("documents", text_field, cache.hash_files(found.paths)),
        (found.note,) if found.note else (),
    )


def with_validation(corpus: Corpus) -> Corpus:
    """Hold out a tenth of the training text for validation where a corpus has nothing for it.

    Every tenth document is held out; of a text of few documents the last tenth, from a line end
    on. The same text always parts alike.
    """
    if "valid" in corpus.splits or "train" not in corpus.splits:
        return corpus
    whole = corpus.splits["train"]
    train: dict[SplitName, Callable[[], Part]] = {"train": lambda: _share(whole(), "train")}
    return Corpus(
        corpus.name, {**corpus.splits, **train, "valid": lambda: _share(whole(), "valid")}
    )


def _share(whole: Part, split: SplitName) -> Part:
    held_out = split == "valid"
    note = f"no validation text was given: a tenth of {whole.label} is held out for it"
    return Part(
        f"{whole.label} ({split} share)",
        lambda: _chosen(whole.documents(), held_out),
        lambda cache: cache_key("split off", split, whole.identity(cache)),
        (*whole.notes, note) if held_out else whole.notes,
    )


def _chosen(documents: Iterator[str], held_out: bool) -> Iterator[str]:
    first = list(itertools.islice(documents, _MANY_DOCUMENTS))
    if len(first) < _MANY_DOCUMENTS:
        yield from _before_or_after(first, held_out)
        return
    for number, document in enumerate(itertools.chain(first, documents)):
        if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out:
            yield document


def _before_or_after(documents: Iterable[str], held_out: bool) -> Iterator[str]:
    documents = list(documents)
    total = sum(map(len, documents))
    mark = total - total // HELD_OUT_EVERY
    for document in documents:
        cut = _boundary(document, mark) if 0 < mark < len(document) else mark
        chosen = document[max(cut, 0) :] if held_out else document[: max(cut, 0)]
        if chosen:
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
