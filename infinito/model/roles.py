"""What each parameter is for, said by the layer that makes it.

Optimizer groups, initialisation and counts ask for the role, never for a name or a shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from torch import nn


class Role(Enum):
    """What a parameter does."""

    MATRIX = "matrix"  # of a linear map inside the model
    TABLE = "table"  # a row a token or position: embeddings, and the map to logits
    ROUTER = "router"  # of the map that names experts
    BIAS = "bias"  # of a linear map
    GAIN = "gain"  # of a normalisation, its shift included
    LAMBDA = "lambda"  # of attention, one a head or a layer


class DeclaresRoles:
    """A module that owns parameters: ``roles`` has the role of each by the name it has there."""

    roles: dict[str, Role]


def declared_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Name, parameter and role of all parameters, in the order of ``named_parameters``."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            assert isinstance(module, DeclaresRoles), f"nobody says what {name} is for"
            yield name, parameter, module.roles[name.rpartition(".")[2]]
