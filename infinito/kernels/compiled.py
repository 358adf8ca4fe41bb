"""The fused operations, compiled: what a plain twin does in many passes over memory, in one.

On a processor they are C, on a graphics card Triton; what surrounds the kernels is the same.
Activations are float32, bfloat16 or, in Triton, float16; the residual stream, gains and all
arithmetic are float32. torch.compile traces each as one operator. Shapes and meanings stand in
``csrc/fused.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_float, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infinito.distributed.rows import current_share
from infinito.kernels import on_gpu
from infinito.kernels.native import Native, fields
from infinito.kernels.plain import keep_mask, keep_scale
from infinito.runtime.precision import compute_dtype

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MOST_HEAD_WIDTH = 256
_VERSION = 1
_BLOCK_ROWS = 32
_RESOLUTION = 2**24


class _Kernel:
    """A function of the library, and the structure that it takes."""

    def __init__(self, name: str, pointers: str, sizes: str, factors: str = "") -> None:
        kinds = (c_void_p, pointers), (c_int64, sizes), (c_float, factors)
        layout = [field for kind, names in kinds for field in fields(kind, names)]
        self.sizes, self.factors = sizes.split()[:-1], factors.split()  # without the threads
        self.structure = type("_Arguments", (Structure,), {"_fields_": layout})
        self.native = Native(name, self.structure, _VERSION)


_RESIDUAL = (
    "x index branch gain mask seed stream normed inverse grad_stream grad_normed grad_x "
    "grad_branch grad_gain",
    "rows width branch_dtype normed_dtype threshold first threads",
    "keep_scale epsilon",
)
_ACTIVATION = ("up gate output grad_output grad_up grad_gate", "count dtype threads")
_KERNELS = {
    "residual": _Kernel("residual", *_RESIDUAL),
    "residual backward": _Kernel("residual backward", *_RESIDUAL),
    "activation": _Kernel("activation", *_ACTIVATION),
    "activation backward": _Kernel("activation backward", *_ACTIVATION),
    "heads": _Kernel(
        "heads",
        "joined query_gain key_gain cosines sines query key value grad_joined grad_gains",
        "tokens length heads key_heads width dtype threads",
        "epsilon",
    ),
    "softmax slope": _Kernel(
        "softmax slope", "targets logits nats", "rows vocabulary dtype threads", "scale"
    ),
    "muon": _Kernel(
        "muon", "gradient buffer update parameter", "count threads", "momentum keep rate"
    ),
}
#: Why none of those in C can be used, or None.
missing: str | None = _KERNELS["residual"].native.missing


def serves(device: str) -> str | None:
    """The code that computes on a type of device, if there is any."""
    return "triton" if on_gpu.interpreted else {"cpu": "c", "cuda": "triton"}.get(device)


def _execute(
    name: str, places: list[str], inputs: list[Tensor], outputs: list[Tensor],
    sizes: list[int], factors: list[float],
) -> None:  # fmt: skip
    """Call a kernel; ``places`` are the fields of the inputs, then of the outputs."""
    kernel = _KERNELS[name]
    tensors = dict(zip(places, [*inputs, *outputs], strict=True))
    for field, tensor in tensors.items():
        assert tensor.is_contiguous(), f"{name}: {field} does not lie row by row"
    fields = [*kernel.sizes, *kernel.factors]
    numbers = dict(zip(fields, [*sizes, *factors], strict=True))
    if serves(tensor.device.type) == "triton":
        on_gpu.execute(name, {**tensors, **numbers, "block_rows": _BLOCK_ROWS})
        return
    addresses = {field: tensor.data_ptr() for field, tensor in tensors.items()}
    kernel.native(kernel.structure(threads=torch.get_num_threads(), **addresses, **numbers))


_operator = torch.library.custom_op(
    "infinito::fused",
    _execute,
    mutates_args={"outputs"},
    schema="(str name, str[] places, Tensor[] inputs, Tensor(a!)[] outputs, int[] sizes, "
    "float[] factors) -> ()",
)
_operator.register_fake(lambda *_: None)


def _call(
    name: str, sizes: list[int], factors: list[float], outputs: dict[str, Tensor | None],
    **inputs: Tensor | None,
) -> None:  # fmt: skip
    """Call a kernel on what there is of its inputs and outputs."""
    read = {field: tensor for field, tensor in inputs.items() if tensor is not None}
    written = {field: tensor for field, tensor in outputs.items() if tensor is not None}
    execute = _operator if torch.compiler.is_compiling() else _execute
    places = [*read, *written]
    execute(name, places, list(read.values()), list(written.values()), sizes, factors)


def _float32(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, device=like.device)


def _grad_gain(like: Tensor, rows: int, *shape: int) -> Tensor:
    """Room for the sums of each block of rows."""
    return _float32(like, (rows + _BLOCK_ROWS - 1) // _BLOCK_ROWS, *shape)


class _Draw(NamedTuple):
    """What decides which numbers a dropout keeps: a mask of bytes, or the seed of a counter."""

    mask: Tensor | None = None
    seed: Tensor | None = None
    threshold: int = 0
    first: int = 0  # row of the batch, where several processes share it
    scale: float = 1.0


def masked(like: Tensor, shape: torch.Size, probability: float) -> _Draw:
    """The mask that the plain twin draws, from the same numbers of torch's generator."""
    if probability == 0.0:
        return _Draw()
    if like.device.type == "cpu":
        return _Draw(keep_mask(shape, probability, like.device), scale=keep_scale(probability))
    share = current_share()
    drawn = like.new_empty(share.whole(shape) if share else shape)
    _, kept = torch.native_dropout(drawn, probability, True)
    mask = (kept[share.rows] if share else kept).contiguous().view(torch.int8)
    return _Draw(mask, scale=1.0 / (1.0 - probability))


