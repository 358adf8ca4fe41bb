"""The keys of the schema as dotted names, and the nearest valid key to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from infinito.config.schema import Config

# Names that other trainers use, too far from ours for a comparison of letters.
_OTHER_NAMES = {
    "lr": "training.learning_rate",
    "muon_lr": "training.muon_learning_rate",
    "betas": "training.adam_beta1",
    "block_size": "data.sequence_length",
    "context_length": "data.sequence_length",
    "seq_len": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "n_embd": "model.d_model",
    "hidden_size": "model.d_model",
    "grad_clip": "training.max_grad_norm",
    "max_iters": "training.max_steps",
    "num_train_epochs": "training.epochs",
    "ema": "training.ema_decay",
    "amp": "training.precision",
    "dtype": "training.precision",
    "compile": "training.fusion",
    "tensorboard": "training.tracker",
    "report_to": "training.tracker",
}


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _walk(field.annotation, f"{prefix}{name}.")


@cache
def all_keys() -> Mapping[str, FieldInfo]:
    """Every dotted key in schema order, sections (``model``) before their keys."""
    return dict(_walk(Config, ""))


def section_class(key: str) -> type[BaseModel] | None:
    """The class of a section, or None where ``key`` is a value or unknown."""
    field = all_keys().get(key)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


@cache
def value_keys() -> tuple[str, ...]:
    """Every dotted key that holds a value, in schema order."""
    return tuple(key for key in all_keys() if section_class(key) is None)


def nearest_key(wrong: str) -> str | None:
    """The valid dotted key that ``wrong`` most likely means, at any depth, or None."""
    last = wrong.rpartition(".")[2].lower().replace("-", "_")
    if last in _OTHER_NAMES:
        return _OTHER_NAMES[last]
    by_last: dict[str, list[str]] = {}
    for key in all_keys():
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    for name in [last, *difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)]:
        if name in by_last:
            return difflib.get_close_matches(wrong, by_last[name], n=1, cutoff=0.0)[0]
    close = difflib.get_close_matches(wrong, all_keys(), n=1, cutoff=0.6)
    return close[0] if close else None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data as ``{dotted key: value}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
