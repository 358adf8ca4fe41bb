"""What this machine offers a run: each fact with its reason and, where one helps, a remedy."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from infinito.runtime.cores import available_cores
from infinito.runtime.device import available_devices, choose_device
from infinito.runtime.memory import host_memory
from infinito.runtime.precision import choose_precision, unsupported_reason
from infinito.version import __version__

LIBRARIES = (
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "typer",
    "rich",
    "tqdm",
    "pyyaml",
    "matplotlib",
)
#: The package of each extra.
EXTRAS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "search": "optuna",
    "eval": "lm-eval",
}
_FUSED = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
_LOW_GB = 2.0  # of memory, and of disk
_GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` is empty where nothing is missing."""

    name: str
    value: str
    reason: str
    remedy: str = ""


def examine(directory: Path) -> list[Finding]:
    """Every finding about this machine; ``directory`` is where runs would be written."""
    device = choose_device("auto").value
    return [
        *_compute(device),
        _fused_attention(device),
        _memory(),
        *_device_memory(device),
        _disk(directory),
        _threads(),
        _compiler(),
        *_versions(),
    ]


def _compute(device: str) -> list[Finding]:
    choice = choose_device("auto")
    others = [name for name in available_devices() if name != device]
    precision = choose_precision("auto", device)
    findings = [
        Finding(
            "device", choice.value, choice.reason, f"also here: {', '.join(others)}" * bool(others)
        ),
        Finding("precision", precision.value, precision.reason),
    ]
    for name in ("float32", "bfloat16", "float16"):
        obstacle = unsupported_reason(name, device)
        value = "no" if obstacle else "yes"
        findings.append(Finding(f"dtype {name}", value, obstacle or f"tried on {device}"))
    return findings


def _fused_attention(device: str) -> Finding:
    """Which kernels torch's own attention has here, each tried on a tiny input."""
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    query = torch.ones(1, 1, 8, 16, device=device, dtype=dtype)
    found = []
    for name, kernel in _FUSED.items():
        with warnings.catch_warnings(), suppress(RuntimeError), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # torch warns of each reason, then raises
            F.scaled_dot_product_attention(query, query, query, is_causal=True)
            found.append(name)
    return Finding("torch attention", ", ".join(found) or "none", f"tried on {device}")


def _memory() -> Finding:
    memory = host_memory()
    if memory is None:
        reason = f"{platform.system()} does not tell without further packages"
        return Finding("memory", "unknown", reason)
    low = memory.free < _LOW_GB * _GB
    remedy = "close other programs, or lower training.batch_size" * low
    value = f"{memory.free / _GB:.1f} GB free of {memory.total / _GB:.1f} GB"
    return Finding("memory", value, memory.reason, remedy)


def _device_memory(device: str) -> list[Finding]:
    if torch.device(device).type != "cuda":
        return []
    free, total = torch.cuda.mem_get_info(torch.device(device))
    value = f"{free / _GB:.1f} GB free of {total / _GB:.1f} GB"
    return [Finding("device memory", value, torch.cuda.get_device_name(device))]


def _disk(directory: Path) -> Finding:
    there = directory.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    reason = f"where {directory} lies" + ("" if writable else ", which cannot be written")
    remedy = ""
    if not writable or free < _LOW_GB * _GB:
        remedy = "name another place with --output-dir"
    return Finding("disk", f"{free / _GB:.1f} GB free", reason, remedy)


def _threads() -> Finding:
    threads, cores = torch.get_num_threads(), available_cores()
    reason = f"{cores} logical cores may be used"
    if "OMP_NUM_THREADS" in os.environ:
        reason += f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    remedy = "set OMP_NUM_THREADS to at most the number of cores" if threads > cores else ""
    return Finding("threads", str(threads), reason, remedy)


def _compiler() -> Finding:
    candidates = [os.environ.get("CXX"), "c++", "g++", "clang++", "cl"]
    found = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if found:
        return Finding("C++ compiler", Path(found).name, "training.fusion: aggressive can compile")
    return Finding(
        "C++ compiler",
        "none",
        "training.fusion: aggressive falls back to eager on a CPU",
        "install g++ or clang++, or set CXX",
    )


def _versions() -> list[Finding]:
    return [
        Finding("infinito", __version__, "this program"),
        Finding("python", platform.python_version(), f"{platform.system()} {platform.machine()}"),
        Finding("torch", torch.__version__, "required"),
        *(_package(name, name, "required", f"pip install {name}") for name in LIBRARIES),
        *(
            _package(f"extra {extra}", name, "optional", f'pip install "infinito[{extra}]"')
            for extra, name in EXTRAS.items()
        ),
    ]


def _package(name: str, package: str, need: str, remedy: str) -> Finding:
    try:
        return Finding(name, version(package), need)
    except PackageNotFoundError:
        return Finding(name, "missing", need, remedy)
