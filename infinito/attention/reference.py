"""The plain twin of every fast path: full matrices, ordinary autograd, exact in float64.

Legend: B batch, H query heads, J key/value heads (J divides H), T queries, S keys, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.attention.bias import attention_bias
from infinito.attention.call import Call
from infinito.attention.dropout import dropout_keeps
from infinito.attention.kinds import L2_EPSILON, SMALLEST_NORM, Kind


def run(call: Call) -> Tensor:
    """The reference on checked arguments: memory is O(B H T S D), meant for tests.

    Runs on any device, in float32 or float64 (narrower types are rounded at the end).
    """
    weights = full_weights(call)
    if call.dropout_p > 0:
        batch, heads, queries, keys = weights.shape
        keeps = dropout_keeps(call.seed, batch, heads, range(queries), keys, call.dropout_p)
        weights = weights * keeps.to(weights.device) / (1 - call.dropout_p)
    return (weights @ _of_query_heads(call, call.value)).to(call.query.dtype)


def full_weights(call: Call) -> Tensor:
    """The weights (B, H, T, S) before dropout, float32 or wider."""
    key = _of_query_heads(call, call.key)
    query = call.query.to(key.dtype)
    factor = (call.lam.to(key.dtype) * call.scale)[:, None, None]
    logits = -factor * _distance(query, key, call.kind) + attention_bias(call, key.dtype)
    return torch.softmax(logits, dim=-1)


def _of_query_heads(call: Call, x: Tensor) -> Tensor:
    """(B, J, S, D) to (B, H, S, D): each key/value head repeated for the query heads it serves."""
    wide = torch.promote_types(call.query.dtype, torch.float32)
    return x.to(wide).repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=1)


def _distance(query: Tensor, key: Tensor, kind: Kind) -> Tensor:
    """(B, H, T, D) and (B, H, S, D) to (B, H, T, S); for ``dot`` the negative product."""
    if kind == "dot":
        return -(query @ key.mT)
    if kind == "cosine":
        query, key = (F.normalize(x, dim=-1, eps=SMALLEST_NORM) for x in (query, key))
        return 1 - query @ key.mT
    difference = query[:, :, :, None] - key[:, :, None]
    if kind == "l1":
        return difference.abs().sum(-1)
    square = difference.square().sum(-1)
    return square if kind == "l2sq" else (square + L2_EPSILON).sqrt()
