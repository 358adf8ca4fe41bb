"""Where output goes: results on stdout, everything else on stderr; plain unless on a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

# A column of text may be folded to this width; with less, nobody can read a table.
_FOLDED = 16


def on_terminal(stream: TextIO | None = None) -> bool:
    """Whether ``stream`` (stdout if None) is a terminal that understands control codes."""
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def say(line: str = "") -> None:
    """Print one line on stderr."""
    print(line, file=sys.stderr, flush=True)


class Results(io.FileIO):
    """A descriptor for results: what it cannot take is an error that says where that was."""

    def write(self, data: Any) -> int:
        """Write some bytes of ``data``."""
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


class Messages(io.FileIO):
    """A descriptor for messages: what it cannot take is lost, and the work goes on without.

    Its reader may leave, its terminal close, the disk behind it be full, while a run trains.
    """

    def write(self, data: Any) -> int:
        """Write ``data`` if that is possible."""
        with contextlib.suppress(OSError):
            super().write(data)
        return len(data)


def through(kind: type[io.FileIO], stream: TextIO) -> TextIO:
    """``stream`` anew, for any text, its bytes written by ``kind``."""
    raw = io.BufferedWriter(kind(stream.fileno(), "w", closefd=False))
    lines = stream.isatty() or kind is Messages
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=lines)


def discard(stream: TextIO) -> None:
    """Send what ``stream`` still holds, and all that follows, to the null device.

    Without this the interpreter complains at shutdown, when it flushes into the closed pipe.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def print_json(value: object) -> None:
    """Print exactly one JSON document on stdout. Raises ``ValueError`` for NaN and infinities."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout: aligned plain text, or drawn by rich on a terminal.

    Columns of numbers are right-aligned. Cells are printed as ``str`` gives them, without
    thousands separators. A terminal that is too narrow for a table gets a line for each cell.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in cells) for i in range(len(headers))]
    if on_terminal():
        _rich_table(headers, cells, numeric)
    else:
        for line in plain_table(headers, cells, numeric):
            print(line)


def plain_table(
    headers: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> list[str]:
    """Lines of an aligned table; ``numeric`` columns are right-aligned."""
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in (headers, *cells)
    ]


def _rich_table(
    headers: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    least = [w if right else min(w, _FOLDED) for w, right in zip(widths, numeric, strict=True)]
    if sum(least) + 3 * len(least) - 1 > console.width:
        # Words stay whole: a path or a command is there to be copied.
        lines = textwrap.TextWrapper(
            console.width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for row in cells:
            for header, cell in zip(headers, row, strict=True):
                if cell:
                    print(lines.fill(f"{header}: {cell}"))
            print()
        return
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header, right in zip(headers, numeric, strict=True):
        drawn.add_column(
            header, justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))  # Text: brackets are not markup
    console.print(drawn)


def _is_number(cell: str) -> bool:
    if cell in ("", "-"):
        return True
    try:
        float(cell.rstrip("%"))
    except ValueError:
        return False
    return True
