"""What a command is about: one checkpoint, and a text of the data that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from infinito.config.schema import Config
    from infinito.data.token_store import TokenStore
    from infinito.load import LoadedModel

#: The schema's own type of this name would cost the help an import of pydantic.
SplitName = Literal["train", "valid", "test"]
DEFAULT_SPLIT: SplitName = "valid"


def load_subject(path: Path, device: str) -> LoadedModel:
    """The model of a checkpoint; says where it runs."""
    from infinito.cli.output import say
    from infinito.load import load_model
    from infinito.runtime.device import choose_device

    choice = choose_device(device)
    say(f"device: {choice.value} ({choice.reason})")
    return load_model(path, choice.value)


def check_data_settings(settings: list[str], command: str, remedy: str) -> None:
    """Refuse settings that could not change the text that a command reads."""
    from infinito.errors import ConfigError

    for setting in settings:
        key = setting.partition("=")[0].strip()
        if not key.startswith("data.") or key == "data.sequence_length":
            raise ConfigError(
                f"--set {setting}: {command} takes data.* settings that name a text", remedy
            )


def open_split(
    loaded: LoadedModel, config: Config, split: SplitName, other_way: str | None = None
) -> TokenStore:
    """The tokens of a split by the checkpoint's tokenizer; what there is to note is said.

    A DataError names the key of the missing text, and ``other_way`` to name one.
    """
    from infinito.data.prepare import prepare
    from infinito.errors import DataError

    try:
        dataset = prepare(config, tokenizer=loaded.tokenizer, splits=(split,))
    except DataError as error:
        keys = {"wikitext-2": "path", "hub": "dataset", "text": f"{split}_file"}
        key = keys.get(config.data.resolved_source or "")
        named = f"name the {split} text with --set data.{key}=..." if key else None
        ways = [way for way in (named, other_way) if way]
        raise DataError(error.message, ", or ".join(ways) or error.remedy) from error
    return dataset.splits[split]


def corpus_name(config: Config) -> str:
    """The corpus as a report calls it."""
    source = config.data.resolved_source
    return config.data.dataset or "hub" if source == "hub" else source or "text"
