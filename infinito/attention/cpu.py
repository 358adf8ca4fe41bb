"""The compiled CPU kernel: ``csrc`` built at install time, one torch operator in two directions.

The threads are those of torch's own OpenMP pool: the library is not linked to OpenMP, it is
given the address of ``GOMP_parallel`` as torch's library resolves it. Where torch has none, the
library starts POSIX threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from infinito.attention import native
from infinito.attention.call import Call
from infinito.attention.dropout import drop_threshold
from infinito.attention.kinds import KINDS
from infinito.attention.operator import register, rows_like
from infinito.errors import ResourceError

MAX_WIDTH = 256
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_VERSION = 1
_LIBRARY = Path(__file__).parent / "libattention.so"


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 3)]


class _Arguments(ctypes.Structure):
    """Mirror of ``Arguments`` in csrc/arguments.h."""

    _fields_ = [
        *((name, _View) for name in ("query", "key", "value", "output")),
        *((name, _View) for name in ("grad_output", "grad_query", "grad_key", "grad_value")),
        *((name, ctypes.c_void_p) for name in ("logsumexp", "lam", "grad_lam", "slopes")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "key_heads")),
        *((name, ctypes.c_int64) for name in ("queries", "keys", "width")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("kind", "dtype", "causal", "threads", "isa")),
        ("drop_threshold", ctypes.c_uint32),
        ("keep_scale", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]


def _gomp_address() -> int | None:
    """Where torch's own GOMP_parallel is, searched through torch's library and what it loads."""
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            symbol = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue  # a torch with another OpenMP: the library then starts POSIX threads
        return ctypes.cast(symbol, ctypes.c_void_p).value
    return None


def _load() -> ctypes.CDLL | str:
    """The library with its threads, or the reason why there is none."""
    library = native.load(_LIBRARY, "attention", _Arguments, _VERSION)
    if not isinstance(library, str):
        library.infinito_attention_set_gomp(ctypes.c_void_p(_gomp_address()))
    return library


_loaded = _load()
#: Why the compiled kernel cannot be used, or None: a plain value that torch.compile can guard.
missing: str | None = _loaded if isinstance(_loaded, str) else None


def _library() -> ctypes.CDLL:
    if isinstance(_loaded, str):
        raise ResourceError(_loaded, "install again with a C compiler, or use backend 'chunked'")
    return _loaded


def describe() -> str:
    """The instruction set and the threads in use, for reasons and ``doctor``."""
    isa = native.ISAS[_library().infinito_attention_best_isa()]
    threads = "OpenMP of torch" if _gomp_address() else "POSIX threads"
    return f"compiled kernel, {isa}, {threads}"


_forced_isa = native.AUTOMATIC_ISA


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Use one instruction set within the block (tests). Not for use by several threads."""
    global _forced_isa
    _forced_isa = native.ISAS.index(name)
    try:
        yield
    finally:
        _forced_isa = native.AUTOMATIC_ISA


def available_isas() -> tuple[str, ...]:
    """Instruction sets of the library that this processor has, the slowest first."""
    return native.ISAS[: _library().infinito_attention_best_isa() + 1]


def run_peak_loop(gradient: bool, rounds: int) -> int:
    """Run the inner loop of a score (or of its gradient) in registers, on this thread.

    Returns the number of elements (query, key, d) handled; the benchmark times it.
    """
    peak = _library().infinito_attention_peak
    peak.restype, peak.argtypes = ctypes.c_int64, [ctypes.c_int, ctypes.c_int64]
    elements: int = peak(gradient, rounds)
    return elements


def _view(x: Tensor) -> _View:
    return _View(x.data_ptr(), (ctypes.c_int64 * 3)(*x.stride()[:3]))


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
        isa=_forced_isa,
        drop_threshold=drop_threshold(call.dropout_p),
        keep_scale=1 / (1 - call.dropout_p),
        scale=call.scale,
    )


def _with_rows(call: Call) -> Call:
    """The call with D contiguous in q, k and v, as the kernel reads them."""
    return replace(call, query=_rows(call.query), key=_rows(call.key), value=_rows(call.value))


def _check(status: int) -> None:
    if status == 1:
        raise ResourceError("no memory for the attention kernel", "use a smaller batch")
    assert status == 0, f"attention kernel returned {status}"


def _forward(call: Call) -> tuple[Tensor, Tensor]:
    call = _with_rows(call)
    output = rows_like(call.query)
    logsumexp = torch.empty(call.query.shape[:3])
    arguments = _arguments(call, output, logsumexp)
    _check(_library().infinito_attention_forward(ctypes.byref(arguments)))
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
    _check(_library().infinito_attention_backward(ctypes.byref(arguments)))
    return gradients[0], gradients[1], gradients[2], grad_lam.sum(0).to(call.lam.dtype)


run = register("distance_attention_cpu", _forward, _backward)
