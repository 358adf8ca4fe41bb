"""The attention back ends that this program can compute with, each tried on the device.

A table of small probes: a kernel that comes with its own back end adds its row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from infinito.runtime.choice import Choice


class AttentionBackend(NamedTuple):
    """A back end's name, what it is, and a probe that raises RuntimeError where it cannot run."""

    name: str
    meaning: str
    probe: Callable[[str], None]


def _fused(kernel: SDPBackend) -> Callable[[str], None]:
    def probe(device: str) -> None:
        kind = torch.device(device).type
        dtype = torch.bfloat16 if kind == "cuda" else torch.float32
        query = torch.ones(1, 1, 8, 16, device=device, dtype=dtype)
        with warnings.catch_warnings(), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # torch warns of each reason, then raises
            F.scaled_dot_product_attention(query, query, query, is_causal=True)

    return probe


ATTENTION_BACKENDS = (
    AttentionBackend(
        "sdpa flash", "fused, memory linear in length", _fused(SDPBackend.FLASH_ATTENTION)
    ),
    AttentionBackend(
        "sdpa efficient", "fused, memory linear in length", _fused(SDPBackend.EFFICIENT_ATTENTION)
    ),
    AttentionBackend("sdpa cudnn", "fused by cuDNN", _fused(SDPBackend.CUDNN_ATTENTION)),
    AttentionBackend("sdpa math", "separate operations, the reference", _fused(SDPBackend.MATH)),
)


def _obstacle(error: RuntimeError, device: str) -> str:
    first_line = str(error).partition("\n")[0]
    if first_line.startswith("No viable backend"):  # says no more than "no"
        return f"not for {device}"
    return f"fails on {device}: {first_line[:80]}"


def try_backend(backend: AttentionBackend, device: str) -> Choice:
    """``yes`` or ``no``, with the reason: run the back end once on a tiny input."""
    try:
        backend.probe(device)
    except RuntimeError as error:
        return Choice("no", _obstacle(error, device))
    return Choice("yes", backend.meaning)
