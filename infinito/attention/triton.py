"""The CUDA back end: the kernels of ``triton_kernels``, one torch operator in two directions.

Triton is imported by the first call, or interprets: see ``kernels/on_gpu.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.attention.call import Call
from infinito.attention.centre import common_offset
from infinito.attention.dropout import drop_threshold
from infinito.attention.kinds import SMALLEST_NORM
from infinito.attention.operator import register, rows_like

MAX_WIDTH = 256
STAGES = 2  # of the copy of key and value blocks into shared memory
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """Rows that a program owns, rows of the other side in one step, warps of a program.

    ``unroll`` is the number of L1 score rows in one go. When it is all of them they stay in
    registers over the whole sweep, which the backward needs for other things.
    """

    rows: int
    columns: int
    warps: int
    unroll: int


def padded_width(width: int) -> int:
    """D as the kernels hold it: a power of two that a tensor core product accepts."""
    return max(16, 1 << (width - 1).bit_length())


def choose_tile(kind: str, dtype: torch.dtype, width: int, backward: bool) -> Tile:
    """A tile that fits into the registers of sm_80 and sm_90 (a test compiles for both)."""
    padded = padded_width(width)
    if kind != "l1":
        if dtype == torch.float32:
            return Tile(16, 32, 4, 1)
        if backward:
            return Tile(32, 32 if padded > 128 else 64, 8, 1)
        side = 32 if padded > 128 else 64
        return Tile(side, side, 4, 1)
    columns = 32 if padded > 128 or dtype == torch.float32 else 64
    if backward:
        return Tile(16, columns, 4 if padded <= 64 else 8, 8)
    return Tile(16, columns, 8, 16 if padded <= 64 else 8)


def make_constants(call: Call, backward: bool) -> dict[str, Any]:
    """The compile-time arguments of the kernels for a call."""
    width = call.query.shape[3]
    tile = choose_tile(call.kind, call.query.dtype, width, backward)
    return {
        "KIND": call.kind,
        "CAUSAL": call.causal,
        "ALIBI": call.slopes is not None,
        "DROPOUT": call.dropout_p > 0,
        "WIDTH": width,
        "PADDED": padded_width(width),
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "UNROLL": tile.unroll,
        "num_warps": tile.warps,
        "num_stages": STAGES,
        "enable_fp_fusion": True,  # the default of later versions of Triton is off
    }


def _numbers(call: Call) -> tuple[Any, ...]:
    """The arguments that all kernels take last, in their order."""
    heads, queries = call.query.shape[1:3]
    key_heads, keys = call.key.shape[1:3]
    threshold, keep_scale = drop_threshold(call.dropout_p), 1 / (1 - call.dropout_p)
    slopes = call.lam if call.slopes is None else call.slopes  # not read without ALiBi
    numbers = (heads, heads // key_heads, queries, keys, call.scale, threshold, keep_scale)
    return call.lam, slopes, call.seed, *numbers


def _centred(call: Call) -> Call:
    """The call with contiguous tensors; for L2, whose squares cancel, without a common offset."""
    query, key, value = (x.contiguous() for x in (call.query, call.key, call.value))
    if call.kind in ("l2", "l2sq"):
        centre = common_offset(query, key)
        key, groups = key - centre, query.shape[1] // key.shape[1]
        query = query - centre.repeat_interleave(groups, 1)
    return replace(call, query=query, key=key, value=value)


def _blocks(length: int, rows: int) -> int:
    return -(-length // rows)


def _in_layout(values: Tensor, like: Tensor) -> Tensor:
    """The values in the memory order that the operator promised."""
    target = rows_like(like)
    return values if values.stride() == target.stride() else target.copy_(values)


def _forward(call: Call) -> tuple[Tensor, Tensor]:
    from infinito.attention import triton_kernels as kernels

    moved, constants = _centred(call), make_constants(call, backward=False)
    batch, heads, queries, _ = call.query.shape
    output = torch.empty_like(moved.query)
    logsumexp = torch.empty((batch, heads, queries), device=output.device)
    grid = (batch * heads, _blocks(queries, constants["ROWS"]))
    kernels.forward_kernel[grid](
        moved.query, moved.key, moved.value, output, logsumexp, *_numbers(call), **constants
    )
    return _in_layout(output, call.query), logsumexp


def _backward(
    call: Call, grad_output: Tensor, output: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from infinito.attention import triton_kernels as kernels

    moved, constants = _centred(call), make_constants(call, backward=True)
    (batch, heads, queries, _), (_, key_heads, keys, _) = call.query.shape, call.key.shape
    grad_output, logsumexp = grad_output.contiguous(), logsumexp.contiguous()
    grad_query, grad_key, grad_value = (
        torch.empty_like(x) for x in (moved.query, moved.key, moved.value)
    )
    delta = torch.empty_like(logsumexp)
    blocks = _blocks(queries, constants["ROWS"])
    lam_parts = torch.empty((batch, heads, blocks), device=delta.device)
    inputs, numbers = (moved.query, moved.key, moved.value), _numbers(call)
    kernels.query_gradient_kernel[(batch * heads, blocks)](
        *inputs, output.contiguous(), grad_output, logsumexp, delta, grad_query, lam_parts,
        *numbers, **constants,
    )  # fmt: skip
    kernels.key_gradient_kernel[(batch * key_heads, _blocks(keys, constants["ROWS"]))](
        *inputs, grad_output, logsumexp, delta, grad_key, grad_value, *numbers, **constants
    )
    grad_lam = lam_parts.double().sum((0, 2)).to(call.lam.dtype)
    return (
        _in_layout(grad_query, call.query),
        _in_layout(grad_key, call.key),
        _in_layout(grad_value, call.value),
        grad_lam,
    )


_run = register("distance_attention_triton", _forward, _backward)


def run(call: Call) -> Tensor:
    """The kernels on checked arguments.

    Cosine is dot-product attention of unit vectors: rows of weights do not change when the
    constant 1 of 1 - cos goes.
    """
    if call.kind != "cosine":
        return _run(call)
    wide = torch.promote_types(call.query.dtype, torch.float32)
    query, key = (
        F.normalize(x.to(wide), dim=-1, eps=SMALLEST_NORM).to(x.dtype)
        for x in (call.query, call.key)
    )
    return _run(replace(call, kind="dot", query=query, key=key))
