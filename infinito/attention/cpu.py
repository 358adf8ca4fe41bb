"""The compiled CPU kernel: one torch operator in two directions."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import replace

import torch
from torch import Tensor

from infinito.attention.call import Call
from infinito.attention.dropout import drop_threshold
from infinito.attention.kinds import KINDS
from infinito.attention.operator import register, rows_like
from infinito.kernels.native import Native, describe_library, fields

MAX_WIDTH = 256
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_VERSION = 2


class _View(Structure):
    _fields_ = [("data", c_void_p), ("strides", c_int64 * 3)]


class _Arguments(Structure):
    """Mirror of ``Arguments`` in csrc/attention.h."""

    _fields_ = [
        *fields(_View, "query key value output grad_output grad_query grad_key grad_value"),
        *fields(c_void_p, "logsumexp lam grad_lam slopes"),
        *fields(c_int64, "batch heads key_heads queries keys width"),
        ("seed", c_uint64),
        *fields(c_int32, "kind dtype causal threads"),
        ("drop_threshold", c_uint32),
        *fields(c_float, "keep_scale scale"),
    ]


class _Peak(Structure):
    """Mirror of ``Peak``."""

    _fields_ = [*fields(c_int64, "rounds elements"), ("gradient", c_int32)]


_forward_kernel = Native("attention forward", _Arguments, _VERSION)
_backward_kernel = Native("attention backward", _Arguments, _VERSION)
#: Why the compiled kernel cannot be used, or None: a plain value that torch.compile can guard.
missing: str | None = _forward_kernel.missing


def describe() -> str:
    """For reasons and ``doctor``."""
    return f"compiled kernel, {describe_library()}"


def run_peak_loop(gradient: bool, rounds: int) -> int:
    """Run the inner loop of a score (or of its gradient) in registers, on this thread.

    Returns the number of elements (query, key, d) handled; the benchmark times it.
    """
    peak = _Peak(rounds=rounds, gradient=gradient)
    Native("attention peak", _Peak, _VERSION)(peak)
    return int(peak.elements)


def _view(x: Tensor) -> _View:
    return _View(x.data_ptr(), (c_int64 * 3)(*x.stride()[:3]))


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _arguments(call: Call, output: Tensor, logsumexp: Tensor) -> _Arguments:
    batch, heads, queries, width = call.query.shape
    return _Arguments(
        query=_view(call.query),
        key=_view(call.key),
        value=_view(call.value),
        output=_view(output),
        logsumexp=logsumexp.data_ptr(),
        lam=call.lam.data_ptr(),
        slopes=None if call.slopes is None else call.slopes.data_ptr(),
        batch=batch,
        heads=heads,
        key_heads=call.key.shape[1],
        queries=queries,
        keys=call.key.shape[2],
        width=width,
        seed=int(call.seed.item()) % 2**64 if call.dropout_p else 0,
        kind=KINDS.index(call.kind),
        dtype=DTYPES[call.query.dtype],
        causal=call.causal,
        threads=torch.get_num_threads(),
        drop_threshold=drop_threshold(call.dropout_p),
        keep_scale=1 / (1 - call.dropout_p),
        scale=call.scale,
    )


def _with_rows(call: Call) -> Call:
    """The call with D contiguous in q, k and v, as the kernel reads them."""
    return replace(call, query=_rows(call.query), key=_rows(call.key), value=_rows(call.value))


def _forward(call: Call) -> tuple[Tensor, Tensor]:
    call = _with_rows(call)
    output = rows_like(call.query)
    logsumexp = torch.empty(call.query.shape[:3])
    arguments = _arguments(call, output, logsumexp)
    _forward_kernel(arguments)
    return output, logsumexp


def _backward(
    call: Call, grad_output: Tensor, output: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call, grad_output, output = _with_rows(call), _rows(grad_output), _rows(output)
    gradients = [rows_like(x) for x in (call.query, call.key, call.value)]
    grad_lam = torch.empty(call.query.shape[:2], dtype=torch.float64)
    arguments = _arguments(call, output, logsumexp.contiguous())
    arguments.grad_output = _view(grad_output)
    arguments.grad_query, arguments.grad_key, arguments.grad_value = map(_view, gradients)
    arguments.grad_lam = grad_lam.data_ptr()
    _backward_kernel(arguments)
    return gradients[0], gradients[1], gradients[2], grad_lam.sum(0).to(call.lam.dtype)


run = register("distance_attention_cpu", _forward, _backward)
