"""The additive mask of an attention call."""

from __future__ import annotations

import torch
from torch import Tensor

from infinito.attention.call import Call


def attention_bias(call: Call, dtype: torch.dtype) -> Tensor:
    """ALiBi, and -inf where a query may not look: (T, S), or (H, T, S) with ALiBi.

    Query i stands at position S - T + i, so the last query sees every key.
    """
    queries, keys = call.query.shape[2], call.key.shape[2]
    device = call.query.device
    position = torch.arange(keys - queries, keys, device=device)[:, None]
    distance = position - torch.arange(keys, device=device)
    bias = torch.zeros(queries, keys, dtype=dtype, device=device)
    if call.slopes is not None:
        bias = bias - call.slopes.to(dtype)[:, None, None] * distance.abs()
    return bias.masked_fill(distance < 0, float("-inf")) if call.causal else bias
