"""``infinito bench``: speed on this machine, always beside what the machine itself can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from infinito.cli.options import ConfigFile, Json, Settings, complete_key

app = typer.Typer(no_args_is_help=True, help="Measure speed beside this machine's floor.")

Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Timed rounds; the median counts.")]
VocabSize = Annotated[
    int | None,
    typer.Option(
        "--vocab-size", min=258, help="Vocabulary of the model; absent: the config's, else 8192."
    ),
]
_VOCABULARY = 8192


@app.command()
def train(
    config: ConfigFile = None,
    settings: Settings = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="KEY=VALUE",
            help="Also time the model with this key changed, in turns, and print the ratio.",
            autocompletion=complete_key,
        ),
    ] = None,
    vocab_size: VocabSize = None,
    rounds: Rounds = 10,
    as_json: Json = False,
) -> None:
    """Time training steps on random tokens.

    Without --config: the default model of 6 layers, d_model 256, sequence 256, batch 16.
    """
    from infinito.bench.training import bench_training
    from infinito.config.loading import load_config

    checked = load_config(config, settings or ())
    other = load_config(config, [*(settings or ()), *against]) if against else None
    vocab_size = vocab_size or checked.tokenizer.vocab_size or _VOCABULARY
    _show(bench_training(checked, vocab_size, rounds, other), as_json)


@app.command()
def generate(
    config: ConfigFile = None,
    settings: Settings = None,
    vocab_size: VocabSize = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=1, help="Tokens to decode in each round.")
    ] = 256,
    rounds: Rounds = 5,
    as_json: Json = False,
) -> None:
    """Time greedy decoding, batch 1, with the cache."""
    from infinito.bench.generation import bench_generation
    from infinito.config.loading import load_config

    checked = load_config(config, settings or ())
    vocab_size = vocab_size or checked.tokenizer.vocab_size or _VOCABULARY
    _show(bench_generation(checked, vocab_size, new_tokens, rounds), as_json)


@app.command()
def attention(
    lengths: Annotated[
        list[int] | None,
        typer.Option("--length", min=2, help="Sequence length; repeat for several."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences.")] = 4,
    heads: Annotated[int, typer.Option("--heads", min=1, help="Heads.")] = 4,
    head_width: Annotated[int, typer.Option("--head-width", min=1, help="Numbers a head.")] = 64,
    as_json: Json = False,
) -> None:
    """Time distance attention against torch's fused one.

    float32, causal, forward and backward, on the CPU; ratios within one run. Lengths: 256, 1024
    and 4096 unless told otherwise. The floor is this processor's own max + fma rate.
    """
    from infinito.bench.attention_speed import bench_attention
    from infinito.cli.output import print_json, table

    result = bench_attention(
        tuple(lengths or (256, 1024, 4096)), batch=batch, heads=heads, width=head_width
    )
    if as_json:
        print_json(result)
        return
    names = ("queries", "kind", "forward_ms", "forward_ratio", "forward_of_floor",
             "forward_backward_ms", "forward_backward_ratio", "forward_backward_of_floor",
             "peak_ratio")  # fmt: skip
    headers = ("T", "kind", "fwd ms", "/ sdpa", "of floor", "fwd+bwd ms", "/ sdpa", "of floor",
               "memory / sdpa")  # fmt: skip
    table(headers, [[_cell(row.get(name)) for name in names] for row in result["rows"]])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(result: dict[str, Any], as_json: bool) -> None:
    from infinito.cli.output import print_json, table

    if as_json:
        print_json(result)
        return
    rows = [[name.replace("_", " "), _cell(value)] for name, value in result.items()]
    table(["figure", "value"], rows)
