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

from infinito.kernels.fusion import PLAIN, Plan
from infinito.runtime.precision import compute_dtype

IGNORED = -100
CHUNK_ELEMENTS = 1 << 21  # of logits, for a CPU: what its caches hold
DEVICE_CHUNK_ELEMENTS = 1 << 25  # elsewhere: work enough that launching it costs nothing
# A slope lies between -1 and 1, most of it near 0, and float16 ends at 6e-8 and at 65504.
_FLOAT16_SLOPE_SCALE = 2.0**15


def chunk_elements(device: str) -> int:
    """How many logits are at hand at once."""
    return CHUNK_ELEMENTS if device == "cpu" else DEVICE_CHUNK_ELEMENTS


def _chunk_rows(vocab_size: int, device: torch.device) -> int:
    return max(64, chunk_elements(device.type) // vocab_size)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, not rounded to half after its sums where that can be had.

    CUDA gives such a product its own output type. A CPU does not, and its bfloat16 product is too
    much faster to give up; float16 would overflow, and is no faster there.
    """
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float() if left.dtype == torch.float16 else left @ right


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        plan: Plan,
        dtype: torch.dtype,
    ) -> Tensor:
        matrix, device = weight.to(dtype), hidden.device
        scale = _FLOAT16_SLOPE_SCALE if dtype == torch.float16 else 1.0
        wide = torch.promote_types(dtype, torch.float32)
        hidden_gradient = torch.empty_like(hidden, dtype=wide)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        # Not every device has float64; those sum a chunk as a tree, and have few chunks.
        sum_dtype = torch.float64 if device.type == "cpu" else torch.float32
        total = torch.zeros((), dtype=sum_dtype, device=device)
        rows = _chunk_rows(len(weight), device)
        for start in range(0, len(hidden), rows):
            part = hidden[start : start + rows].to(dtype)
            logits = _product(part, matrix.t())
            nats, slope = plan.run("loss", logits, targets[start : start + rows], scale)
            total += nats.sum(dtype=sum_dtype)
            slope = slope.to(dtype)
            hidden_gradient[start : start + rows] = _product(slope, matrix)
            if not ctx.needs_input_grad[1]:  # type: ignore[attr-defined]  # frozen
                continue
            if dtype == torch.float32:
                weight_gradient.addmm_(slope.t(), part)
            else:
                weight_gradient += _product(slope.t(), part)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes, ctx.scale = (hidden.dtype, weight.dtype), scale  # type: ignore[attr-defined]
        return total.float()

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        hidden_dtype, weight_dtype = ctx.dtypes  # type: ignore[attr-defined]
        factor = gradients[0] / ctx.scale  # type: ignore[attr-defined]
        return (
            (hidden_gradient * factor).to(hidden_dtype),
            (weight_gradient * factor).to(weight_dtype),
            *(None, None, None),
        )


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, plan: Plan = PLAIN
) -> Tensor:
    """Sum of nats over targets that are not ``IGNORED``.

    Args:
        hidden: (N, C) final states.
        weight: (V, C) output matrix.
        targets: (N,) int64 ids, ``IGNORED`` where nothing is to be predicted.
        plan: how slopes are computed.

    Returns:
        float32 scalar, differentiable once in hidden and weight.
    """
    dtype = compute_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        total: Tensor = _SummedCrossEntropy.apply(hidden, weight, targets, plan, dtype)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Nats (N,) float32 of each target, 0 where ignored; arguments as above, no gradient."""
    dtype = compute_dtype(hidden)
    nats = torch.zeros(len(targets), device=hidden.device)
    rows = (targets != IGNORED).nonzero()[:, 0]  # overlapping windows ignore many
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.to(dtype)
        for chosen in rows.split(_chunk_rows(len(weight), hidden.device)):
            logits = _product(hidden[chosen].to(dtype), matrix.t()).float()
            nats[chosen] = F.cross_entropy(logits, targets[chosen], reduction="none")
    return nats
