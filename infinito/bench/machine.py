"""What the machine itself does: the rates that a program's speed is held against."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def interleaved_seconds(
    actions: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Wall times in seconds of every action, over rounds in which all take turns.

    What else the machine does then hits all of them alike: ratios within a round are fair where
    times are not. The first ``warm_up`` rounds do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(warm_up + rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            synchronize(device)
            if number >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of one time divided by another of the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the median that holds whatever the distribution, by the binomial sign test.

    The widest there is, the extremes, where the values are too few for ``confidence``.
    """
    ordered, rank, tail = sorted(values), 0, 0.0
    for number in range(len(ordered) // 2):
        tail += math.comb(len(ordered), number) / 2 ** len(ordered)
        if 2 * tail > 1 - confidence:
            break
        rank = number
    return ordered[rank], ordered[-1 - rank]


def median_seconds(action: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Median wall time of ``action`` in seconds, after two rounds that do not count."""
    return statistics.median(interleaved_seconds({"": action}, device, rounds)[""])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], torch.Tensor]:
    """An action: (rows, inner) @ (inner, columns) in ``dtype``, 2 rows inner columns FLOPs."""
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(columns, inner, device=device).to(dtype).t()
    product = left @ right  # kept: fresh memory of this size would cost more than the product
    return lambda: torch.mm(left, right, out=product)


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
