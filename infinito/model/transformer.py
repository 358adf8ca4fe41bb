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

from infinito.config.model_config import ModelConfig
from infinito.kernels.fusion import Planned
from infinito.kernels.plain import dropout
from infinito.model.block import Block
from infinito.model.experts import Routing, collecting
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.language_model import LanguageModel, TrainingLoss
from infinito.model.layers import Dropout, Embedding, Linear, RMSNorm, initialise, normed
from infinito.model.legacy import DoubleBlock
from infinito.model.loss import summed_cross_entropy, token_cross_entropy
from infinito.model.position import RotaryTable
from infinito.model.roles import Role


class Transformer(LanguageModel, Planned):
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
        rope = config.resolved_position == "rope"
        rotary = RotaryTable(config.d_head, config.rope_theta) if rope else None
        block = DoubleBlock if config.block == "double" else Block
        width = config.d_model
        self.embedding = Embedding(vocab_size, width, config.word_dropout)
        self.positions = (
            Embedding(config.learned_positions or max_positions, width)
            if config.resolved_position == "learned"
            else None
        )
        self.embedding_norm = block.first_norm(config)
        self.input_dropout = Dropout(config.dropout_on("input"))
        self.blocks = nn.ModuleList(
            block(config, layer, rotary) for layer in range(config.n_layers)
        )
        self.final_norm = block.final_norm(config)
        self.output_dropout = Dropout(config.output_dropout)
        self.head = None if config.tie_embeddings else Linear(width, vocab_size, role=Role.TABLE)
        initialise(self)

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
        return normed(self.plan, self.final_norm, x, self.output_dropout.rate)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) float32 of the token after each of the final states (..., C)."""
        return F.linear(hidden, self._output_matrix()).float()

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for ``batch`` texts of up to ``capacity`` tokens."""
        return KeyValueCache(self.config, batch, capacity, self.embedding.matrix())

    def forward(self, tokens: Tensor, targets: Tensor) -> TrainingLoss:
        """The losses of ids (B, T) and targets (B, T), -100 where there is none."""
        with collecting(self) as routings:
            hidden = self.hidden(tokens).flatten(0, 1)
        nats = summed_cross_entropy(hidden, self._output_matrix(), targets.flatten(), self.plan)
        return TrainingLoss(nats, *self._of_experts(routings))

    def _of_experts(self, routings: list[Routing]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Auxiliary losses, and what was measured a layer (and expert)."""
        if not routings:
            return {}, {}
        moe = self.config.moe
        auxiliary = {
            "balance": moe.balance_weight * torch.stack([r.balance for r in routings]).sum(),
            "router_z": moe.z_weight * torch.stack([r.router_z for r in routings]).sum(),
        }
        measurements = {
            "expert_load": torch.stack([r.load for r in routings]),
            "router_entropy": torch.stack([r.entropy for r in routings]),
        }
        return auxiliary, measurements

    @torch.no_grad()
    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats (B, T) float32 of each target, 0 where it is -100."""
        hidden = self.hidden(tokens).flatten(0, 1)
        nats = token_cross_entropy(hidden, self._output_matrix(), targets.flatten())
        return nats.view_as(targets)

    def _output_matrix(self) -> Tensor:
        """The matrix (V, C) that turns final states into logits."""
        return (self.head or self.embedding).matrix()

    def _embed(self, tokens: Tensor, start: int) -> Tensor:
        norm, rate = self.embedding_norm, self.input_dropout.rate
        fused = self.plan.fuses("embedding") and isinstance(norm, RMSNorm)
        if fused and self.positions is None and not self.embedding.row_dropout:
            arguments = self.embedding.matrix(), tokens, rate, norm.weight, norm.epsilon
            embedded: Tensor = self.plan.run("embedding", *arguments)
            return embedded
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.matrix()[start : start + tokens.shape[1]]
        # Tied weights must be small for the logits; the norm gives the residual stream unit scale.
        return dropout(norm(x), rate)
