"""Multi-head self-attention: projections, head normalisation, positions, and one attention kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infinito.attention.dot import dot_attention
from infinito.config.schema import ModelConfig
from infinito.model.cache import KeyValueCache
from infinito.model.layers import RMSNorm, keep_mask
from infinito.model.position import RotaryTable, alibi_slopes, rotate


class SelfAttention(nn.Module):
    """Causal attention over the tokens read so far (Vaswani et al. 2017)."""

    def __init__(self, config: ModelConfig, layer: int, rotary: RotaryTable | None) -> None:
        super().__init__()
        width, self.d_head = config.d_model, config.d_head
        kv_width = config.resolved_kv_heads * config.d_head
        self.layer = layer
        self.rotary = rotary
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_width, bias=False)
        self.value = nn.Linear(width, kv_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.query_norm = RMSNorm(self.d_head) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(self.d_head) if config.qk_norm else nn.Identity()
        dropout = config.attention_dropout
        self.dropout = config.dropout if dropout is None else dropout
        self.slopes = alibi_slopes(config.n_heads) if config.position == "alibi" else None

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with a cache, x continues the tokens that it holds."""
        query = self.query_norm(self._heads(self.query(x)))
        key = self.key_norm(self._heads(self.key(x)))
        value = self._heads(self.value(x))
        if self.rotary is not None:
            start = cache.length if cache is not None else 0
            cos, sin = self.rotary.rows(start, start + x.shape[1], x.device)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        mixed = dot_attention(
            query, key, value, alibi_slopes=self.slopes, weight_mask=self._weight_mask(query, key)
        )
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * D) -> (B, heads, T, D)."""
        heads: Tensor = x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        return heads

    def _weight_mask(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Scaled dropout factors (B, H, T, S) of the attention weights, or None."""
        if not self.training or self.dropout == 0.0:
            return None
        shape = torch.Size((*query.shape[:3], key.shape[2]))
        kept = keep_mask(shape, self.dropout, query.device)
        return kept.to(query.dtype).div_(1.0 - self.dropout)
