"""The decoder-only transformer, top to bottom.

    tokens -> embedding -> [x + attention(norm(x)); x + feed_forward(norm(x))] x L -> norm -> logits

Pre-norm residual blocks (Xiong et al. 2020) with RMSNorm, RoPE and query/key normalisation.
B batch, T positions, C model width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infinito.config.schema import ModelConfig
from infinito.model.attention import SelfAttention
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.layers import Dropout, FeedForward, RMSNorm, dropout
from infinito.model.loss import summed_cross_entropy, token_cross_entropy
from infinito.model.position import RotaryTable


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, rotary: RotaryTable | None) -> None:
        super().__init__()
        probability = config.residual_dropout
        self.attention_norm: nn.Module = RMSNorm(config.d_model)
        self.attention = SelfAttention(config, layer, rotary)
        self.feed_forward_norm: nn.Module = RMSNorm(config.d_model)
        self.feed_forward = FeedForward(config, config.resolved_d_ff)
        self.dropout = Dropout(config.dropout if probability is None else probability)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cache))
        output: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return output


class DoubleBlock(Block):
    """The layer of TruthGPT, for its published parameter counts: LayerNorms, biases, and a second
    feed-forward network behind the first.
    """

    def __init__(self, config: ModelConfig, layer: int, rotary: RotaryTable | None) -> None:
        super().__init__(config, layer, rotary)
        assert config.second_d_ff is not None  # the schema's rule for double blocks
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)
        self.second_feed_forward_norm = nn.LayerNorm(config.d_model)
        self.second_feed_forward = FeedForward(config, config.second_d_ff)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = super().forward(x, cache)
        second = self.second_feed_forward(self.second_feed_forward_norm(x))
        output: Tensor = x + self.dropout(second)
        return output


class Transformer(nn.Module):
    """A causal language model over ``vocab_size`` tokens.

    ``max_positions`` is the training sequence length: the context that generation uses, and the
    size of a learned position table unless the config has another.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, max_positions: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.checkpoint_activations = False
        rotary = RotaryTable(config.d_head) if config.resolved_position == "rope" else None
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        double = config.block == "double"
        self.positions = (
            nn.Embedding(config.learned_positions or max_positions, config.d_model)
            if config.resolved_position == "learned"
            else None
        )
        self.embedding_norm = nn.Identity() if double else RMSNorm(config.d_model)
        probability = config.input_dropout
        self.input_dropout = Dropout(config.dropout if probability is None else probability)
        block = DoubleBlock if double else Block
        self.blocks = nn.ModuleList(
            block(config, layer, rotary) for layer in range(config.n_layers)
        )
        self.final_norm = nn.LayerNorm(config.d_model) if double else RMSNorm(config.d_model)
        self.output_dropout = Dropout(config.output_dropout)
        self.head = (
            None if config.tie_embeddings else nn.Linear(config.d_model, vocab_size, bias=False)
        )
        self._initialise()

    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Final states (B, T, C) of ids (B, T) int64, which follow the tokens of a cache."""
        x = self._embed(tokens, cache.length if cache is not None else 0)
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        final: Tensor = self.output_dropout(self.final_norm(x))
        return final

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits (B, T, V) float32 of the token after each of (B, T)."""
        return F.linear(self.hidden(tokens, cache), self.output_weight).float()

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Sum of nats (float32 scalar) over targets (B, T) that are not -100."""
        hidden = self.hidden(tokens).flatten(0, 1)
        return summed_cross_entropy(hidden, self.output_weight, targets.flatten())

    @torch.no_grad()
    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats (B, T) float32 of each target, 0 where it is -100."""
        hidden = self.hidden(tokens).flatten(0, 1)
        nats = token_cross_entropy(hidden, self.output_weight, targets.flatten())
        return nats.view_as(targets)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, C) that turns final states into logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _embed(self, tokens: Tensor, start: int) -> Tensor:
        x = F.embedding(tokens, self._embedding_matrix())
        if self.positions is not None:
            x = x + self.positions.weight[start : start + tokens.shape[1]]
        # Tied weights must be small for the logits; the norm gives the residual stream unit scale.
        embedded: Tensor = self.input_dropout(self.embedding_norm(x))
        return embedded

    def _embedding_matrix(self) -> Tensor:
        """The embedding, whole words dropped while training (Gal & Ghahramani 2016)."""
        weight = self.embedding.weight
        if not self.training or self.config.word_dropout == 0.0:
            return weight
        kept = dropout(weight.new_ones(self.vocab_size, 1), self.config.word_dropout, True)
        return weight * kept

    def _initialise(self) -> None:
        """Matrices N(0, 1/fan_in); those that write to the residual stream also / sqrt(2 L);
        biases 0.

        The depth scaling is that of GPT-2 (Radford et al. 2019): the stream's variance then does
        not grow with the number of branches added to it.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            if parameter.ndim < 2:
                continue
            deviation = (
                0.02 if "embedding" in name or "positions" in name else parameter.shape[1] ** -0.5
            )
            if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                deviation /= (2 * self.config.n_layers) ** 0.5
            nn.init.normal_(parameter, std=deviation)
