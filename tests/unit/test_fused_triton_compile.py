"""The fused operations in Triton compiled without a GPU: nothing is spilled, and how much is read.

What a pass over memory is worth is that it is one: the bytes that a thread loads and stores are
those of its inputs and outputs, each once, and lie together so that 16 go at a time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.kernels import compiled, on_gpu
from infinito.kernels.fusion import OPERATIONS, StepShape
from tests.unit.test_fused_operations import fresh, results

triton = pytest.importorskip("triton", reason="the triton package is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tests.unit.test_attention_triton_compile import (  # noqa: E402
    MEASURED_WITH,
    disassemble,
    read_machine_code,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(on_gpu.interpreted, reason="Triton interprets in this process"),
    pytest.mark.skipif(triton.__version__ != MEASURED_WITH, reason=f"seen with {MEASURED_WITH}"),
]
TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int8: "*i8",
}  # fmt: skip
Launch = tuple[str, dict[str, Any]]


def launches(
    monkeypatch: pytest.MonkeyPatch, name: str, variant: str, dtype: torch.dtype
) -> list[Launch]:
    """What an operation and its gradient give to Triton, in order."""
    found: list[Launch] = []
    shape = StepShape(batch=2, length=64, width=256, hidden=128, vocabulary=8192, dtype=dtype)
    monkeypatch.setattr(compiled, "serves", lambda _: "triton")
    monkeypatch.setattr(on_gpu, "execute", lambda *launch: found.append(launch))
    results(name, variant, fresh(OPERATIONS[name].inputs(shape)))
    return found


def compile_launch(launch: Launch, architecture: int) -> tuple[Any, int]:
    """The compiled kernel, and the number of threads of a program."""
    kernel, (_, constants), options = on_gpu.plan_launch(*launch)
    given = {**launch[1], **constants}
    types, known, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value = given.get(name)
        if isinstance(value, torch.Tensor):
            types[name] = TYPES[value.dtype]
            aligned[place,] = [["tt.divisibility", 16]]
        elif value is None or name in constants:
            types[name] = "constexpr"
            known[name] = value
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
            if name in ("count", "rows", "vocabulary"):
                aligned[place,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=types, constexprs=known, attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=options), 32 * options["num_warps"]


def moved_bytes(code: str) -> dict[int, int]:
    """Bytes that a thread moves between memory and registers, by the size of an access."""
    found: dict[int, int] = {}
    for parts in re.findall(r"\b(?:LDG|STG)((?:\.\w+)+)", code):
        width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", parts)
        size = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width[1]] if width else 4
        found[size] = found.get(size, 0) + size
    return found


def bytes_a_number(launch: Launch) -> int:
    """Of one number of all that is read or written, each once; 0 where a kernel has loops."""
    name, given = launch
    if name in ("heads", "residual backward", "softmax slope"):
        return 0
    big = [x for x in given.values() if isinstance(x, torch.Tensor) and x.dim() > 1]
    twice = [given[field] for field in ("buffer", "parameter") if field in given]
    return sum(x.element_size() for x in (*big, *twice) if len(x))


def numbers_of_program(launch: Launch) -> int:
    _, (_, constants), _ = on_gpu.plan_launch(*launch)
    return constants["ROWS"] * constants["PADDED"] if "ROWS" in constants else constants["BLOCK"]


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [(80, torch.bfloat16), (90, torch.float16), (90, torch.float32)],
)
def test_nothing_is_spilled_and_all_is_read_once(
    architecture: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, operation in OPERATIONS.items():
        variant = "triton_counter" if "triton_counter" in operation.variants else "triton"
        with monkeypatch.context() as patch:
            found = launches(patch, name, variant, dtype)
        for launch in found:
            kernel, threads = compile_launch(launch, architecture)
            path = tmp_path / "kernel.cubin"
            path.write_bytes(kernel.asm["cubin"])
            resources, instructions = read_machine_code(path)
            moved = moved_bytes(disassemble(path))
            print(f"{name}: {launch[0]} {dtype} sm_{architecture}:", resources, end=" ")
            print(f"{instructions.total()} instructions, bytes by size of an access {moved}")
            assert resources["STACK"] == resources["LOCAL"] == 0, launch[0]
            assert not any(key.startswith(("ATOM", "RED")) for key in instructions), "an atomic"
            each = bytes_a_number(launch)
            if each:
                assert moved[16] == each * numbers_of_program(launch) // threads, launch[0]
