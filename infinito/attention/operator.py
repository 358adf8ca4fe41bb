"""Registers a pair of functions (forward, backward) as one differentiable torch operator.

torch.compile sees an opaque operator with known shapes and does not break its graph on it. All
back ends of our own share one schema, and so one registration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from infinito.attention.call import Call

_OPTIONS = "Tensor? slopes, Tensor seed, str kind, bool causal, float dropout_p, float scale"
_FORWARD = f"(Tensor query, Tensor key, Tensor value, Tensor lam, {_OPTIONS}) -> (Tensor, Tensor)"
_BACKWARD = (
    "(Tensor grad_output, Tensor output, Tensor logsumexp, Tensor query, Tensor key, "
    f"Tensor value, Tensor lam, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)

#: call -> (output (B, H, T, D), logsumexp (B, H, T) in base 2)
Forward = Callable[[Call], tuple[Tensor, Tensor]]
#: (call, grad_output, output, logsumexp) -> gradients of query, key, value and lam (H,)
Backward = Callable[[Call, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def rows_like(x: Tensor) -> Tensor:
    """An empty tensor in the memory order of x, its last dimension contiguous."""
    return (
        torch.empty_like(x)
        if x.stride(-1) == 1
        else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    )


def _logsumexp_like(query: Tensor) -> Tensor:
    return query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    slopes: Tensor | None,
    seed: Tensor,
    kind: Any,
    causal: bool,
    dropout_p: float,
    scale: float,
) -> Call:
    return Call(query, key, value, kind, lam, causal, dropout_p, seed, scale, slopes)


def register(name: str, forward: Forward, backward: Backward) -> Callable[[Call], Tensor]:
    """Make ``infinito::name`` and ``infinito::name_backward``; returns call -> output."""

    def forward_op(*arguments: Any) -> tuple[Tensor, Tensor]:
        return forward(_call(*arguments))

    def backward_op(
        grad_output: Tensor, output: Tensor, logsumexp: Tensor, *arguments: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return backward(_call(*arguments), grad_output, output, logsumexp)

    forward_operator = torch.library.custom_op(
        f"infinito::{name}", forward_op, mutates_args=(), schema=_FORWARD
    )
    backward_operator = torch.library.custom_op(
        f"infinito::{name}_backward", backward_op, mutates_args=(), schema=_BACKWARD
    )
    forward_operator.register_fake(_fake_forward)
    backward_operator.register_fake(_fake_backward)

    def differentiate(ctx: Any, grad_output: Tensor, _: Tensor | None) -> tuple[Any, ...]:
        query, key, value, lam, slopes, seed, output, logsumexp = ctx.saved_tensors
        gradients = backward_operator(
            grad_output, output, logsumexp, query, key, value, lam, slopes, seed, *ctx.options
        )
        return (*gradients, None, None, None, None, None, None)

    forward_operator.register_autograd(differentiate, setup_context=_save)

    def run(call: Call) -> Tensor:
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The operator's wrapper imports all of torch.compile: 1.5 s before the first token.
            return forward(call)[0]
        output: Tensor = forward_operator(*_flat(call))[0]
        return output

    return run


def _flat(call: Call) -> tuple[Any, ...]:
    """The arguments of the operator; ``_call`` undoes it."""
    tensors = (call.query, call.key, call.value, call.lam, call.slopes, call.seed)
    return (*tensors, call.kind, call.causal, call.dropout_p, call.scale)


def _fake_forward(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return rows_like(query), _logsumexp_like(query)


def _fake_backward(
    grad_output: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows_like(query), rows_like(key), rows_like(value), torch.empty_like(lam)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, lam, slopes, seed, *options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, lam, slopes, seed, *output)
    ctx.options = options
