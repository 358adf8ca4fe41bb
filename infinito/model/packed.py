"""Weights stored in bfloat16 or int8, in the places of a model's linear maps and token table.

Storage only: whoever multiplies by them in torch reads floats, through ``matrix()`` as ever; the
compiled decode step reads them as they are stored. Norms, biases and lambdas stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinito.model.layers import Embedding, Linear
from infinito.model.roles import DeclaresRoles, Role

_LARGEST = 127


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix (out, in), row by row; element (r, i) of int8 is values[r, i] scales[r, i // group].

    csrc/decode.h has the same layout, and reads it where it lies.

    Attributes:
        values: (out, in) float32, bfloat16 or int8 (-127 to 127), contiguous.
        scales: (out, ceil(in / group)) float32 of int8, contiguous; else None.
        group: neighbours in a row that share a scale: a multiple of 16, or ``in``.
    """

    values: Tensor
    scales: Tensor | None = None
    group: int = 0

    def as_float(self) -> Tensor:
        """The matrix in float32."""
        values = self.values.float()
        if self.scales is None:
            return values
        return values * self.scales.repeat_interleave(self.group, dim=1)[:, : values.shape[1]]


def to_bfloat16(weight: Tensor) -> StoredMatrix:
    """A matrix rounded to the nearest bfloat16."""
    return StoredMatrix(weight.detach().to(torch.bfloat16).contiguous())


def to_int8(weight: Tensor, group: int | None = None) -> StoredMatrix:
    """A matrix (out, in) rounded to 255 equal steps around 0, for each row or ``group`` of one."""
    rows, width = weight.shape
    group = min(group or width, width)
    assert group == width or group % 16 == 0, f"a group of {group}"
    groups = F.pad(weight.detach().float(), (0, -width % group)).view(rows, -1, group)
    scales = groups.abs().amax(-1) / _LARGEST
    steps = groups / torch.where(scales == 0, torch.ones_like(scales), scales)[..., None]
    values = steps.round().to(torch.int8).view(rows, -1)[:, :width]
    return StoredMatrix(values.contiguous(), scales.contiguous(), group)


class PackedLinear(nn.Module, DeclaresRoles):
    """A linear map whose weights are a ``StoredMatrix``; they cannot be trained."""

    def __init__(self, stored: StoredMatrix, role: Role, bias: Tensor | None = None) -> None:
        super().__init__()
        self.group = stored.group
        self.values = nn.Parameter(stored.values, requires_grad=False)
        self.scales = _fixed(stored.scales)
        self.bias = _fixed(bias)
        self.roles = {"values": role, "scales": role, "bias": Role.BIAS}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.matrix(), self.bias)

    def stored(self) -> StoredMatrix:
        """The weights (out, in) as they are stored."""
        return StoredMatrix(self.values, self.scales, self.group)

    def matrix(self) -> Tensor:
        """The weights (out, in) float32."""
        return self.stored().as_float()


class PackedEmbedding(PackedLinear):
    """A table whose rows are a ``StoredMatrix``."""

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of rows (...) int64 -> (..., width)."""
        scales = None if self.scales is None else self.scales[x.flatten()]
        rows = StoredMatrix(self.values[x.flatten()], scales, self.group)
        return rows.as_float().view(*x.shape, -1)


def _fixed(x: Tensor | None) -> nn.Parameter | None:
    return None if x is None else nn.Parameter(x.detach(), requires_grad=False)


def pack(model: nn.Module, store: Callable[[str, Tensor], StoredMatrix | None]) -> None:
    """Replace a model's matrices by what ``store`` makes of (name, matrix); None leaves one."""
    for path, module in list(model.named_modules()):
        for name, part in list(module.named_children()):
            if not isinstance(part, Linear | Embedding):
                continue
            stored = store(f"{path}.{name}".lstrip("."), part.matrix())
            if stored is None:
                continue
            role = part.roles["weight"]
            packed = (
                PackedLinear(stored, role, part.bias)
                if isinstance(part, Linear)
                else PackedEmbedding(stored, role)
            )
            setattr(module, name, packed)
