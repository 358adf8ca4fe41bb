"""From the data section of a config to a corpus: one function a source."""

from __future__ import annotations

from pathlib import Path

from infinito.config.schema import DataConfig, SplitName
from infinito.data.corpus import Corpus, with_validation
from infinito.data.files import TextFiles
from infinito.data.hub import WIKITEXT, hub_corpus
from infinito.data.manual import python_docs
from infinito.errors import DataError

SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
_WIKITEXT_NAMES = ("{}.txt", "wiki.{}.tokens", "wiki.{}.raw")


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that ``config`` names.

    Raises:
        DataError: a file, directory or hub dataset cannot be had.
    """
    source = config.resolved_source
    if source == "python-docs":
        return python_docs()
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
