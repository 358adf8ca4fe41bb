"""Torch's fused dot-product attention: of plain products, of squared L2 and of cosine.

Squared L2: -w |q-k|^2 = 2 w q.k - w |k|^2 - w |q|^2, and the last term cancels in the softmax, so
q' = [2 w q, -w] and k' = [k, |k|^2] turn it into a product; the head width is padded to a
multiple of 8 for the kernel. A common offset of keys and queries is taken off first, which keeps
|k|^2 small. Cosine: q and k of unit length, w folded into
q. lam gets its gradient by ordinary differentiation of these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.attention.bias import attention_bias
from infinito.attention.call import Call
from infinito.attention.centre import common_offset
from infinito.attention.kinds import SMALLEST_NORM

_WIDTH_MULTIPLE = 8


def run(call: Call) -> Tensor:
    """(B, H, T, D) for kinds dot, l2sq and cosine; T must be S or 1 if causal and not plain."""
    if call.plain:
        return _plain(call)
    weight = (call.lam * call.scale)[:, None, None]
    if call.kind == "l2sq":
        return _squared(call, weight)
    query, key = call.query, call.key
    if call.kind == "cosine":
        query, key = _unit(query), _unit(key)
    return _fused(call, (query * weight).to(key.dtype), key, call.value)


def _plain(call: Call) -> Tensor:
    """Torch's function as it is, its dropout included; a mask is formed only where it must be."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    formed = call.slopes is not None or (call.causal and queries not in (1, keys))
    return F.scaled_dot_product_attention(
        call.query, call.key, call.value, dropout_p=call.dropout_p,
        attn_mask=attention_bias(call, torch.float32).to(call.query.dtype) if formed else None,
        is_causal=not formed and call.causal and queries > 1, enable_gqa=_groups(call) > 1,
    )  # fmt: skip


def _unit(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.normalize(x.to(wide), dim=-1, eps=SMALLEST_NORM).to(x.dtype)


def _squared(call: Call, weight: Tensor) -> Tensor:
    width, dtype, groups = call.query.shape[-1], call.query.dtype, _groups(call)
    pad = -(width + 2) % _WIDTH_MULTIPLE
    centre = common_offset(call.query, call.key)
    key = call.key - centre
    norm = key.to(weight.dtype).square().sum(-1, keepdim=True)
    # |k|^2 in two columns, rounded value and remainder: bfloat16 alone would lose w |k|^2.
    high = norm.to(dtype)
    key = torch.cat((key, high, (norm - high).to(dtype), key.new_zeros(*key.shape[:3], pad)), -1)
    query = 2 * weight * (call.query - centre.repeat_interleave(groups, 1))
    bias = (-weight).expand(*query.shape[:3], 2)
    query = torch.cat((query, bias, query.new_zeros(*query.shape[:3], pad)), -1).to(dtype)
    return _fused(call, query, key, F.pad(call.value, (0, pad + 2)))[..., :width]


def _groups(call: Call) -> int:
    return call.query.shape[1] // call.key.shape[1]


def _fused(call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    causal = call.causal and query.shape[2] > 1
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=1.0, enable_gqa=_groups(call) > 1
    )
