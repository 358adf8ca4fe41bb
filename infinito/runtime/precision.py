"""The arithmetic of matrix products. Weights, sums and losses stay float32 in every precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from infinito.errors import ConfigError
from infinito.runtime.choice import Choice

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(requested: str, device: str) -> Choice:
    """Resolve ``auto``, ``float32``, ``bfloat16`` or ``float16`` for ``device``.

    ``auto`` is bfloat16 on CUDA hardware that has it, and float32 elsewhere: on a CPU the gain
    depends on the processor, and float32 gives the same bits on more of them.

    Raises:
        ConfigError: the device cannot compute in the precision asked for.
    """
    if requested == "auto":
        return _automatic(device)
    obstacle = unsupported_reason(requested, device)
    if obstacle:
        raise ConfigError(
            f"training.precision = {requested}: {obstacle}",
            "use training.precision: auto or float32",
        )
    return Choice(requested, "asked for")


def _automatic(device: str) -> Choice:
    kind = torch.device(device).type
    if kind != "cuda":
        return Choice("float32", f"auto: float32 on {kind}; bfloat16 only when asked for")
    obstacle = unsupported_reason("bfloat16", device)
    if obstacle:
        return Choice("float32", f"auto: {obstacle}")
    return Choice("bfloat16", "auto: this device computes in bfloat16")


def unsupported_reason(precision: str, device: str) -> str:
    """Why ``device`` cannot compute in ``precision``; empty if it can. Tried, not guessed."""
    if precision == "float32":
        return ""
    where = torch.device(device)
    if where.type == "cuda" and precision == "bfloat16":
        with torch.cuda.device(where):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                return f"{torch.cuda.get_device_name(where)} has no bfloat16 arithmetic"
    try:
        matrix = torch.ones(2, 2, device=where)
        with autocast(precision, device):
            product = matrix @ matrix
    except RuntimeError as error:
        return f"torch cannot on {where.type}: {str(error).splitlines()[0]}"
    if product.dtype != DTYPES[precision]:  # autocast switches itself off with a mere warning
        return f"torch has no {precision} autocast on {where.type}"
    return ""


def autocast(precision: str, device: str) -> AbstractContextManager[None]:
    """A context in which matrix products run in ``precision`` on ``device``; none for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision])


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that matrix products of ``x`` run in here: autocast's, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
