"""The program ``infinito``: the table of commands, and what every command shares at its end.

Command files import typer alone; everything heavy is imported inside their functions, so that
help, completion and a refused config cost no import of torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.exceptions import TyperException

from infinito.cli import (
    analyze,
    bench,
    config,
    data,
    doctor,
    evaluate,
    export,
    fit_lambda,
    generate,
    import_model,
    optimise,
    report_plot,
    runs,
    train,
    tune,
)
from infinito.cli.failure import INTERRUPTED, USAGE, report, say_error
from infinito.cli.output import Messages, Results, discard, say, through
from infinito.version import __version__


class Command(NamedTuple):
    """One row of the table: a function with the command's signature, or a group of them."""

    name: str
    entry: Callable[..., Any] | typer.Typer
    hidden: bool = False  # an alias: works, and is not listed in the help


COMMANDS = (
    Command("train", train.train),
    Command("resume", train.resume),
    Command("evaluate", evaluate.evaluate),
    Command("eval", evaluate.evaluate, hidden=True),
    Command("generate", generate.generate),
    Command("analyze", analyze.analyze),
    Command("fit-lambda", fit_lambda.fit_lambda),
    Command("export", export.export),
    Command("import", import_model.import_model),
    Command("optimise", optimise.optimise),
    Command("tune", tune.tune),
    Command("report", report_plot.report),
    Command("plot", report_plot.plot),
    Command("runs", runs.runs),
    Command("bench", bench.app),
    Command("doctor", doctor.doctor),
    Command("config", config.app),
    Command("data", data.app),
)


_FIRST_STEPS = """\
Usage: infinito COMMAND [OPTIONS]

From nothing to a model of your own text, in three commands:

  infinito train --data YOUR.txt       a file, a folder or a glob; ten minutes, or --minutes N
  infinito generate --prompt "..."     the model goes on
  infinito report checkpoints/YOUR-1   how it went, as one page

No text at hand? infinito config init my.yaml, then infinito train --config my.yaml.
Every command: infinito --help"""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"infinito {__version__}")
        raise typer.Exit


def _start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Train, resume, evaluate and generate with small language models, exactly."""
    if context.invoked_subcommand is None:
        say(_FIRST_STEPS)
        raise typer.Exit(USAGE)


def build_app(commands: Sequence[Command] = COMMANDS) -> typer.Typer:
    """The Typer application of a table of commands."""
    # Plain help (no rich markup): the same lines on a terminal and in a pipe, in half the time.
    built = typer.Typer(
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=_start,
    )
    for name, entry, hidden in commands:
        if isinstance(entry, typer.Typer):
            built.add_typer(entry, name=name, hidden=hidden, rich_help_panel=None)
        else:
            built.command(name, hidden=hidden)(entry)
    return built


app = build_app()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of ``arguments`` (those of the process if None); return the exit code."""
    _prepare_streams()
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        code = 0  # the reader of stdout has had enough; that is no failure
        discard(sys.stdout)
    except KeyboardInterrupt:
        code = INTERRUPTED
        say("interrupted")
    except Exception as error:
        code = report(error)
        _flush_or_discard()
    return code


def _run(arguments: list[str]) -> int:
    """Let Typer parse and call the command; usage errors are told here."""
    try:
        result = app(args=arguments, prog_name="infinito", standalone_mode=False)
    except TyperException as error:
        return _usage_error(error)
    except typer.Abort:  # the end of the input of a question
        raise KeyboardInterrupt from None
    except SystemExit as exit_request:
        # Typer turns a closed pipe into exit 1, which is the code of a bug.
        if isinstance(exit_request.__context__, BrokenPipeError):
            raise exit_request.__context__ from None
        raise
    if result == INTERRUPTED:  # Typer swallows KeyboardInterrupt and returns its code
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _usage_error(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "infinito"
    message = error.format_message()
    if message.startswith("Usage:"):  # no arguments: the message is the whole help
        say(message)
    else:
        say_error(message.replace("\n", " "), f"{command} --help")
    return error.exit_code


def _prepare_streams() -> None:
    """Make stdout and stderr writable for any text, also where the shell has closed them."""
    for name, kind in (("stdout", Results), ("stderr", Messages)):
        stream = getattr(sys, name)
        if stream is None:
            # print(file=None) would write to the other stream
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):  # a test has another
            setattr(sys, name, through(kind, stream))


def _flush_or_discard() -> None:
    """After a failure: what stdout still holds goes out, or is dropped where that fails too."""
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
