"""From a config to tokens: sources, the cache, and everything that can be wrong with a text."""

import gzip
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from infinito.config.schema import Config, DataConfig, SplitName
from infinito.data import hub
from infinito.data import prepare as preparation
from infinito.data.cache import Cache, cache_root
from infinito.data.prepare import Dataset, tokenize_text
from infinito.data.sources import open_corpus
from infinito.data.token_store import DamagedStoreError, open_store, token_dtype, write_store
from infinito.errors import DataError
from infinito.runtime.events import Event, Note, reading
from infinito.tokenizer.tokenizer import Tokenizer
from tests.support import ROOT, wikitext2_dir, write_text

BYTE = Tokenizer.from_json('{"format":"infinito-tokenizer","version":1,"kind":"byte"}')


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINITO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(data: dict[str, Any], kind: str = "byte", **tokenizer: Any) -> Config:
    values = {"sequence_length": 8, **data}
    return Config.model_validate({"data": values, "tokenizer": {"kind": kind, **tokenizer}})


def heard() -> tuple[list[str], Callable[[Event], None]]:
    """A list, and a reader that puts every note into it."""
    notes = list[str]()
    return notes, lambda event: notes.append(event.text) if isinstance(event, Note) else None


class Prepared(Dataset):
    notes: list[str]


def prepare(config: Config, **options: Any) -> Prepared:
    """``preparation.prepare``, with the notes it gave."""
    notes, reader = heard()
    with reading(reader, alone=True):
        dataset = preparation.prepare(config, **options)
    object.__setattr__(dataset, "notes", notes)
    return cast(Prepared, dataset)


def prepared(data: dict[str, Any], kind: str = "byte", **tokenizer: Any) -> Prepared:
    return prepare(config(data, kind, **tokenizer))


def wikitext_like(directory: Path) -> Path:
    directory.mkdir()
    for split, articles in (("train", 5), ("valid", 2), ("test", 2)):
        text = "".join(
            f" \n = {split} {n} = \n \n {split} <unk> words of {n} , many more here . \n"
            for n in range(articles)
        )
        (directory / f"wiki.{split}.tokens").write_bytes((text + " \n").encode())
    return directory


def test_documents_are_stored_with_their_ends(tmp_path: Path) -> None:
    rows = [{"text": text} for text in ("one", "zwölf\n", "three here")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = tokenize_text(str(tmp_path / "a.jsonl"), BYTE)
    assert store.tokens.dtype == np.uint16
    assert BYTE.decode(store.tokens[4:11].tolist()) == "zwölf\n"
    assert store.tokens[[3, 11, 22]].tolist() == [256] * 3
    assert store.document_starts.tolist() == [0, 4, 12]
    assert store.document_starts.dtype == np.int64
    assert (store.n_words, store.n_lines, store.n_bytes) == (5, 1, 20)


def test_wikitext_directory(tmp_path: Path) -> None:
    directory = wikitext_like(tmp_path / "w")
    dataset = prepare(config({"path": str(directory)}, "word"), splits=None)
    assert {split: store.n_documents for split, store in dataset.splits.items()} == {
        "train": 5, "valid": 2, "test": 2,
    }  # fmt: skip
    store = dataset.splits["train"]
    assert store.n_tokens == store.n_words
    assert store.n_unknown == 5
    (directory / "wiki.valid.tokens").unlink()
    with pytest.raises(DataError, match=r"no valid split \(it has: train, test\)"):
        prepared({"path": str(directory)}, "word")


def test_hub_rows_give_the_bytes_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    directory = wikitext_like(tmp_path / "w")
    tables = {}
    for theirs, ours in (("train", "train"), ("validation", "valid"), ("test", "test")):
        lines = (directory / f"wiki.{ours}.tokens").read_text().splitlines(keepends=True)
        rows = ["" if line == " \n" else line for line in lines]
        tables[theirs] = datasets.Dataset.from_dict({"text": rows})
    monkeypatch.setattr(hub, "load_splits", lambda *_: tables)
    files, rows_ = (
        prepare(config(data, "word"), splits=None)
        for data in ({"path": str(directory)}, {"source": "wikitext-2"})
    )
    assert files.text_sha256 == rows_.text_sha256
    assert files.tokenizer.fingerprint == rows_.tokenizer.fingerprint
    for split, store in files.splits.items():
        assert np.array_equal(store.tokens, rows_.splits[split].tokens)
        assert np.array_equal(store.document_starts, rows_.splits[split].document_starts)


def test_hub_directory(tmp_path: Path) -> None:
    directory = tmp_path / "set"
    directory.mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"body": f"{split} row number {n}\r\n", "n": n}) for n in range(30)]
        (directory / f"{split}.jsonl").write_text("\n".join(lines))
    dataset = prepared({"dataset": str(directory), "text_field": "body"})
    assert dataset.splits["train"].n_documents == 30
    assert dataset.splits["valid"].n_lines == 30
    assert BYTE.decode(dataset.splits["train"].tokens[:21].tolist()) == "train row number 0\nt"
    for field, reason in (("text", "no field 'text'; it has: body, n"), ("n", "int64, not text")):
        with pytest.raises(DataError, match=reason):
            prepared({"dataset": str(directory), "text_field": field})
    (directory / "validation.jsonl").unlink()
    dataset = prepared({"dataset": str(directory), "text_field": "body"})
    assert any("held out" in note for note in dataset.notes)
    assert dataset.splits["valid"].n_documents == 3


