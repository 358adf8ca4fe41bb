"""The embedded corpus: the manual sections behind Python's ``help()``, of every CPython.

It needs no network and no download. Its text differs a little between versions of Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from infinito.config.schema import SplitName
from infinito.data.cache import cache_key
from infinito.data.corpus import HELD_OUT_EVERY, Corpus, Part
from infinito.data.documents import cut
from infinito.data.overlap import overlap
from infinito.data.text import normalise, split_lines
from infinito.errors import DataError

# Few topics make most of the text, so they are cut into sections of at least this size before
# every tenth is held out.
_SECTION_CHARACTERS = 4096


def python_docs() -> Corpus:
    """Train and validation splits of the topics; there is too little text for a test split.

    Raises:
        DataError: this Python was installed without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python carries no pydoc_data, the text of python-docs",
            "give your own text with --set data.source=text --set data.train_file=FILE",
        ) from error
    documents = [
        section
        for text in _distinct([topics[name] for name in sorted(topics)])
        for section in cut(split_lines([normalise(text)]), _SECTION_CHARACTERS)
    ]
    return Corpus(
        "python-docs",
        {"train": lambda: _part(documents, "train"), "valid": lambda: _part(documents, "valid")},
    )


def _distinct(texts: Iterable[str]) -> list[str]:
    """Leave out texts that mostly stand in a longer one: many topics are part of another.

    Held out, they would measure what was learnt by heart: of every tenth topic, half was.
    """
    kept: list[str] = []
    for text in sorted(texts, key=lambda text: (-len(text), text)):
        if overlap(kept, [text]) < 0.5:
            kept.append(text)
    return kept


def _part(documents: list[str], split: SplitName) -> Part:
    chosen = [
        text
        for number, text in enumerate(documents, start=1)
        if (number % HELD_OUT_EVERY == 0) == (split == "valid")
    ]
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in chosen]
    return Part(
        f"python-docs ({split} part)",
        lambda: iter(chosen),
        lambda cache: cache_key("topics", digests),
    )
