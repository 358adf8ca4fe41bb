"""From the data section of a config to a corpus: one function a source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infinito.config.schema import DataConfig, SplitName
from infinito.data.cache import Cache, cache_key
from infinito.data.corpus import Corpus, overlap, share, with_validation
from infinito.data.documents import cut
from infinito.data.files import TextFiles
from infinito.data.hub import WIKITEXT, hub_corpus
from infinito.data.lines import normalise, split_lines
from infinito.errors import DataError

SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
_WIKITEXT_NAMES = ("{}.txt", "wiki.{}.tokens", "wiki.{}.raw")
# A few topics of Python's manual make most of its text, so they are cut into sections of at
# least this size before every tenth is held out.
_SECTION_CHARACTERS = 4096


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that ``config`` names.

    Raises:
        DataError: a file, directory or hub dataset cannot be had.
    """
    source = config.resolved_source
    if source == "python-docs":
        return _python_docs()
    if source == "text":
        return with_validation(_text(config))
    if source == "hub":
        assert config.dataset is not None  # the schema sees to it
        return with_validation(hub_corpus(config.dataset, config.dataset_config, config.text_field))
    if config.path is None:
        return hub_corpus(*WIKITEXT, "text", wikitext=True)
    return _wikitext(Path(config.path).expanduser())


def _text(config: DataConfig) -> Corpus:
    named = {"train": config.train_file, "valid": config.valid_file, "test": config.test_file}
    splits = {
        split: TextFiles(reference, f"data.{split}_file", config.text_field)
        for split in SPLITS
        if (reference := named[split])
    }
    return Corpus("the text source", splits, "name its text, as in --set data.test_file=FILE")


def _wikitext(directory: Path) -> Corpus:
    if not directory.is_dir():
        raise DataError(
            f"data.path: {directory} is not a directory",
            "give the directory that holds train.txt, valid.txt and test.txt: "
            "--set data.path=DIRECTORY",
        )
    splits = dict[SplitName, TextFiles]()
    for split in SPLITS:
        paths = [directory / pattern.format(split) for pattern in _WIKITEXT_NAMES]
        if present := [str(path) for path in paths if path.is_file()]:
            splits[split] = TextFiles(present[0], "data.path", None)
    if not splits:
        raise DataError(
            f"data.path: directory {directory} holds no WikiText-2: no {_names('train')}",
            "name the directory of an unpacked WikiText-2: --set data.path=DIRECTORY",
        )
    return Corpus(f"directory {directory}", splits, f"put a file {_names('SPLIT')} there")


def _names(split: str) -> str:
    return " or ".join(pattern.format(split) for pattern in _WIKITEXT_NAMES)


@dataclass(frozen=True)
class _Sections:
    """Sections of Python's manual, in memory."""

    label: str
    texts: list[str]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def identity(self, _: Cache) -> str:
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in self.texts]
        return cache_key("topics", digests)


def _python_docs() -> Corpus:
    """The embedded corpus: the manual sections behind Python's ``help()``, of every CPython.

    It needs no network and no download, has too little text for a test split, and differs a
    little between versions of Python.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python carries no pydoc_data, the text of python-docs",
            "give your own text with --set data.source=text --set data.train_file=FILE",
        ) from error
    sections = [
        section
        for text in _distinct(topics.values())
        for section in cut(split_lines([normalise(text)]), _SECTION_CHARACTERS)
    ]
    names: tuple[SplitName, ...] = ("train", "valid")
    return Corpus(
        "python-docs",
        {name: _Sections(f"python-docs ({name} part)", [*share(sections, name)]) for name in names},
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
