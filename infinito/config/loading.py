"""From a file and a command line to one checked ``Config``, and back to plain data and YAML."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from infinito.config.explain import Place, Problem, explain_validation, raise_problems
from infinito.config.keys import flatten
from infinito.config.overrides import Overrides, parse_overrides
from infinito.config.schema import Config
from infinito.config.training_config import TrainingConfig
from infinito.config.yaml_loader import Document, KeyPath, read_document, scalar_tag
from infinito.errors import ConfigError, InfinitoError

_PATH_KEYS: tuple[KeyPath, ...] = (
    ("data", "path"),
    ("data", "train_file"),
    ("data", "valid_file"),
    ("data", "test_file"),
    ("output_dir",),
    ("training", "init_from"),
)
_SOURCE_KEYS = ("source", "path", "train_file", "dataset")
_NO_FILE = Document({}, {}, [])


def load_config(
    path: Path | str | None,
    overrides: Sequence[str] = (),
    extra: Mapping[str, object] | None = None,
) -> Config:
    """The config of a file with overrides on top; relative paths in it become absolute.

    Args:
        path: a YAML file; None stands for the schema's defaults on the embedded corpus.
        overrides: ``--set`` settings ``KEY=VALUE``; the value is read by the rules of the file.
        extra: values of other flags by dotted key; None values were not given.

    Raises:
        ConfigError: everything wrong with keys and values, in one message of one line each.
    """
    given = _Given.of(path, overrides, extra)
    values = given.put_into({})
    if path is None:
        _use_embedded_corpus(values)
    return given.validated(values, given.where)


def override_config(
    stored: Config,
    overrides: Sequence[str] = (),
    extra: Mapping[str, object] | None = None,
    path: Path | None = None,
) -> Config:
    """``stored`` with changes on top: first those of a file, then those of the command line.

    Raises:
        ConfigError: everything wrong with the changes, in one message.
    """
    given = _Given.of(path, overrides, extra)
    return given.validated(given.put_into(to_plain(stored)), "the changed settings")


def changed_output_dir(
    overrides: Sequence[str] = (),
    extra: Mapping[str, object] | None = None,
    path: Path | None = None,
) -> Path | None:
    """The ``output_dir`` among the changes of ``override_config``; None where they name none."""
    given = _Given.of(path, overrides, extra)
    values = given.put_into({})
    _resolve_paths(values, given.place_of)
    wanted = values.get("output_dir")
    return Path(wanted) if isinstance(wanted, str) else None


@dataclass(frozen=True)
class _Given:
    """What was given: a file, the settings on top of it, and what a message calls them."""

    document: Document
    flags: Mapping[str, object]
    overrides: Overrides
    where: str

    @classmethod
    def of(
        cls, path: Path | str | None, settings: Sequence[str], extra: Mapping[str, object] | None
    ) -> _Given:
        document = _NO_FILE if path is None else read_document(Path(path))
        where = "the command line" if path is None else str(path)
        return cls(document, extra or {}, parse_overrides(settings, extra or {}), where)

    def put_into(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """``base`` with the values of the file, then those of the settings."""
        before = merged(base, self.document.values)
        values = self.overrides.apply(before)
        muon_too = ("training", "muon_learning_rate") in self.overrides.values
        if self.flags.get("training.learning_rate") is not None and not muon_too:
            _keep_ratio(before.get("training"), values["training"])
        return values

    def validated(self, values: dict[str, Any], where: str) -> Config:
        """The config of ``values``, their paths made absolute; every problem in one error."""
        problems = self.document.problems + self.overrides.problems
        problems += _resolve_paths(values, self.place_of)
        return _validated(values, self.place_of, problems, where, ConfigError)

    def place_of(self, path: KeyPath) -> Place:
        """Where a key path was given: the setting, else its line or that of its nearest parent."""
        places, lines = self.overrides.places, self.document.lines
        if path in places:
            return places[path]
        for length in range(len(path), 0, -1):
            if path[:length] in lines:
                return Place(self.where, lines[path[:length]])
        inside = [place for key, place in places.items() if key[: len(path)] == path]
        return inside[-1] if inside and not lines else Place(self.where)


def _keep_ratio(before: Any, training: Any) -> None:
    """The flag is the one learning rate of a run: that of Muon's matrices follows it."""
    if not isinstance(training, dict) or training.get("optimizer") != "muon":
        return
    known = TrainingConfig().model_dump() | (before or {})
    rate, old, muon = training["learning_rate"], known["learning_rate"], known["muon_learning_rate"]
    if all(isinstance(x, int | float) and 0 < x < math.inf for x in (rate, old, muon)):
        # Twelve digits: 0.06 and not 0.060000000000000005.
        training["muon_learning_rate"] = float(f"{muon * rate / old:.12g}")


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``changes`` put in, section by section."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merged(inner, value)
        result[key] = value
    return result


def config_from_plain(
    data: Mapping[str, Any], where: str, error: type[InfinitoError] = ConfigError
) -> Config:
    """Check plain data that was stored by ``to_plain``, of a checkpoint say; paths stay as stored.

    Raises ``error`` (ConfigError unless told otherwise), its places reading ``where``.
    """
    return _validated(data, lambda _: Place(where), [], where, error)


def _validated(
    values: Mapping[str, Any],
    place_of: Callable[[KeyPath], Place],
    problems: list[Problem],
    where: str,
    error: type[InfinitoError],
) -> Config:
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as invalid:
        problems = problems + explain_validation(invalid, place_of)
        raise_problems(problems, where, error)
        raise
    raise_problems(problems, where, error)
    return config


def _use_embedded_corpus(values: dict[str, Any]) -> None:
    data = values.setdefault("data", {})
    if not any(data.get(key) is not None for key in _SOURCE_KEYS):
        data["source"] = "python-docs"


def _resolve_paths(values: dict[str, Any], place_of: Callable[[KeyPath], Place]) -> list[Problem]:
    """Make the paths in ``values`` absolute; an empty one would mean the working directory."""
    problems = []
    for path in (*_PATH_KEYS, ("data", "dataset")):
        holder: Any = values
        for name in path[:-1]:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or not isinstance(holder.get(path[-1]), str):
            continue
        text = holder[path[-1]]
        if not text.strip() or "\0" in text:
            reason = "must be a path" if text.strip() else "must not be empty"
            problems.append(Problem(place_of(path), ".".join(path), reason, text))
        elif path[-1] != "dataset" or os.path.isdir(os.path.expanduser(text)):
            holder[path[-1]] = os.path.abspath(os.path.expanduser(text))
    return problems


def to_plain(config: Config) -> dict[str, Any]:
    """The resolved config as nested plain data, every key present, ready for a checkpoint."""
    return config.model_dump(mode="python")


class _StrictDumper(yaml.SafeDumper):
    """Writes scalars so that the strict loader reads them back: its own rules decide on quotes."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return scalar_tag(value)
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        # PyYAML folds U+0085 and U+2028 to spaces in its other styles.
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_StrictDumper.add_representer(str, _StrictDumper.represent_text)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that the strict loader reads back to equal data."""
    return yaml.dump(
        dict(data), Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=100
    )


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; loading it again gives an equal config."""
    return dump_yaml(to_plain(config))


def diff(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """The dotted keys whose values differ, in schema order, with the old and the new value."""
    before, after = flatten(to_plain(old)), flatten(to_plain(new))
    return [(key, before[key], after[key]) for key in before if before[key] != after[key]]
