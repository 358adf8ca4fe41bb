"""One layer of the transformer."""

from __future__ import annotations

from torch import Tensor, nn

from infinito.config.model_config import ModelConfig
from infinito.kernels.fusion import Planned
from infinito.model.attention import SelfAttention
from infinito.model.experts import MixtureOfExperts
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.layers import Dropout, FeedForward, RMSNorm, normed
from infinito.model.position import RotaryTable


def build_feed_forward(config: ModelConfig, layer: int) -> nn.Module:
    """The feed-forward network (B, T, C) -> (B, T, C) of block number ``layer``.

    A single expert needs no router: it is the dense network, to the bit.
    """
    kind = MixtureOfExperts if config.moe.n_experts > 1 else FeedForward
    return kind(config, config.resolved_d_ff)


class Block(nn.Module, Planned):
    """One layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, rotary: RotaryTable | None) -> None:
        super().__init__()
        self.attention_norm: nn.Module = self.final_norm(config)
        self.attention = SelfAttention(config, layer, rotary)
        self.feed_forward_norm: nn.Module = self.final_norm(config)
        self.feed_forward = build_feed_forward(config, layer)
        self.dropout = Dropout(config.dropout_on("residual"))

    @staticmethod
    def first_norm(config: ModelConfig) -> nn.Module:
        """The normalisation of the embeddings, in a model of such blocks."""
        return Block.final_norm(config) if config.embedding_norm else nn.Identity()

    @staticmethod
    def final_norm(config: ModelConfig) -> nn.Module:
        """The normalisation behind the last block."""
        return RMSNorm(config.d_model, config.norm_epsilon)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        branch = self.attention(normed(self.plan, self.attention_norm, x), cache)
        for norm, network in self.branches():
            x, after_norm = self._add(x, branch, norm)
            branch = network(after_norm)
        return self._add(x, branch)[0]

    def _add(
        self, x: Tensor, branch: Tensor, norm: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream with a branch added, and its norm."""
        fused = norm if isinstance(norm, RMSNorm) else None
        gain, epsilon = (fused.weight, fused.epsilon) if fused else (None, 0.0)
        x, after_norm = self.plan.run("residual", x, branch, self.dropout.rate, gain, epsilon)
        return x, after_norm if norm is None or fused else norm(x)

    def branches(self) -> list[tuple[nn.Module, nn.Module]]:
        """What follows the attention, in order: feed-forward networks, each behind its norm."""
        return [(self.feed_forward_norm, self.feed_forward)]
