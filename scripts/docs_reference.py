"""Pages of the site that are made when it is built: every command's help, every config key."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File, Files

from infinito.cli.main import COMMANDS, main
from infinito.config.document import init_document
from infinito.version import __version__


def on_files(files: Files, config: Any) -> Files:
    """Add the made pages to those that lie in docs/."""
    for name, text in (("commands", commands()), ("config", config_keys())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def commands() -> str:
    """A section a command, each with its own ``--help``."""
    lines = ["# Commands", "", f"As infinito {__version__} prints them with `--help`.", ""]
    for words in _all_commands():
        lines += [f"## infinito {' '.join(words)}", "", "```text", _help(words), "```", ""]
    return "\n".join(lines)


def config_keys() -> str:
    """Every key with its meaning, range and default: what ``infinito config init`` writes."""
    intro = "A key that is left out keeps its default. `infinito config init` writes this file."
    return f"# Config keys\n\n{intro}\n\n```yaml\n{init_document()}```\n"


def _all_commands() -> Iterator[tuple[str, ...]]:
    for command in COMMANDS:
        if command.hidden:
            continue
        yield (command.name,)
        for inner in getattr(command.entry, "registered_commands", []):
            yield (command.name, inner.name or inner.callback.__name__)


def _help(words: tuple[str, ...]) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return shown.getvalue().rstrip()
