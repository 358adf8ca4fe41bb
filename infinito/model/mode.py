"""A model put aside for measuring: no dropout, no gradients, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run the body with ``model`` in evaluation mode and without gradients, then put it back.

    ``no_grad`` and not ``inference_mode``: what the body caches in the model (rotary tables) must
    stay usable for training.
    """
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in was_training.items():
            module.training = training
