"""Resolve every ``auto`` of a config, once, by capability, with the reason said aloud."""

from __future__ import annotations

from collections.abc import Callable

from infinito.config.schema import Config
from infinito.runtime.device import choose_device
from infinito.runtime.precision import choose_precision


def resolve_automatic(config: Config, announce: Callable[[str], None]) -> Config:
    """The config with device and precision named; what was chosen is announced and stored."""
    device = choose_device(config.device)
    precision = choose_precision(config.training.precision, device.value)
    if config.device != device.value:
        announce(f"device {device.value}: {device.reason}")
    if config.training.precision != precision.value:
        announce(f"precision {precision.value}: {precision.reason}")
    training = config.training.model_copy(update={"precision": precision.value})
    return config.model_copy(update={"device": device.value, "training": training})