@pytest.mark.row("D-02")
@pytest.mark.parametrize("offline", ["0", "1"])
def test_hub_out_of_reach(tmp_path: Path, offline: str) -> None:
    program = (
        "import time\n"
        "from infinito.config.schema import Config\n"
        "from infinito.data.prepare import prepare\n"
        "from infinito.errors import DataError\n"
        "started = time.monotonic()\n"
        "try:\n    prepare(Config.model_validate({'data': {'source': 'wikitext-2'}}))\n"
        "except DataError as error:\n    print(error.message, error.remedy)\n"
        "assert time.monotonic() - started < 10\n"
    )
    # A closed port of this machine stands for a hub that cannot be reached.
    environment = {
        **os.environ, "HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*",
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, text=True, capture_output=True,
        check=True,
    )  # fmt: skip
    assert "cannot be reached" in result.stdout
    assert "--set data.path=" in result.stdout
    assert "network" in result.stdout
    assert result.stderr == ""


def test_python_docs() -> None:
    dataset = prepared({"source": "python-docs"}, "bpe", vocab_size=600)
    # 0.4 MB of the manual and 1.6 MB of docstrings; a little more or less by Python's version.
    assert dataset.splits["train"].n_bytes > 1_600_000
    assert 0.05 < dataset.splits["valid"].n_bytes / dataset.splits["train"].n_bytes < 0.25
    assert not dataset.notes  # nothing held out stands in the training part
    with pytest.raises(DataError, match="python-docs has no test split"):
        prepare(config({"source": "python-docs"}), splits=["test"])


def test_python_docs_are_set_as_a_manual() -> None:
    corpus = open_corpus(DataConfig(source="python-docs"))
    documents = [text for split in corpus.splits.values() for text in split]
    [module] = [text for text in documents if text.startswith("shutil\n")]
    [first, *_] = inspect.cleandoc(shutil.__doc__ or "").splitlines()
    assert module.startswith(f"shutil\n\n   {first}\n")
    heading = "\n\n\nshutil.copyfile(src, dst, *, follow_symlinks=True)\n\n   Copy data from src"
    assert heading in module
    assert any("assignment" in text and text.startswith("\n") for text in documents)  # a topic
    # Prose once and no sessions: subclasses repeat, and what is learnt by heart says nothing.
    assert not any(">>>" in text for text in documents if text.startswith("doctest\n"))
    paragraphs = [" ".join(part.split()) for text in documents for part in text.split("\n\n")]
    repeated = "Return None if the header is missing instead of raising an exception."
    assert sum(repeated in part for part in paragraphs) <= 1
    assert not {"antigravity", "this"} & sys.modules.keys()  # read, never imported


