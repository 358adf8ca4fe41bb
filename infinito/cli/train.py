"""``infinito train`` and ``infinito resume``."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infinito.cli.options import ConfigFile, Settings, complete_run, grouped, output_directory
from infinito.distributed.launch import is_launcher, launch, require_one
from infinito.errors import ConfigError, Interrupted

OutputDir = Annotated[Path | None, output_directory("The run's own directory.")]


@dataclass(frozen=True)
class RunSource:
    """What a run comes from, and where it goes."""

    config: ConfigFile = None
    own_text: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Train on this text (file, folder, glob, .gz, .jsonl, .parquet); all settings "
            "are chosen, with their reasons.",
        ),
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option(metavar="N", help="With --data: how long to train.  [default: 10]"),
    ] = None
    settings: Settings = None
    output_dir: OutputDir = None
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT|RUN_DIR",
            help="Continue this run instead.",
            autocompletion=complete_run,
        ),
    ] = None


@dataclass(frozen=True)
class RunOptions:
    """What may be changed in any run, new or resumed."""

    epochs: Annotated[
        float | None, typer.Option(help="Passes over the text; replaces max_steps.")
    ] = None
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; Muon's own follows in proportion.")
    ] = None
    batch_size: Annotated[int | None, typer.Option(help="Sequences a forward pass.")] = None
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps of the run.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None
    nproc: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Processes on this machine that share each batch."),
    ] = 1
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would happen, try some steps, write nothing."),
    ] = False
    allow_data_change: Annotated[
        bool, typer.Option("--allow-data-change", help="Resume although the text has changed.")
    ] = False

    def values(self, output_dir: Path | None) -> dict[str, object]:
        """The options as config keys, None where one was not given."""
        return {
            "output_dir": None if output_dir is None else str(output_dir),
            "training.epochs": self.epochs,
            "training.learning_rate": self.lr,
            "training.batch_size": self.batch_size,
            "training.max_steps": self.max_steps,
            "seed": self.seed,
            "device": self.device,
        }

    def settings(self, given: list[str] | None) -> list[str]:
        """Those of ``--set``; ``--epochs`` alone lifts max_steps, which would win over it."""
        lifted = self.epochs is not None and self.max_steps is None
        return [*(given or ()), *(["training.max_steps=null"] if lifted else [])]


@grouped
def train(source: RunSource, run: RunOptions) -> None:
    """Train a model from a config, or from a text alone.

    The config that is used is kept in the run as config.yaml.
    """
    _refuse_contradictions(source)
    settings, values = run.settings(source.settings), run.values(source.output_dir)
    if source.resume is not None:
        _resume(source.resume, source.config, settings, values, run)
    elif source.own_text is not None:
        _train_on(source.own_text, source.minutes or 10.0, settings, values, run)
    elif source.config is not None:
        from infinito.config.loading import load_config

        checked = load_config(source.config, settings, values)
        if is_launcher(run.nproc):
            sys.exit(launch(run.nproc, sys.argv[1:]))
        from infinito.train.session import start

        start(checked, name=source.config.stem, dry_run=run.dry_run)
    else:
        raise ConfigError(
            "train needs --data TEXT, --config FILE or --resume CHECKPOINT",
            "infinito train --data YOUR.txt; infinito train --config configs/quickstart.yaml; "
            "infinito config init my.yaml writes a config to start from",
        )


@grouped
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
    *,
    run: RunOptions,
) -> None:
    """Continue a run exactly where it stopped.

    Settings that differ from the checkpoint's are shown first, old and new, with their effect.
    """
    _resume(checkpoint, None, run.settings(settings), run.values(output_dir), run)


def _refuse_contradictions(source: RunSource) -> None:
    own_text, minutes = source.own_text, source.minutes
    if own_text is not None and not own_text.strip():
        raise ConfigError("--data must not be empty", "infinito train --data YOUR.txt")
    others = [("--config", source.config), ("--resume", source.resume)]
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
    text: str, minutes: float, settings: list[str], values: dict[str, object], run: RunOptions
) -> None:
    require_one(
        run.nproc,
        "--data chooses settings by the speed of one process",
        "infinito train --config RUN_DIR/config.yaml --nproc N takes those of such a run",
    )
    from infinito.cli.output import plain_table, say
    from infinito.data.cache import Cache
    from infinito.train.own_text import own_text_config, run_name
    from infinito.train.session import start

    say(f"choosing settings for {text} and {minutes:g} minutes")
    cache = Cache(read_only=run.dry_run)
    config, rows = own_text_config(text, minutes, settings, values, cache)
    for line in plain_table(("setting", "why"), rows, (False, False)):
        say(line)
    start(config, name=run_name(text), dry_run=run.dry_run)


def _resume(
    reference: str,
    config: Path | None,
    settings: list[str],
    values: dict[str, object],
    run: RunOptions,
) -> None:
    if is_launcher(run.nproc):
        sys.exit(launch(run.nproc, sys.argv[1:]))
    from infinito.runtime.paths import command
    from infinito.train.resumption import Resumption, resume

    request = Resumption(reference, config, settings, values, run.allow_data_change)
    try:
        resume(request, dry_run=run.dry_run)
    except KeyboardInterrupt:  # before the first step; a later one finds a handler that saves
        again = command(*sys.argv[1:])
        raise Interrupted("interrupted; nothing was lost", again, signal.SIGINT) from None
