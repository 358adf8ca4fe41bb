"""``infinito runs``: every run and checkpoint, read from the files themselves. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from infinito.cli.options import Json
from infinito.cli.output import print_json, say, table

_HEADERS = ("file", "step", "epoch", "loss", "word ppl", "size", "status")


def runs(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A run, or a directory of runs (checkpoints/)."),
    ] = None,
    json: Json = False,
) -> None:
    """List runs (running, stopped or finished) and their checkpoints.

    Of each checkpoint: step, training loss, perplexity of the validation text, size, whether it is
    whole, and whether it is the best or the last.
    """
    from infinito.checkpoint.discover import RUNS_DIRECTORY, find_runs
    from infinito.checkpoint.survey import survey_run
    from infinito.errors import CheckpointError

    place = directory or RUNS_DIRECTORY
    if not (directory is None or os.path.isdir(directory)):
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
    for survey in surveys:
        rows = [_row(checkpoint) for checkpoint in survey["checkpoints"]]
        print(f"{survey['run']}: {survey['state']}{'' if rows else ', no checkpoint yet'}")
        if rows:
            table(_HEADERS, rows)
        for checkpoint in survey["checkpoints"]:
            if checkpoint["reason"]:
                say(checkpoint["reason"])


def _row(checkpoint: dict[str, Any]) -> list[str]:
    from infinito.checkpoint.atomic import format_size

    marks = [mark for mark in ("best", "last") if checkpoint[mark]]
    damaged = [checkpoint["status"]] if checkpoint["status"] != "ok" else []
    perplexity = checkpoint["valid_word_perplexity"]
    return [
        checkpoint["file"],
        _number(checkpoint["step"], "d"),
        _number(checkpoint["epoch"], ".2f"),
        _number(checkpoint["loss"], ".4f"),
        _number(perplexity, ".2f" if (perplexity or 0) < 1e6 else ".2e"),
        format_size(checkpoint["bytes"]),
        " ".join(damaged + marks) or "ok",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