def test_validation_is_split_off_and_said(tmp_path: Path) -> None:
    text = write_text(tmp_path / "own.txt")
    dataset = prepared({"train_file": str(text)})
    assert any("no validation text was given" in note for note in dataset.notes)
    joined = b"".join(
        bytes(store.tokens[store.tokens != 256].astype(np.uint8))
        for store in dataset.splits.values()
    )
    assert joined == text.read_bytes()
    assert 0.05 < dataset.splits["valid"].n_bytes / len(joined) < 0.2


@pytest.mark.row("D-03")
@pytest.mark.parametrize("kind", ["bpe", "word", "byte"])
@pytest.mark.parametrize(
    "data",
    [
        b"first line here\r\nsecond line there\r\n" * 20,
        b"\xef\xbb\xbf" + b"some words of text\n" * 20,
        b"word and word " * 150_000,
        b"no final newline, and few words " * 9,
    ],
    ids=["crlf", "bom", "2 MB line", "no final newline"],
)
def test_odd_but_harmless_texts(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "odd.txt").write_bytes(data)
    dataset = prepared({"train_file": str(tmp_path / "odd.txt")}, kind)
    text = data.decode("utf-8-sig").replace("\r\n", "\n")
    stores = dataset.splits.values()
    assert sum(store.n_bytes for store in stores) == len(text)
    assert sum(store.n_words for store in stores) == len(text.split()) + text.count("\n")


@pytest.mark.row("D-01", "D-04")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n \n", "nothing but blank lines"),
        (b"abc", "too short|single token|tokens, and a sequence needs 9"),
        (b"fine text here \xff", "offset 15"),
    ],
)
@pytest.mark.parametrize("kind", ["bpe", "word", "byte"])
def test_useless_texts(tmp_path: Path, data: bytes, reason: str, kind: str) -> None:
    good, bad = write_text(tmp_path / "good.txt"), tmp_path / "bad.txt"
    bad.write_bytes(data)
    with pytest.raises(DataError, match=reason):
        prepared({"train_file": str(bad), "valid_file": str(good)}, kind)
    if kind != "word" and data == b"abc":
        return  # as a validation text, three letters will do
    with pytest.raises(DataError, match=reason):
        prepared({"train_file": str(good), "valid_file": str(bad)}, kind)
    assert not list((cache_root() / "tokens").glob("*.tmp"))


@pytest.mark.row("D-01")
def test_a_short_training_text_is_named(tmp_path: Path) -> None:
    good, short = write_text(tmp_path / "good.txt"), tmp_path / "short.txt"
    short.write_text("abc")
    with pytest.raises(DataError, match=r"training text.*/short\.txt.* has 4 tokens.* needs 9$"):
        prepared({"train_file": str(short), "valid_file": str(good)})
    short.write_text("few words, and a tenth held out")
    with pytest.raises(DataError, match=r"training text.*/short\.txt .*\d\d tokens.* needs 41$"):
        prepared({"train_file": str(short), "sequence_length": 40})


