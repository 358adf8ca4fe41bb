"""L1 and L2 attention by Triton against torch's fused dot product, on one GPU, as one JSON object.

    python benchmarks/attention_gpu.py [T ...]        (default: 1024 4096)

bfloat16, causal, B = H = 8, D = 64. Methods take turns; times are medians by CUDA events. The
floor of L1's forward pass is 128 maxima a clock and multiprocessor (packed, two a lane) at the
device's top clock; everything else in the pass can overlap with them.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.attention import distance_attention

BATCH, HEADS, WIDTH, ROUNDS = 8, 8, 64, 20
Method = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def l1(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return distance_attention(q, k, v, "l1", 1.0, backend="triton")


def l2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return distance_attention(q, k, v, "l2", 1.0, backend="triton")


METHODS: dict[str, Method] = {"sdpa": sdpa, "l1": l1, "l2": l2}


def l1_floor_ms(length: int) -> float | None:
    device = torch.cuda.get_device_properties(0)
    clock_khz = getattr(device, "clock_rate", None)  # absent in some releases of torch
    if clock_khz is None:
        return None
    elements = BATCH * HEADS * WIDTH * length * (length + 1) / 2
    return float(elements / (128 * device.multi_processor_count * clock_khz))


def milliseconds(action: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    action()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def measure(length: int) -> list[dict[str, object]]:
    shape = (BATCH, HEADS, length, WIDTH)
    q, k, v = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    grad = torch.randn_like(q)
    forward: dict[str, list[float]] = {name: [] for name in METHODS}
    both: dict[str, list[float]] = {name: [] for name in METHODS}
    peak = {}
    for turn in range(ROUNDS + 2):  # two to warm up
        for name, method in METHODS.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.no_grad():
                first = milliseconds(lambda: method(q, k, v))  # noqa: B023
            second = milliseconds(lambda: method(q, k, v).backward(grad))  # noqa: B023
            peak[name] = torch.cuda.max_memory_allocated() - before
            q.grad = k.grad = v.grad = None
            if turn >= 2:
                forward[name].append(first)
                both[name].append(second)
    base, base_both = (statistics.median(x["sdpa"]) for x in (forward, both))
    return [
        {
            "kind": name,
            "queries": length,
            "forward_floor_ms": l1_floor_ms(length) if name == "l1" else None,
            "forward_ms": statistics.median(forward[name]),
            "forward_ratio": statistics.median(forward[name]) / base,
            "forward_backward_ms": statistics.median(both[name]),
            "forward_backward_ratio": statistics.median(both[name]) / base_both,
            "peak_bytes": peak[name],
        }
        for name in METHODS
    ]


def main() -> None:
    lengths = [int(x) for x in sys.argv[1:]] or [1024, 4096]
    device = torch.cuda.get_device_properties(0)
    print(
        json.dumps(
            {
                "device": device.name,
                "torch": torch.__version__,
                "shape": {"batch": BATCH, "heads": HEADS, "width": WIDTH, "dtype": "bfloat16"},
                "rows": [row for length in lengths for row in measure(length)],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
