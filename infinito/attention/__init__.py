"""Attention: scaled dot product, and softmax(-lambda_h distance(q, k)) v for four distances."""

from __future__ import annotations

from infinito.attention.dispatch import ATTENTION, Request, distance_attention
from infinito.attention.kinds import KINDS, Kind, default_scale

__all__ = [
    "ATTENTION",
    "KINDS",
    "Kind",
    "Request",
    "default_scale",
    "distance_attention",
]
