"""Every Triton kernel compiled for sm_80 and sm_90, without a GPU, within a budget.

Registers, spills and instructions are read from the machine code. The budgets are those of the
compiler named in ``MEASURED_WITH`` with a tenth of room: another one may need new numbers.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.attention import triton as back_end
from infinito.attention.call import prepare_call
from infinito.kernels import on_gpu

triton = pytest.importorskip("triton", reason="the triton package is not installed")
from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from infinito.attention import triton_kernels as kernels  # noqa: E402

MEASURED_WITH = "3.9.0"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(on_gpu.interpreted, reason="Triton interprets in this process"),
    pytest.mark.skipif(
        triton.__version__ != MEASURED_WITH, reason=f"budgets hold for Triton {MEASURED_WITH}"
    ),
]
#: kernel, kind, D -> instructions of the whole kernel (the larger of the two chips)
BUDGETS = {
    ("forward", "l1", 64): 1232,
    ("query_gradient", "l1", 64): 2768,
    ("key_gradient", "l1", 64): 2520,
    ("forward", "l2", 64): 1680,
    ("query_gradient", "l2", 64): 1144,
    ("key_gradient", "l2", 64): 936,
    ("query_gradient", "l1", 128): 2792,
    ("forward", "l1", 128): 1304,
    ("key_gradient", "l1", 128): 2536,
    ("key_gradient", "l2", 128): 1264,
    ("forward", "l2", 256): 1904,
    ("forward", "dot", 64): 1104,
}
FLOATS = ("logsumexp_base", "delta_base", "lam_base", "slopes_base", "grad_lam_base")


def compile_kernel(name: str, kind: Any, width: int, architecture: int) -> Any:
    """The kernel in bfloat16, causal, with the tile that a call of that width would take."""
    x = torch.zeros(1, 1, 1, width, dtype=torch.bfloat16)
    call = prepare_call(x, x, x, kind, 1.0, True, 0.0, None, None, None)
    constants = back_end.make_constants(call, backward=name != "forward")
    chosen = ("num_warps", "num_stages", "enable_fp_fusion")
    options = {key: constants.pop(key) for key in chosen}
    function = getattr(kernels, f"{name}_kernel")
    types = {name: _type(name, constants) for name in function.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(types)
        if name in ("queries", "keys") or name.endswith("_base")
    }
    source = ASTSource(function, signature=types, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _type(name: str, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name == "seed_base":
        return "*i64"
    if name.endswith("_base"):
        return "*fp32" if name in FLOATS else "*bf16"
    return "fp32" if name in ("scale", "keep_scale") else "i32"


def disassemble(path: Path) -> str:
    return subprocess.check_output([knobs.nvidia.nvdisasm.path, "-c", path], text=True)


def read_machine_code(path: Path) -> tuple[dict[str, int], Counter[str]]:
    """REG, STACK and LOCAL of the kernel, and how often each instruction stands in it."""
    tool = knobs.nvidia
    usage = subprocess.check_output([tool.cuobjdump.path, "-res-usage", path], text=True)
    code = disassemble(path)
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]+)", code)
    resources = re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)
    return {name: int(value) for name, value in resources}, Counter(names)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("name", "kind", "width"), list(BUDGETS))
def test_within_budget(name: str, kind: str, width: int, architecture: int, tmp_path: Path) -> None:
    compiled = compile_kernel(name, kind, width, architecture)
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    resources, instructions = read_machine_code(path)
    total = instructions.total()
    print(f"{name} {kind} D={width} sm_{architecture}: {resources}, {total} instructions,", end=" ")
    print({key: instructions[key] for key in ("HMNMX2", "HMMA", "HGMMA", "STL", "LDL", "BAR")})
    assert resources["STACK"] == resources["LOCAL"] == 0
    assert instructions["STL"] == instructions["LDL"] == 0
    assert resources["REG"] <= 255
    assert total <= BUDGETS[name, kind, width] * 1.1
    assert not any(key.startswith(("ATOM", "RED")) for key in instructions), "an atomic"


@pytest.mark.parametrize("architecture", [80, 90])
def test_l1_scores_are_packed_maxima_summed_on_tensor_cores(
    architecture: int, tmp_path: Path
) -> None:
    """Half an instruction for an element: 2 maxima in one, and no addition of single elements."""
    compiled = compile_kernel("forward", "l1", 64, architecture)
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    _, instructions = read_machine_code(path)
    tile = back_end.choose_tile("l1", torch.bfloat16, 64, backward=False)
    elements = tile.rows * tile.columns * 64 // (32 * tile.warps)  # of one thread, one step
    assert instructions["HMNMX2"] == elements // 2
    assert instructions["HMMA"] >= elements // 4
    assert instructions["FADD"] < elements // 2
