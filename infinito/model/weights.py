"""Putting stored weights into a model: every name, every shape, every number checked."""

from __future__ import annotations

import torch
from torch import Tensor

from infinito.errors import CheckpointError, DivergedError
from infinito.model.transformer import Transformer


def parameter_shapes(model: Transformer) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a model's parameters."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def check_shapes(weights: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not exactly those expected, naming each difference."""
    differences = [f"{name}: missing" for name in expected.keys() - weights.keys()]
    differences += [f"{name}: not part of this model" for name in weights.keys() - expected.keys()]
    differences += [
        f"{name}: checkpoint {tuple(weights[name].shape)}, config {shape}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if differences:
        raise CheckpointError(
            "the weights do not fit the config:\n  " + "\n  ".join(sorted(differences)[:12]),
            "use the config that the checkpoint was trained with",
        )


@torch.no_grad()
def load_weights(model: Transformer, weights: dict[str, Tensor]) -> None:
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
