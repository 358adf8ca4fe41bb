"""One attention call to measure, and its peak memory in a process of its own.

``python -m`` this module prints how many bytes the resident set rose above the inputs during one
forward and backward. Linux only: it resets and reads the high-water mark under /proc.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.attention import default_scale, distance_attention

BASELINE = "sdpa"

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"


@dataclass(frozen=True)
class Inputs:
    """query, key, value: (B, H, T, D) float32; lam: (H,); all with gradients."""

    query: Tensor
    key: Tensor
    value: Tensor
    lam: Tensor


def make_inputs(batch: int, heads: int, length: int, width: int) -> Inputs:
    """Unit-normal q, k, v, and lambda 1."""
    query, key, value = (
        torch.randn(batch, heads, length, width, requires_grad=True) for _ in range(3)
    )
    return Inputs(query, key, value, torch.ones(heads, requires_grad=True))


def run_kind(kind: str, x: Inputs) -> Tensor:
    """One causal call: a kind of distance attention, ``sdpa``, or ``cdist`` (plain L1)."""
    if kind == BASELINE:
        return F.scaled_dot_product_attention(x.query, x.key, x.value, is_causal=True)
    if kind == "cdist":
        length = x.query.shape[2]
        factor = default_scale("l1", x.query.shape[3])
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        logits = -factor * x.lam[:, None, None] * torch.cdist(x.query, x.key, 1.0)
        return torch.softmax(logits.masked_fill(future, float("-inf")), -1) @ x.value
    return distance_attention(x.query, x.key, x.value, kind, x.lam)  # type: ignore[arg-type]


def peak_bytes(kind: str, batch: int, heads: int, length: int, width: int, threads: int) -> int:
    """Rise of a fresh process's memory over forward + backward; ``kind`` may be ``sdpa``.

    Raises:
        subprocess.CalledProcessError: the measuring process failed.
    """
    numbers = map(str, (batch, heads, length, width, threads))
    command = [sys.executable, "-m", "infinito.bench.attention_memory", kind, *numbers]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def can_measure() -> bool:
    """Whether this system tells a process its high-water mark."""
    return _CLEAR.exists()


def _kibibytes(field: str) -> int:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1])


def _main(kind: str, batch: int, heads: int, length: int, width: int, threads: int) -> None:
    torch.set_num_threads(threads)
    # A small call first: autograd's engine and the library start once per process.
    small = make_inputs(1, heads, 16, width)
    run_kind(kind, small).sum().backward()
    inputs = make_inputs(batch, heads, length, width)
    grad = torch.ones(batch, heads, length, width)
    _CLEAR.write_text(_RESET_HIGH_WATER)
    before = _kibibytes("VmRSS")
    run_kind(kind, inputs).backward(grad)
    print((_kibibytes("VmHWM") - before) * 1024)


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:7]))
