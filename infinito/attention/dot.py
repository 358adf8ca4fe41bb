"""Scaled dot-product attention: torch's fused kernel, and one explicit road for what it lacks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.attention.bias import attention_bias


def dot_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    alibi_slopes: Tensor | None = None,
    weight_mask: Tensor | None = None,
) -> Tensor:
    """Causal softmax(q k^T / sqrt(D)) v, the last query aligned with the last key.

    Args:
        query: (B, H, T, D).
        key: (B, K, S, D), S >= T; K divides H (grouped-query heads).
        value: (B, K, S, D).
        alibi_slopes: (H,) linear penalty a position of distance, or None.
        weight_mask: (B, H, T, S) factors on the weights (dropout, already scaled), or None.

    Returns:
        (B, H, T, D) in query's dtype.
    """
    length, span = query.shape[2], key.shape[2]
    grouped = key.shape[1] != query.shape[1]
    if weight_mask is not None:
        return _explicit(query, key, value, alibi_slopes, weight_mask)
    if alibi_slopes is None and (length == 1 or length == span):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=length > 1, enable_gqa=grouped
        )
    bias = attention_bias(length, span, query.device, alibi_slopes).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=grouped)


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, alibi_slopes: Tensor | None, weight_mask: Tensor
) -> Tensor:
    """The same with the weights in the open, because the fused CPU kernel has no dropout."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    bias = attention_bias(query.shape[2], key.shape[2], query.device, alibi_slopes)
    weights = torch.softmax(scores + bias.to(scores.dtype), dim=-1).to(value.dtype)
    return (weights * weight_mask.to(weights.dtype)) @ value
