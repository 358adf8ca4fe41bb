"""What the benchmarks share: medians of interleaved rounds, and the shape of the model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

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
