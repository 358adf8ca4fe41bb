"""What a checkpoint must hold: keys, types and shapes, checked before anything uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from infinito.checkpoint.archive import DamagedError
from infinito.checkpoint.plain_pickle import TensorSpec
from infinito.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FORMAT = "infinito-checkpoint"
FORMAT_VERSION = 1
_MOST_LISTED = 10


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e300


def _is_number(value: Any) -> bool:
    # Any float, infinities included; no integer that overflows where a float is made of it.
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_a(*types: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in types


def _is_dict_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is dict and all(map(is_right, value.values()))


def _are_tensors(value: Any) -> bool:
    return bool(value) and _is_dict_of(_is_a(TensorSpec))(value)


def _is_log(value: Any) -> bool:
    """Numbers, and sums of measurements, of whatever shape."""
    if type(value) is not dict:
        return False
    numbers = {name: item for name, item in value.items() if name != "measurements"}
    return _is_dict_of(_is_number)(numbers) and type(value.get("measurements", {})) is dict


def _are_evaluations(value: Any) -> bool:
    return type(value) is list and all(map(_is_evaluation, value))


def _is_evaluation(value: Any) -> bool:
    is_right = _is_dict_of(lambda item: item is None or _is_number(item))(value)
    return is_right and _is_count(value.get("step")) and _is_number(value.get("valid_loss"))


REQUIRED: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "epoch": _is_amount,
    "tokens": _is_count,
    "sequences": _is_count,
    "config": _is_a(dict),
    "tokenizer": _is_a(str),
    "vocab_size": _is_count,
    "data": _is_dict_of(_is_a(str)),
    "model": _are_tensors,
    "average": lambda value: value is None or _are_tensors(value),
    "optimizers": _is_dict_of(_is_a(dict)),
    "scaler": _is_a(dict, type(None)),
    "random": _is_a(dict),
    "best": lambda value: value is None or _is_dict_of(_is_number)(value),
    "evaluations": _are_evaluations,
    "log": _is_log,
    "versions": _is_a(dict),
}


def check_structure(content: Any) -> dict[str, Any]:
    """Return ``content`` if it is a whole checkpoint of this format; DamagedError otherwise."""
    if type(content) is not dict or content.get("format") != FORMAT:
        raise DamagedError("not an infinito checkpoint")
    version = content.get("format_version")
    if not isinstance(version, int) or not _is_count(version):
        raise DamagedError("its format version is not a number")
    if version > FORMAT_VERSION:
        raise DamagedError(
            f"written by a newer infinito (format {version}, this program reads up to "
            f"{FORMAT_VERSION})"
        )
    for key, is_right in REQUIRED.items():
        if key not in content:
            raise DamagedError(f"lacks {key!r}")
        if not is_right(content[key]):
            raise DamagedError(f"holds something unexpected as {key!r}")
    return content


def check_shapes(
    model: Mapping[str, torch.Tensor | TensorSpec], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError, listing each weight whose shape is not the one the config says."""
    found = {name: tuple(tensor.shape) for name, tensor in model.items()}
    wrong = [
        f"{name[:80]}: {found.get(name, 'absent')} vs {expected.get(name, 'absent')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
        raise CheckpointError(
            f"weights do not fit the config (checkpoint vs config): "
            f"{'; '.join(wrong[:_MOST_LISTED])}{more}",
            "use the config that the checkpoint was trained with; shapes cannot change on resume",
        )
