"""Each variant of each fusable operation: time and peak memory of one forward and backward pass.

All variants of an operation take turns, and so does its plain twin as torch.compile makes it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from infinito.bench.machine import interleaved_seconds, median_interval, median_ratio, synchronize
from infinito.kernels.fusion import OPERATIONS, TORCH, FusedOperation, StepShape
from infinito.runtime.events import note

COMPILED = "torch, compiled"
WARM_UP = 10
Action = Callable[[], object]


def bench_operations(shape: StepShape, rounds: int) -> list[dict[str, Any]]:
    """A row for each variant of each operation in a training step of a shape.

    ``milliseconds`` with its 95 % interval ``low``, ``high``; ``peak_mb`` above the inputs;
    ``against_eager`` and ``against_compiled``, the speed over that of the plain twin as it is and
    compiled; ``compile_seconds`` of the latter; ``objection`` in place of all of these.
    """
    return [row for operation in OPERATIONS.values() for row in _rows(operation, shape, rounds)]


def _rows(operation: FusedOperation, shape: StepShape, rounds: int) -> list[dict[str, Any]]:
    device, arguments = torch.device(shape.device), operation.inputs(shape)
    refused, actions = list[dict[str, Any]](), dict[str, Action]()
    for name, variant in operation.variants.items():
        objection = variant.objection(shape)
        if objection is None:
            actions[name] = _one_pass(variant.run, arguments)
        else:
            refused.append({"operation": operation.name, "variant": name, "objection": objection})
    seconds = _add_compiled(actions, operation, arguments)
    times = interleaved_seconds(actions, device, rounds, warm_up=WARM_UP)
    found = []
    for name, action in actions.items():
        low, high = median_interval(times[name])
        row = {
            "operation": operation.name,
            "variant": name,
            "milliseconds": 1e3 * statistics.median(times[name]),
            "low": 1e3 * low,
            "high": 1e3 * high,
            "peak_mb": peak_bytes(action, device) / 1e6,
            "against_eager": median_ratio(times[TORCH], times[name]),
        }
        if COMPILED in times:
            row["against_compiled"] = median_ratio(times[COMPILED], times[name])
        found.append(row | ({"compile_seconds": seconds} if name == COMPILED else {}))
    return found + refused


def _one_pass(run: Callable[..., Any], arguments: tuple[Any, ...]) -> Action:
    """Forward, and backward to every argument that wants a gradient."""
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    gradients: list[Tensor] = []

    def act() -> object:
        given = run(*arguments)
        results = [r for r in (given if isinstance(given, tuple) else (given,)) if leaves]
        results = [r for r in results if isinstance(r, Tensor) and r.requires_grad]
        if not results:
            return given
        gradients.extend(torch.ones_like(r) for r in results[len(gradients) :])
        return torch.autograd.grad(results, leaves, gradients, allow_unused=True)

    return act


def _add_compiled(
    actions: dict[str, Action], operation: FusedOperation, arguments: tuple[Any, ...]
) -> float:
    """The compiled twin beside the rest, if it can be had; the seconds that compiling took."""
    torch._dynamo.reset()  # what others left would count against its limit
    start = time.perf_counter()
    try:
        compiled = torch.compile(operation.variants[TORCH].run, dynamic=False)
        action = _one_pass(compiled, arguments)
        action()
    except Exception as error:  # whatever a compiler may meet
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        note(f"{operation.name}: not compared with torch.compile, which failed ({reason[:160]})")
    else:
        actions[COMPILED] = action
    return time.perf_counter() - start


def peak_bytes(action: Action, device: torch.device) -> int:
    """The most that one pass held at once, above what was there before, as torch allocates it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would write to stderr
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        action()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
