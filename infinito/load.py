"""One way to open a checkpoint, for all who use one: resuming, evaluating, fitting, exporting."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infinito.checkpoint.format import read_checkpoint
from infinito.checkpoint.structure import check_shapes
from infinito.config.loading import config_from_plain
from infinito.config.schema import Config
from infinito.distributed.strategy import copy_whole
from infinito.errors import CheckpointError, DivergedError
from infinito.model.language_model import LanguageModel
from infinito.model.packed import pack
from infinito.model.transformer import Transformer
from infinito.runtime.device import choose_device
from infinito.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint of which everything agrees: its weights with its config and its tokenizer."""

    path: Path
    content: dict[str, Any] = field(repr=False)
    config: Config
    tokenizer: Tokenizer

    @property
    def int8_names(self) -> list[str]:
        """Weights that are stored in eight bits; none but in an export."""
        return _int8_names(self.content)

    def require_trainable(self) -> None:
        """Raise CheckpointError where weights are stored in eight bits."""
        if self.int8_names:
            raise CheckpointError(
                f"{self.path} holds weights of eight bits, which cannot be trained",
                "name the checkpoint that it was exported from",
            )

    def weights(self, use_average: bool = True) -> dict[str, Tensor]:
        """{name: weight}, the averaged ones where they exist and are wanted."""
        averaged = self.content["average"] if use_average else None
        return dict(averaged or self.content["model"])


def open_checkpoint(path: str | Path) -> OpenedCheckpoint:
    """Read and verify a checkpoint file; no model is built, and no weight copied.

    Raises:
        CheckpointError: the file is missing, damaged, hostile, or contradicts itself.
    """
    return checked_content(read_checkpoint(Path(path)), Path(path))


def checked_content(content: dict[str, Any], path: Path) -> OpenedCheckpoint:
    """What was read from ``path``, once its parts agree; raises as :func:`open_checkpoint`."""
    config = config_from_plain(content["config"], str(path), CheckpointError)
    tokenizer = Tokenizer.from_json(content["tokenizer"])
    if tokenizer.vocab_size != content["vocab_size"]:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"and vocab_size says {content['vocab_size']}"
        )
    planned = planned_model(config, tokenizer.vocab_size, _int8_names(content))
    shapes = parameter_shapes(planned)
    for weights in (content["model"], content["average"]):
        if weights is not None:
            check_shapes(weights, shapes)
            _check_numbers(weights, path)
    return OpenedCheckpoint(path, content, config, tokenizer)


def _check_numbers(weights: dict[str, Tensor], path: Path) -> None:
    for name, weight in weights.items():
        if not weight.is_floating_point() and weight.dtype != torch.int8:
            raise CheckpointError(f"{path}: the weight {name} is of {weight.dtype}")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with all that is needed to use it."""

    model: LanguageModel
    tokenizer: Tokenizer
    config: Config
    step: int
    path: Path
    data_sha256: dict[str, str]


def load_model(path: str | Path, device: str = "auto", use_average: bool = True) -> LoadedModel:
    """Open a checkpoint file and rebuild its model.

    Args:
        path: A ``.pt`` file.
        device: auto, cpu, cuda, cuda:N or mps.
        use_average: Take the averaged weights where the checkpoint has them.

    Raises:
        CheckpointError: as :func:`open_checkpoint` says.
        DivergedError: Its weights are not finite.
    """
    opened = open_checkpoint(path)
    model = build_model(opened.config, opened.tokenizer.vocab_size, opened.int8_names)
    load_weights(model, opened.weights(use_average))
    model.to(choose_device(device).value).eval().requires_grad_(False)
    step, data = opened.content["step"], opened.content["data"]
    return LoadedModel(model, opened.tokenizer, opened.config, step, opened.path, data)


def _int8_names(content: dict[str, Any]) -> list[str]:
    return [name for name, weight in content["model"].items() if weight.dtype == torch.int8]


def planned_model(
    config: Config, vocab_size: int, int8_names: Collection[str] = ()
) -> LanguageModel:
    """What ``build_model`` makes, without memory: its parameters have shapes and no numbers.

    A stranger's config can ask for a model of terabytes: it is compared with the weights first.
    """
    with torch.device("meta"):
        return build_model(config, vocab_size, int8_names)


def build_model(config: Config, vocab_size: int, int8_names: Collection[str] = ()) -> LanguageModel:
    """An untrained model of the config's shape, with the named weights stored in eight bits."""
    model = Transformer(config.model, vocab_size, config.data.sequence_length)
    pack(model, int8_names)
    return model


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a model's parameters."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@torch.no_grad()
def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy stored weights into ``model``.

    Raises:
        CheckpointError: Names or shapes differ.
        DivergedError: A weight is not finite.
    """
    check_shapes(weights, parameter_shapes(model))
    for name, parameter in model.named_parameters():
        if not weights[name].isfinite().all():
            raise DivergedError(f"the weight {name} is not finite", "take an earlier checkpoint")
        copy_whole(parameter, weights[name])