def counted(like: Tensor, shape: torch.Size, probability: float) -> _Draw:
    """One number of torch's generator, however many are to be kept or not.

    Number i of row n is kept where ``attention/dropout.py`` keeps the weight of query n and key i
    of the first head of the first sequence; rows are counted over the whole batch, also where
    several processes share it. Nothing is stored: the backward pass counts again.
    """
    if probability == 0.0:
        return _Draw()
    seed, share = torch.randint(2**63 - 1, (1,), device=like.device), current_share()
    first = share.first * shape[1:-1].numel() if share else 0
    return _Draw(None, seed, round(probability * _RESOLUTION), first, 1.0 / (1.0 - probability))


class _Residual(torch.autograd.Function):
    """Rows (N, C): stream and normed of csrc/fused.h; what there is none of is empty."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor | None, branch: Tensor | None, gain: Tensor | None,
        epsilon: float, dtype: torch.dtype, mask: Tensor | None, seed: Tensor | None,
        threshold: int, first: int, scale: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows, width = len(x) if index is None else len(index), x.shape[1]
        stream = _float32(x, rows if branch is not None else 0, width)
        normed = x.new_empty(rows if gain is not None else 0, width, dtype=dtype)
        inverse = _float32(x, len(normed))
        branch_dtype = x.dtype if branch is None else branch.dtype
        _call(
            "residual",
            [rows, width, DTYPES[branch_dtype], DTYPES[dtype], threshold, first],
            [scale, epsilon],
            {"stream": stream, "normed": normed, "inverse": inverse},
            x=x, index=index, branch=branch, gain=gain, mask=mask, seed=seed,
        )  # fmt: skip
        read = x if branch is None else stream
        ctx.save_for_backward(read, index, gain, inverse, mask, seed)
        ctx.options = threshold, first, scale, epsilon, branch is not None, branch_dtype, dtype
        ctx.rows = len(x)
        ctx.set_materialize_grads(False)
        return stream, normed

    @staticmethod
    def backward(ctx: Any, of_stream: Tensor | None, of_normed: Tensor | None) -> Any:
        read, index, gain, inverse, mask, seed = ctx.saved_tensors
        threshold, first, scale, epsilon, branched, branch_dtype, dtype = ctx.options
        rows, width = len(read) if index is None else len(index), read.shape[1]
        of_stream = None if of_stream is None else of_stream.contiguous()
        of_normed = None if of_normed is None else of_normed.contiguous()
        of_branch = read.new_empty(rows, width, dtype=branch_dtype) if branched else None
        of_x = of_stream if of_normed is None else _float32(read, rows, width)
        of_gain = None if of_normed is None else _grad_gain(read, rows, width)
        written = {"grad_branch": of_branch, "grad_gain": of_gain}
        _call(
            "residual backward",
            [rows, width, DTYPES[branch_dtype], DTYPES[dtype], threshold, first],
            [scale, epsilon],
            written if of_normed is None else {**written, "grad_x": of_x},
            index=index, branch=of_branch, gain=gain, mask=mask, seed=seed, inverse=inverse,
            grad_stream=of_stream, grad_normed=of_normed, **{"stream" if branched else "x": read},
        )  # fmt: skip
        if index is not None:
            of_x = torch.ops.aten.embedding_dense_backward(of_x, index, ctx.rows, -1, False)
        total = None if of_gain is None else of_gain.sum(0)
        return of_x, None, of_branch, total, *[None] * 7


Draws = Callable[[Tensor, torch.Size, float], _Draw]


def residual(draws: Draws) -> Callable[..., tuple[Tensor, Tensor]]:
    """The twin of :func:`infinito.kernels.plain.residual`, by masks or by a counter."""

    def run(
        x: Tensor, branch: Tensor, probability: float, gain: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        rows, add = x.flatten(0, -2), branch.flatten(0, -2)
        draw, dtype = draws(branch, branch.shape, probability), compute_dtype(x)
        stream, normed = _Residual.apply(rows, None, add, gain, epsilon, dtype, *draw)  # type: ignore[no-untyped-call]
        stream = stream.view_as(x)
        return stream, stream if gain is None else normed.view_as(x)

    return run


def norm(draws: Draws) -> Callable[..., Tensor]:
    """The twin of :func:`infinito.kernels.plain.norm`."""

    def run(x: Tensor, probability: float, gain: Tensor, epsilon: float) -> Tensor:
        draw, dtype = draws(x, x.shape, probability), compute_dtype(x)
        rows = x.flatten(0, -2)
        _, normed = _Residual.apply(rows, None, None, gain, epsilon, dtype, *draw)  # type: ignore[no-untyped-call]
        result: Tensor = normed.view_as(x)
        return result

    return run


def embedding(draws: Draws) -> Callable[..., Tensor]:
    """The twin of :func:`infinito.kernels.plain.embedding`."""

    def run(
        table: Tensor, tokens: Tensor, probability: float, gain: Tensor, epsilon: float
    ) -> Tensor:
        shape = torch.Size((*tokens.shape, table.shape[1]))
        index, draw = tokens.flatten().contiguous(), draws(table, shape, probability)
        _, normed = _Residual.apply(table, index, None, gain, epsilon, table.dtype, *draw)  # type: ignore[no-untyped-call]
        result: Tensor = normed.view(shape)
        return result

    return run


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, up: Tensor, gate: Tensor | None) -> Tensor:
        up, gate = up.contiguous(), None if gate is None else gate.contiguous()
        output, sizes = torch.empty_like(up), [up.numel(), DTYPES[up.dtype]]
        _call("activation", sizes, [], {"output": output}, up=up, gate=gate)
        ctx.save_for_backward(up, gate)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        up, gate = ctx.saved_tensors
        of_up, of_gate = torch.empty_like(up), None if gate is None else torch.empty_like(gate)
        _call(
            "activation backward", [up.numel(), DTYPES[up.dtype]], [],
            {"grad_up": of_up, "grad_gate": of_gate},
            up=up, gate=gate, grad_output=grad_output.contiguous(),
        )  # fmt: skip
        return of_up, of_gate


def squared_relu(x: Tensor) -> Tensor:
    """The twin of :func:`infinito.kernels.plain.squared_relu`."""
    result: Tensor = _Activation.apply(x, None)  # type: ignore[no-untyped-call]
    return result


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The twin of :func:`infinito.kernels.plain.swiglu`."""
    result: Tensor = _Activation.apply(up, gate)  # type: ignore[no-untyped-call]
    return result


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, joined: Tensor, query_gain: Tensor | None, key_gain: Tensor | None,
        cosines: Tensor | None, sines: Tensor | None, heads: int, key_heads: int, epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        batch, length, width = joined.shape
        d_head = width // (heads + 2 * key_heads)
        joined = joined.contiguous()
        query, key, value = (
            joined.new_empty(batch, length, count, d_head)
            for count in (heads, key_heads, key_heads)
        )
        sizes = [batch * length, length, heads, key_heads, d_head, DTYPES[joined.dtype]]
        _call(
            "heads", sizes, [epsilon], {"query": query, "key": key, "value": value},
            joined=joined, query_gain=query_gain, key_gain=key_gain, cosines=cosines, sines=sines,
        )  # fmt: skip
        ctx.save_for_backward(joined, query_gain, key_gain, cosines, sines)
        ctx.sizes, ctx.epsilon = sizes, epsilon
        return query, key, value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        joined, query_gain, key_gain, cosines, sines = ctx.saved_tensors
        query, key, value = (gradient.contiguous() for gradient in gradients)
        of_joined, rows = torch.empty_like(joined), ctx.sizes[0]
        of_gains = _grad_gain(joined, rows, 2, query.shape[3])
        _call(
            "heads", ctx.sizes, [ctx.epsilon], {"grad_joined": of_joined, "grad_gains": of_gains},
            joined=joined, query_gain=query_gain, key_gain=key_gain, cosines=cosines, sines=sines,
            query=query, key=key, value=value,
        )  # fmt: skip
        totals = (None, None) if query_gain is None else of_gains.sum(0).unbind()
        return of_joined, *totals, *[None] * 5


