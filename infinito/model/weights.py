"""Putting stored weights into a model: every name, every shape, every number checked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infinito.checkpoint.structure import check_shapes
from infinito.errors import DivergedError


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
        parameter.copy_(weights[name])
