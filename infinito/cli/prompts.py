"""Where the prompts of ``infinito generate`` come from: an option, a file, or lines typed."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infinito.cli.output import say
from infinito.errors import ConfigError, DataError


@dataclass(frozen=True)
class PromptPlace:
    """The one place that the prompts come from."""

    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Text to continue; "" starts a document.')
    ] = None
    prompt_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Read the prompt from a UTF-8 file (- is stdin); one final line end is dropped.",
        ),
    ] = None
    interactive: Annotated[
        bool,
        typer.Option("--interactive", help="Continue each line of stdin in turn; Ctrl-D ends."),
    ] = False

    def read(self, as_json: bool) -> Iterator[str]:
        """The prompts; a file is read at once.

        Raises:
            ConfigError: none or several places were named, or the prompt is not text.
            DataError: the file cannot be read or is not UTF-8.
        """
        given = [
            f"--{name.replace('_', '-')}"
            for name, value in vars(self).items()
            if value is not None and value is not False
        ]
        if len(given) != 1:
            said = " and ".join(given) + " exclude each other" if given else "there is no prompt"
            remedy = "give one of --prompt TEXT, --prompt-file FILE and --interactive"
            raise ConfigError(said, remedy)
        if self.interactive:
            if as_json:
                raise ConfigError("--json prints one document and --interactive many", "drop one")
            return _typed_lines()
        if self.prompt is not None:
            return iter([_checked(self.prompt)])
        assert self.prompt_file is not None
        return iter([_file_text(self.prompt_file)])


def _checked(prompt: str) -> str:
    """The prompt of the command line, where bytes that are no text arrive as half characters."""
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
