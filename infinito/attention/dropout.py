"""Dropout on attention weights from a counter, so that every back end draws the same mask.

The decision for query ``i``, key ``j`` of head ``h`` in sequence ``b`` depends on nothing but
``(seed, b, h, i, j)``; the same definition stands in ``csrc/logits.h``. All arithmetic is modulo
2^64 (rows) or 2^32 (keys), shifts are logical::

    head   = mix64(seed + (b H + h + 1) 0x9e3779b97f4a7c15)
    row    = mix64(head + i 0xd1b54a32d192ed03)
    x      = j 0x9e3779b9 + low32(row)
    x      = (x ^ x >> 16) 0x7feb352d
    x      = x ^ high32(row)
    x      = (x ^ x >> 15) 0x846ca68b
    x      = x ^ x >> 16
    keep   = (x >> 8) >= round(p 2^24)

``mix64`` is the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", 2014); the 32-bit multipliers are from Wellons' search for low-bias hashes
(2018). Kept weights are scaled by 1 / (1 - p).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF
_RESOLUTION = 2**24


def drop_threshold(probability: float) -> int:
    """The integer that the 24-bit hash must reach for a weight to be kept."""
    return round(probability * _RESOLUTION)


def shifted_seed(seed: Tensor, heads: int) -> Tensor:
    """The seed (1,) that decides for head h as ``seed`` does for head h + ``heads``."""
    return seed + _signed(heads * 0x9E3779B97F4A7C15 % 2**64)


def dropout_keeps(
    seed: Tensor, batch: int, heads: int, queries: range, keys: int, probability: float
) -> Tensor:
    """Which weights survive: bool (B, H, len(queries), S) on the device of ``seed``.

    Args:
        seed: (1,) int64.
        batch: B.
        heads: H, counted over query heads.
        queries: indices i of the rows wanted, counted from the first query.
        keys: S.
        probability: p in [0, 1).
    """
    device = seed.device
    head = torch.arange(1, batch * heads + 1, device=device)
    row_index = torch.arange(queries.start, queries.stop, device=device)
    head_key = _mix64(seed + head * _signed(0x9E3779B97F4A7C15))
    row = _mix64(head_key[:, None] + row_index * _signed(0xD1B54A32D192ED03))
    x = (torch.arange(keys, device=device) * 0x9E3779B9 + (row & _LOW32)[..., None]) & _LOW32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW32
    x = x ^ ((row >> 32) & _LOW32)[..., None]
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW32
    x = x ^ (x >> 16)
    keeps = (x >> 8) >= drop_threshold(probability)
    return keeps.view(batch, heads, len(queries), keys)


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """The int64 with the bits of an unsigned 64-bit constant."""
    return constant - 2**64 if constant >= 2**63 else constant
