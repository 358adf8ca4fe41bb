"""Which device a run computes on. ``auto`` decides by capability, never by timing."""

from __future__ import annotations

import torch

from infinito.errors import ResourceError
from infinito.runtime.choice import Choice


def available_devices() -> list[str]:
    """The devices that this machine and this build of torch have, the preferred first."""
    devices = [f"cuda:{index}" for index in range(_cuda_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def choose_device(requested: str) -> Choice:
    """Resolve ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ResourceError: the device asked for is not there; the message names those that are.
    """
    there = available_devices()
    if requested == "auto":
        return _automatic(there)
    if requested in there or (requested == "cuda" and _cuda_count()):
        return Choice(requested, "asked for" + _name_of(requested))
    raise ResourceError(
        f"device {requested} is not there: {_absence(requested)}",
        f"this machine has: {', '.join(there)}; use one of them, or device: auto",
    )


def _automatic(there: list[str]) -> Choice:
    best = there[0].partition(":")[0]
    if best == "cpu":
        return Choice("cpu", f"auto: {_absence('cuda')}")
    return Choice(best, f"auto: the fastest kind found{_name_of(best)}")


def _cuda_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _name_of(device: str) -> str:
    if not device.startswith("cuda"):
        return ""
    return f" ({torch.cuda.get_device_name(torch.device(device))})"


def _absence(device: str) -> str:
    """Why ``device`` cannot be used here."""
    if device == "mps":
        return "Apple's Metal back end is not available"
    if device.startswith("cuda") and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    count = _cuda_count()
    return f"CUDA sees {count} device{'' if count == 1 else 's'}"
