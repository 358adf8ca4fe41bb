"""Options that several commands share, so that each reads and completes the same everywhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` as Typer reads it: of a parameter that is a dataclass, each field is an option.

    So options that belong together are declared, documented and handed on as one object.
    """

    def parameters(declared: Any) -> list[inspect.Parameter]:
        hints = get_type_hints(declared, include_extras=True)
        found = inspect.signature(declared).parameters.values()
        return [one.replace(annotation=hints[one.name]) for one in found]

    options: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in parameters(command):
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            options += parameters(parameter.annotation)
        else:
            options.append(parameter)

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in options]
    call.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    return call


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
Device = Annotated[
    str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:N or mps.")
]


@dataclass(frozen=True)
class ChosenCheckpoint:
    """The checkpoint that a command is about: named by its place or by ``--checkpoint``."""

    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[CKPT|RUN_DIR]",
            help="Checkpoint or run (its best); absent: the last run under checkpoints/.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT|RUN_DIR", help="The same, as an option.", autocompletion=complete_run
        ),
    ] = None

    def path(self) -> Path:
        """The one that was given, else the last run's.

        Of a run it is the best; where one had to be chosen, it is said.
        """
        from infinito.checkpoint.discover import resolve_checkpoint
        from infinito.errors import ConfigError

        first, second = self.reference, self.checkpoint
        if first is not None and second is not None and first != second:
            raise ConfigError(
                f"two checkpoints were given: {first} and --checkpoint {second}", "give one"
            )
        return resolve_checkpoint(first if first is not None else second, "best")
