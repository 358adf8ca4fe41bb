"""``infinito bench``: speed on this machine, always beside what the machine itself can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from infinito.cli.options import ConfigFile, Json, Settings

app = typer.Typer(no_args_is_help=True, help="Measure speed beside this machine's floor.")

Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Timed rounds; the median counts.")]
VocabSize = Annotated[int, typer.Option("--vocab-size", min=258, help="Vocabulary of the model.")]


@app.command()
def train(
    config: ConfigFile = None,
    settings: Settings = None,
    vocab_size: VocabSize = 8192,
    rounds: Rounds = 10,
    as_json: Json = False,
) -> None:
    """Time training steps on random tokens.

    Without --config: the default model of 6 layers, d_model 256, sequence 256, batch 16.
    """
    from infinito.bench.training import bench_training
    from infinito.config.load import load_config

    _show(bench_training(load_config(config, settings or ()), vocab_size, rounds), as_json)


@app.command()
def generate(
    config: ConfigFile = None,
    settings: Settings = None,
    vocab_size: VocabSize = 8192,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=1, help="Tokens to decode in each round.")
    ] = 256,
    rounds: Rounds = 5,
    as_json: Json = False,
) -> None:
    """Time greedy decoding, batch 1, with the cache."""
    from infinito.bench.generation import bench_generation
    from infinito.config.load import load_config

    checked = load_config(config, settings or ())
    _show(bench_generation(checked, vocab_size, new_tokens, rounds), as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    from infinito.cli.output import print_json, table

    if as_json:
        print_json(result)
        return
    rows = [
        [name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)]
        for name, value in result.items()
    ]
    table(["figure", "value"], rows)
