"""What the benchmarks share: medians of interleaved rounds, and what the machine itself can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

LAYERS, WIDTH, HEADS, VOCABULARY = 6, 256, 4, 8192


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved_medians(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of each contender over rounds in which all take turns.

    What else the machine does then hits all of them alike, so that ratios are fair.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(warm_up + rounds):
        for name, work in contenders.items():
            elapsed = seconds(work)
            if index >= warm_up:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_rate(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product of this shape, the median of repetitions."""
    left = torch.randn(rows, inner).to(dtype)
    right = torch.randn(inner, columns).to(dtype)
    with torch.no_grad():
        torch.mm(left, right)
        times = [seconds(lambda: torch.mm(left, right)) for _ in range(7)]
    return 2.0 * rows * inner * columns / statistics.median(times)


def read_bandwidth(megabytes: int = 256) -> float:
    """Bytes a second that all threads together read from memory, the best of repetitions."""
    numbers = torch.ones(megabytes * 2**20 // 4)
    times = [seconds(numbers.sum) for _ in range(7)]
    return numbers.numel() * 4 / min(times)
