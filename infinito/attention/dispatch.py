"""Attention as an operation in several variants, and the function that everybody calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infinito.attention import chunked, cpu, reference, sdpa, triton
from infinito.attention.call import check_arguments, prepare_call
from infinito.attention.kinds import Kind
from infinito.distributed.rows import current_share
from infinito.kernels import on_gpu
from infinito.kernels.native import REMEDY
from infinito.kernels.table import Operation, Variant, no_objection


@dataclass(frozen=True)
class Request:
    """What a choice depends on; a model can ask before it has any tensors."""

    kind: Kind
    device: str = "cpu"  # torch device type
    dtype: torch.dtype = torch.float32
    width: int = 64  # D
    queries: int = 2  # T
    keys: int = 2  # S
    causal: bool = True
    dropout: bool = False
    alibi: bool = False
    plain: bool = False  # a dot product with lambda 1, scale and dropout's draws left open


def _cpu_objection(request: Request) -> str | None:
    if request.device != "cpu":
        return f"the tensors are on {request.device}"
    if request.dtype not in cpu.DTYPES:
        return f"it takes float32 and bfloat16, not {request.dtype}"
    if request.width > cpu.MAX_WIDTH:
        return f"head width {request.width} exceeds {cpu.MAX_WIDTH}"
    return cpu.missing


def _is_plain(request: Request) -> bool:
    """Whether torch's own function is all of it; a CPU has a faster kernel, and keeps its bits."""
    return request.plain and request.device != "cpu"


def _sdpa_objection(request: Request) -> str | None:
    if request.kind in ("l1", "l2"):
        return f"{request.kind} is not a dot product"
    if _is_plain(request):
        return None
    if request.dropout or request.alibi:
        return "the fused kernel takes neither dropout on the weights nor ALiBi"
    if request.causal and request.queries not in (1, request.keys):
        return "its causal mask aligns the first query, not the last, with the keys"
    return None


def _triton_objection(request: Request) -> str | None:
    if request.device != "cuda" and not on_gpu.interpreted:
        return f"the tensors are on {request.device}, not on cuda"
    if request.dtype not in triton.DTYPES:
        return f"it takes float32, bfloat16 and float16, not {request.dtype}"
    if on_gpu.interpreted and request.dtype == torch.bfloat16:
        return "the interpreter of Triton does not compute in bfloat16"
    if request.width > triton.MAX_WIDTH:
        return f"head width {request.width} exceeds {triton.MAX_WIDTH}"
    return on_gpu.missing


ATTENTION: Operation[Request] = Operation(
    "attention",
    {
        "cpu": Variant(cpu.describe, _cpu_objection, cpu.run, REMEDY),
        "sdpa": Variant(lambda: "fused dot-product attention of torch", _sdpa_objection, sdpa.run),
        "triton": Variant(on_gpu.describe, _triton_objection, triton.run),
        "chunked": Variant(
            lambda: "row chunks in torch operations, memory-linear", no_objection, chunked.run
        ),
        "reference": Variant(lambda: "full matrices, for tests", no_objection, reference.run),
    },
    lambda device: Request("dot", device),
)


def distance_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kind: Kind,
    lam: float | Tensor,
    *,
    causal: bool = True,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax over visible keys of -lam_h c distance(q_i, k_j), times v.

    The distance is sum |q-k| (``l1``), sqrt(sum (q-k)^2 + 1e-12) (``l2``), sum (q-k)^2
    (``l2sq``) or 1 - cos (``cosine``); ``dot`` has the logits lam c q.k instead. Differentiable
    in q, k, v and lam; sign(0) = 0 in the gradient of L1.

    An offset that the tokens share costs no digits of the result. One that the second token lacks,
    r times the spread, costs up to 3e-6 r (``l1`` on ``cpu``) or 1e-6 r^2 (``l2sq`` on ``sdpa``,
    ``l2`` and ``l2sq`` on ``triton``) of it. The gradient of ``l1`` on ``cpu`` sees differences
    down to 2^-126 of the largest entry (or of 1).

    Args:
        q: (B, H, T, D), float32, float64, bfloat16 or float16.
        k: (B, J, S, D) of q's dtype; J divides H (grouped-query heads), S >= T.
        v: (B, J, S, D) of q's dtype.
        lam: lambda, a number or (H,); keep it in float32.
        causal: query i sees the keys up to S - T + i.
        dropout_p: probability in [0, 1) that a weight is zeroed; the others are scaled up.
        dropout_seed: int or (1,) int64; None draws it from torch's generator. See ``dropout.py``.
        scale: c; None is the kind's ``default_scale``.
        alibi_slopes: (H,), subtracts slope_h |position of query - position of key|.
        backend: ``auto`` or a variant of ``ATTENTION``.

    Returns:
        (B, H, T, D) in q's dtype and memory order; ConfigError outside the definition.
    """
    check_arguments(q, k, v, kind, dropout_p)
    unscaled = isinstance(lam, int | float) and lam == 1 and scale is None
    request = Request(
        kind, q.device.type, q.dtype, q.shape[3], q.shape[2], k.shape[2], causal,
        dropout=dropout_p > 0, alibi=alibi_slopes is not None,
        # Torch's own draws cannot be those of a part of a batch; the seed's can.
        plain=kind == "dot" and unscaled and dropout_seed is None
        and not (dropout_p > 0 and current_share()),
    )  # fmt: skip
    name = ATTENTION.select(request, backend)
    call = prepare_call(
        q, k, v, kind, lam, causal, dropout_p, dropout_seed, scale, alibi_slopes,
        plain=name == "sdpa" and _is_plain(request),
    )  # fmt: skip
    output: Tensor = ATTENTION.variants[name].run(call)
    return output
