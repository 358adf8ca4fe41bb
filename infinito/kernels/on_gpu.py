"""Launches of the Triton kernels of the fused operations.

Triton is imported by the first of them. With TRITON_INTERPRET=1 in the environment the kernels run
in Triton's interpreter, on CPU tensors: that is how they are tested without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch

#: Why Triton cannot be used at all, or None: a plain value that torch.compile can guard.
missing: str | None = None if find_spec("triton") else "the triton package is not installed"
interpreted = os.environ.get("TRITON_INTERPRET") == "1"

_FLAT = 1024  # numbers of a program of an elementwise operation: 8 a thread
_TILE = 4096  # numbers of rows that a program has at once
Layout = tuple[tuple[int, ...], dict[str, int]]


def describe() -> str:
    """For reasons and ``doctor``."""
    return "Triton kernels, interpreted" if interpreted else "Triton kernels"


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _tile(width: int) -> dict[str, int]:
    padded = _power(width)
    return {"WIDTH": width, "PADDED": padded, "ROWS": max(1, min(32, _TILE // padded))}


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _flat(given: Mapping[str, Any]) -> Layout:
    return (_blocks(given["count"], _FLAT),), {"BLOCK": _FLAT}


def _rows(given: Mapping[str, Any]) -> Layout:
    tile = _tile(given["width"])
    return (_blocks(given["rows"], tile["ROWS"]),), tile


def _row_blocks(given: Mapping[str, Any]) -> Layout:
    block = given["block_rows"]
    return (_blocks(given["rows"], block),), {**_tile(given["width"]), "BLOCK": block}


def _heads(given: Mapping[str, Any]) -> Layout:
    block = given["block_rows"] if "grad_joined" in given else 8  # sums want long blocks
    counts = {"HEADS": given["heads"], "KEY_HEADS": given["key_heads"], "BLOCK": block}
    return (_blocks(given["tokens"], block), 3), {**_tile(given["width"]), **counts}


def _vocabulary(given: Mapping[str, Any]) -> Layout:
    return (given["rows"],), {"BLOCK": min(_TILE, max(_FLAT, _power(given["vocabulary"])))}


#: Of each kernel, by what it is given: the grid, and the arguments known when it is compiled.
_LAYOUTS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Layout]]] = {
    "residual": ("residual_kernel", _rows),
    "residual backward": ("residual_backward_kernel", _row_blocks),
    "activation": ("activation_kernel", _flat),
    "activation backward": ("activation_kernel", _flat),
    "heads": ("heads_kernel", _heads),
    "softmax slope": ("softmax_slope_kernel", _vocabulary),
    "muon": ("muon_kernel", _flat),
}


def plan_launch(name: str, given: Mapping[str, Any]) -> tuple[Any, Layout, dict[str, Any]]:
    """The kernel of an operation, its grid and constants, and the options of its compilation."""
    from infinito.kernels import triton_passes

    kernel, layout = _LAYOUTS[name]
    grid, constants = layout(given)
    warps = 4 if constants.get("PADDED", 0) <= 2048 else 16
    # The default of later versions of Triton is off.
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return getattr(triton_passes, kernel), (grid, constants), options


def execute(name: str, given: Mapping[str, Any]) -> None:
    """Run an operation on its tensors and numbers, by the names of ``csrc/fused.h``."""
    kernel, (grid, constants), options = plan_launch(name, given)
    arguments = {**given, **constants}
    with torch.cuda.device_of(next(x for x in given.values() if isinstance(x, torch.Tensor))):
        kernel[grid](*(arguments.get(name) for name in kernel.arg_names), **options)