def test_what_a_directory_stands_for_is_told(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.txt", "b.md"):
        write_text(tmp_path / "d" / name)
    (tmp_path / "d" / "x.pdf").write_bytes(b"%PDF-1.4\n")
    found = f"{tmp_path / 'd'}: 2 files, 1 passed over: x.pdf"
    # Once, though two shares are made of it, and also where only one of them is asked for.
    assert prepared({"train_file": str(tmp_path / "d")}).notes.count(found) == 1
    dataset = prepare(config({"train_file": str(tmp_path / "d")}), tokenizer=BYTE, splits=["valid"])
    assert dataset.notes[0] == found
    said, reader = heard()
    with reading(reader, alone=True):
        tokenize_text(str(tmp_path / "d"), BYTE)
    assert said == [found]


@pytest.mark.row("D-01")
def test_missing_parts(tmp_path: Path) -> None:
    good = str(write_text(tmp_path / "good.txt"))
    for data, reason in (
        ({"train_file": str(tmp_path / "none.txt")}, "data.train_file: .*none.txt does not exist"),
        ({"train_file": good, "valid_file": str(tmp_path / "x*")}, "data.valid_file: no file"),
        ({"path": str(tmp_path / "none")}, "is not a directory"),
        ({"path": str(tmp_path)}, "holds no WikiText-2: no train.txt or wiki.train.tokens"),
        ({"dataset": str(tmp_path / "cache")}, "cannot load dataset|cannot be reached"),
    ):
        (tmp_path / "cache").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=reason):
            prepared(data)
    with pytest.raises(DataError, match="no test split") as refusal:
        prepare(config({"train_file": good}), splits=["test"])
    assert "--set data.test_file=FILE" in refusal.value.remedy


@pytest.mark.row("D-06")
def test_overlap_is_measured(tmp_path: Path) -> None:
    text, other = write_text(tmp_path / "a.txt"), tmp_path / "b.txt"
    other.write_text("A line of text that was never seen before .\n" * 10)
    assert not prepared({"train_file": str(text), "valid_file": str(other)}).notes
    notes = prepared({"train_file": str(text), "valid_file": str(text)}).notes
    assert notes[0].startswith("warning: 100.0 % of the validation text")
    with other.open("a") as stream:
        stream.write("".join(text.read_text().splitlines(keepends=True)[:3]))
    for _ in range(2):  # the warning is given on a cached start too
        notes = prepared({"train_file": str(text), "valid_file": str(other)}).notes
        assert len(notes) == 1
        assert 5 < float(notes[0].split()[1]) < 60


def test_cached_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config({"train_file": str(write_text(tmp_path / "a.txt"))}, "bpe", vocab_size=300)
    os.utime(tmp_path / "a.txt", (1e9, 1e9))  # old enough for its hash to be remembered
    first = prepare(settings)
    assert set(first.cached.values()) == {False}

    def never(*_: object, **__: object) -> Iterator[str]:
        raise AssertionError("the text was read again")

    monkeypatch.setattr("infinito.data.files.TextFiles.__iter__", never)
    monkeypatch.setattr("infinito.data.cache._hash_file", never)
    second = prepare(settings)
    assert set(second.cached.values()) == {True}
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert second.notes == first.notes
    for split, store in first.splits.items():
        assert np.array_equal(store.tokens, second.splits[split].tokens)
        assert store.text_sha256 == second.text_sha256[split]


def keys(data: dict[str, Any], kind: str = "byte", **tokenizer: Any) -> set[str]:
    before = {entry.path.name for entry in Cache().entries() if entry.kind == "tokens"}
    prepare(config(data, kind, **tokenizer), splits=["train"])
    return {entry.path.name for entry in Cache().entries() if entry.kind == "tokens"} - before


