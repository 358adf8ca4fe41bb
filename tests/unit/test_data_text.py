"""Files to text to documents: encodings, line ends, compression, cuts (catalogue D-01, D-03)."""

import gzip
from pathlib import Path

import pytest

from infinito.data import documents
from infinito.data.corpus import Corpus, Part, with_validation
from infinito.data.documents import articles, cut, json_rows, passages
from infinito.data.find import file_documents, find_files
from infinito.data.text import read_lines, split_lines
from infinito.errors import DataError


def read(path: Path) -> str:
    return "".join(read_lines(path))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.row("D-03")
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"\xef\xbb\xbfa\n", "a\n"),
        (b"a\xef\xbb\xbfb", "a\ufeffb"),
        (b"no final newline", "no final newline"),
        (b"", ""),
        (b"\x85 \xe2", None),
        ("\u2028\x0b\x85".encode(), "\u2028\x0b\x85"),
    ],
)
def test_canonical_text(tmp_path: Path, data: bytes, text: str | None) -> None:
    path = written(tmp_path / "a.txt", data)
    if text is None:
        with pytest.raises(DataError):
            read(path)
    else:
        assert read(path) == text


def test_crlf_and_characters_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infinito.data.text.CHUNK_BYTES", 1)
    assert read(written(tmp_path / "a.txt", "é\r\n😀\r\n".encode())) == "é\n😀\n"


@pytest.mark.row("D-01")
@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"ab\xff", 2),
        (b"\xff\xfea\0", 0),
        (b"abc\xc3", 3),
        (b"x" * (1 << 20) + b"\xe2\x82(", 1 << 20),
    ],
)
def test_bad_utf8_names_file_and_offset(tmp_path: Path, data: bytes, offset: int) -> None:
    path = written(tmp_path / "bad.txt", data)
    with pytest.raises(DataError, match=rf"bad\.txt is not UTF-8.*offset {offset}\b"):
        read(path)


def test_bad_utf8_offset_where_a_character_is_cut_by_a_chunk(tmp_path: Path) -> None:
    data = b"x" * ((1 << 20) - 1) + b"\xe2\x82("
    with pytest.raises(DataError, match=rf"offset {(1 << 20) - 1}\b"):
        read(written(tmp_path / "bad.txt", data))


@pytest.mark.row("D-03")
def test_long_lines_come_in_parts_cut_at_spaces(tmp_path: Path) -> None:
    text = "word " * 2_000_000  # one line of 10 MB
    parts = list(read_lines(written(tmp_path / "long.txt", text.encode())))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 1 << 17
    assert all(part.endswith(" ") for part in parts)
    assert "".join(split_lines(["x" * 10], limit=3)) == "x" * 10


def test_parts_do_not_depend_on_chunks() -> None:
    text = "ab cd" * 7 + "\n" + "e" * 23
    whole = list(split_lines([text], limit=8))
    assert whole == list(split_lines(text, limit=8)) == list(split_lines([text[:9], text[9:]], 8))


def test_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(b"some text\n" * 1000)
    path = written(tmp_path / "a.txt.gz", packed)
    assert read(path) == "some text\n" * 1000
    for damaged in (packed[:-9], packed[:30], b"\x1f\x8bnonsense", b"plain"):
        with pytest.raises(DataError, match="damaged or truncated gzip"):
            read(written(tmp_path / "b.gz", damaged))


def test_find_files(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    for name in ("b.txt", "a.md", "sub/c.jsonl", "sub/d.txt.gz", "e.png", "f.tar.gz",
                 "sub/.hidden/g.txt"):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
    names = [path.relative_to(tmp_path).as_posix() for path in find_files(str(tmp_path), "k")]
    assert names == ["a.md", "b.txt", "sub/c.jsonl", "sub/d.txt.gz"]
    assert find_files(str(tmp_path / "*.txt"), "k") == [tmp_path / "b.txt"]
    assert find_files(str(tmp_path / "**/*.jsonl"), "k") == [tmp_path / "sub/c.jsonl"]
    assert find_files(str(tmp_path / "e.png"), "k") == [tmp_path / "e.png"]


@pytest.mark.row("D-01")
def test_find_files_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"")
    for reference, reason in (
        ("missing.txt", "does not exist"),
        ("*.none", "no file matches"),
        ("empty", "no .txt, .md, .jsonl, .gz file"),
        ("a.zip", "is an archive"),
    ):
        with pytest.raises(DataError, match=f"data.train_file: .*{reason}"):
            find_files(str(tmp_path / reference), "data.train_file")
    with pytest.raises(DataError, match="not a regular file"):
        find_files("/dev/null", "data.train_file")


