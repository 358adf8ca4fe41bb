"""``infinito fit-lambda``: train the attention lambdas of a checkpoint, all else frozen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinito.cli.options import ChosenCheckpoint, Device, Json, Settings, grouped
from infinito.cli.output import print_json, say, table
from infinito.cli.subject import check_data_settings

if TYPE_CHECKING:
    from infinito.train.lambdas import LambdaFit

_FILE = "lambda.pt"


@grouped
def fit_lambda(
    chosen: ChosenCheckpoint,
    epochs: Annotated[float, typer.Option(help="Passes over the training text.")] = 1.0,
    max_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Steps; wins over --epochs.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of log lambda.")] = 0.02,
    settings: Settings = None,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The new checkpoint; absent: lambda.pt beside the old one."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train only the attention lambdas of a checkpoint.

    Keeps those of the lowest validation loss, the start included; prints lambda of each layer and
    head before and after, and the change of the loss with its standard error.
    """
    check_data_settings(settings or [], "fit-lambda", "the model is the checkpoint's")
    path = chosen.path()

    from infinito.checkpoint.atomic import require_new
    from infinito.config.loading import override_config
    from infinito.data.prepare import prepare
    from infinito.load import open_checkpoint
    from infinito.runtime.device import choose_device
    from infinito.train.lambdas import fit_lambda, lambda_trainer, save_fitted

    target = output or path.parent / _FILE
    require_new(target, "name another file with --output, or remove it")
    device = choose_device(device).value  # before any text is read
    opened = open_checkpoint(path)
    dataset = prepare(override_config(opened.config, settings or []), tokenizer=opened.tokenizer)
    trainer = lambda_trainer(
        opened, dataset, device=device, epochs=epochs, max_steps=max_steps, learning_rate=lr
    )
    fit = fit_lambda(trainer)
    save_fitted(opened, trainer, target)
    _show(fit, {"checkpoint": str(path), "output": str(target)}, json)


def _show(fit: LambdaFit, source: dict[str, Any], json: bool) -> None:
    if json:
        from dataclasses import asdict

        print_json({**source, **asdict(fit), "change": fit.change})
        return
    rows = [
        [layer, head, f"{before:.4f}", f"{after:.4f}", f"{100 * (after / before - 1):+.1f}%"]
        for layer, (old, new) in enumerate(zip(fit.before, fit.after, strict=True))
        for head, (before, after) in enumerate(zip(old, new, strict=True))
    ]
    table(["layer", "head", "lambda before", "after", "change"], rows)
    print(f"valid loss: {fit.loss_before:.4f} -> {fit.loss_after:.4f} nats per token")
    verdict = "" if fit.is_shown else ": nothing is shown, it is within twice that"
    print(f"change:     {fit.change:+.5f} +- {fit.noise:.5f} (standard error){verdict}")
    kept = f"kept step {fit.best_step}" if fit.best_step else "kept the start: nothing was better"
    say(f"{kept} ({fit.tokens} training tokens seen)")
    say(f"wrote {source['output']}")
