"""``infinito evaluate``: how well a checkpoint predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from infinito.cli.options import Json, Settings

if TYPE_CHECKING:
    from infinito.config.schema import Config
    from infinito.data.store import TokenStore
    from infinito.evaluate.report import Report
    from infinito.evaluate.run import Request
    from infinito.load import LoadedModel

#: The schema's own type of this name would cost the help an import of pydantic.
SplitName = Literal["train", "valid", "test"]
DEFAULT_SPLIT: SplitName = "valid"


def evaluate(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CKPT|RUN_DIR]...", help="Checkpoints or runs (their best); else the last run."
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
        typer.Option(metavar="FILE", help="Evaluate this text (file, folder, glob, .gz, .jsonl)."),
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
        int, typer.Option(min=1, metavar="N", help="Windows a forward pass; speed only.")
    ] = 8,
    all_conventions: Annotated[
        bool,
        typer.Option(
            "--all-conventions", help="Also the figures of other codes; takes several times longer."
        ),
    ] = False,
    settings: Settings = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Score a whole split, or a text of yours.

    Prints loss, perplexities with their conventions named, and bits per byte.
    """
    from infinito.cli.output import print_json
    from infinito.errors import ConfigError

    if text is not None and (split is not None or settings):
        raise ConfigError("--text names the text: --split and --set do not apply", "drop them")
    references = [*(checkpoints or []), *([checkpoint] if checkpoint else [])]
    _check_settings(settings or [])

    from infinito.evaluate.run import Request

    request = Request(context, stride, batch_size, all_conventions)
    reports: list[dict[str, Any]] = []
    for number, path in enumerate(_resolve(references)):
        report = _evaluate_one(path, device, split, text, settings or [], request)
        if json:
            reports.append(report.to_plain())
        else:
            print(("\n" if number else "") + report.to_text(), flush=True)
    if json:
        print_json(reports if len(reports) > 1 else reports[0])


def _check_settings(settings: list[str]) -> None:
    """Refuse settings that could not change an evaluation."""
    from infinito.errors import ConfigError

    for setting in settings:
        key = setting.partition("=")[0].strip()
        if not key.startswith("data.") or key == "data.sequence_length":
            raise ConfigError(
                f"--set {setting}: evaluate takes data.* settings that name a text",
                "the model is the checkpoint's; for the window use --context and --stride",
            )


def _resolve(references: list[str]) -> list[Path]:
    from infinito.checkpoint.store import resolve_checkpoint

    chosen: list[str | None] = [*references]
    return [resolve_checkpoint(reference, "best") for reference in chosen or [None]]


def _evaluate_one(
    path: Path,
    device: str,
    split: SplitName | None,
    text: str | None,
    settings: list[str],
    request: Request,
) -> Report:
    from infinito.data.prepare import tokenize_text
    from infinito.evaluate.run import evaluate as run
    from infinito.load import load_model

    loaded = load_model(path, device)
    if text is not None:
        field = loaded.config.data.text_field
        return run(loaded, tokenize_text(text, loaded.tokenizer, field), "text", text, request)
    chosen = split or DEFAULT_SPLIT
    config = _with_settings(loaded.config, settings)
    store = _store(loaded, config, chosen)
    return run(loaded, store, chosen, _corpus(config), request)


def _with_settings(config: Config, settings: list[str]) -> Config:
    from infinito.config.explain import raise_problems
    from infinito.config.load import config_from_plain, to_plain
    from infinito.config.overrides import parse_overrides

    overrides = parse_overrides(settings, {})
    raise_problems(overrides.problems, "the command line")
    return config_from_plain(overrides.apply(to_plain(config)), "--set")


def _store(loaded: LoadedModel, config: Config, split: SplitName) -> TokenStore:
    from infinito.cli.output import say
    from infinito.data.prepare import prepare
    from infinito.errors import DataError

    try:
        dataset = prepare(config, tokenizer=loaded.tokenizer, splits=(split,))
    except DataError as error:
        keys = {"wikitext-2": "path", "hub": "dataset", "text": f"{split}_file"}
        key = keys.get(config.data.resolved_source or "")
        named = f"name the {split} text with --set data.{key}=..., or" if key else "name"
        raise DataError(error.message, f"{named} any text with --text FILE") from error
    for note in dataset.notes:
        say(note)
    return dataset.splits[split]


def _corpus(config: Config) -> str:
    source = config.data.resolved_source
    return config.data.dataset or "hub" if source == "hub" else source or "text"
