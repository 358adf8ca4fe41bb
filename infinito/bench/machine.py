"""What the machine itself does: the rates that a program's speed is held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def median_seconds(action: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Median wall time of ``action`` in seconds, after two rounds that do not count."""
    times = []
    for number in range(rounds + 2):
        start = time.perf_counter()
        action()
        synchronize(device)
        if number >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device
) -> float:
    """FLOP/s of (rows, inner) @ (inner, columns) in ``dtype``."""
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(columns, inner, device=device).to(dtype)
    seconds = median_seconds(lambda: torch.nn.functional.linear(left, right), device)
    return 2.0 * rows * inner * columns / seconds


def read_bandwidth(device: torch.device, n_bytes: int = 1 << 28) -> float:
    """Bytes/s at which all threads together read numbers, far more than the caches hold.

    The best of the repetitions: it serves as a floor.
    """
    numbers = torch.ones(n_bytes // 4, device=device)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        numbers.sum()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return n_bytes / min(times)
