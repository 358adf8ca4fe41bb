"""Datasets of the Hugging Face hub, from the network, its cache or a local directory.

Code of a dataset is never run: ``trust_remote_code`` is not used anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinito.config.schema import SplitName
from infinito.data.cache import Cache, cache_key
from infinito.data.corpus import Corpus
from infinito.data.documents import articles, text_documents
from infinito.errors import DataError

if TYPE_CHECKING:
    import datasets

WIKITEXT = ("Salesforce/wikitext", "wikitext-2-v1")
# How long the hub may take to say that it is there, before we look into the local cache only.
_PROBE_SECONDS = 5.0
_ROWS_AT_ONCE = 1000
_HUB_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("validation", "valid", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class HubSplit:
    """One split of a dataset: a row gives a document, or several where it is long.

    ``wikitext``: its rows are the lines of WikiText, which give articles.
    """

    label: str
    table: datasets.Dataset
    text_field: str
    wikitext: bool
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        """Give the documents, in the order of the rows."""
        if self.wikitext:
            return articles(map(_wikitext_line, self._rows()))
        return (document for row in self._rows() for document in text_documents(row))

    def identity(self, cache: Cache) -> str:
        """Hash of the rows: of the files they are mapped from, where there are some."""
        files = [Path(entry["filename"]) for entry in self.table.cache_files]
        if files and self.table._indices is None:
            content = cache_key("arrow", self.text_field, cache.hash_files(files))
        else:
            digest = hashlib.sha256()
            for text in self._rows():
                digest.update(hashlib.sha256(text.encode()).digest())
            content = cache_key("rows", digest.hexdigest())
        return cache_key("articles" if self.wikitext else "rows", content)

    def _rows(self) -> Iterator[str]:
        """The text of each row, in order; a missing value is empty text."""
        for batch in self.table.iter(batch_size=_ROWS_AT_ONCE):
            for text in batch[self.text_field]:
                yield text or ""


def _wikitext_line(row: str) -> str:
    """The line of the original file that a row of the hub stands for: blank rows lost theirs."""
    return row if row.endswith("\n") else f"{row or ' '}\n"


def hub_corpus(
    name: str, config_name: str | None, text_field: str, wikitext: bool = False
) -> Corpus:
    """The splits of a dataset of the hub or of a directory, by our names.

    Raises:
        DataError: as :func:`load_splits` does.
    """
    loaded = load_splits(name, config_name, text_field)
    splits = dict[SplitName, HubSplit]()
    for ours, theirs in _HUB_NAMES.items():
        if present := [loaded[split] for split in theirs if split in loaded]:
            splits[ours] = HubSplit(f"{name} ({ours} split)", present[0], text_field, wikitext)
    return Corpus(name, splits)


def load_splits(name: str, config_name: str | None, text_field: str) -> dict[str, Any]:
    """Load every split of a dataset, its text column only.

    Raises:
        DataError: it cannot be reached and is not cached, does not exist, needs code to be
            run, or has no text in ``text_field``.
    """
    import datasets

    local = os.path.isdir(Path(name).expanduser())
    # Retries and cache messages of the library would drown the one message that is wanted.
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        loaded = _load_local(name, config_name) if local else _load_remote(name, config_name)
    except Exception as error:  # the library raises almost anything; all of it is about the data
        raise _cannot_load(name, error, local) from error
    return {split: _text_column(name, table, text_field) for split, table in loaded.items()}


def _load_local(name: str, config_name: str | None) -> Any:
    import datasets

    path = Path(name).expanduser()
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path))
    if (path / "state.json").is_file():
        return {"train": datasets.load_from_disk(str(path))}
    return datasets.load_dataset(str(path), config_name)


def _load_remote(name: str, config_name: str | None) -> Any:
    import datasets

    with contextlib.nullcontext() if _hub_answers(name) else _offline():
        return datasets.load_dataset(name, config_name)


def _hub_answers(name: str) -> bool:
    """Whether the hub says anything, be it a refusal, about ``name`` within a few seconds."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().dataset_info(name, timeout=_PROBE_SECONDS)
            answers.append(True)
        except HfHubHTTPError as error:
            answers.append(error.response is not None)
        except Exception:  # no route, no name, no proxy, no certificate: no answer
            answers.append(False)

    # A thread, for looking up a host name heeds no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 1)
    return answers == [True]


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Make both libraries use their caches only, as their environment variables would."""
    import datasets
    import huggingface_hub

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _text_column(name: str, table: datasets.Dataset, text_field: str) -> datasets.Dataset:
    remedy = "name the one that holds the text: --set data.text_field=NAME"
    if text_field not in table.column_names:
        columns = ", ".join(table.column_names)
        raise DataError(f"dataset {name} has no field {text_field!r}; it has: {columns}", remedy)
    kind = getattr(table.features[text_field], "dtype", "a nested value")
    if kind not in ("string", "large_string"):
        raise DataError(f"field {text_field!r} of dataset {name} is {kind}, not text", remedy)
    return table.select_columns([text_field])


def _cannot_load(name: str, error: Exception, local: bool) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if local:
        return DataError(f"cannot load dataset directory {name}: {reason}", "check its files")
    if isinstance(error, ConnectionError | TimeoutError):
        return DataError(
            f"dataset {name}: the hub cannot be reached (offline?) and the dataset is not in its "
            f"local cache",
            "connect to the network (or set HF_HOME to a cache that holds it), or give the text "
            "as files: --set data.path=DIRECTORY with train.txt, valid.txt and test.txt for "
            "wikitext-2, --set data.train_file=FILE for any other text",
        )
    return DataError(
        f"cannot load dataset {name}: {reason}", "check data.dataset and data.dataset_config"
    )
