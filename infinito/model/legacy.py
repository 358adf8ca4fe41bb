"""The layer of TruthGPT, kept for its published parameter counts (``model.block: double``)."""

from __future__ import annotations

from torch import nn

from infinito.config.model_config import ModelConfig
from infinito.model.attention import SelfAttention
from infinito.model.block import Block
from infinito.model.layers import Dropout, FeedForward
from infinito.model.position import RotaryTable
from infinito.model.roles import DeclaresRoles, Role


class _LayerNorm(nn.LayerNorm, DeclaresRoles):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.roles = {"weight": Role.GAIN, "bias": Role.GAIN}


class DoubleBlock(Block):
    """LayerNorms, biases, one lambda in all, a second feed-forward network behind the first."""

    def __init__(self, config: ModelConfig, layer: int, rotary: RotaryTable | None) -> None:
        nn.Module.__init__(self)
        assert config.second_d_ff is not None  # the schema's rule for double blocks
        self.attention_norm = _LayerNorm(config.d_model)
        self.attention = SelfAttention(config, layer, rotary, bias=True)
        if self.attention.log_lambda is not None:
            self.attention.log_lambda = nn.Parameter(self.attention.log_lambda.detach()[:1].clone())
        self.feed_forward_norm = _LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config, config.resolved_d_ff, bias=True)
        self.dropout = Dropout(config.dropout_on("residual"))
        self.second_feed_forward_norm = _LayerNorm(config.d_model)
        self.second_feed_forward = FeedForward(config, config.second_d_ff, bias=True)

    @staticmethod
    def first_norm(config: ModelConfig) -> nn.Module:
        """None."""
        return nn.Identity()

    @staticmethod
    def final_norm(config: ModelConfig) -> nn.Module:
        """A LayerNorm."""
        return _LayerNorm(config.d_model)

    def branches(self) -> list[tuple[nn.Module, nn.Module]]:
        """Two networks, one behind the other."""
        return [*super().branches(), (self.second_feed_forward_norm, self.second_feed_forward)]
