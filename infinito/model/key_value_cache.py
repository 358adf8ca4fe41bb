"""Keys and values of the tokens already read, so that decoding costs one position a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from infinito.model.transformer import Transformer


class KeyValueCache:
    """Preallocated (B, K, capacity, D) keys and values of every block."""

    def __init__(self, model: Transformer, batch: int, capacity: int) -> None:
        config = model.config
        weight = model.embedding.weight
        shape = (config.n_layers, batch, config.resolved_kv_heads, capacity, config.d_head)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) behind the tokens held; return all keys and values of the block."""
        end = self.length + key.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} tokens asked to hold {end}"
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def reset(self) -> None:
        """Forget every token, keep the memory."""
        self.length = 0
