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


def norm(x: Tensor, probability: float, gain: Tensor, epsilon: float) -> Tensor:
    """dropout(norm(x)) of rows (..., C)."""
    return dropout(rms_norm(x, gain, epsilon), probability)


def embedding(
    table: Tensor, tokens: Tensor, probability: float, gain: Tensor, epsilon: float
) -> Tensor:
    """dropout(norm(rows of a table (V, C))): (...) int64 -> (..., C)."""
    return norm(F.embedding(tokens, table), probability, gain, epsilon)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up (Shazeer 2020)."""
    return F.silu(gate) * up


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of (B, H, T, D) by its position's angle."""
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return torch.addcmul(x * cosines, swapped, sines)


def heads(
    joined: Tensor, query_gain: Tensor | None, key_gain: Tensor | None, cosines: Tensor | None,
    sines: Tensor | None, n_heads: int, key_heads: int, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries (B, H, T, D), keys and values (B, K, T, D) of a product (B, T, (H + 2 K) D).

    Queries and keys are normed where there are gains (D,), and turned by tables (T, D) if any.
    """
    d_head = joined.shape[2] // (n_heads + 2 * key_heads)
    parts = joined.unflatten(-1, (-1, d_head)).transpose(1, 2)
    query, key, value = parts.split([n_heads, key_heads, key_heads], dim=1)
    if query_gain is not None and key_gain is not None:
        query, key = rms_norm(query, query_gain, epsilon), rms_norm(key, key_gain, epsilon)
    if cosines is not None and sines is not None:
        query, key = rotate(query, cosines, sines), rotate(key, cosines, sines)
    return query.to(value.dtype), key.to(value.dtype), value


def softmax_slope(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Loss of each row (N,), 0 if ignored, and ``scale`` times its gradient in the logits (N, V).

    Both are float32. The logits become the gradient in place: softmax - onehot, and nothing where
    the target is negative. Reading and writing them costs as much as their exponentials, so every
    pass over them counts.
    """
    logits = logits.float()
    counted = (targets >= 0).to(logits.dtype)[:, None]
    index = targets.clamp_min(0)[:, None]
    largest = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(1, index)
    exponentials = logits.sub_(largest).exp_()
    sums = exponentials.sum(dim=-1, keepdim=True)
    nats = (sums.log() + largest - chosen) * counted
    counted = counted * scale
    slope = exponentials.mul_(counted / sums).scatter_add_(1, index, -counted)
    return nats[:, 0], slope


def momentum(buffer: Tensor, gradient: Tensor, factor: float) -> Tensor:
    """The bfloat16 update of Muon with Nesterov's momentum; moves the buffer, all of one shape."""
    buffer.lerp_(gradient, 1.0 - factor)
    return gradient.lerp(buffer, factor).bfloat16()


def move(parameter: Tensor, update: Tensor, keep: float, rate: float) -> None:
    """keep parameter - rate update, in place."""
    parameter.mul_(keep).add_(update, alpha=-rate)
