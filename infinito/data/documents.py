"""Lines to documents: the units that an epoch shuffles and that an end-of-text token ends."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from infinito.data.lines import normalise, read_lines, split_lines
from infinito.errors import DataError

# A text of up to WHOLE_CHARACTERS is one document. A longer one is cut where a blank line
# follows at least PASSAGE_CHARACTERS, so that shuffling has something to shuffle; where none
# comes, at a line end after twice as many, and at last wherever four times as many are reached.
WHOLE_CHARACTERS = 1 << 17
PASSAGE_CHARACTERS = 1 << 15
# Articles of WikiText-2 stay below an eighth of this; it only bounds memory for other texts.
ARTICLE_CHARACTERS = 1 << 20
# One line of a .jsonl file; a longer one is taken for damage or an attack on memory.
ROW_CHARACTERS = 1 << 24
_BATCH_ROWS = 64  # of a .parquet file, in memory at once

_HEADING = re.compile(r" = (?!= ).* = \n")


def passages(lines: Iterable[str]) -> Iterator[str]:
    """One text of any size as one or more documents; joined, they are the text again."""
    lines = iter(lines)
    head, size = [], 0
    for line in lines:
        head.append(line)
        size += len(line)
        if size > WHOLE_CHARACTERS:
            yield from cut(itertools.chain(head, lines))
            return
    if head:
        yield "".join(head)


def cut(lines: Iterable[str], characters: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Cut a text where a blank line follows at least ``characters``, in need elsewhere."""

    def ends(line: str, size: int) -> bool:
        enough = characters if line.isspace() else 2 * characters
        return size >= (enough if line.endswith("\n") else 4 * characters)

    return map("".join, gathered(lines, ends))


def gathered(texts: Iterable[str], is_last: Callable[[str, int], bool]) -> Iterator[list[str]]:
    """Texts in groups; ``is_last`` says of a text, and the size with it, whether it ends one."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if is_last(text, size):
            yield held
            held, size = [], 0
    if held:
        yield held


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Cut WikiText before the blank line above each level-1 heading (`` = Title = ``).

    A heading counts only between two blank lines, which gives the 600, 60 and 60 articles of
    the three splits of WikiText-2. Joined, the articles are the text again.
    """
    held: list[str] = []
    size = 0
    for line in lines:
        if line.isspace() and len(held) > 1 and held[-2].isspace() and _HEADING.match(held[-1]):
            if len(held) > 2:
                yield "".join(held[:-2])
            held = held[-2:]
            size = sum(map(len, held))
        elif size > ARTICLE_CHARACTERS:
            yield "".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield "".join(held)


def text_documents(text: str) -> Iterator[str]:
    """Documents of one text in memory: the row of a data set, say. Empty text gives none."""
    return passages(split_lines([normalise(text)]))


def json_rows(path: Path, text_field: str) -> Iterator[str]:
    """Documents of a .jsonl file: the string in ``text_field`` of each line, unless empty.

    Raises:
        DataError: a line (its number is named) is no JSON object, lacks the field, or is too long.
    """
    for number, line in enumerate(read_lines(path, ROW_CHARACTERS), start=1):
        if line.isspace():
            continue
        place = f"{path}, line {number}"
        if len(line) >= ROW_CHARACTERS // 2 and not line.endswith("\n"):
            raise DataError(
                f"{place}: longer than {ROW_CHARACTERS // 2} characters",
                "cut the row into several, or give the text as a .txt file",
            )
        yield from text_documents(_row_text(line, place, text_field))


def parquet_rows(path: Path, text_field: str) -> Iterator[str]:
    """Documents of a .parquet file: the text in the column ``text_field`` of each row, if any.

    Raises:
        DataError: the file cannot be read, or has no such column of text.
    """
    from pyarrow import ArrowException  # comes with datasets, and takes a while to import
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns = {column.name: str(column.type) for column in file.schema_arrow}
            if columns.get(text_field) not in ("string", "large_string"):
                raise DataError(
                    f"{path}: no column {text_field!r} of text; it has: {', '.join(columns)}",
                    "name the column that holds the text with --set data.text_field=NAME",
                )
            for batch in file.iter_batches(_BATCH_ROWS, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    yield from text_documents(text or "")
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}", "fetch or write it again") from error


def _row_text(line: str, place: str, text_field: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: not JSON: {error}", "one JSON object a line is needed"
        ) from error
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f"{place}: no text in field {text_field!r}",
            "name the field that holds the text with --set data.text_field=NAME",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: half a surrogate pair at character {error.start}", "repair the row"
        ) from error
    return text
