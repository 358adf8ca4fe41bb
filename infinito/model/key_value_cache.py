"""Keys and values of the tokens already read, so that decoding costs one position a token."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from infinito.config.model_config import ModelConfig


class KeyValueCache:
    """Preallocated (B, K, capacity, D) keys and values of every block."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> None:
        """Empty, in the dtype of ``like`` and on its device."""
        shape = (config.n_layers, batch, config.resolved_kv_heads, capacity, config.d_head)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) behind the tokens held; return all keys and values of the block.

        In the dtype of those given: under autocast, which the cache knows nothing of, another one.
        """
        end = self.length + key.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} tokens asked to hold {end}"
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        held = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        return held[0].to(key.dtype), held[1].to(value.dtype)

    def reset(self) -> None:
        """Forget every token, keep the memory."""
        self.length = 0

    def widened(self, batch: int) -> KeyValueCache:
        """A copy of a cache of one text for ``batch`` texts that start with it."""
        wide = copy(self)
        wide.keys, wide.values = (x.repeat(1, batch, 1, 1, 1) for x in (self.keys, self.values))
        return wide
