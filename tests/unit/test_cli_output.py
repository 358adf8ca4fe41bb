"""Tables and lines, on a terminal and in a pipe."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest

from infinito.cli.output import Messages, plain_table, print_json, say, table, through
from tests.support import ROOT

pty = pytest.importorskip("pty")  # Windows has none


def test_a_plain_table_is_aligned_and_numbers_stand_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table(("run", "step", "loss"), [("a", 12345, "3.5"), ("long [name]", 7, "-")])
    assert capsys.readouterr().out.splitlines() == [
        "run           step  loss",
        "a            12345   3.5",
        "long [name]      7     -",
    ]


def test_an_empty_table_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    table(("run", "step"), [])
    assert capsys.readouterr().out == "run  step\n"
    with pytest.raises(ValueError, match="argument"):
        plain_table(("run", "step"), [["a"]], [False, False])


def test_json_is_one_document_and_never_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "地", "n": 1})
    assert capsys.readouterr().out == '{\n  "text": "地",\n  "n": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        print_json({"loss": float("nan")})


def test_say_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_messages_outlive_their_reader() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb", buffering=0) as pipe:
        text = io.TextIOWrapper(pipe, encoding="utf-8")
        stream = through(Messages, text)
        print("heard: 地", file=stream)
        assert os.read(read_end, 100).decode() == "heard: 地\n"
        os.close(read_end)
        print("nobody hears this", file=stream)
        print("nor this" * 10_000, file=stream, flush=True)


def on_a_terminal(script: str, **environment: str) -> str:
    """What ``script`` prints when stdout is a terminal of 80 columns."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=slave, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"} | environment,
    )  # fmt: skip
    os.close(slave)
    output = io.BytesIO()
    try:
        while chunk := os.read(master, 4096):
            output.write(chunk)
    except OSError:
        pass  # Linux ends a closed terminal with an error
    finally:
        os.close(master)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output.getvalue().decode()


SCRIPT = "from infinito.cli.output import table; table(('a', 'b'), [('[red]x', 10000)])"


def test_a_terminal_gets_a_drawn_table_and_no_color_is_honoured() -> None:
    coloured = on_a_terminal(SCRIPT, NO_COLOR="")
    assert "─" in coloured
    assert "[red]x" in coloured
    assert "10000" in coloured
    assert "\x1b[" in coloured
    plain = on_a_terminal(SCRIPT, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)
    dumb = on_a_terminal(SCRIPT, TERM="dumb")
    assert dumb.splitlines()[1].split() == ["[red]x", "10000"]
    assert "\x1b" not in dumb
    assert "─" not in dumb


def test_a_narrow_terminal_gets_whole_words() -> None:
    cells = ("one two three four", "pip install infinito[x]", "a/long/path/of/a-file.pt", "-" * 16)
    script = f"from infinito.cli.output import table; table(('a', 'b', 'c', 'd'), [{cells}])"
    shown = on_a_terminal(script, COLUMNS="20")
    assert shown.split() == f"a: {cells[0]} b: {cells[1]} c: {cells[2]} d: {cells[3]}".split()
    assert "\r\n  four\r\n" in shown


def test_help_on_a_terminal_is_the_same_plain_text() -> None:
    script = "from infinito.cli.main import main; main(['--help'])"
    shown = on_a_terminal(script)
    assert "\x1b" not in shown
    assert shown.startswith("Usage: ")