def heads(
    joined: Tensor, query_gain: Tensor | None, key_gain: Tensor | None, cosines: Tensor | None,
    sines: Tensor | None, n_heads: int, key_heads: int, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The twin of :func:`infinito.kernels.plain.heads`."""
    parts = _Heads.apply(joined, query_gain, key_gain, cosines, sines, n_heads, key_heads, epsilon)  # type: ignore[no-untyped-call]
    query, key, value = (part.transpose(1, 2) for part in parts)
    return query, key, value


def softmax_slope(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The twin of :func:`infinito.kernels.plain.softmax_slope`; writes over the logits."""
    nats = _float32(logits, len(logits))
    _call(
        "softmax slope", [*logits.shape, DTYPES[logits.dtype]], [scale],
        {"logits": logits, "nats": nats}, targets=targets.contiguous(),
    )  # fmt: skip
    return nats, logits


def momentum(buffer: Tensor, gradient: Tensor, factor: float) -> Tensor:
    """The twin of :func:`infinito.kernels.plain.momentum`."""
    update = torch.empty_like(buffer, dtype=torch.bfloat16)
    _call(
        "muon", [buffer.numel()], [factor, 0.0, 0.0], {"buffer": buffer, "update": update},
        gradient=gradient.contiguous(),
    )  # fmt: skip
    return update


def move(parameter: Tensor, update: Tensor, keep: float, rate: float) -> None:
    """The twin of :func:`infinito.kernels.plain.move`."""
    _call(
        "muon", [parameter.numel()], [0.0, keep, rate], {"parameter": parameter},
        update=update.contiguous(),
    )  # fmt: skip