def test_every_input_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.jsonl")
    row = {"text": "a text for the cache", "other": "another text here"}
    path.write_text((json.dumps(row) + "\n") * 30)
    base: dict[str, Any] = {"train_file": str(path), "valid_file": str(path)}
    assert keys(base)
    assert not keys(base)
    assert not keys({**base, "sequence_length": 9})
    assert keys({**base, "text_field": "other"})
    assert keys(base, "word")
    assert keys(base, "bpe", vocab_size=258)
    assert keys(base, "bpe", vocab_size=262)
    assert keys({"train_file": str(path)})  # a tenth is held out
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert not keys({**base, "train_file": str(copy)})  # contents count, names do not
    as_text = tmp_path / "a.txt"
    as_text.write_bytes(path.read_bytes())
    assert keys({**base, "train_file": str(as_text)})
    # same size and time stamp as a file whose hash is remembered: still noticed
    os.utime(path, (1e9, 1e9))
    assert not keys(base)
    stat = path.stat()
    path.write_text(path.read_text().replace("cache", "cacha"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert keys(base)
    monkeypatch.setattr("infinito.data.cache.CACHE_VERSION", 99)
    assert keys(base)


def test_documents_apart_differ_from_documents_joined(tmp_path: Path) -> None:
    for name, texts in (("a", ["ab cd ef", "gh"]), ("b", ["ab cd", " ef gh"])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    stores = [tokenize_text(str(tmp_path / f"{name}.jsonl"), BYTE) for name in "ab"]
    assert not np.array_equal(stores[0].document_starts, stores[1].document_starts)


def test_damaged_entries_are_made_again(tmp_path: Path) -> None:
    data = {"train_file": str(write_text(tmp_path / "a.txt"))}
    first = prepare(config(data, "bpe"))
    for entry in Cache().entries():
        content = entry.path.read_bytes()
        for damaged in (
            b"", content[:-1], content[:7] + b"\0" + content[8:],
            content[:-40] + bytes([content[-40] ^ 1]) + content[-39:], content + b"x",
        ):  # fmt: skip
            if damaged == content:
                continue
            entry.path.unlink()  # not in place: the stores of `first` are mapped
            entry.path.write_bytes(damaged)
            again = prepare(config(data, "bpe"))
            assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
            for split, store in first.splits.items():
                assert np.array_equal(store.tokens, again.splits[split].tokens)
            said = any("made again" in note for note in again.notes)
            assert said == (entry.kind == "tokens"), (entry, damaged[:20])


def test_a_given_tokenizer_is_used(tmp_path: Path) -> None:
    settings = config({"train_file": str(write_text(tmp_path / "a.txt"))}, "word")
    assert prepare(settings, tokenizer=BYTE).tokenizer is BYTE
    assert not [entry for entry in Cache().entries() if entry.kind == "tokenizer"]


@pytest.mark.row("D-05")
def test_ids_do_not_wrap(tmp_path: Path) -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32
    words = " ".join(f"w{n}" for n in range(66_000)) + "\n"
    (tmp_path / "a.txt").write_text(words + words)
    dataset = prepare(
        config(
            {"train_file": str(tmp_path / "a.txt"), "valid_file": str(tmp_path / "a.txt")}, "word"
        )
    )
    tokens = dataset.splits["train"].tokens
    assert tokens.dtype == np.uint32
    assert int(tokens.max()) == dataset.tokenizer.vocab_size - 2 == 66_000
    assert dataset.tokenizer.decode(tokens[-3:].tolist()) == " w65998 w65999\n"


def blocked(directory: Path, _: pytest.MonkeyPatch) -> None:
    """A file where the cache's directory would be: nobody, root included, can write there."""
    shutil.rmtree(directory)
    directory.write_text("in the way")


def full(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: what is opened below the cache is written to the device that is always full."""
    opened = os.fdopen

    def full_disk(handle: int, *arguments: Any) -> Any:
        if not os.readlink(f"/proc/self/fd/{handle}").startswith(f"{directory}/"):
            return opened(handle, *arguments)
        os.close(handle)
        return open("/dev/full", "wb")

    monkeypatch.setattr(os, "fdopen", full_disk)


@pytest.mark.parametrize("spoil", [blocked, full])
def test_without_a_cache_the_tokens_are_the_same(
    tmp_path: Path,
    cache_directory: Path,
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config({"train_file": str(write_text(tmp_path / "a.txt"))}, "bpe", vocab_size=300)
    os.utime(tmp_path / "a.txt", (1e9, 1e9))  # old enough for its hash to be remembered
    usual = prepare(settings)
    Cache().clear()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    spoil(cache_directory, monkeypatch)
    dataset = prepare(settings)
    assert dataset.tokenizer.fingerprint == usual.tokenizer.fingerprint
    for split, store in usual.splits.items():
        assert np.array_equal(store.tokens, dataset.splits[split].tokens)
    [warning] = set(dataset.notes) - set(usual.notes)
    assert len(dataset.notes) == len(usual.notes) + 1
    assert warning.startswith("warning: cannot write the data cache")
    assert "INFINITO_CACHE" in warning
    assert not list((tmp_path / "scratch").iterdir())
    assert not [path for path in cache_directory.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written_is_read(
    tmp_path: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config({"train_file": str(write_text(tmp_path / "a.txt"))})
    usual = prepare(settings)
    os.utime(tmp_path / "a.txt", (1e9, 1e9))  # its hash would be remembered now
    full(cache_directory, monkeypatch)
    dataset = prepare(settings)
    assert set(dataset.cached.values()) == {True}
    assert len(dataset.notes) == len(usual.notes) + 1


def test_cache_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFINITO_CACHE", "own")
    assert cache_root() == Path.cwd() / "own"
    monkeypatch.delenv("INFINITO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "infinito"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "infinito"


def test_text_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.txt")
    write = write_store

    def change_meanwhile(*arguments: Any) -> Path:
        path.write_text("something else entirely\n" * 50)
        return write(*arguments)

    monkeypatch.setattr("infinito.data.prepare.write_store", change_meanwhile)
    with pytest.raises(DataError, match="changed while it was read"):
        tokenize_text(str(path), BYTE)
    assert not list((cache_root() / "tokens").iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[str]:
        yield "text"
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        write_store(Cache(), "key", failing(), BYTE, "it")
    assert not list((cache_root() / "tokens").iterdir())
    with pytest.raises(DamagedStoreError):
        open_store(Cache().path("tokens", "key"))


def test_processes_may_write_the_same_entry(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", paragraphs=200)
    program = (
        "import sys\nfrom infinito.config.schema import Config\n"
        "from infinito.data.prepare import prepare\n"
        "for _ in range(5):\n"
        "    d = prepare(Config.model_validate({'data': {'train_file': sys.argv[1]}}))\n"
        "print(d.text_sha256['train'], d.tokenizer.fingerprint)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.txt")]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = {process.communicate(timeout=60)[0] for process in running}
    assert len(printed) == 1
    assert all(process.returncode == 0 for process in running)


def test_a_compressed_bomb_takes_constant_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb.txt.gz", "wb", compresslevel=9) as stream:
        for _ in range(48):
            stream.write(b"0 " * (1 << 19))
    program = (
        "import resource, sys\nfrom tests.integration.test_data_prepare import BYTE\n"
        "from infinito.data.prepare import tokenize_text\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "store = tokenize_text(sys.argv[1], BYTE)\n"
        "print(store.n_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "bomb.txt.gz")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    n_bytes, grown_kilobytes = map(int, result.stdout.split())
    assert n_bytes == 48 << 20
    assert grown_kilobytes < 150_000  # all of it at once would take more than 500 MB


SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


@pytest.mark.skipif(wikitext2_dir() is None, reason="the real WikiText-2 is not here")
def test_wikitext2_has_the_published_counts() -> None:
    settings = config({"path": str(wikitext2_dir())}, "word")
    dataset = prepare(settings, splits=None)
    assert dataset.tokenizer.vocab_size == 33_278
    counts = {split: dataset.splits[split].n_tokens for split in SPLITS}
    assert counts == {"train": 2_088_628, "valid": 217_646, "test": 245_569}
    assert [dataset.splits[split].n_documents for split in SPLITS] == [600, 60, 60]
    test = dataset.splits["test"]
    assert (test.n_bytes, test.n_lines, test.n_words) == (1_256_449, 4_358, 245_569)
    assert test.n_unknown == 15_218
    assert not dataset.notes
    started = time.perf_counter()
    assert all(prepare(settings, splits=None).cached.values())
    assert time.perf_counter() - started < 1
