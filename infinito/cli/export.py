"""``infinito export``: a trained model in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from infinito.cli.options import CheckpointOption, Json, Reference


def export(
    to: Annotated[
        Literal["int8"],
        typer.Option("--to", help="int8: a checkpoint with weights of eight bits."),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="PATH", help="The new file.")],
    reference: Reference = None,
    checkpoint: CheckpointOption = None,
    json: Json = False,
) -> None:
    """Write a trained model in another form.

    An int8 checkpoint is a quarter of the size of its weights in float32; evaluate and generate
    read it like any other, and training does not.
    """
    from infinito.checkpoint.discover import resolve_checkpoint
    from infinito.cli.output import print_json, say
    from infinito.cli.subject import one_reference
    from infinito.export.int8_export import export_int8
    from infinito.load import open_checkpoint

    path = resolve_checkpoint(one_reference(reference, checkpoint), "best")
    done = export_int8(open_checkpoint(path), output)
    if json:
        from dataclasses import asdict

        print_json({"checkpoint": str(path), "output": str(output), "to": to, **asdict(done)})
        return
    before, after = done.float32_bytes / 1e6, done.int8_bytes / 1e6
    print(f"weights:       {before:.2f} MB in float32 -> {after:.2f} MB in int8")
    print(f"file:          {output} ({output.stat().st_size / 1e6:.2f} MB)")
    print(f"largest error: {done.largest_error:.4f} of the largest number of its matrix")
    say(f"wrote {output}; compare: infinito evaluate {path} {output}")
