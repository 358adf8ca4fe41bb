"""Memory: what the machine has left, and running out of it said in words."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from infinito.errors import ResourceError

#: Of mallopt(3), with the largest threshold that it takes on 64 bit.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD = -1, -3, 1 << 25
# torch raises plain RuntimeErrors when a CPU allocation fails.
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "std::bad_alloc")

#: Of each version of Linux control groups: where they are, limit, use, and the prefix of what is
#: counted with all groups below.
_GROUP_FILES = {
    1: (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_",
    ),
    2: (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
}


class HostMemory(NamedTuple):
    """Bytes that can still be had, of how many, and whose limit that is."""

    free: int
    total: int
    reason: str


def available_bytes(device: str) -> int | None:
    """Bytes that can still be had on ``device``; None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    memory = host_memory()
    return memory.free if memory else None


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


def host_memory() -> HostMemory | None:
    """What this process can still have by the tightest limit; None where the system says nothing.

    The limits: the machine, each control group that the process is in, and its address space.
    """
    known = [*_machine(), *_control_groups(), *_address_space()]
    return min(known, key=lambda memory: memory.free, default=None)


def _machine() -> Iterator[HostMemory]:
    """MemAvailable of Linux: what can be had without swapping."""
    kilobytes = _numbers(Path("/proc/meminfo"))
    if "MemAvailable" in kilobytes:
        free, total = 1024 * kilobytes["MemAvailable"], 1024 * kilobytes["MemTotal"]
        yield HostMemory(free, total, "as the kernel counts it")


def _control_groups() -> Iterator[HostMemory]:
    """The limits of the process's groups and of those above them, of cgroup v1 and v2 alike.

    Cached files count as use, but are given back. Within a container the path may be that of the
    host, of which only the mount's root is to be seen.
    """
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2
        if version == 2 and controllers:
            continue
        mount, limit_file, use_file, prefix = _GROUP_FILES[version]
        group = mount / path.lstrip("/")
        for place in (group, *group.parents[: len(group.parts) - len(mount.parts)]):
            limit, used = _text(place / limit_file).strip(), _text(place / use_file).strip()
            if limit.isdecimal() and used.isdecimal():
                stat = _numbers(place / "memory.stat")
                cached = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                free = max(int(limit) - max(int(used) - cached, 0), 0)
                yield HostMemory(free, int(limit), "the limit of this control group")


def _address_space() -> Iterator[HostMemory]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(Path("/proc/self/statm")).split()
    if limit != resource.RLIM_INFINITY and pages:
        used = int(pages[0]) * resource.getpagesize()
        yield HostMemory(max(limit - used, 0), limit, "the limit of this process (ulimit -v)")


def _numbers(path: Path) -> dict[str, int]:
    """The lines ``NAME NUMBER`` or ``NAME: NUMBER UNIT`` of a file of the kernel."""
    rows = [line.split() for line in _text(path).splitlines()]
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    """What a file of the kernel says; nothing where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
