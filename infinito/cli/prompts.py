"""Where the prompts of ``infinito generate`` come from: an option, a file, or lines typed."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from itertools import compress
from pathlib import Path

from infinito.cli.output import say
from infinito.errors import ConfigError, DataError


def read_prompts(
    prompt: str | None, prompt_file: str | None, interactive: bool, as_json: bool
) -> Iterator[str]:
    """The prompts, from the one place that was named; a file is read at once.

    Raises:
        ConfigError: none or several places were named, or the prompt is not text.
        DataError: the file cannot be read or is not UTF-8.
    """
    names = ("--prompt", "--prompt-file", "--interactive")
    given = list(compress(names, (prompt is not None, prompt_file is not None, interactive)))
    if len(given) != 1:
        said = " and ".join(given) + " exclude each other" if given else "there is no prompt"
        raise ConfigError(said, "give one of --prompt TEXT, --prompt-file FILE and --interactive")
    if interactive:
        if as_json:
            raise ConfigError("--json prints one document and --interactive many", "drop one")
        return _typed_lines()
    return iter([_checked(prompt) if prompt_file is None else _file_text(prompt_file)])


def _checked(prompt: str | None) -> str:
    """The prompt of the command line, where bytes that are no text arrive as half characters."""
    assert prompt is not None
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"--prompt is not valid UTF-8 at character {error.start}", "give it as UTF-8 text"
        ) from error
    return prompt


def _file_text(name: str) -> str:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read --prompt-file {name}: {error.strerror}", "name a readable text file"
        ) from error
    return _decoded(content, f"--prompt-file {name}").removesuffix("\n").removesuffix("\r")


def _decoded(content: bytes, place: str) -> str:
    from infinito.data.lines import not_utf8

    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(place, error.start, content) from error


def _typed_lines() -> Iterator[str]:
    """Each line of stdin that is text; of another it is said why it is passed over."""
    for line in _asked() if sys.stdin.isatty() else sys.stdin.buffer:
        try:
            text = _decoded(line, "the line")
        except DataError as error:
            say(f"{error.message}; passed over")
        else:
            yield text.removesuffix("\n").removesuffix("\r")


def _asked() -> Iterator[bytes]:
    """Lines of a terminal, which gets a hint, a mark that asks, and editing of the line."""
    say("each line is a prompt to continue; Ctrl-D ends")
    with contextlib.suppress(ImportError):  # not every Python has it
        import readline  # noqa: F401 - with it, input() edits lines and recalls earlier ones
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            yield _ask().encode(errors="surrogateescape")
        except EOFError:
            say()
            return


def _ask() -> str:
    """A line typed. The mark that asks for it never goes into a file that stdout may be."""
    if sys.stdout.isatty():
        return input("> ")
    sys.stderr.write("> ")
    sys.stderr.flush()
    return input()
