"""Exponential moving average of the weights, used for evaluation (Polyak & Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Shadow weights: average <- d * average + (1 - d) * weight after each update.

    The decay warms up as (1 + n) / (10 + n), so that the first steps' random weights fade soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after update number ``step`` (1-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.weights[name] for name, _ in model.named_parameters()]
        torch._foreach_lerp_(averages, [p.detach() for p in model.parameters()], 1.0 - decay)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Run the body with the averaged weights in the model, then put its own back."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            own: Tensor = parameter.data
            parameter.data = self.weights[name]
            self.weights[name] = own
