"""``infinito evaluate``: how well a checkpoint predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinito.cli.options import Device, Json, Settings, complete_run
from infinito.cli.subject import (
    DEFAULT_SPLIT,
    SplitName,
    check_data_settings,
    corpus_name,
    open_split,
)

if TYPE_CHECKING:
    from infinito.evaluate.evaluation import EvaluationOptions
    from infinito.evaluate.report import Report

_SETTINGS_REMEDY = "the model is the checkpoint's; for the window use --context and --stride"


def evaluate(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CKPT|RUN_DIR]...",
            help="Checkpoints or runs (their best); else the last run.",
            autocompletion=complete_run,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="CKPT", help="One more checkpoint or run.")
    ] = None,
    split: Annotated[
        SplitName | None, typer.Option(help="Part of the corpus; valid unless told otherwise.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Evaluate this text, in any form that --data takes."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens a window; absent: the training length."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="New tokens a window; absent: half the context."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Windows a pass, for speed; absent: 2048 tokens."),
    ] = None,
    all_conventions: Annotated[
        bool,
        typer.Option(
            "--all-conventions", help="Also the figures of other codes; takes several times longer."
        ),
    ] = False,
    settings: Settings = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score a whole split, or a text of yours.

    Prints loss, perplexities with their conventions named, and bits per byte.
    """
    from infinito.cli.output import print_json, table
    from infinito.errors import ConfigError

    if text is not None and (split is not None or settings):
        raise ConfigError("--text names the text: --split and --set do not apply", "drop them")
    references: list[str | None] = [*(checkpoints or []), *([checkpoint] if checkpoint else [])]
    check_data_settings(settings or [], "evaluate", _SETTINGS_REMEDY)

    from infinito.checkpoint.discover import resolve_checkpoint
    from infinito.evaluate.evaluation import EvaluationOptions
    from infinito.evaluate.report import COMPARISON_HEADERS, comparison_rows
    from infinito.runtime.events import reading
    from infinito.telemetry.bar import TerminalBar

    request = EvaluationOptions(context, stride, batch_size, all_conventions)
    reports: list[Report] = []
    paths = [resolve_checkpoint(reference, "best") for reference in references or [None]]
    for number, path in enumerate(paths):
        with reading(TerminalBar()):
            report = _evaluate_one(path, device, split, text, settings or [], request)
        reports.append(report)
        if not json:
            print(("\n" if number else "") + report.to_text(), flush=True)
    if json:
        plain = [report.to_plain() for report in reports]
        print_json(plain if len(plain) > 1 else plain[0])
    elif len(reports) > 1:
        print()
        table(COMPARISON_HEADERS, comparison_rows(reports))


def _evaluate_one(
    path: Path,
    device: str,
    split: SplitName | None,
    text: str | None,
    settings: list[str],
    request: EvaluationOptions,
) -> Report:
    from infinito.config.loading import override_config
    from infinito.data.prepare import tokenize_text
    from infinito.evaluate.evaluation import evaluate as run
    from infinito.load import load_model

    loaded = load_model(path, device)
    if text is not None:
        field = loaded.config.data.text_field
        store = tokenize_text(text, loaded.tokenizer, field)
        return run(loaded, store, "text", text, request)
    chosen = split or DEFAULT_SPLIT
    config = override_config(loaded.config, settings)
    store = open_split(loaded, config, chosen, "name any text with --text FILE")
    is_wikitext = config.data.resolved_source == "wikitext-2"
    return run(loaded, store, chosen, corpus_name(config), request, is_wikitext)
