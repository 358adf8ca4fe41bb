"""The Triton kernels in Triton's interpreter, on the CPU, against the float64 reference.

The interpreter must be asked for before Triton is imported, so the cases run in a process of
their own. What only a GPU shows (layouts, registers, races) is not seen here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support import ROOT

PROGRAM = """
import sys
import torch
from infinito.attention import distance_attention
from infinito.attention.reference import distance_attention as reference

torch.manual_seed(0)
kind, batch, heads, key_heads, queries, keys, width, dropout, alibi = eval(sys.argv[1])
shapes = ((heads, queries), (key_heads, keys), (key_heads, keys))
inputs = [torch.randn(batch, h, n, width).requires_grad_() for h, n in shapes]
inputs.append(torch.rand(heads).add(0.5).requires_grad_())
exact = [x.detach().double().requires_grad_() for x in inputs]
options = dict(dropout_p=dropout, dropout_seed=7)
options["alibi_slopes"] = torch.linspace(0.1, 0.3, heads) if alibi else None
gradient = torch.randn(batch, heads, queries, width)
output = distance_attention(*inputs[:3], kind, inputs[3], backend="triton", **options)
expected = reference(*exact[:3], kind, exact[3], **options)
torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
ours = torch.autograd.grad(output, inputs, gradient)
theirs = torch.autograd.grad(expected, exact, gradient.double())
for a, b in zip(ours, theirs, strict=True):
    torch.testing.assert_close(a.double(), b, atol=3e-5, rtol=1e-4)
"""


@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, 1, 9, 9, 8, 0.0, False),
        (2, 2, 2, 5, 17, 24, 0.3, True),
        (1, 1, 1, 1, 7, 16, 0.0, False),
    ],
)
def test_values_and_gradients_equal_the_reference(kind: str, shape: tuple[object, ...]) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr((kind, *shape))],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
