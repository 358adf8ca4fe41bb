"""``infinito import``: a model of another program as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infinito.cli.options import Json
from infinito.runtime.paths import command


def import_model(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that transformers saved.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="CKPT", help="The new file.")],
    json: Json = False,
) -> None:
    """Make a checkpoint of a stock Qwen3 or Llama folder.

    Evaluate and generate read it like any other; training.init_from goes on with it on a text of
    yours. Only safetensors are read. What such a model has and ours lacks is refused by name.
    """
    from dataclasses import asdict

    from infinito.cli.output import print_json, say
    from infinito.export.import_folder import import_folder

    done = import_folder(folder, output)
    if json:
        print_json({"folder": str(folder), "output": str(output), **asdict(done)})
        return
    print(f"architecture: {done.architecture}")
    print(f"parameters:   {done.parameters}")
    print(f"vocabulary:   {done.vocab_size} ids")
    print(f"context:      {done.context} tokens")
    say(f"wrote {output}; try it: {command('generate', output, '--prompt', 'The ')}")
