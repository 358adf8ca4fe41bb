"""Multi-head self-attention: projections, head normalisation, positions, and one attention kind."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinito.attention import distance_attention
from infinito.config.model_config import ModelConfig
from infinito.kernels.fusion import Planned
from infinito.kernels.plain import rotate
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.layers import Linear, RMSNorm
from infinito.model.position import RotaryTable, alibi_slopes
from infinito.model.roles import DeclaresRoles, Role


class SelfAttention(nn.Module, DeclaresRoles, Planned):
    """Causal attention over the tokens read so far (Vaswani et al. 2017).

    The score of a key is lambda_h times the scaled dot product, or minus lambda_h times a scaled
    distance. lambda_h = exp(log_lambda_h) is positive, one a head, float32, without weight decay.
    """

    def __init__(
        self, config: ModelConfig, layer: int, rotary: RotaryTable | None, bias: bool = False
    ) -> None:
        super().__init__()
        self.roles = {"log_lambda": Role.LAMBDA}
        width, self.d_head = config.d_model, config.d_head
        query_width = config.n_heads * config.d_head
        kv_width = config.resolved_kv_heads * config.d_head
        self.layer = layer
        self.rotary = rotary
        self.options = config.attention
        self.n_heads = config.n_heads
        self.query = Linear(width, query_width, bias=bias)
        self.key = Linear(width, kv_width, bias=bias)
        self.value = Linear(width, kv_width, bias=bias)
        self.output = Linear(query_width, width, bias=bias, depth=2 * config.n_layers)
        self.query_norm, self.key_norm = (
            RMSNorm(self.d_head, config.norm_epsilon) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )
        self.dropout = config.dropout_on("attention")
        start = math.log(config.attention.lambda_init)
        self.log_lambda = (
            nn.Parameter(torch.full((self.n_heads,), start))
            if config.attention.has_lambda
            else None
        )
        alibi = config.resolved_position == "alibi"
        self.slopes = alibi_slopes(config.n_heads) if alibi else None

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with a cache, x continues the tokens that it holds."""
        query, key, value = self.project(x, cache.length if cache is not None else 0)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        mixed = distance_attention(
            query, key, value, self.options.kind, self.lam,
            dropout_p=self.dropout if self.training else 0.0,
            alibi_slopes=self.slopes, backend=self.options.backend,
        )  # fmt: skip
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def project(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D) of x (B, T, C) from ``start`` on."""
        if self.plan.fuses("heads"):
            return self._project_joined(x, start)
        query = self.query_norm(self._heads(self.query(x)))
        key = self.key_norm(self._heads(self.key(x)))
        value = self._heads(self.value(x))
        if self.rotary is not None:
            cos, sin = self.rotary.rows(start, start + x.shape[1], x.device)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return query.to(value.dtype), key.to(value.dtype), value

    def _project_joined(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same from one product for all three, and one pass over it."""
        maps = self.query, self.key, self.value
        bias = None if self.query.bias is None else torch.cat([part.bias for part in maps])
        joined = F.linear(x, torch.cat([part.matrix() for part in maps]), bias)
        cos = sin = None
        if self.rotary is not None:
            cos, sin = self.rotary.rows(start, start + x.shape[1], x.device)
        gains = [getattr(norm, "weight", None) for norm in (self.query_norm, self.key_norm)]
        epsilon = getattr(self.query_norm, "epsilon", 0.0)
        key_heads = self.key.out_features // self.d_head
        parts: tuple[Tensor, Tensor, Tensor] = self.plan.run(
            "heads", joined, *gains, cos, sin, self.n_heads, key_heads, epsilon
        )
        return parts

    @property
    def lam(self) -> Tensor | float:
        """lambda (H,) float32, or the number it is fixed at."""
        if self.log_lambda is None:
            return self.options.lambda_init
        return self.log_lambda.exp().expand(self.n_heads).contiguous()

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * D) -> (B, heads, T, D)."""
        heads: Tensor = x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        return heads


def attentions(model: nn.Module) -> list[SelfAttention]:
    """Those of a model, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, SelfAttention)]


@torch.no_grad()
def head_lambdas(model: nn.Module) -> list[list[float]]:
    """lambda of each layer and head of ``model``."""
    return [torch.as_tensor(one.lam).expand(one.n_heads).tolist() for one in attentions(model)]
