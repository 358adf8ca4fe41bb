"""Peak memory of one attention call, in a process of its own: ``python -m`` this module.

Prints how many bytes the resident set rose above the inputs during one forward and backward.
Linux only: it resets and reads the high-water mark under /proc.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"


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
    import torch

    from infinito.bench.attention_speed import make_inputs, run_kind

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
