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


@app.command()
def fusion(
    config: ConfigFile = None,
    settings: Settings = None,
    vocab_size: VocabSize = None,
    rounds: Rounds = 100,
    as_json: Json = False,
) -> None:
    """Time the variants of each fusable operation.

    Each alone against plain torch, eager and compiled; then together in whole training steps,
    picked by tree search, and every level. Steps of 4 x 16, 4 x 32 and 16 x 256 tokens of width
    256, and that of --config. What was fastest is kept for `training.fusion: auto` on this device.
    """
    from infinito.bench.fusion_plans import SHAPES, bench_fusion
    from infinito.cli.output import print_json
    from infinito.config.loading import load_config

    own, steps = list(settings or ()), list[list[str]]()
    for batch, length in SHAPES:
        steps.append([f"training.batch_size={batch}", f"data.sequence_length={length}"])
    configs = [load_config(None, [*own, *step]) for step in steps]
    configs += [load_config(config, own)] if config else []
    vocab_size = vocab_size or configs[-1].tokenizer.vocab_size or _VOCABULARY
    result = bench_fusion(configs, vocab_size, rounds)
    if as_json:
        print_json(result)
        return
    for shape in result["shapes"]:
        _show_fusion(shape)


def _show_fusion(found: dict[str, Any]) -> None:
    from infinito.cli.output import table

    step = found["shape"]
    print(f"\n{step['batch']} x {step['length']} tokens of width {step['width']}, {step['dtype']}, "
          f"{found['device']}")  # fmt: skip
    names = ("operation", "variant", "milliseconds", "low", "high", "peak_mb", "against_eager",
             "against_compiled", "compile_seconds")  # fmt: skip
    headers = ("operation", "by", "ms", "95 % from", "to", "peak MB", "/ eager", "/ compiled",
               "compiled in s")  # fmt: skip
    rows = [[_cell(row.get(name)) for name in names] for row in found["operations"]]
    table(headers, rows)
    for row in found["operations"]:
        if "objection" in row:
            print(f"{row['operation']} not by {row['variant']}: {row['objection']}")
    rows = [[level, *map(_cell, speed.values())] for level, speed in found["levels"].items()]
    print(f"whole steps over plain torch; the best of {len(found['plans'])} plans is moderate's:")
    table(("level", "plan", "speed", "95 % from", "to", "compiled in s"), rows)
    print(f"training.fusion: auto is {found['fastest']} here, kept in {found['kept_in']}")


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
