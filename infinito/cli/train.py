"""``infinito train`` and ``infinito resume``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from infinito.cli.options import ConfigFile, Settings, complete_run, output_directory
from infinito.distributed.launch import is_launcher, launch, require_one
from infinito.errors import ConfigError, Interrupted

OutputDir = Annotated[Path | None, output_directory("The run's own directory.")]
Epochs = Annotated[
    float | None, typer.Option("--epochs", help="Passes over the text; replaces max_steps.")
]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate; Muon's own follows in proportion.")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Sequences a forward pass.")]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", help="Optimizer steps of the run.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would happen, try some steps, write nothing.")
]
Processes = Annotated[
    int,
    typer.Option(
        "--nproc", metavar="N", min=1, help="Processes on this machine that share each batch."
    ),
]
AllowDataChange = Annotated[
    bool, typer.Option("--allow-data-change", help="Resume although the text has changed.")
]


def train(
    config: ConfigFile = None,
    own_text: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Train on this text (file, folder, glob, .gz, .jsonl, .parquet); all settings "
            "are chosen, with their reasons.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="N", help="With --data: how long to train.  [default: 10]"),
    ] = None,
    settings: Settings = None,
    output_dir: OutputDir = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="CKPT|RUN_DIR",
            help="Continue this run instead.",
            autocompletion=complete_run,
        ),
    ] = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    max_steps: MaxSteps = None,
    seed: Seed = None,
    device: Device = None,
    nproc: Processes = 1,
    dry_run: DryRun = False,
    allow_data_change: AllowDataChange = False,
) -> None:
    """Train a model from a config, or from a text alone.

    The config that is used is kept in the run as config.yaml.
    """
    _refuse_contradictions(config, own_text, minutes, resume)
    extra, settings = _flags(settings, output_dir, epochs, lr, batch_size, max_steps, seed, device)
    if resume is not None:
        _resume(resume, config, settings, extra, allow_data_change, dry_run, nproc)
        return
    if own_text is not None:
        require_one(
            nproc,
            "--data chooses settings by the speed of one process",
            "infinito train --config RUN_DIR/config.yaml --nproc N takes those of such a run",
        )
        _train_on(own_text, 10.0 if minutes is None else minutes, settings, extra, dry_run)
        return
    if config is None:
        raise ConfigError(
            "train needs --data TEXT, --config FILE or --resume CHECKPOINT",
            "infinito train --data YOUR.txt; infinito train --config configs/quickstart.yaml; "
            "infinito config init my.yaml writes a config to start from",
        )
    from infinito.config.loading import load_config

    checked = load_config(config, settings, extra)
    if is_launcher(nproc):
        sys.exit(launch(nproc, sys.argv[1:]))
    from infinito.train.session import start

    start(checked, name=config.stem, dry_run=dry_run)


def resume(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CKPT|RUN_DIR",
            help="A checkpoint, or a run's directory.",
            autocompletion=complete_run,
        ),
    ],
    settings: Settings = None,
    output_dir: OutputDir = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    max_steps: MaxSteps = None,
    seed: Seed = None,
    device: Device = None,
    nproc: Processes = 1,
    dry_run: DryRun = False,
    allow_data_change: AllowDataChange = False,
) -> None:
    """Continue a run exactly where it stopped.

    Settings that differ from the checkpoint's are shown first, old and new, with their effect.
    """
    extra, settings = _flags(settings, output_dir, epochs, lr, batch_size, max_steps, seed, device)
    _resume(checkpoint, None, settings, extra, allow_data_change, dry_run, nproc)


def _refuse_contradictions(
    config: Path | None, own_text: str | None, minutes: float | None, resume: str | None
) -> None:
    if own_text is not None and not own_text.strip():
        raise ConfigError("--data must not be empty", "infinito train --data YOUR.txt")
    others = [("--config", config), ("--resume", resume)]
    if own_text is not None and (found := [name for name, value in others if value is not None]):
        raise ConfigError(
            f"--data chooses all settings of a new run: {found[0]} cannot go with it",
            "drop one; single settings go with --data as --set KEY=VALUE",
        )
    if minutes is not None and (own_text is None or not 0 < minutes <= 100_000):
        raise ConfigError(
            f"--minutes {minutes:g} " + ("needs --data" if own_text is None else "is no time"),
            "infinito train --data YOUR.txt --minutes 10",
        )


def _train_on(
    text: str, minutes: float, settings: list[str], extra: dict[str, object], dry_run: bool
) -> None:
    from infinito.cli.output import plain_table, say
    from infinito.data.cache import Cache
    from infinito.train.own_text import own_text_config, run_name
    from infinito.train.session import start

    say(f"choosing settings for {text} and {minutes:g} minutes")
    config, rows = own_text_config(text, minutes, settings, extra, Cache(read_only=dry_run))
    for line in plain_table(("setting", "why"), rows, (False, False)):
        say(line)
    start(config, name=run_name(text), dry_run=dry_run)


def _flags(
    settings: list[str] | None,
    output_dir: Path | None,
    epochs: float | None,
    lr: float | None,
    batch_size: int | None,
    max_steps: int | None,
    seed: int | None,
    device: str | None,
) -> tuple[dict[str, object], list[str]]:
    """The flags as config keys. ``--epochs`` alone lifts max_steps, which would win over it."""
    settings = list(settings or ())
    if epochs is not None and max_steps is None:
        settings.append("training.max_steps=null")
    return {
        "output_dir": None if output_dir is None else str(output_dir),
        "training.epochs": epochs,
        "training.learning_rate": lr,
        "training.batch_size": batch_size,
        "training.max_steps": max_steps,
        "seed": seed,
        "device": device,
    }, settings


def _resume(
    reference: str,
    config: Path | None,
    settings: list[str],
    extra: dict[str, object],
    allow_data_change: bool,
    dry_run: bool,
    nproc: int,
) -> None:
    if is_launcher(nproc):
        sys.exit(launch(nproc, sys.argv[1:]))
    from infinito.runtime.paths import command
    from infinito.train.resumption import Resumption, resume

    request = Resumption(reference, config, settings, extra, allow_data_change)
    try:
        resume(request, dry_run=dry_run)
    except KeyboardInterrupt:  # before the first step; a later one finds a handler that saves
        again = command(*sys.argv[1:])
        raise Interrupted("interrupted; nothing was lost", again, signal.SIGINT) from None
