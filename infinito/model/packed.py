"""Linear maps and tables whose weights are stored in bfloat16 or int8.

Storage only: whoever multiplies by them in torch reads floats, through ``matrix()`` as ever; the
compiled decode step reads them as they are stored. Norms, biases, lambdas and routers stay
float32: they are few.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinito.errors import CheckpointError
from infinito.model.layers import Embedding, Linear
from infinito.model.roles import DeclaresRoles, Role

#: Numbers of a row that share a scale in int8. The scales add 4 / GROUP bytes a number.
GROUP = 64
_LARGEST_CODE = 127


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix (out, in), row by row: number (r, i) of int8 is values[r, i] scales[r, i // group].

    csrc/decode.h has the same layout, and reads it where it lies.

    Attributes:
        values: (out, in) float32, bfloat16 or int8 (codes from -127 to 127), contiguous.
        scales: (out, ceil(in / group)) float32 of int8, contiguous; else None.
        group: neighbours in a row that share a scale: a multiple of 16, or ``in``.
    """

    values: Tensor
    scales: Tensor | None = None
    group: int = GROUP

    def as_float(self) -> Tensor:
        """The numbers in float32."""
        if self.scales is None:
            return self.values.float()
        scales = self.scales.repeat_interleave(self.group, -1)
        return self.values * scales[..., : self.values.shape[-1]]


def to_bfloat16(weight: Tensor) -> StoredMatrix:
    """A matrix with each number rounded to the nearest bfloat16."""
    return StoredMatrix(weight.detach().to(torch.bfloat16).contiguous())


def to_int8(weight: Tensor, group: int = GROUP) -> StoredMatrix:
    """A matrix with each group of a row rounded to 255 equal steps around 0.

    Symmetric, without a zero point: the scale of a group is the largest of its numbers over 127
    (absolute maximum quantisation; Dettmers et al. 2022, arXiv 2208.07339, section 2). A number is
    off by half a scale at most.
    """
    rows, columns = weight.shape
    group = min(group, columns)
    assert group == columns or group % 16 == 0, f"groups of {group}"
    if weight.is_meta:  # shapes are all there is
        scales = torch.empty(rows, -(-columns // group), device="meta")
        return StoredMatrix(torch.empty_like(weight, dtype=torch.int8), scales, group)
    grouped = F.pad(weight.detach().float(), (0, -columns % group)).view(rows, -1, group)
    scales = grouped.abs().amax(-1) / _LARGEST_CODE
    # A group of zeros has scale 0 and codes 0.
    codes = (grouped / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
    codes = codes.to(torch.int8).view(rows, -1)[:, :columns].contiguous()
    return StoredMatrix(codes, scales, group)


class PackedWeights(nn.Module, DeclaresRoles):
    """A stored matrix in place of a layer's weights; it cannot be trained."""

    def __init__(self, layer: Linear | Embedding, stored: StoredMatrix) -> None:
        super().__init__()
        self.group = stored.group
        self.weight = nn.Parameter(stored.values, requires_grad=False)
        self.scales = (
            None if stored.scales is None else nn.Parameter(stored.scales, requires_grad=False)
        )
        self.roles = {**layer.roles, "scales": layer.roles["weight"]}

    def stored(self) -> StoredMatrix:
        """The weights as they are stored."""
        return StoredMatrix(self.weight, self.scales, self.group)

    def matrix(self) -> Tensor:
        """The weights in float32."""
        return self.stored().as_float()


class PackedLinear(PackedWeights):
    """Stands in for a ``Linear``."""

    def __init__(self, layer: Linear, stored: StoredMatrix) -> None:
        super().__init__(layer, stored)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.matrix().to(x.dtype), bias)


class PackedEmbedding(PackedWeights):
    """Stands in for an ``Embedding``, outside training."""

    def forward(self, rows: Tensor) -> Tensor:
        """Numbers of rows (...) int64 -> (..., width) float32."""
        scales = None if self.scales is None else F.embedding(rows, self.scales)
        return StoredMatrix(F.embedding(rows, self.weight), scales, self.group).as_float()


def packable(model: nn.Module) -> list[str]:
    """Names of the weights that :func:`pack` can take."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Linear | Embedding)]
    # A router has few numbers, and an error in them may choose another expert.
    return [f"{name}.weight" for name, m in found if m.roles["weight"] is not Role.ROUTER]


def pack(
    model: nn.Module, names: Collection[str], store: Callable[[Tensor], StoredMatrix] = to_int8
) -> None:
    """Put packed layers in the places of those whose weights are named, in ``model`` itself.

    Raises:
        CheckpointError: a name is of no linear map or table.
    """
    strange = sorted(set(names) - set(packable(model)))
    if strange:
        raise CheckpointError(f"the weight {strange[0][:80]} cannot be stored in int8")
    for name in names:
        path, _, attribute = name.removesuffix(".weight").rpartition(".")
        parent = model.get_submodule(path)
        layer = getattr(parent, attribute)
        kind = PackedLinear if isinstance(layer, Linear) else PackedEmbedding
        setattr(parent, attribute, kind(layer, store(layer.matrix())))
