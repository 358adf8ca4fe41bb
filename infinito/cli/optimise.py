"""``infinito optimise``: measure each optimisation on a model here, and keep what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infinito.cli.options import Json, output_directory


def optimise(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|CKPT", help="A config file, or a checkpoint or run (its best)."
        ),
    ],
    output_dir: Annotated[
        Path | None,
        output_directory("Where to write; absent: checkpoints/<name>-optimised-<number>."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure each optimisation here, and keep what helps.

    Precision, fusion, batch split, activation checkpointing and threads, alone and together, by
    real training steps; int8 weights of a checkpoint. Short trainings prove that the validation
    loss is unchanged. Writes optimised.yaml, optimise.json and report.md.
    """
    from infinito.cli.output import print_json, say, table
    from infinito.optimise.optimise_report import CONFIG_FILE, HEADERS, speed_rows
    from infinito.optimise.optimising import optimise as run
    from infinito.runtime.events import reading
    from infinito.runtime.paths import command, shown
    from infinito.telemetry.bar import TerminalBar

    with reading(TerminalBar()):
        outcome = run(reference, output_dir)
    directory = shown(outcome.directory)
    if json:
        print_json({"output_dir": str(directory), **outcome.figures})
    else:
        table(HEADERS, speed_rows(outcome.result))
        for line in (
            "", *(f"{name}: {why}" for name, why in outcome.result.reasons.items()),
            "", *outcome.lines,
        ):  # fmt: skip
            print(line)
    say(f"wrote {directory}; next: {command('train', '--config', directory / CONFIG_FILE)}")
    settings = [setting for kept in outcome.result.kept for setting in kept.settings]
    if settings and outcome.figures["int8"]:  # a checkpoint, whose run can go on
        again = [word for setting in settings for word in ("--set", setting)]
        say(f"or go on with that run: {command('resume', reference, *again)}")
