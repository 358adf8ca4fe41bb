"""The help of every command and the JSON Schema, as committed: a change must be meant.

Set INFINITO_UPDATE_GOLDEN=1 to write the files anew, and read the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from infinito.cli.main import COMMANDS, main
from infinito.config.document import init_document, json_schema

HERE = Path(__file__).resolve().parent


def check(name: str, text: str) -> None:
    path = HERE / name
    if os.environ.get("INFINITO_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8", newline="\n")
    assert path.is_file(), f"{name} is missing; run with INFINITO_UPDATE_GOLDEN=1"
    assert text == path.read_text(encoding="utf-8")


def command_lines() -> Iterator[tuple[str, ...]]:
    yield ()
    for command in COMMANDS:
        if command.hidden:
            continue
        yield (command.name,)
        if isinstance(command.entry, typer.Typer):
            for inner in command.entry.registered_commands:
                assert inner.callback is not None
                yield (command.name, inner.name or inner.callback.__name__.replace("_", "-"))


@pytest.mark.parametrize(
    "words", list(command_lines()), ids=lambda words: "-".join(("infinito", *words))
)
def test_help(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    check("-".join(("help", *words)) + ".txt", capsys.readouterr().out)


def test_json_schema() -> None:
    check("config_schema.json", json_schema())


def test_starting_config() -> None:
    check("config_init.yaml", init_document())
