"""The small parts of a block: normalisation, dropout, feed-forward.

Shape legend of this package: B batch, T query positions, S key positions, H query heads,
K key/value heads, D head width, C model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinito.config.schema import ModelConfig

_LEVELS = 1 << 16


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis with a gain (Zhang & Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width) in x's dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), eps=1e-6)


def keep_mask(shape: torch.Size, probability: float, device: torch.device) -> Tensor:
    """Random int8 mask (shape), 1 with ``1 - probability`` (to 1/65536), from torch's generator.

    On a CPU torch draws one Bernoulli number at a time, which costs ten times what the rest of a
    dropout does. Here each 64-bit draw decides four elements. int8 and not bool, and a comparison
    in place, because torch vectorises those and their casts on a CPU, and not those of bool.
    """
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    levels = words.random_(-(2**63), None).view(torch.int16)[:count]
    return levels.ge_(round(probability * _LEVELS) - _LEVELS // 2).to(torch.int8).view(shape)


class _MaskedScale(torch.autograd.Function):
    """x * mask * scale, keeping one byte an element for the backward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale  # type: ignore[attr-defined]
        return x.mul(mask).mul_(scale)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0].mul(mask).mul_(ctx.scale), None, None  # type: ignore[attr-defined]


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Inverted dropout: zero with ``probability``, scale the rest to keep the mean."""
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    kept = 1.0 - round(probability * _LEVELS) / _LEVELS
    mask = keep_mask(x.shape, probability, x.device)
    result: Tensor = _MaskedScale.apply(x, mask, 1.0 / kept)  # type: ignore[no-untyped-call]
    return result


class Dropout(nn.Module):
    """:func:`dropout` as a layer."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return dropout(x, self.probability, self.training)


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2, whose derivative 2 relu(x) needs no second look at x's sign (So et al. 2021)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0].mul(positive).mul_(2.0)


class FeedForward(nn.Module):
    """Position-wise network: C -> F -> C, or gated for SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, hidden: int) -> None:
        super().__init__()
        width, bias = config.d_model, config.block == "double"
        self.activation = config.activation
        self.up = nn.Linear(width, hidden, bias=bias)
        self.gate = nn.Linear(width, hidden, bias=bias) if self.activation == "swiglu" else None
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        hidden = self.up(x)
        if self.gate is not None:
            hidden = F.silu(self.gate(x)) * hidden
        elif self.activation == "relu2":
            hidden = _SquaredReLU.apply(hidden)  # type: ignore[no-untyped-call]
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        output: Tensor = self.down(hidden)
        return output
