"""Memory: what the machine has left, and running out of it said in words."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infinito.errors import ResourceError

#: Of mallopt(3), with the largest threshold that it takes on 64 bit.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD = -1, -3, 1 << 25
# torch raises plain RuntimeErrors when a CPU allocation fails.
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "std::bad_alloc")


def available_bytes(device: str) -> int | None:
    """Bytes that can still be had on ``device``; None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    known = [limit for limit in (_free_host_bytes(), _address_space_left()) if limit is not None]
    return min(known, default=None)


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step instead of handing it back to the system.

    A training step frees and takes the same hundreds of megabytes again. By default glibc returns
    the top of its heap in between, and the system then clears every page anew: up to a tenth of a
    bfloat16 step on a CPU, in some steps and not in others. The peak does not change. True where
    this had an effect; other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    trimmed = mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return bool(trimmed and mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))


@contextmanager
def garbage_found_early() -> Iterator[None]:
    """In the body, full garbage collections pass over what exists now, and so come often.

    Python's collector waits with a full collection until a quarter as many new objects have
    survived as there are old ones (``gc.set_threshold``). torch and its imports alone bring some
    300,000: a circle that a step, an evaluation or a save leaves behind stays for thousands of
    steps, and what is allocated around it splits the heap for good.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts the old objects anew: none
    try:
        yield
    finally:
        gc.unfreeze()


def peak_memory_mb(device: str) -> float:
    """Peak memory of ``device`` so far, of the process on a CPU, in MB (10^6 bytes)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@contextmanager
def memory_errors_explained(what: str, remedy: str) -> Iterator[None]:
    """Turn a failed allocation in the body into a ResourceError that names ``what`` was tried."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _SIGNS):
            raise
        raise ResourceError(f"memory does not suffice for {what}", remedy) from error


def _free_host_bytes() -> int | None:
    """MemAvailable of /proc/meminfo: what can be had without swapping."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


def _address_space_left() -> int | None:
    """What a limit on the process's address space (ulimit -v) leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not status.exists():
        return None
    used = int(status.read_text().split()[0]) * resource.getpagesize()
    return max(limit - used, 0)
