"""``infinito analyze``: where the attention heads of a checkpoint look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinito.cli.options import (
    ChosenCheckpoint,
    Device,
    Json,
    Settings,
    grouped,
    output_directory,
)
from infinito.cli.output import print_json, say, table
from infinito.cli.subject import (
    DEFAULT_SPLIT,
    SplitName,
    check_data_settings,
    corpus_name,
    load_subject,
    open_split,
)

if TYPE_CHECKING:
    from infinito.analyze.attention_report import AttentionReport

_DIRECTORY = "analysis"


@grouped
def analyze(
    chosen: ChosenCheckpoint,
    split: Annotated[SplitName, typer.Option(help="Part of the corpus to read.")] = DEFAULT_SPLIT,
    samples: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Windows of the training length to read, spread evenly over the split.",
        ),
    ] = 16,
    settings: Settings = None,
    device: Device = "auto",
    output_dir: Annotated[
        Path | None,
        output_directory("Where JSON and plots go; absent: analysis/ beside the checkpoint file."),
    ] = None,
    json: Json = False,
) -> None:
    """Show where each attention head looks: entropy, distance, plots.

    Prints entropy (nats, and as a part of the entropy of uniform attention), largest weight, mean
    distance in tokens, the mass on the first token and on the token itself, and lambda, for each
    layer and head (counted from 0). Writes attention.json, attention.png, entropy.png and, where
    lambda is trained, lambda.png.
    """
    check_data_settings(settings or [], "analyze", "the model is the checkpoint's")
    path = chosen.path()

    from infinito.analyze.attention_files import write_files
    from infinito.analyze.collect import analyze_attention, spread_windows
    from infinito.config.loading import override_config

    loaded = load_subject(path, device)
    config = override_config(loaded.config, settings or [])
    store = open_split(loaded, config, split)
    windows = spread_windows(store.tokens, samples, loaded.model.max_positions)
    if len(windows) < samples:
        say(f"the {split} text has {store.n_tokens} tokens: {_counted(*windows.shape)}")
    report = analyze_attention(loaded, windows)
    source = {"checkpoint": str(loaded.path), "step": loaded.step, "split": split}
    text = {"corpus": corpus_name(config), "text_sha256": store.text_sha256}
    plain = source | text | report.to_plain()
    files = write_files(report, plain, output_dir or loaded.path.parent / _DIRECTORY)
    _show(report, plain | {"files": [str(path) for path in files]}, json)


def _counted(windows: int, length: int) -> str:
    return f"{windows} window{'s' if windows > 1 else ''} of {length}"


def _show(report: AttentionReport, plain: dict[str, Any], json: bool) -> None:
    from infinito.analyze.attention_report import HEADERS

    if json:
        print_json(plain)
    else:
        table(HEADERS, report.rows())
        say(
            f"{plain['checkpoint']} (step {plain['step']}), {report.kind} attention, "
            f"{plain['corpus']} {plain['split']}: "
            f"means over {report.n_positions} positions with two or more visible keys, "
            f"{_counted(report.n_windows, report.length)}"
        )
    for path in plain["files"]:
        say(f"wrote {path}")
