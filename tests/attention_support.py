"""What the attention tests share: inputs, and every back end against the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from infinito.attention import cpu as cpu_kernel
from infinito.attention import distance_attention

reference = partial(distance_attention, backend="reference")
DISTANCES = ("l1", "l2", "l2sq", "cosine")
ALL_KINDS = ("dot", *DISTANCES)
needs_kernel = pytest.mark.skipif(cpu_kernel.missing is not None, reason=str(cpu_kernel.missing))


@dataclass(frozen=True)
class Inputs:
    """q (B, H, T, D), k and v (B, J, S, D), lam (H,), grad like q."""

    q: Tensor
    k: Tensor
    v: Tensor
    lam: Tensor
    grad: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return replace(self, **{x: getattr(self, x).to(dtype) for x in ("q", "k", "v", "grad")})


def make_inputs(
    batch: int = 2,
    heads: int = 2,
    key_heads: int | None = None,
    queries: int = 20,
    keys: int | None = None,
    width: int = 16,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    key_shape = (batch, key_heads or heads, keys or queries, width)
    q, k, v = normal(batch, heads, queries, width), normal(*key_shape), normal(*key_shape)
    lam = torch.rand(heads, generator=generator) + 0.5
    return Inputs(q, k, v, lam, normal(batch, heads, queries, width))


def outputs(x: Inputs, kind: str, backend: str, **options: Any) -> list[Tensor]:
    """Output and the gradients of q, k, v and lam; backend ``float64`` is the reference."""
    exact = backend == "float64"
    leaves = [
        (t.double() if exact else t.clone()).detach().requires_grad_()
        for t in (x.q, x.k, x.v, x.lam)
    ]
    q, k, v, lam = leaves
    if exact:
        out = reference(q, k, v, kind, lam, **options)
    else:
        out = distance_attention(q, k, v, kind, lam, backend=backend, **options)
    out.backward(x.grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_matches_reference(
    x: Inputs, kind: str, backend: str, tolerance: float, **options: Any
) -> None:
    """Largest error of each of the five results, relative to its largest entry.

    That counts as 0.1 at least; for dlam, a sum of B T terms whose signs can cancel, as 1.
    """
    expected = outputs(x, kind, "float64", **options)
    found = outputs(x, kind, backend, **options)
    for name, right, own in zip(("out", "dq", "dk", "dv", "dlam"), expected, found, strict=True):
        assert own.isfinite().all(), name
        error = (own.double() - right).abs().max()
        error /= right.abs().max().clamp_min(1.0 if name == "dlam" else 0.1)
        assert error < tolerance, f"{kind} {backend} {name}: {error:.2e}"
