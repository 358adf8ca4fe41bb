"""What a text is scored with: a model, and whatever else predicts the next token.

Windows, conventions and reports know a :class:`Predictor` only, so an ensemble, a cache, dynamic
evaluation, a count-based or a quantised model is measured in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from infinito.distributed.ranks import share_of, summed, world_size
from infinito.model.language_model import LanguageModel
from infinito.model.mode import evaluation_mode
from infinito.tokenizer.tokenizer import Tokenizer


class Predictor(Protocol):
    """Predicts each token from those before it in its window. B windows, T tokens."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The one whose ids it reads."""

    @property
    def context(self) -> int:
        """Tokens of the windows that it was made for."""

    @property
    def largest_context(self) -> int | None:
        """Beyond it nothing can be read; None where there is no such limit."""

    def restart(self) -> None:
        """Forget what was learnt: a new text begins."""

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Nats (B, T) float64 on the CPU of targets (B, T) after inputs (B, T); 0 where -100."""

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Take in windows whose nats have been asked for before; may change later predictions."""


@dataclass(eq=False)
class ModelPredictor:
    """A model as it is: static, in the precision of the surrounding autocast."""

    model: LanguageModel
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        """The length that it was trained with."""
        return self.model.max_positions

    @property
    def largest_context(self) -> int | None:
        """The rows of a learned position table."""
        learned = self.model.config.resolved_position == "learned"
        return self.model.max_positions if learned else None

    def restart(self) -> None:
        """Nothing: a static model."""

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> (B, T); the model's mode and torch's random state stay as they were."""
        device = self.model.device
        with evaluation_mode(self.model):
            return self.model.token_losses(inputs.to(device), targets.to(device)).cpu().double()

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Nothing: a static model."""


class SharedPredictor(ModelPredictor):
    """A model of which each process reads its part of the windows; all must ask together."""

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> (B, T), the same in every process."""
        if not 1 < world_size() <= len(inputs):
            return super().nats(inputs, targets)
        rows = share_of(len(inputs)).rows
        nats = torch.zeros(targets.shape, dtype=torch.float64)
        nats[rows] = super().nats(inputs[rows], targets[rows])
        return summed([nats])[0]
