"""From the data section of a config to a corpus: one function a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from infinito.config.schema import DataConfig, SplitName
from infinito.data.cache import cache_key
from infinito.data.corpus import Corpus, Part, file_part, with_validation
from infinito.data.documents import articles, text_documents
from infinito.data.find import find_files
from infinito.data.hub import WIKITEXT, HubSplits
from infinito.data.python_docs import python_docs
from infinito.data.text import read_lines
from infinito.errors import DataError

_SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
_WIKITEXT_NAMES = ("{}.txt", "wiki.{}.tokens", "wiki.{}.raw")


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that ``config`` names.

    Raises:
        DataError: a file, directory or hub dataset cannot be had.
    """
    openers: dict[str | None, Callable[[DataConfig], Corpus]] = {
        "wikitext-2": _wikitext,
        "hub": _hub,
        "text": _text,
        "python-docs": lambda _: python_docs(),
    }
    return openers[config.resolved_source](config)


def _text(config: DataConfig) -> Corpus:
    references = {
        "train": config.train_file,
        "valid": config.valid_file,
        "test": config.test_file,
    }

    def part(split: SplitName) -> Callable[[], Part]:
        reference = references[split] or ""
        key = f"data.{split}_file"
        return lambda: file_part(reference, find_files(reference, key), config.text_field)

    splits = {split: part(split) for split in _SPLITS if references[split]}
    remedy = "name its text, as in --set data.test_file=FILE"
    return with_validation(Corpus("the text source", splits, remedy))


def _wikitext(config: DataConfig) -> Corpus:
    if config.path is None:
        return _hub_corpus(HubSplits(*WIKITEXT, "text"), wikitext=True)
    directory = Path(config.path).expanduser()
    if not directory.is_dir():
        raise DataError(
            f"data.path: {directory} is not a directory",
            "give the directory that holds train.txt, valid.txt and test.txt: "
            "--set data.path=DIRECTORY",
        )
    files = _wikitext_files(directory)

    def part(split: SplitName) -> Callable[[], Part]:
        return lambda: _article_file(files[split])

    splits = {split: part(split) for split in files}
    return Corpus(f"directory {directory}", splits, f"put a file {_names('SPLIT')} there")


def _wikitext_files(directory: Path) -> dict[SplitName, Path]:
    found: dict[SplitName, Path] = {}
    for split in _SPLITS:
        names = (pattern.format(split) for pattern in _WIKITEXT_NAMES)
        present = [directory / name for name in names if (directory / name).is_file()]
        if present:
            found[split] = present[0]
    if not found:
        raise DataError(
            f"data.path: directory {directory} holds no WikiText-2: no {_names('train')}",
            "name the directory of an unpacked WikiText-2: --set data.path=DIRECTORY",
        )
    return found


def _names(split: str) -> str:
    return " or ".join(pattern.format(split) for pattern in _WIKITEXT_NAMES)


def _article_file(path: Path) -> Part:
    return Part(
        str(path),
        lambda: articles(read_lines(path)),
        lambda cache: cache_key("articles", cache.hash_files([path])),
    )


def _hub(config: DataConfig) -> Corpus:
    assert config.dataset is not None  # the schema sees to it
    splits = HubSplits(config.dataset, config.dataset_config, config.text_field)
    return with_validation(_hub_corpus(splits, wikitext=False))


def _hub_corpus(hub: HubSplits, wikitext: bool) -> Corpus:
    def part(split: SplitName) -> Callable[[], Part]:
        def documents() -> Iterator[str]:
            if wikitext:
                return articles(map(_wikitext_line, hub.rows(split)))
            return (piece for row in hub.rows(split) for piece in text_documents(row))

        cut = "articles" if wikitext else "rows"
        label = f"{hub.name} ({split} split)"
        return lambda: Part(
            label, documents, lambda cache: cache_key(cut, hub.identity(split, cache))
        )

    return Corpus(hub.name, {split: part(split) for split in _SPLITS if split in hub.names})


def _wikitext_line(row: str) -> str:
    """The line of the original file that a row of the hub stands for: blank rows lost theirs."""
    return row if row.endswith("\n") else f"{row or ' '}\n"
