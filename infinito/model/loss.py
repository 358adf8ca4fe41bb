"""Cross-entropy over a large vocabulary without holding the logits of the whole batch.

The usual road keeps (B*T, V) float32 logits and as large a gradient: at 33,278 words that is more
than the rest of the model. Here rows are taken in chunks that fit the processor's cache, and since
the loss is a plain sum, each chunk's gradient is finished in the forward pass, while its logits
are still at hand; the backward pass only scales it. (The idea is that of "cut cross-entropy",
Wijmans et al. 2024, and of Liger Kernel; the code is ours.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
CHUNK_ELEMENTS = 1 << 21


def _chunk_rows(vocab_size: int) -> int:
    return max(64, CHUNK_ELEMENTS // vocab_size)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that matrix products run in here: autocast's, else hidden's own."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _nats_and_slope(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each row (N,), 0 where ignored, and its gradient (N, V) in the logits, float32.

    The logits become the gradient in place: softmax - onehot, and nothing where ignored. Reading
    and writing them costs as much as their exponentials, so every pass over them counts.
    """
    logits = F.linear(hidden, weight).float()
    counted = (targets != IGNORED).to(logits.dtype)[:, None]
    index = targets.clamp_min(0)[:, None]
    largest = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(1, index)
    exponentials = logits.sub_(largest).exp_()
    sums = exponentials.sum(dim=-1, keepdim=True)
    nats = (sums.log() + largest - chosen) * counted
    slope = exponentials.mul_(counted / sums).scatter_add_(1, index, -counted)
    return nats[:, 0], slope


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor
    ) -> Tensor:
        dtype = compute_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return _SummedCrossEntropy._chunks(ctx, hidden, weight, targets, dtype)

    @staticmethod
    def _chunks(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        matrix = weight.to(dtype)
        hidden_gradient = torch.empty_like(hidden, dtype=dtype)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows = _chunk_rows(len(weight))
        for start in range(0, len(hidden), rows):
            part = hidden[start : start + rows].to(dtype)
            target = targets[start : start + rows]
            nats, slope = _nats_and_slope(part, matrix, target)
            total += nats.sum(dtype=torch.float64)
            slope = slope.to(dtype)
            torch.mm(slope, matrix, out=hidden_gradient[start : start + rows])
            if not ctx.needs_input_grad[1]:  # type: ignore[attr-defined]  # frozen
                continue
            if dtype == torch.float32:
                weight_gradient.addmm_(slope.t(), part)
            else:
                weight_gradient += slope.t() @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes = hidden.dtype, weight.dtype  # type: ignore[attr-defined]
        return total.float()

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        hidden_dtype, weight_dtype = ctx.dtypes  # type: ignore[attr-defined]
        return (
            (hidden_gradient * gradients[0]).to(hidden_dtype),
            (weight_gradient * gradients[0]).to(weight_dtype),
            None,
        )


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of nats over targets that are not ``IGNORED``.

    Args:
        hidden: (N, C) final states.
        weight: (V, C) output matrix.
        targets: (N,) int64 ids, ``IGNORED`` where nothing is to be predicted.

    Returns:
        float32 scalar, differentiable once in hidden and weight.
    """
    total: Tensor = _SummedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Nats (N,) float32 of each target, 0 where ignored; arguments as above, no gradient."""
    dtype = compute_dtype(hidden)
    nats = torch.zeros(len(targets), device=hidden.device)
    rows = (targets != IGNORED).nonzero()[:, 0]  # overlapping windows ignore many
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.to(dtype)
        for chosen in rows.split(_chunk_rows(len(weight))):
            logits = F.linear(hidden[chosen].to(dtype), matrix).float()
            nats[chosen] = F.cross_entropy(logits, targets[chosen], reduction="none")
    return nats
