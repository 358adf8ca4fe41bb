"""The additive mask of causal attention, with ALiBi where asked for."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_bias(
    length: int, span: int, device: torch.device, alibi_slopes: Tensor | None = None
) -> Tensor:
    """0 where a query may look, -inf where not: (T, S), or (H, T, S) with ALiBi, float32.

    Query i stands at position span - length + i, so the last query sees every key.
    """
    query_position = torch.arange(span - length, span, device=device)[:, None]
    distance = query_position - torch.arange(span, device=device)[None, :]
    visible = torch.zeros(length, span, device=device).masked_fill(distance < 0, float("-inf"))
    if alibi_slopes is None:
        return visible
    return visible - alibi_slopes.to(device)[:, None, None] * distance
