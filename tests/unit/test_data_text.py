"""Files to text to documents: encodings, line ends, compression, cuts (catalogue D-01, D-03)."""

import gzip
import io
import sqlite3
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from infinito.data import documents
from infinito.data.cache import Cache
from infinito.data.corpus import Corpus, with_validation
from infinito.data.documents import articles, cut, json_rows, passages
from infinito.data.files import FoundFiles, TextFiles, find_files
from infinito.data.lines import read_lines, split_lines
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
    monkeypatch.setattr("infinito.data.lines.CHUNK_BYTES", 1)
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


def office(member: str) -> bytes:
    """A ZIP archive laid out as the office programs do, of compressed and of stored members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>" * 500)
        archive.writestr(member, "<text>words</text>" * 500)
    return buffer.getvalue()


def epub() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 30, 99)).save(buffer, kind)
    return buffer.getvalue()


def database(path: Path) -> bytes:
    connection = sqlite3.connect(path)
    connection.execute("create table texts (text)")
    connection.close()
    return path.read_bytes()


ASCII_PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n%%EOF\n"


@pytest.mark.row("D-01")
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ASCII_PDF, "a PDF document"),  # valid UTF-8, every byte of it
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        (rb"{\rtf1\ansi words}", "an RTF document"),
        (office("word/document.xml"), "a DOCX document"),
        (office("xl/workbook.xml"), "an XLSX workbook"),
        (office("ppt/presentation.xml"), "a PPTX presentation"),
        (office("letters/one.txt"), "a ZIP archive"),
        (epub(), "an EPUB book"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "an old Office document"),
        (picture("PNG"), "a PNG image"),
        (picture("JPEG"), "a JPEG image"),
        (picture("GIF"), "a GIF image"),
        (picture("TIFF"), "a TIFF image"),
        (picture("WEBP"), "a WebP image"),
        (gzip.compress(b"some text"), "compressed with gzip"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\xff", "a program"),
    ],
    ids=lambda value: value.split()[-1] if isinstance(value, str) else "",
)
def test_what_is_no_text_is_named(tmp_path: Path, data: bytes, name: str) -> None:
    for path in (
        written(tmp_path / "a.txt", data),
        written(tmp_path / "b.gz", gzip.compress(data)),
    ):
        with pytest.raises(DataError, match=rf"/{path.name} is {name}\b.*not text"):
            read(path)


@pytest.mark.row("D-01")
def test_other_binary_files_are_called_so(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(written(tmp_path / "é.txt", "é".encode("latin-1")))
    for data in (database(tmp_path / "d"), (tmp_path / "x.tar").read_bytes(), b"ab\0\x80" * 9):
        with pytest.raises(DataError, match=r"x\.txt is a binary file, not text.*offset \d"):
            read(written(tmp_path / "x.txt", data))


@pytest.mark.parametrize(
    "text", ["PDF-1.4", "GIF89a is a format", "RIFF, he said", "PK", "BM", "MZ"]
)
def test_text_that_begins_like_a_format_is_text(tmp_path: Path, text: str) -> None:
    assert read(written(tmp_path / "a.txt", text.encode())) == text


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
    found = find_files(str(tmp_path), "k")
    names = [path.relative_to(tmp_path).as_posix() for path in found.paths]
    assert names == ["a.md", "b.txt", "sub/c.jsonl", "sub/d.txt.gz"]
    assert found.note == f"{tmp_path}: 4 files, 2 passed over: e.png, f.tar.gz"
    found = find_files(str(tmp_path / "*.txt"), "k")
    assert found.paths == [tmp_path / "b.txt"]
    assert found.note == f"{tmp_path / '*.txt'}: 1 file"
    assert find_files(str(tmp_path / "**/*.jsonl"), "k").paths == [tmp_path / "sub/c.jsonl"]
    assert find_files(str(tmp_path / "e.png"), "k") == FoundFiles([tmp_path / "e.png"], "")


def test_a_glob_passes_over_what_is_no_text(tmp_path: Path) -> None:
    """The names that a glob matches are the user's choice, their contents are not."""
    written(tmp_path / "report", b"plain words")
    written(tmp_path / "w.docx", office("word/document.xml"))
    written(tmp_path / "mine.txt", ASCII_PDF)
    written(tmp_path / "z.zip", b"")
    (tmp_path / "directory").mkdir()
    found = find_files(str(tmp_path / "*"), "k")
    assert found.paths == [tmp_path / "report"]
    assert found.note == f"{tmp_path / '*'}: 1 file, 3 passed over: mine.txt, w.docx, z.zip"
    (tmp_path / "report").unlink()
    with pytest.raises(DataError, match=r"no file matches .*3 passed over: mine\.txt"):
        find_files(str(tmp_path / "*"), "k")
    assert find_files(str(write_many(tmp_path / "many", 30)), "k").note.endswith(
        "many: 1 file, 30 passed over: 00.csv, 01.csv, 02.csv, 03.csv, 04.csv and 25 more"
    )


def write_many(directory: Path, count: int) -> Path:
    directory.mkdir()
    written(directory / "a.txt", b"text")
    for number in range(count):
        written(directory / f"{number:02}.csv", b"1,2")
    return directory


@pytest.mark.row("D-01")
def test_find_files_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"")
    for reference, reason in (
        ("missing.txt", "does not exist"),
        ("*.none", "no file matches"),
        ("empty", "no .txt, .md, .jsonl, .parquet, .gz file"),
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


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"id": [1, 2, 3, 4], "prose": ["one\r\ntwo", None, "", "drei\u00df"]}
    parquet.write_table(pyarrow.table(columns), path)
    assert list(TextFiles(str(path), "k", "prose")) == ["one\ntwo", "drei\u00df"]
    for field in ("text", "id"):
        with pytest.raises(DataError, match=f"no column '{field}' of text; it has: id, prose"):
            list(TextFiles(str(path), "k", field))
    # A folder and a glob find it, and other names than the file's own make another text.
    for reference in (tmp_path, tmp_path / "*"):
        assert find_files(str(reference), "k").paths == [path]
    cache = Cache(tmp_path / "cache")
    identities = {TextFiles(str(path), "k", field).identity(cache) for field in ("id", "prose")}
    assert len(identities) == 2
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet"):
        list(TextFiles(str(path), "k", "prose"))


def test_each_file_and_row_is_a_document(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"one\n\ntwo\n")
    written(tmp_path / "b.jsonl.gz", gzip.compress(b'{"t": "r1"}\n{"t": "r2"}\n'))
    written(tmp_path / "c.md", b"")
    documents = TextFiles(str(tmp_path), "k", "t")
    assert list(documents) == list(documents) == ["one\n\ntwo\n", "r1", "r2"]


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


@dataclass(frozen=True)
class Given:
    """Documents in memory."""

    texts: list[str]
    label: str = "it"
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def identity(self, _: Cache) -> str:
        return "id"


def shares(texts: list[str]) -> tuple[list[str], list[str]]:
    corpus = with_validation(Corpus("it", {"train": Given(texts)}))
    assert "held out" in corpus.documents("valid").notes[-1]
    return list(corpus.documents("train")), list(corpus.documents("valid"))


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
