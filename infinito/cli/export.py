"""``infinito export``: a trained model in another form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from infinito.cli.options import ChosenCheckpoint, Json, grouped
from infinito.runtime.paths import command

if TYPE_CHECKING:
    from infinito.export.gguf_export import NumberFormat
    from infinito.load import OpenedCheckpoint

    _Writer = Callable[[OpenedCheckpoint, Path, bool], dict[str, Any]]


@grouped
def export(
    to: Annotated[
        Literal["safetensors", "hf", "gguf", "int8"],
        typer.Option(
            "--to",
            help="safetensors: weights and config in one file, without training's state; "
            "hf: a folder for transformers; gguf: a file for llama.cpp; "
            "int8: a checkpoint with weights of eight bits.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="PATH", help="The new file, or folder.")
    ],
    chosen: ChosenCheckpoint,
    dtype: Annotated[
        Literal["float32", "float16", "q8_0"] | None,
        typer.Option("--dtype", help="Of the matrices, for gguf alone: float32 unless named."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a trained model in another form.

    transformers loads an hf folder by itself where the model is a stock architecture (config
    validate says so), and after `import infinito.hf` where it is not; llama.cpp loads the stock
    ones as gguf. An int8 checkpoint is a quarter of the size of its weights in float32; evaluate
    and generate read it like any other, and training does not.
    """
    from infinito.cli.output import print_json
    from infinito.errors import ConfigError
    from infinito.load import open_checkpoint

    if dtype and to != "gguf":
        raise ConfigError(f"--dtype is of --to gguf, and this is --to {to}", "leave --dtype out")
    path = chosen.path()
    writers: dict[str, _Writer] = {
        "safetensors": _to_safetensors,
        "hf": _to_hf,
        "gguf": partial(_to_gguf, dtype or "float32"),
        "int8": _to_int8,
    }
    done = writers[to](open_checkpoint(path), output, json)
    if json:
        print_json({"checkpoint": str(path), "output": str(output), "to": to, **done})


def _to_safetensors(opened: OpenedCheckpoint, output: Path, quiet: bool) -> dict[str, Any]:
    from infinito.checkpoint.atomic import reserved
    from infinito.checkpoint.safetensors_file import write_safetensors
    from infinito.cli.output import say

    weights = opened.weights()
    with reserved(output):
        write_safetensors(output, weights, opened.content)
    if not quiet:
        print(f"file: {output} ({output.stat().st_size / 1e6:.2f} MB)")
    say(f"use it like a checkpoint: {command('evaluate', output)}")
    return {"weights": len(weights)}


def _to_hf(opened: OpenedCheckpoint, output: Path, quiet: bool) -> dict[str, Any]:
    from infinito.cli.output import say
    from infinito.export.hugging_face import export_hugging_face
    from infinito.export.stock import stock_architecture

    reasons = export_hugging_face(opened, output)
    architecture = "infinito" if reasons else stock_architecture(opened.config.model)
    if not quiet:
        print(f"folder:       {output}")
        print(f"architecture: {architecture}")
    if reasons:
        say(f"no stock architecture has {'; '.join(reasons)}: load it after `import infinito.hf`")
    else:
        say(f'load it: AutoModelForCausalLM.from_pretrained("{output}")')
    return {"architecture": architecture, "not_stock": reasons}


def _to_gguf(
    numbers: NumberFormat, opened: OpenedCheckpoint, output: Path, quiet: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    from infinito.cli.output import say
    from infinito.export.gguf_export import export_gguf

    done = export_gguf(opened, output, numbers)
    if not quiet:
        print(f"file:         {output} ({output.stat().st_size / 1e6:.2f} MB, {numbers})")
        print(f"architecture: {done.architecture}")
    if done.kept_float16:
        say(f"float16, since rows are no multiple of 32: {', '.join(done.kept_float16)}")
    say("llama.cpp parts no run of more than 64 letters, digits or signs: such text has other ids")
    say(f'load it: llama_cpp.Llama("{output}"), or llama-cli -m "{output}"')
    return {"dtype": numbers, **asdict(done)}


def _to_int8(opened: OpenedCheckpoint, output: Path, quiet: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from infinito.cli.output import say
    from infinito.export.int8_export import export_int8

    done = export_int8(opened, output)
    if not quiet:
        before, after = done.float32_bytes / 1e6, done.int8_bytes / 1e6
        print(f"weights:       {before:.2f} MB in float32 -> {after:.2f} MB in int8")
        print(f"file:          {output} ({output.stat().st_size / 1e6:.2f} MB)")
        print(f"largest error: {done.largest_error:.4f} of the largest number of its matrix")
        say(f"wrote {output}; compare: {command('evaluate', opened.path, output)}")
    return asdict(done)
