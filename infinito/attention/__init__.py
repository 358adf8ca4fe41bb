"""Attention: scaled dot product, and softmax(-lambda_h distance(q, k)) v for four distances."""

from __future__ import annotations

from infinito.attention.dispatch import (
    Request,
    Route,
    available_backends,
    choose_backend,
    distance_attention,
)
from infinito.attention.kinds import KINDS, Kind, default_scale

__all__ = [
    "KINDS",
    "Kind",
    "Request",
    "Route",
    "available_backends",
    "choose_backend",
    "default_scale",
    "distance_attention",
]
