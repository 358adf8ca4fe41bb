"""``infinito config``: show, validate, document and start config files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infinito.cli.options import ConfigFile, Settings

app = typer.Typer(no_args_is_help=True, help="Show, check and start config files.")


@app.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Config file, as --config names it.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Print the resolved config as YAML.

    The file, the settings on top of it, and the default of every other key.
    """
    from infinito.config.loading import load_config, to_yaml
    from infinito.errors import ConfigError

    if None not in (file, config) and file != config:
        raise ConfigError(f"two configs were given: {file} and --config {config}", "give one")
    print(to_yaml(load_config(file or config, settings or ())), end="")


@app.command()
def validate(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Config files.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Check config files; report every fault.

    Nothing is trained, and no data is read.
    """
    from infinito.cli.output import say
    from infinito.config.loading import load_config
    from infinito.errors import ConfigError
    from infinito.export.stock import gguf_objections, objections, stock_architecture

    errors: list[ConfigError] = []
    exports: list[str] = []
    chosen = dict.fromkeys([*(files or ()), *([config] if config else ())])
    if not chosen:
        raise ConfigError("there is no file to check", "infinito config validate FILE")
    for file in chosen:
        try:
            found = load_config(file)
        except ConfigError as error:
            errors.append(error)
        else:
            print(f"{file}: ok")
            kind = f"stock {stock_architecture(found.model)}"
            if reasons := "; ".join(gguf_objections(found)):
                kind = "no stock model" if objections(found.model) else f"{kind}, but no gguf"
                kind += f": {reasons}"
            exports.append(f"export of {file}: {kind}")
    if errors:
        raise ConfigError("\n".join(error.message for error in errors), errors[0].remedy)
    say("\n".join(exports))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config.

    Editors use it to complete and check YAML while you type.
    """
    from infinito.config.document import json_schema

    print(json_schema(), end="")


@app.command()
def init(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="New file; stdout when absent.")
    ] = None,
) -> None:
    """Write a commented config with every key.

    It trains as it is, on the embedded corpus. A file that exists is never overwritten.
    """
    from infinito.checkpoint.atomic import reserved, write_text_atomic
    from infinito.cli.output import say
    from infinito.config.document import init_document
    from infinito.runtime.paths import command

    if path is None:
        print(init_document(), end="")
        return
    with reserved(path):
        write_text_atomic(path, init_document())
    say(f"wrote {path}; train with: {command('train', '--config', path)}")
