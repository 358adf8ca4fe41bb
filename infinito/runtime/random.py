"""Random streams: torch's generators are the run's; the order of the data has its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: str) -> dict[str, Any]:
    """The state of every generator as plain data and tensors (loads with weights_only)."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.startswith("cuda") else None,
    }


def set_random_state(state: dict[str, Any], device: str) -> None:
    """Put back what :func:`random_state` returned; call it last, when all else is built."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.startswith("cuda"):
        torch.cuda.set_rng_state(state["device"], device)


@contextmanager
def fixed_draws(seed: int, device: str) -> Iterator[None]:
    """Draw as after ``torch.manual_seed(seed)`` within the block, and go on as before after it."""
    state = random_state(device)
    apple_state = torch.mps.get_rng_state() if device.startswith("mps") else None
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(state, device)
        if apple_state is not None:
            torch.mps.set_rng_state(apple_state)
