"""Plain dot-product attention on accelerators: torch's fused kernel, its own dropout included."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from infinito.attention.bias import attention_bias


def fused_dot_attention(
    query: Tensor, key: Tensor, value: Tensor, alibi_slopes: Tensor | None, dropout: float
) -> Tensor:
    """Causal softmax(q k^T / sqrt(D)) v, the last query aligned with the last key.

    Args:
        query: (B, H, T, D).
        key: (B, K, S, D), S >= T; K divides H (grouped-query heads).
        value: (B, K, S, D).
        alibi_slopes: (H,) linear penalty a position of distance, or None.
        dropout: probability that a weight is zeroed, from torch's generator.

    Returns:
        (B, H, T, D) in query's dtype.
    """
    length, span = query.shape[2], key.shape[2]
    grouped = key.shape[1] != query.shape[1]
    if alibi_slopes is None and length in (1, span):
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=length > 1, enable_gqa=grouped
        )
    bias = attention_bias(length, span, query.device, alibi_slopes).to(query.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, enable_gqa=grouped
    )
