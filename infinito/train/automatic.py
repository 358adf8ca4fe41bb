"""What a config leaves open is settled once, before any text is read: by capability, with reasons.

What cannot run here is refused at the same place, so that no work is done in vain.
"""

from __future__ import annotations

import torch

from infinito.attention import Request, choose_backend
from infinito.config.schema import Config
from infinito.model.attention import fused_dot_serves
from infinito.runtime.device import choose_device
from infinito.runtime.events import note
from infinito.runtime.precision import choose_precision

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(config: Config) -> Config:
    """The config with device and precision named; each choice is told, with its reason.

    Raises:
        ResourceError: the device is not there.
        ConfigError: it cannot compute in the precision, or by the attention back end, asked for.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.training.precision, device.value)
    if config.device != device.value:
        note(f"device {device.value}: {device.reason}")
    if config.training.precision != precision.value:
        note(f"precision {precision.value}: {precision.reason}")
    training = config.training.model_copy(update={"precision": precision.value})
    config = config.model_copy(update={"device": device.value, "training": training})
    note(f"attention {attention_reason(config)}")
    return config


def attention_reason(config: Config) -> str:
    """Which attention back end will run in training, and why."""
    model, options = config.model, config.model.attention
    kind = torch.device(config.device).type
    if fused_dot_serves(options, kind):
        return f"sdpa: torch's fused kernel serves dot products on {kind}"
    dropout = model.dropout if model.attention_dropout is None else model.attention_dropout
    length = config.data.sequence_length
    request = Request(
        options.kind, kind, _DTYPES[config.training.precision], model.d_head, length, length,
        dropout=dropout > 0, alibi=model.resolved_position == "alibi",
    )  # fmt: skip
    route = choose_backend(request, options.backend)
    return f"{route.backend}: {route.reason}"
