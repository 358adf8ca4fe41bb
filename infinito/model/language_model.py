"""What training, evaluation, generation and analysis need of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infinito.config.model_config import ModelConfig
from infinito.kernels.fusion import Plan, Planned
from infinito.model.key_value_cache import KeyValueCache


class TrainingLoss(NamedTuple):
    """What a forward pass in training gives, float32 and summed over its targets.

    Attributes:
        nats: cross-entropy of the targets, the figure that is reported.
        auxiliary: what is to be made small besides, weighted by the model, by name.
        measurements: what a reader may want to see, without gradients, by name; of any shape.
    """

    nats: Tensor
    auxiliary: dict[str, Tensor]
    measurements: dict[str, Tensor]

    @property
    def objective(self) -> Tensor:
        """What training makes small."""
        return sum(self.auxiliary.values(), self.nats)

    @property
    def seen(self) -> dict[str, Tensor]:
        """All but the nats, for a reader."""
        losses = {f"{name}_loss": loss.detach() for name, loss in self.auxiliary.items()}
        return losses | self.measurements


class LanguageModel(nn.Module, ABC):
    """Predicts each token of (B, T) int64 ids from those before it; parameters declare roles.

    Attributes:
        config: its shape.
        vocab_size: V, the number of ids.
        max_positions: tokens of the context that it was trained with.
        blocks: its layers, which may be compiled, recomputed or split one by one.
        checkpoint_activations: recompute blocks in the backward pass, to save memory.
    """

    config: ModelConfig
    vocab_size: int
    max_positions: int
    blocks: nn.ModuleList
    checkpoint_activations: bool

    def use(self, plan: Plan) -> None:
        """Compute the operations that can be fused as ``plan`` says; no parameter changes."""
        for module in self.modules():
            if isinstance(module, Planned):
                module.plan = plan

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, tokens: Tensor, targets: Tensor) -> TrainingLoss:
        """The losses of ids (B, T) and targets (B, T), -100 where there is none: training's way.

        Training calls nothing else, so that what wraps a model (DDP, FSDP) sees every pass.
        """

    @abstractmethod
    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Final states (B, T, C) of ids (B, T), which follow the tokens of a cache."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) float32 of the token after each of the final states (..., C)."""

    @abstractmethod
    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats (B, T) float32 of each target, 0 where it is -100; no gradient."""

    @abstractmethod
    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for ``batch`` texts of up to ``capacity`` tokens."""
