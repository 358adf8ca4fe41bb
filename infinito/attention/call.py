"""The checked arguments of one attention call, as every back end receives them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infinito.attention.dropout import shifted_seed
from infinito.attention.kinds import KINDS, Kind, default_scale
from infinito.distributed.rows import current_share
from infinito.errors import ConfigError

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Call:
    """Shapes: B batch, H query heads, J key/value heads, T queries, S keys, D head width."""

    query: Tensor  # (B, H, T, D)
    key: Tensor  # (B, J, S, D)
    value: Tensor  # (B, J, S, D)
    kind: Kind
    lam: Tensor  # (H,) float32, or float64 for float64 inputs
    causal: bool
    dropout_p: float
    seed: Tensor  # (1,) int64; read only with dropout
    scale: float  # c of the definition
    slopes: Tensor | None  # (H,) float32
    plain: bool = False  # as ``Request.plain``: torch's own function serves it, seed and lam unread


def prepare_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kind: Kind,
    lam: float | Tensor,
    causal: bool,
    dropout_p: float,
    dropout_seed: int | Tensor | None,
    scale: float | None,
    alibi_slopes: Tensor | None,
    plain: bool = False,
) -> Call:
    """Resolve the defaults of checked arguments of ``distance_attention``.

    Torch's function, which serves a ``plain`` call, reads neither lambda nor seed.
    """
    (_, heads, _, width), device = query.shape, query.device
    scale = default_scale(kind, width) if scale is None else scale
    if alibi_slopes is not None:
        alibi_slopes = alibi_slopes.to(device, torch.float32)
        alibi_slopes = _per_head("alibi_slopes", alibi_slopes, heads)
    if plain:
        lam = seed = query.new_empty(0)
    else:
        wide = torch.promote_types(query.dtype, torch.float32)
        lam = _per_head("lam", torch.as_tensor(lam, dtype=wide, device=device), heads)
        seed = _seed(dropout_p, dropout_seed, heads, device)
    return Call(
        query, key, value, kind, lam, causal, dropout_p, seed, scale, alibi_slopes, plain
    )  # fmt: skip


def _per_head(name: str, values: Tensor, heads: int) -> Tensor:
    if values.dim() > 1 or values.numel() not in (1, heads):
        raise ConfigError(
            f"{name} has shape {tuple(values.shape)}, and there are {heads} query heads",
            "give one number, or one for each query head",
        )
    return values.expand(heads).contiguous()


def _seed(dropout_p: float, seed: int | Tensor | None, heads: int, device: torch.device) -> Tensor:
    if isinstance(seed, Tensor):
        return seed.reshape(1).to(device, torch.int64)
    if dropout_p > 0 and seed is None:
        drawn, share = torch.randint(2**63 - 1, (1,), device=device), current_share()
        return drawn if share is None else shifted_seed(drawn, share.first * heads)
    return torch.full((1,), seed or 0, dtype=torch.int64, device=device)


def check_arguments(query: Tensor, key: Tensor, value: Tensor, kind: str, dropout_p: float) -> None:
    """ConfigError for a kind, shape, dtype or probability that the definition does not cover."""
    if kind not in KINDS:
        raise ConfigError(f"unknown attention kind {kind!r}", f"choose one of {', '.join(KINDS)}")
    if not 0 <= dropout_p < 1:
        raise ConfigError(f"attention dropout {dropout_p} is not in [0, 1)", "choose a smaller one")
    if not query.dtype == key.dtype == value.dtype or query.dtype not in _FLOATS:
        raise ConfigError(
            f"attention got dtypes {query.dtype}, {key.dtype} and {value.dtype}",
            "give q, k and v one common floating-point dtype",
        )
    shapes = f"q {tuple(query.shape)}, k {tuple(key.shape)}, v {tuple(value.shape)}"
    if query.dim() != 4 or key.dim() != 4 or key.shape != value.shape:
        raise ConfigError(f"attention got {shapes}", "give (B, H, T, D) and twice (B, J, S, D)")
    (batch, heads, queries, width), (_, key_heads, keys, _) = query.shape, key.shape
    if (batch, width) != (key.shape[0], key.shape[3]) or heads % key_heads:
        raise ConfigError(f"attention got {shapes}", "B and D must agree, and J must divide H")
    if not 1 <= queries <= keys:
        raise ConfigError(
            f"attention got {shapes}", "there must be at least as many keys as queries"
        )
