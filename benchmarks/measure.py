"""What the benchmarks share: medians of interleaved rounds, and the shape of the model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from infinito.bench.machine import interleaved_seconds

LAYERS, WIDTH, HEADS, VOCABULARY = 6, 256, 4, 8192


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved_medians(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Median seconds of each contender over rounds in which all take turns, on the CPU."""
    times = interleaved_seconds(contenders, torch.device("cpu"), rounds, warm_up=1)
    return {name: statistics.median(values) for name, values in times.items()}
