"""The plain twins: what each fusable operation computes, in torch operations, one after the other.

They serve every device and dtype, their bits are those of ``training.fusion: none``, and tests
hold every other variant to them. Shapes: ``(..., C)`` rows of the model's width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.distributed.rows import current_share

_LEVELS = 1 << 16


def keep_mask(
    shape: torch.Size, probability: float, device: torch.device, of_batch: bool = True
) -> Tensor:
    """Random int8 mask (shape), 1 with ``1 - probability`` (to 1/65536), from torch's generator.

    ``of_batch``: there is a row a sequence. Where several processes share a batch, numbers are
    drawn for all of it, and the mask is that of the own rows.

    On a CPU torch draws one Bernoulli number at a time, which costs ten times what the rest of a
    dropout does. Here each 64-bit draw decides four elements. int8 and not bool, and a comparison
    in place, because torch vectorises those and their casts on a CPU, and not those of bool.
    """
    share, count = current_share() if of_batch else None, shape.numel()
    drawn = share.whole(shape).numel() if share else count
    start = share.first * shape[1:].numel() if share else 0
    words = torch.empty((drawn + 3) // 4, dtype=torch.int64, device=device)
    levels = words.random_(-(2**63), None).view(torch.int16)[start : start + count]
    return levels.ge_(round(probability * _LEVELS) - _LEVELS // 2).to(torch.int8).view(shape)


def keep_scale(probability: float) -> float:
    """What the elements that :func:`keep_mask` keeps are multiplied by."""
    return 1.0 / (1.0 - round(probability * _LEVELS) / _LEVELS)


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


def dropout(x: Tensor, probability: float, of_batch: bool = True) -> Tensor:
    """Inverted dropout: zero with ``probability``, scale the rest to keep the mean.

    ``of_batch`` as for :func:`keep_mask`.
    """
    if probability == 0.0:
        return x
    if x.device.type != "cpu":
        share = current_share() if of_batch else None
        if share is None:
            return F.dropout(x, probability)
        return x * F.dropout(x.new_ones(share.whole(x.shape)), probability)[share.rows]
    mask = keep_mask(x.shape, probability, x.device, of_batch)
    result: Tensor = _MaskedScale.apply(x, mask, keep_scale(probability))  # type: ignore[no-untyped-call]
    return result


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


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 of (...)."""
    result: Tensor = _SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
    return result


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * gain over the last axis, in x's dtype."""
    return F.rms_norm(x, gain.shape, gain.to(x.dtype), epsilon)


def residual(
    x: Tensor, branch: Tensor, probability: float, gain: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """x + dropout(branch), and the norm of that, or the same again without a gain."""
    x = x + dropout(branch, probability)
    return x, x if gain is None else rms_norm(x, gain, epsilon)
