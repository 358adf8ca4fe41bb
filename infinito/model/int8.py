"""Linear maps and tables whose weights are stored in eight bits.

Symmetric, without a zero point: each row is cut into groups of ``GROUP`` numbers that share a
float32 scale, the largest of them over 127, and a number is its code times the scale of its group
(absolute maximum quantisation; Dettmers et al. 2022, arXiv 2208.07339, section 2). A weight is
off by half a scale at most. Norms, biases and lambdas stay as they are: they are few.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinito.errors import CheckpointError
from infinito.model.layers import Embedding, Linear
from infinito.model.roles import DeclaresRoles

#: Numbers of a row that share a scale. The scales add 4 / GROUP bytes a number.
GROUP = 64
_LARGEST_CODE = 127


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (R, C) int8 and scales (R, ceil(C / GROUP)) float32 of a matrix (R, C)."""
    rows, columns = matrix.shape
    groups = -(-columns // GROUP)
    padded = F.pad(matrix.detach().float(), (0, groups * GROUP - columns))
    grouped = padded.view(rows, groups, GROUP)
    scales = grouped.abs().amax(-1) / _LARGEST_CODE
    # A group of zeros has scale 0 and codes 0.
    codes = (grouped / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
    return codes.to(torch.int8).view(rows, -1)[:, :columns].contiguous(), scales


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 numbers (..., C) of codes (..., C) and scales (..., ceil(C / GROUP))."""
    return codes * scales.repeat_interleave(GROUP, -1)[..., : codes.shape[-1]]


class Int8Weights(nn.Module, DeclaresRoles):
    """Codes and scales in place of a layer's weights."""

    def __init__(self, layer: Linear | Embedding) -> None:
        super().__init__()
        if layer.weight.is_meta:  # shapes are all there is
            rows, columns = layer.weight.shape
            codes = torch.empty(rows, columns, dtype=torch.int8, device="meta")
            scales = torch.empty(rows, -(-columns // GROUP), device="meta")
        else:
            codes, scales = quantise(layer.weight)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.roles = {**layer.roles, "scales": layer.roles["weight"]}

    def matrix(self) -> Tensor:
        """The weights as float32."""
        return dequantise(self.weight, self.scales)


class Int8Linear(Int8Weights):
    """Stands in for a ``Linear``."""

    def __init__(self, layer: Linear) -> None:
        super().__init__(layer)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.matrix().to(x.dtype), bias)


class Int8Embedding(Int8Weights):
    """Stands in for an ``Embedding``, outside training."""

    def forward(self, rows: Tensor) -> Tensor:
        """Numbers of rows (...) int64 -> (..., width) float32."""
        return dequantise(F.embedding(rows, self.weight), F.embedding(rows, self.scales))


def quantisable(model: nn.Module) -> list[str]:
    """Names of the weights that :func:`store_in_int8` can take."""
    modules = model.named_modules()
    return [f"{name}.weight" for name, m in modules if isinstance(m, Linear | Embedding)]


def store_in_int8(model: nn.Module, names: Collection[str]) -> None:
    """Put int8 layers in the places of those whose weights are named, in ``model`` itself.

    Raises:
        CheckpointError: a name is of no linear map or table.
    """
    strange = sorted(set(names) - set(quantisable(model)))
    if strange:
        raise CheckpointError(f"the weight {strange[0][:80]} cannot be stored in int8")
    for name in names:
        path, _, attribute = name.removesuffix(".weight").rpartition(".")
        parent = model.get_submodule(path)
        layer = getattr(parent, attribute)
        stand_in = Int8Linear(layer) if isinstance(layer, Linear) else Int8Embedding(layer)
        setattr(parent, attribute, stand_in)
