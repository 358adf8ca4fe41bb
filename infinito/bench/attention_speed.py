"""Distance attention against torch's fused dot-product attention, and against the machine.

Absolute times depend on the machine and its load; what counts are the ratios, each the median
over rounds in which all methods take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from infinito.attention import ATTENTION, Kind, Request
from infinito.attention import cpu as cpu_kernel
from infinito.bench.attention_memory import (
    BASELINE,
    Inputs,
    can_measure,
    make_inputs,
    peak_bytes,
    run_kind,
)

KINDS: tuple[Kind, ...] = ("l1", "l2", "l2sq", "cosine")
#: Passes over the elements (query, key, d), in units of the max + fma rate: scores and values
#: forward; scores, d(weights) and d(values) backward, next to one pass of the gradient loop.
_FORWARD_PASSES, _BACKWARD_PASSES = 2, 3
_PEAK_ROUNDS = 400_000


def bench_attention(
    lengths: Sequence[int] = (256, 1024, 4096),
    *,
    batch: int = 4,
    heads: int = 4,
    width: int = 64,
    seconds: float = 4.0,
    cdist_length: int | None = 1024,
    memory: bool = True,
) -> dict[str, Any]:
    """Times and peak memory of every kind, float32 and causal, on the CPU.

    Args:
        lengths: T (= S) of the rows.
        batch: B.
        heads: H.
        width: D.
        seconds: about how long each length is measured; at least three rounds.
        cdist_length: T at which ``torch.cdist`` + softmax is a further method, or None.
        memory: measure peak memory as well, in a process for each row (Linux).

    Returns:
        ``machine`` (threads, rates in elements/s) and ``rows``: per length and method
        ``forward_ms``, ``forward_backward_ms``, their ratios to ``sdpa``, for the compiled L1
        kernel the share of the machine's floor, and ``peak_bytes`` with its ratio.
    """
    machine = _machine()
    rows: list[dict[str, Any]] = []
    for length in lengths:
        methods = [BASELINE, *KINDS, *(["cdist"] if length == cdist_length else [])]
        part = _time_methods(methods, make_inputs(batch, heads, length, width), seconds)
        pairs = batch * heads * length * (length + 1) // 2
        for row in part:
            row.update(queries=length, **_floor_shares(row, pairs * width, machine))
        if memory and can_measure():
            _add_memory(part, (batch, heads, length, width))
        rows.extend(part)
    shape = {"batch": batch, "heads": heads, "width": width}
    return {"machine": machine, "shape": shape, "rows": rows}


def _machine() -> dict[str, Any]:
    route = ATTENTION.choose(Request("l1"))
    threads = torch.get_num_threads()
    machine: dict[str, Any] = {"threads": threads, "l1_backend": route.value}
    machine["l1_reason"] = route.reason
    if route.value == "cpu":
        machine["score_rate"] = _best_rate(threads, gradient=False)
        machine["gradient_rate"] = _best_rate(threads, gradient=True)
    return machine


def _best_rate(threads: int, gradient: bool) -> float:
    """Elements/s of all threads together in the register-resident loop, the best of 20 runs.

    At once, as the kernel runs: a processor clocks higher with one core busy, and cores may share
    what they compute with. Each round counts to the end of its slowest thread.
    """
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(20):
            start = time.perf_counter()
            runs = [
                pool.submit(cpu_kernel.run_peak_loop, gradient, _PEAK_ROUNDS)
                for _ in range(threads)
            ]
            elements = sum(run.result() for run in runs)
            best = max(best, elements / (time.perf_counter() - start))
    return best


def _time_methods(methods: Sequence[str], x: Inputs, seconds: float) -> list[dict[str, Any]]:
    """Rounds in which the methods take turns, forward and forward + backward."""
    grad = torch.randn_like(x.query)
    forward: dict[str, list[float]] = {name: [] for name in methods}
    both: dict[str, list[float]] = {name: [] for name in methods}
    deadline = time.perf_counter() + seconds
    while len(both[BASELINE]) < 4 or time.perf_counter() < deadline:
        for name in methods:
            with torch.no_grad():
                forward[name].append(_seconds(lambda: run_kind(name, x)))  # noqa: B023
            both[name].append(_seconds(lambda: run_kind(name, x).backward(grad)))  # noqa: B023
            for leaf in (x.query, x.key, x.value, x.lam):
                leaf.grad = None
    return [_row(name, forward, both) for name in methods]


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _row(
    name: str, forward: dict[str, list[float]], both: dict[str, list[float]]
) -> dict[str, Any]:
    """Medians; the first round warms up and does not count."""
    row: dict[str, Any] = {"kind": name, "rounds": len(forward[name]) - 1}
    for key, times in (("forward", forward), ("forward_backward", both)):
        pairs = zip(times[name][1:], times[BASELINE][1:], strict=True)
        row[f"{key}_ms"] = statistics.median(times[name][1:]) * 1e3
        row[f"{key}_best_ms"] = min(times[name][1:]) * 1e3
        row[f"{key}_ratio"] = statistics.median(own / other for own, other in pairs)
    return row


def _floor_shares(row: dict[str, Any], elements: int, machine: dict[str, Any]) -> dict[str, float]:
    """The machine's floor over the best time, for L1 on the compiled kernel."""
    if row["kind"] != "l1" or "score_rate" not in machine:
        return {}
    unit, gradient = elements / machine["score_rate"], elements / machine["gradient_rate"]
    forward = _FORWARD_PASSES * unit
    both = forward + _BACKWARD_PASSES * unit + gradient
    return {
        "forward_of_floor": forward * 1e3 / row["forward_best_ms"],
        "forward_backward_of_floor": both * 1e3 / row["forward_backward_best_ms"],
    }


def _add_memory(rows: list[dict[str, Any]], shape: tuple[int, int, int, int]) -> None:
    threads = torch.get_num_threads()
    for row in rows:
        row["peak_bytes"] = peak_bytes(row["kind"], *shape, threads)
    for row in rows:
        row["peak_ratio"] = row["peak_bytes"] / rows[0]["peak_bytes"]