def test_json_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b'{"text": "one\\r\\ntwo"}\n\n{"text": ""}\n{"text": "3"}')
    assert list(json_rows(path, "text")) == ["one\ntwo", "3"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 2: not JSON"),
        (b"[1]", "line 2: no text in field 'text'"),
        (b'{"text": 1}', "line 2: no text in field"),
        (b'{"text": "\\ud800"}', "line 2: half a surrogate pair"),
        (b"[" * 100_000, "line 2: not JSON"),
    ],
)
def test_json_row_errors(tmp_path: Path, line: bytes, reason: str) -> None:
    path = written(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=reason):
        list(json_rows(path, "text"))


def test_json_row_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "ROW_CHARACTERS", 1000)
    path = written(tmp_path / "a.jsonl", b'{"text": "' + b"a " * 2000 + b'"}\n')
    with pytest.raises(DataError, match="line 1: longer than 500"):
        list(json_rows(path, "text"))


def test_each_file_and_row_is_a_document(tmp_path: Path) -> None:
    files = [
        written(tmp_path / "a.txt", b"one\n\ntwo\n"),
        written(tmp_path / "b.jsonl.gz", gzip.compress(b'{"t": "r1"}\n{"t": "r2"}\n')),
        written(tmp_path / "c.md", b""),
    ]
    assert list(file_documents(files, "t")) == ["one\n\ntwo\n", "r1", "r2"]


def test_long_texts_are_cut_at_blank_lines() -> None:
    paragraph = "x" * 99 + "\n" + "y" * 99 + "\n\n"
    text = paragraph * 2000
    pieces = list(passages(split_lines([text])))
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert all(piece.endswith("\n\n") for piece in pieces)


def test_cut_without_blank_lines() -> None:
    lines = ["line\n"] * 100
    assert "".join(cut(lines, 10)) == "".join(lines)
    assert {len(piece) for piece in cut(lines, 10)} == {20}
    assert {len(piece) for piece in cut(["x" * 5] * 16, 10)} == {40}


def test_articles() -> None:
    first = " \n = One = \n \n = = Part = = \n \n text \n = not one = \n \n more \n"
    second = " \n = Two = \n \n text \n"
    assert list(articles(split_lines([first + second]))) == [first, second]
    assert list(articles(split_lines(["plain\n" + second]))) == ["plain\n", second]
    assert list(articles([])) == []


def shares(texts: list[str]) -> tuple[list[str], list[str]]:
    whole = Part("it", lambda: iter(texts), lambda cache: "id")
    corpus = with_validation(Corpus("it", {"train": lambda: whole}))
    assert "held out" in corpus.part("valid").note
    return list(corpus.part("train").documents()), list(corpus.part("valid").documents())


def test_every_tenth_document_is_held_out() -> None:
    train, valid = shares([str(number) for number in range(35)])
    assert valid == ["9", "19", "29"]
    assert [int(text) for text in train] == [n for n in range(35) if n % 10 != 9]


@pytest.mark.parametrize(
    ("texts", "valid"),
    [
        (["line\n" * 40], ["line\n" * 4]),
        (["a" * 100], ["a" * 10]),
        (["a" * 55 + "\n" + "b" * 44], ["b" * 10]),
        (["a" * 84 + "\n" + "b" * 15], ["b" * 15]),
        (["a" * 98 + "\n" + "b"], ["a" * 8 + "\nb"]),
        (["a" * 90, "b" * 5, "c" * 5], ["b" * 5, "c" * 5]),
        (["abcd " * 19], ["abcd abcd "]),
    ],
)
def test_the_end_of_a_short_text_is_held_out(texts: list[str], valid: list[str]) -> None:
    train, held_out = shares(texts)
    assert held_out == valid
    assert "".join(train + held_out) == "".join(texts)
