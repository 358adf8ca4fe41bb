"""Distance attention in plain torch operations, with memory linear in T and S.

The fallback where no kernel of ours runs: any device, float64 included. A chunk of query rows at
a time, and the backward recomputes the weights of each chunk from the saved logsumexp.

Legend: B batch, H query heads, J key/value heads, R rows of a chunk, E keys that it can see,
T queries, S keys, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.attention.call import Call
from infinito.attention.dropout import dropout_keeps
from infinito.attention.kinds import L2_EPSILON, SMALLEST_NORM
from infinito.attention.operator import register, rows_like

#: Weights (B H R E) that a chunk may hold at once.
_CHUNK_WEIGHTS = 2**21
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class _Chunk:
    rows: range
    query: Tensor  # (B, H, R, D), of unit length for cosine
    key: Tensor  # (B, J, E, D), likewise
    value: Tensor  # (B, J, E, D)


def _wide(call: Call) -> torch.dtype:
    return torch.promote_types(call.query.dtype, torch.float32)


def _chunks(call: Call, step: int | None = None) -> Iterator[_Chunk]:
    batch, heads, queries, _ = call.query.shape
    keys, wide = call.key.shape[2], _wide(call)
    step = step or max(1, _CHUNK_WEIGHTS // (batch * heads * keys))
    key, value = _directions(call, call.key.to(wide)), call.value.to(wide)
    for start in range(0, queries, step):
        rows = range(start, min(start + step, queries))
        end = keys - queries + rows.stop if call.causal else keys
        query = _directions(call, call.query[:, :, start : rows.stop].to(wide))
        yield _Chunk(rows, query, key[:, :, :end], value[:, :, :end])


def _directions(call: Call, x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=SMALLEST_NORM) if call.kind == "cosine" else x


def _fold(x: Tensor, key_heads: int) -> Tensor:
    """(B, H, R, n) to (B, J, H/J R, n): rows of all query heads that share a key head."""
    return x.reshape(x.shape[0], key_heads, -1, x.shape[-1])


def _distance(call: Call, chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """The distance (B, H, R, E) and what torch.cdist gave for it (the same for products)."""
    heads = call.query.shape[1]
    query = _fold(chunk.query, chunk.key.shape[1])
    if call.kind in ("dot", "cosine"):
        product = query @ chunk.key.mT
        raw = distance = 1 - product if call.kind == "cosine" else -product
    elif call.kind == "l1":
        raw = distance = torch.cdist(query, chunk.key, 1.0)
    else:
        # The matrix form of torch.cdist loses all digits of near points.
        raw = torch.cdist(query, chunk.key, 2.0, "donot_use_mm_for_euclid_dist")
        square = raw.square()
        distance = square if call.kind == "l2sq" else (square + L2_EPSILON).sqrt()
    shape = (query.shape[0], heads, len(chunk.rows), chunk.key.shape[2])
    return distance.view(shape), raw.view(shape)


def _factor(call: Call) -> Tensor:
    return (call.lam.to(_wide(call)) * call.scale)[:, None, None]


def _logits(call: Call, chunk: _Chunk, distance: Tensor) -> Tensor:
    offset = call.key.shape[2] - call.query.shape[2]
    device = distance.device
    rows = torch.arange(chunk.rows.start, chunk.rows.stop, device=device)[:, None] + offset
    ahead = torch.arange(distance.shape[-1], device=device) - rows
    logits = -_factor(call) * distance
    if call.slopes is not None:
        logits = logits - call.slopes.to(distance.dtype)[:, None, None] * ahead.abs()
    return logits.masked_fill(ahead > 0, float("-inf")) if call.causal else logits


def _dropout(call: Call, chunk: _Chunk, keys: int) -> Tensor | None:
    """Factors on the weights (B, H, R, E): 0 or 1 / (1 - p)."""
    if call.dropout_p == 0:
        return None
    batch, heads = call.query.shape[:2]
    keeps = dropout_keeps(call.seed, batch, heads, chunk.rows, keys, call.dropout_p)
    return keeps.to(_wide(call)) / (1 - call.dropout_p)


def weight_blocks(call: Call, step: int | None = None) -> Iterator[tuple[range, Tensor]]:
    """Blocks of query rows with their weights (B, H, R, E), before dropout; not differentiable.

    ``step`` rows at a time, or as many as the budget of a chunk allows. E is the number of keys
    that the last row of the block can see.
    """
    with torch.no_grad():
        for chunk in _chunks(call, step):
            yield chunk.rows, torch.softmax(_logits(call, chunk, _distance(call, chunk)[0]), -1)


def _forward(call: Call) -> tuple[Tensor, Tensor]:
    output = rows_like(call.query)
    logsumexp = call.query.new_empty(call.query.shape[:3], dtype=_wide(call))
    for chunk in _chunks(call):
        rows = slice(chunk.rows.start, chunk.rows.stop)
        logits = _logits(call, chunk, _distance(call, chunk)[0])
        logsumexp[:, :, rows] = torch.logsumexp(logits, -1) * _LOG2_E
        weights = torch.softmax(logits, -1)
        factors = _dropout(call, chunk, weights.shape[-1])
        if factors is not None:
            weights = weights * factors
        mixed = _fold(weights, chunk.value.shape[1]) @ chunk.value
        output[:, :, rows] = mixed.view(chunk.query.shape).to(output.dtype)
    return output, logsumexp


def _backward(
    call: Call, grad_output: Tensor, output: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = _wide(call)
    grad_query = rows_like(call.query)
    grad_key, grad_value = (torch.zeros_like(x, dtype=wide) for x in (call.key, call.value))
    grad_lam = torch.zeros_like(call.lam)
    for chunk in _chunks(call):
        rows = slice(chunk.rows.start, chunk.rows.stop)
        part = grad_output[:, :, rows].to(wide)
        delta = (part * output[:, :, rows].to(wide)).sum(-1, keepdim=True)
        distance, raw = _distance(call, chunk)
        weights = torch.exp2(
            _logits(call, chunk, distance) * _LOG2_E - logsumexp[:, :, rows, None].to(wide)
        )
        grad_weights = (_fold(part, chunk.value.shape[1]) @ chunk.value.mT).view_as(weights)
        factors = _dropout(call, chunk, weights.shape[-1])
        dropped = weights
        if factors is not None:
            grad_weights, dropped = grad_weights * factors, weights * factors
        grad_logits = weights * (grad_weights - delta)
        # Rows of grad_logits sum to zero: without the common part of a row, less is rounded away.
        apart = distance - distance.amin(-1, keepdim=True)
        grad_lam -= (grad_logits * apart).sum((0, 2, 3)).to(grad_lam.dtype) * call.scale
        end = chunk.key.shape[2]
        grad_value[:, :, :end] += _fold(dropped, chunk.value.shape[1]).mT @ _fold(
            part, chunk.value.shape[1]
        )
        to_query, to_key = _distance_gradient(call, chunk, -_factor(call) * grad_logits, raw)
        grad_query[:, :, rows] = _through_norm(call, call.query[:, :, rows], to_query)
        grad_key[:, :, :end] += to_key
    grad_key = _through_norm(call, call.key, grad_key)
    copies = [rows_like(call.key).copy_(grad_key), rows_like(call.value).copy_(grad_value)]
    return grad_query, copies[0], copies[1], grad_lam


def _distance_gradient(
    call: Call, chunk: _Chunk, grad: Tensor, raw: Tensor
) -> tuple[Tensor, Tensor]:
    """From d(distance) (B, H, R, E) to d(query) (B, H, R, D) and d(key) (B, J, E, D)."""
    key_heads = chunk.key.shape[1]
    query = _fold(chunk.query, key_heads)
    if call.kind in ("dot", "cosine"):
        grad = _fold(grad, key_heads)
        return -(grad @ chunk.key).view_as(chunk.query), -(grad.mT @ query)
    if call.kind == "l2":
        grad = grad * raw / (raw.square() + L2_EPSILON).sqrt()
    elif call.kind == "l2sq":
        grad = 2 * grad * raw
    order = 1.0 if call.kind == "l1" else 2.0
    grad, raw = _fold(grad, key_heads).contiguous(), _fold(raw, key_heads).contiguous()
    query, key = query.contiguous(), chunk.key.contiguous()
    step = torch.ops.aten._cdist_backward  # 0 where points coincide, as sign(0) = 0 asks
    to_query: Tensor = step(grad, query, key, order, raw)
    to_key: Tensor = step(grad.mT.contiguous(), key, query, order, raw.mT.contiguous())
    return to_query.view_as(chunk.query), to_key


def _through_norm(call: Call, x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of ``_directions`` at x; the identity unless the kind is cosine."""
    if call.kind != "cosine":
        return grad
    x = x.to(grad.dtype)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    along = (grad * x).sum(-1, keepdim=True) * x / norm.square().clamp_min(SMALLEST_NORM**2)
    long = norm > SMALLEST_NORM
    through: Tensor = (grad - torch.where(long, along, 0)) / norm.clamp_min(SMALLEST_NORM)
    return through


run = register("distance_attention_chunked", _forward, _backward)
