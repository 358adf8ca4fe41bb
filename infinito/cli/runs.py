"""``infinito runs``: every run and checkpoint, read from the files themselves. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infinito.cli.options import Json
from infinito.cli.output import print_json, say, table

_HEADERS = ("checkpoint", "step", "epoch", "loss", "valid word ppl", "size", "marks", "status")


def runs(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A run, or a directory of runs (checkpoints/)."),
    ] = None,
    json: Json = False,
) -> None:
    """List runs and checkpoints with step, loss, perplexity, size and whether they are whole."""
    from infinito.checkpoint.discover import RUNS_DIRECTORY, find_runs
    from infinito.checkpoint.survey import survey_run
    from infinito.errors import CheckpointError

    place = directory or RUNS_DIRECTORY
    if directory is not None and not directory.is_dir():
        raise CheckpointError(
            f"there is no directory {directory}", "give a run or a directory of runs"
        )
    surveys = [survey_run(run) for run in find_runs(place)]
    if json:
        print_json({"directory": str(place), "runs": surveys})
    elif surveys:
        _print(surveys)
    else:
        say(f"no runs under {place}")


def _print(surveys: list[dict[str, Any]]) -> None:
    rows = [
        _row(survey["run"], checkpoint)
        for survey in surveys
        for checkpoint in survey["checkpoints"]
    ]
    if rows:
        table(_HEADERS, rows)
    for survey in surveys:
        if not survey["checkpoints"]:
            say(f"{survey['run']}: no checkpoint yet")
        for checkpoint in survey["checkpoints"]:
            if checkpoint["reason"]:
                say(checkpoint["reason"])


def _row(run: str, checkpoint: dict[str, Any]) -> list[str]:
    from infinito.checkpoint.atomic import format_size

    marks = [mark for mark in ("best", "last") if checkpoint[mark]]
    return [
        f"{run}/{checkpoint['file']}",
        _number(checkpoint["step"], "d"),
        _number(checkpoint["epoch"], ".2f"),
        _number(checkpoint["loss"], ".4f"),
        _number(checkpoint["valid_word_perplexity"], ".2f"),
        format_size(checkpoint["bytes"]),
        " ".join(marks) or "-",
        checkpoint["status"],
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
