"""A checkpoint with its weights in eight bits: for evaluation and generation, not for training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from infinito.checkpoint.atomic import reserved
from infinito.checkpoint.format import write_checkpoint
from infinito.errors import CheckpointError
from infinito.load import OpenedCheckpoint, build_model, load_weights
from infinito.model.packed import PackedWeights, pack, packable


@dataclass(frozen=True)
class Int8Export:
    """What was written: bytes of the weights before (float32) and after, and their largest error.

    ``largest_error`` is relative to the largest number of the same matrix.
    """

    float32_bytes: int
    int8_bytes: int
    largest_error: float


def export_int8(opened: OpenedCheckpoint, path: Path) -> Int8Export:
    """Write ``opened`` to ``path`` with every linear map and table in int8, averaged where it is.

    The file is a checkpoint like any other, verified like any other, without the state of
    training.

    Raises:
        CheckpointError: it holds int8 weights already.
        ResourceError: ``path`` exists or cannot be written.
    """
    if opened.int8_names:
        raise CheckpointError(f"{opened.path} holds int8 weights already", "use it as it is")
    model = build_model(opened.config, opened.tokenizer.vocab_size)
    load_weights(model, opened.weights())
    exact = {name: parameter.detach() for name, parameter in model.named_parameters()}
    names = packable(model)
    pack(model, names)
    stored = {name: parameter.detach() for name, parameter in model.named_parameters()}
    errors = [_error(model, name, exact[name]) for name in names]
    training: dict[str, Any] = {"average": None, "optimizers": {}, "scaler": None, "random": {}}
    with reserved(path):
        write_checkpoint(path, {**opened.content, "model": stored, **training})
    return Int8Export(
        sum(4 * tensor.numel() for tensor in exact.values()),
        sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
        max(errors),
    )


def _error(model: nn.Module, name: str, exact: Tensor) -> float:
    """Largest error of one matrix, relative to its largest number."""
    layer = model.get_submodule(name.removesuffix(".weight"))
    assert isinstance(layer, PackedWeights)
    return float((layer.matrix() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
