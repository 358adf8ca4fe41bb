"""Options that several commands share, so that each reads and completes the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def complete_key(incomplete: str) -> list[str]:
    """Config keys that start with ``incomplete``, for shell completion of ``--set``."""
    from infinito.config.keys import value_keys

    return [f"{key}=" for key in value_keys() if key.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Runs and checkpoints whose path begins so; at first those of checkpoints/."""
    import glob

    found = glob.glob(glob.escape(incomplete or "checkpoints/") + "*")
    return sorted(path for path in found if path.endswith(".pt") or Path(path).is_dir())


def directory_name(text: str) -> Path:
    """A directory that was named: "" is what a shell makes of a variable that is not set."""
    if not text:
        raise typer.BadParameter("must not be empty")
    return Path(text)


def output_directory(help: str) -> Any:
    """``--output-dir``: where something goes."""
    return typer.Option("--output-dir", metavar="DIR", parser=directory_name, help=help)


ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Config file (YAML).")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set one config key, such as model.n_layers=4; may be repeated, the last counts.",
        autocompletion=complete_key,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Reference = Annotated[
    str | None,
    typer.Argument(
        metavar="[CKPT|RUN_DIR]",
        help="Checkpoint or run (its best); absent: the last run under checkpoints/.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="CKPT|RUN_DIR",
        help="The same, as an option.",
        autocompletion=complete_run,
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:N or mps.")
]
