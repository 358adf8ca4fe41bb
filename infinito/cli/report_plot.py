"""``infinito report`` and ``infinito plot``: runs as a page, as pictures, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infinito.cli.options import complete_run, output_directory
from infinito.cli.output import say

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...", help="Run directories.", show_default=False, autocompletion=complete_run
    ),
]


def report(
    runs: Runs,
    output_dir: Annotated[
        Path | None,
        output_directory(
            "Where the files go; absent: the run's own directory, of several runs report/ beside "
            "the first."
        ),
    ] = None,
) -> None:
    """Write one HTML page about runs, and each of its plots as PNG.

    The page holds everything it shows and asks for nothing: curves against steps, tokens, FLOPs
    and minutes, attention, the validation text coloured by surprise, samples, settings and their
    differences, environment, commands.
    """
    from infinito.report.report_files import write_report

    page, *pictures = write_report(runs, output_dir)
    print(page)
    say(f"wrote it and {len(pictures)} pictures beside it; open it in a browser")


def plot(
    runs: Runs,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Write a picture instead of drawing here."),
    ] = None,
) -> None:
    """Draw the curves of runs in the terminal, or as a PNG."""
    from infinito.report.report_files import read_curves, write_plot

    if output is not None:
        write_plot(runs, output)
        say(f"wrote {output}")
        return
    from rich.console import Console

    from infinito.report.braille import drawn

    found, logs = read_curves(runs)
    console = Console(highlight=False, soft_wrap=True)
    for panel in found:
        for line in drawn(panel, logs, console.width):
            console.print(line)
        console.print()
